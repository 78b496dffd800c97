package api

import (
	"fmt"
	"strings"
	"testing"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// What an operator reads of a manager, by what is known of its agent; the event says the same.
func TestNodesShowWhatIsKnownOfThem(t *testing.T) {
	c := &cluster{t: t, store: openStore(t)}
	// observed writes what is known of the agent and returns the state with it.
	observed := func(p raftstore.Presence) *raftstore.State {
		c.update(func(tx *raftstore.Tx) {
			row := raftstore.Node{Role: swarm.NodeRoleManager, Address: "10.0.0.2:2377"}
			if before, ok := tx.Nodes.Get(nodeTwo); ok {
				row = *before
			}
			row.ID = nodeTwo
			row.Observe(raftstore.Session{Presence: p, Reason: "restart"})
			tx.PutObservedNode(row)
		})
		return c.store.Local()
	}
	var got strings.Builder
	last := observed(raftstore.PresenceHeard)
	for _, p := range presences() {
		now := observed(p)
		row, _ := now.Nodes.Get(nodeTwo)
		n := renderNode(row, map[string]raftstore.Member{nodeTwo: {NodeID: nodeTwo, Address: row.Address, Reachable: true}})
		fmt.Fprintf(&got, "%s: %s, %s, %q", p, n.Status.State, n.ManagerStatus.Reachability, n.Status.Message)
		if m := nodeChange(last, now, nodeTwo); m != nil {
			fmt.Fprintf(&got, " event %s→%s", m.Actor.Attributes["state.old"], m.Actor.Attributes["state.new"])
		}
		got.WriteString("\n")
		last = now
	}
	want := `: unknown, reachable, "" event ready→unknown
heard: ready, reachable, "" event unknown→ready
announced: disconnected, reachable, "the node announced: restart" event ready→disconnected
away: disconnected, reachable, "its agent does not answer, its containers run on"
suspect: unknown, unreachable, "the node does not answer, new connections avoid it" event disconnected→unknown
lost: unknown, reachable, "the manager that heard the node is lost"
down: down, unreachable, "the node announced: restart" event unknown→down
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}
