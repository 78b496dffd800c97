package agent

import (
	"maps"
	"slices"

	"swarm/gossip"
	"swarm/raftstore"
)

// Suspects are the ids of the nodes whose endpoints new connections should avoid while others exist: those that the managers
// suspect or gave up. As long as no manager can be reached, gossip is the witness: who is dead to it counts too.
func (m *membership) Suspects() []string {
	suspects := m.roster.suspects()
	if g := m.gossip.Load(); g != nil && !m.inSession.Load() {
		for _, member := range g.Members() {
			if member.State == gossip.Dead {
				suspects[member.NodeID] = true
			}
		}
	}
	delete(suspects, m.identity.NodeID())
	return slices.Sorted(maps.Keys(suspects))
}

// suspects are the members that the managers suspect or gave up.
func (r *roster) suspects() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string]bool{}
	for id, m := range r.members {
		switch raftstore.Presence(m.Presence) {
		case raftstore.PresenceSuspect, raftstore.PresenceDown:
			found[id] = true
		}
	}
	return found
}
