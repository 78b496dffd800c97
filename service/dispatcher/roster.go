package dispatcher

import (
	"maps"
	"slices"
	"sync"
	"time"

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
	// whole is the roster as it was at wholeAt, for those who know nothing yet; nil at first.
	whole   *rpc.ManagerMessage
	wholeAt rosterPosition
	// changes are what brings sessions from their positions to changesAt.
	changes   map[rosterPosition]*rpc.ManagerMessage
	changesAt rosterPosition
}

// rosterAgeShare of a roster may have changed since it was made whole.
const rosterAgeShare = 16

// rosterPosition is how far a session is; 0 is nowhere.
type rosterPosition uint64

func newRoster() *roster {
	return &roster{members: map[string]*rpc.Member{}, start: 1, changes: map[rosterPosition]*rpc.ManagerMessage{}}
}

// news is how soon the agents have to hear of a change.
type news uint8

const (
	nothingNew news = iota
	// newsInTime: somebody joined, or came back from an announced restart. Every agent hears of every one, so in a time in which
	// many join, news go together.
	newsInTime
	// newsNow: somebody fell silent or is heard again, moved, was removed, or is something else now.
	newsNow
)

// rosterPace is how long news in time wait for more, rosterPacePerSession how much longer for each session, up to rosterPaceMax. To tell
// an agent anything costs manager and agent some 50 µs each: while 1,000 join, the roster takes a fifth of a core and not all of it.
const (
	rosterPace           = 100 * time.Millisecond
	rosterPacePerSession = 500 * time.Microsecond
	rosterPaceMax        = time.Second
)

// update reads what changed.
func (r *roster) update(state *raftstore.State, dirty raftstore.Dirty, also []string, voters map[string]bool) (is news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if dirty.All {
		for n := range state.Nodes.All() {
			is = max(is, r.set(n.ID, memberOf(n, voters)))
		}
		for id := range r.members {
			if _, ok := state.Nodes.Get(id); !ok {
				is = max(is, r.set(id, nil))
			}
		}
		return is
	}
	for _, id := range slices.Concat(slices.Collect(maps.Keys(dirty.Nodes)), also) {
		var m *rpc.Member
		if n, ok := state.Nodes.Get(id); ok {
			m = memberOf(n, voters)
		}
		is = max(is, r.set(id, m))
	}
	return is
}

// urgency says how soon agents have to hear that old became m.
func urgency(old, m *rpc.Member) news {
	newcomer := old == nil || old.Presence == ""
	returned := newcomer || old.Presence == string(raftstore.PresenceAnnounced)
	switch {
	case m == nil, !newcomer && (old.Role != m.Role || old.Address != m.Address || old.Voter != m.Voter), newcomer && m.Voter:
		return newsNow
	case returned && (m.Presence == "" || m.Presence == string(raftstore.PresenceHeard)):
		return newsInTime
	}
	return newsNow
}

func memberOf(n *raftstore.Node, voters map[string]bool) *rpc.Member {
	return &rpc.Member{NodeId: n.ID, Role: string(n.Role), Address: n.Address, Voter: voters[n.ID], Presence: string(n.Session.Presence)}
}

// set takes one member, nil for one that is gone. Called with mu held.
func (r *roster) set(id string, m *rpc.Member) (is news) {
	old, known := r.members[id]
	switch {
	case m == nil && !known, m != nil && known && proto.Equal(old, m):
		return nothingNew
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
	return urgency(old, m)
}

// since is what changed after a position, nil for nothing, and the position that an agent has with it. The whole roster may be a
// little old, for it is shared by the many that ask for it when many join: ask again until there is nothing.
func (r *roster) since(at rosterPosition) (*rpc.ManagerMessage, rosterPosition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := rosterPosition(r.start + uint64(len(r.log)))
	switch {
	case len(r.members) == 0:
		return nil, at // nothing was read yet: a cluster has at least one node
	case at == now:
		return nil, now
	case uint64(at) < r.start:
		if r.whole == nil || uint64(r.wholeAt) < r.start || int(now-r.wholeAt) > len(r.members)/rosterAgeShare {
			r.whole, r.wholeAt = encoded(&rpc.Roster{Full: true, Members: slices.Collect(maps.Values(r.members))}), now
		}
		return r.whole, r.wholeAt
	}
	if r.changesAt != now {
		clear(r.changes)
		r.changesAt = now
	}
	if r.changes[at] == nil {
		r.changes[at] = encoded(r.change(at))
	}
	return r.changes[at], now
}

// change is what changed after a position that the log reaches back to. Called with mu held.
func (r *roster) change(at rosterPosition) *rpc.Roster {
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
	return change
}

// encoded is a message with a roster that is the same for many agents, and so encoded once: to protobuf it is an empty one with fields
// that it does not know, which it copies as they are.
func encoded(r *rpc.Roster) *rpc.ManagerMessage {
	plain := &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Roster{Roster: r}}
	b, err := proto.Marshal(plain)
	if err != nil {
		return plain
	}
	m := &rpc.ManagerMessage{}
	m.ProtoReflect().SetUnknown(b)
	return m
}
