package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"swarm/rpc"
)

func TestRosterDecidesWhoIsRefused(t *testing.T) {
	r := newRoster()
	member := func(id, role string) *rpc.Member {
		return &rpc.Member{NodeId: id, Role: role, Address: id + ":2377", Voter: role == "manager"}
	}
	r.apply(&rpc.Roster{Full: true, Members: []*rpc.Member{member("m1", "manager"), member("m2", "manager"), member("w1", "worker")}})
	lessened := r.apply(&rpc.Roster{Members: []*rpc.Member{member("m2", "worker"), member("m1", "manager")}, RemovedNodeIds: []string{"w1"}})
	if !slices.Equal(lessened, []string{"m2", "w1"}) {
		t.Errorf("connections to cut: %v, want those of m2 and w1", lessened)
	}
	var got strings.Builder
	for _, p := range []rpc.Peer{
		{NodeID: "m1", Role: rpc.Manager},
		{NodeID: "m2", Role: rpc.Manager},
		{NodeID: "m2", Role: rpc.Worker},
		{NodeID: "w1", Role: rpc.Worker},
		{NodeID: "new", Role: rpc.Worker},
		{NodeID: "new", Role: rpc.Manager},
	} {
		verdict := "admitted"
		if err := r.authorize(p); err != nil {
			verdict = err.Error()
		}
		fmt.Fprintf(&got, "%s as %s: %s\n", p.NodeID, p.Role, verdict)
	}
	want := `m1 as manager: admitted
m2 as manager: node m2 is not a manager of the swarm any more
m2 as worker: admitted
w1 as worker: node w1 was removed from the swarm
new as worker: admitted
new as manager: node new is not a manager of the swarm any more
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
	if peers := r.managers(); len(peers) != 1 || peers[0].NodeID != "m1" {
		t.Errorf("managers are %v, want m1 alone", peers)
	}
}

func TestOnlyChangesOfPresenceAreNews(t *testing.T) {
	r := newRoster()
	var got []string
	take := func(full bool, presences ...string) {
		update := &rpc.Roster{Full: full}
		for i, p := range presences {
			update.Members = append(update.Members, &rpc.Member{NodeId: fmt.Sprint("n", i+1), Presence: p})
		}
		for _, m := range r.news(update) {
			got = append(got, m.NodeId+" "+m.Presence)
		}
		r.apply(update)
	}
	take(true, "heard", "", "down")
	take(false, "heard", "heard", "down")
	take(true, "suspect", "heard", "down")
	take(false, "heard")
	if want := "[n3 down n2 heard n1 suspect n1 heard]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestRemovedNodesAreForgottenOldestFirst(t *testing.T) {
	r := newRoster()
	for i := range removedMax + 1 {
		r.apply(&rpc.Roster{RemovedNodeIds: []string{fmt.Sprint("n", i)}})
	}
	if err := r.authorize(rpc.Peer{NodeID: "n0", Role: rpc.Worker}); err != nil {
		t.Errorf("the oldest removal is still held: %v", err)
	}
	if err := r.authorize(rpc.Peer{NodeID: fmt.Sprint("n", removedMax), Role: rpc.Worker}); err == nil {
		t.Error("the newest removal was forgotten")
	}
}
