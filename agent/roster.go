package agent

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	"swarm/raftstore"
	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// removedMax bounds the memory of removed nodes; the oldest are forgotten first, their certificates expire.
	removedMax = 4096
	// seedsMax is how many members gossip tries to join through: a few suffice to find all.
	seedsMax = 16
)

// presenceHeard is that of a node that some manager hears.
const presenceHeard = string(raftstore.PresenceHeard)

// roster is who belongs to the cluster, as the managers tell every agent.
type roster struct {
	mu      sync.Mutex // guards the fields below
	members map[string]*rpc.Member
	removed map[string]struct{}
	order   []string // of removed, oldest first
}

func newRoster() *roster {
	return &roster{members: map[string]*rpc.Member{}, removed: map[string]struct{}{}}
}

// news are the members whose presence an update changes; of a node that was not known, only what is not ordinary is news.
func (r *roster) news(update *rpc.Roster) []*rpc.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(update.Members), func(m *rpc.Member) bool {
		known := r.members[m.NodeId]
		if known == nil {
			return m.Presence == "" || m.Presence == presenceHeard
		}
		return known.Presence == m.Presence
	})
}

// apply takes a full roster or a change of it and returns the ids of nodes whose standing became less, so
// that their open connections must end.
func (r *roster) apply(update *rpc.Roster) (lessened []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := maps.Clone(r.members)
	if update.Full {
		clear(r.members)
	}
	for _, m := range update.Members {
		if b := before[m.NodeId]; b != nil && b.Role == string(rpc.Manager) && m.Role != b.Role {
			lessened = append(lessened, m.NodeId)
		}
		r.members[m.NodeId] = m
		delete(r.removed, m.NodeId)
	}
	for _, id := range update.RemovedNodeIds {
		delete(r.members, id)
		if _, known := r.removed[id]; known {
			continue
		}
		lessened = append(lessened, id)
		r.removed[id] = struct{}{}
		r.order = append(r.order, id)
		if len(r.order) > removedMax {
			delete(r.removed, r.order[0])
			r.order = r.order[1:]
		}
	}
	return lessened
}

// authorize says why a peer with a valid certificate is refused: it was removed, or is not what its certificate says any more.
// A worker that this roster does not know yet may just have joined; a manager that it does not know is refused.
func (r *roster) authorize(p rpc.Peer) error {
	if err := r.refuseRemoved(p); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Role != rpc.Manager || len(r.members) == 0 {
		return nil
	}
	if m := r.members[p.NodeID]; m == nil || m.Role != string(rpc.Manager) {
		return outdatedRole(p)
	}
	return nil
}

// refuseRemoved refuses a node that was removed.
func (r *roster) refuseRemoved(p rpc.Peer) error {
	if r.wasRemoved(p.NodeID) {
		return removedNode(p)
	}
	return nil
}

func (r *roster) wasRemoved(nodeID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, gone := r.removed[nodeID]
	return gone
}

func removedNode(p rpc.Peer) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("node %s was removed from the swarm", p.NodeID))
}

// reached refuses to speak to nodes that were removed, whatever their certificates say.
type reached struct{ roster *roster }

// Authorize lets all others be: whether they are managers is for their certificates to say, which are newer than the roster may be.
func (r reached) Authorize(p rpc.Peer) error {
	if r.roster.wasRemoved(p.NodeID) {
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("node %s at %s was removed from the swarm", p.NodeID, p.Address))
	}
	return nil
}

// outdatedRole refuses a certificate whose role is over; of this kind, the port still lets its holder renew it.
func outdatedRole(p rpc.Peer) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("node %s is not a manager of the swarm any more", p.NodeID))
}

// forget empties the roster: what it says is of a cluster that is no more.
func (r *roster) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.members)
}

// size is how many nodes the cluster has, as far as is known.
func (r *roster) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.members)
}

// managers are the members that serve sessions and API calls, as GET /info lists them.
func (r *roster) managers() []swarm.Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var peers []swarm.Peer
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		if m := r.members[id]; m.Voter && m.Address != "" {
			peers = append(peers, swarm.Peer{NodeID: id, Addr: m.Address})
		}
	}
	return peers
}

// address of a member's node port; empty if it is not known.
func (r *roster) address(nodeID string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.members[nodeID]; m != nil {
		return m.Address
	}
	return ""
}

func (r *roster) managerAddresses() []string {
	var addresses []string
	for _, p := range r.managers() {
		addresses = append(addresses, p.Addr)
	}
	return addresses
}

// workerAddresses are those of the members that are no managers, without this node's own.
func (r *roster) workerAddresses(self string) (addresses []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.members {
		if !m.Voter && m.Address != "" && id != self {
			addresses = append(addresses, m.Address)
		}
	}
	return addresses
}

// gossipSeeds are other members' gossip addresses, managers first.
func (r *roster) gossipSeeds(self string, port int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var managers, workers []string
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		m := r.members[id]
		host, _, err := net.SplitHostPort(m.Address)
		if err != nil || id == self {
			continue
		}
		seed := net.JoinHostPort(host, strconv.Itoa(port))
		if m.Voter {
			managers = append(managers, seed)
		} else {
			workers = append(workers, seed)
		}
	}
	seeds := append(managers, workers...)
	return seeds[:min(len(seeds), seedsMax)]
}
