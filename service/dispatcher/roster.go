package dispatcher

import (
	"maps"
	"slices"
	"sync"

	"swarm/raftstore"
	"swarm/rpc"

	"google.golang.org/protobuf/proto"
)

// rosterLogMax is how many changes are remembered; a session that is further behind gets the whole roster.
const rosterLogMax = 4096

// roster is who is in the cluster, the same for all sessions, with the latest changes.
type roster struct {
	mu      sync.Mutex
	members map[string]*rpc.Member
	// log are the ids of changed members; its first entry has the position start.
	log   []string
	start uint64
}

// rosterPosition is how far a session is; 0 is nowhere.
type rosterPosition uint64

func newRoster() *roster { return &roster{members: map[string]*rpc.Member{}, start: 1} }

// update reads what changed and says whether any member did.
func (r *roster) update(state *raftstore.State, dirty raftstore.Dirty, also []string, voters map[string]bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if dirty.All {
		for n := range state.Nodes.All() {
			changed = r.set(n.ID, memberOf(n, voters)) || changed
		}
		for id := range r.members {
			if _, ok := state.Nodes.Get(id); !ok {
				changed = r.set(id, nil) || changed
			}
		}
		return changed
	}
	for _, id := range slices.Concat(slices.Collect(maps.Keys(dirty.Nodes)), also) {
		var m *rpc.Member
		if n, ok := state.Nodes.Get(id); ok {
			m = memberOf(n, voters)
		}
		changed = r.set(id, m) || changed
	}
	return changed
}

func memberOf(n *raftstore.Node, voters map[string]bool) *rpc.Member {
	return &rpc.Member{NodeId: n.ID, Role: string(n.Role), Address: n.Address, Voter: voters[n.ID], Presence: string(n.Session.Presence)}
}

// set takes one member, nil for one that is gone. Called with mu held.
func (r *roster) set(id string, m *rpc.Member) (changed bool) {
	old, known := r.members[id]
	switch {
	case m == nil && !known, m != nil && known && proto.Equal(old, m):
		return false
	case m == nil:
		delete(r.members, id)
	default:
		r.members[id] = m
	}
	r.log = append(r.log, id)
	if len(r.log) > rosterLogMax {
		drop := len(r.log) / 2
		r.log = slices.Clone(r.log[drop:])
		r.start += uint64(drop)
	}
	return true
}

// since is what changed after a position, nil for nothing, and the position of now.
func (r *roster) since(at rosterPosition) (*rpc.Roster, rosterPosition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := rosterPosition(r.start + uint64(len(r.log)))
	switch {
	case len(r.members) == 0:
		return nil, at // nothing was read yet: a cluster has at least one node
	case at == now:
		return nil, now
	case uint64(at) < r.start:
		all := &rpc.Roster{Full: true}
		for _, id := range slices.Sorted(maps.Keys(r.members)) {
			all.Members = append(all.Members, r.members[id])
		}
		return all, now
	}
	ids := slices.Clone(r.log[uint64(at)-r.start:])
	slices.Sort(ids)
	change := &rpc.Roster{}
	for _, id := range slices.Compact(ids) {
		if m, ok := r.members[id]; ok {
			change.Members = append(change.Members, m)
		} else {
			change.RemovedNodeIds = append(change.RemovedNodeIds, id)
		}
	}
	return change, now
}
