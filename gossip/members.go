package gossip

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// nameBytesMax bounds a node id.
	nameBytesMax = 64
	// membersMax bounds the members that are remembered, forgetAfter how long one that is dead or left is.
	membersMax  = 4096
	forgetAfter = time.Hour
)

// The states of a member. A suspicion is an inner matter of the library until it is confirmed or refuted.
const (
	Alive = "alive"
	Dead  = "dead"
	Left  = "left"
)

// Member is one node.
type Member struct {
	NodeID  string
	Address string // host:port
	State   string // Alive, Dead or Left
}

// members is what the library tells, remembered: it forgets the dead within a minute. It implements the library's delegates.
type members struct {
	self      string
	clusterID string
	log       *slog.Logger
	// leaving goes into this node's own metadata, so that others can tell leaving from dying.
	leaving atomic.Bool

	mu   sync.Mutex
	seen map[string]sighting
}

// sighting is the latest news of a member.
type sighting struct {
	Member
	ended time.Time // of one that is dead or left
}

func newMembers(cfg Config, log *slog.Logger) *members {
	return &members{self: cfg.NodeID, clusterID: cfg.ClusterID, log: log, seen: map[string]sighting{}}
}

func (m *members) list() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prune()
	list := make([]Member, 0, len(m.seen))
	for _, s := range m.seen {
		list = append(list, s.Member)
	}
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return list
}

// aliveAddresses leaves this node out.
func (m *members) aliveAddresses() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]bool{}
	for _, s := range m.seen {
		if s.State == Alive && s.NodeID != m.self {
			found[s.Address] = true
		}
	}
	return found
}

func (m *members) prune() {
	maps.DeleteFunc(m.seen, func(_ string, s sighting) bool {
		return s.State != Alive && time.Since(s.ended) > forgetAfter
	})
}

// NotifyAlive refuses a member of another cluster or with metadata that this version does not know.
func (m *members) NotifyAlive(node *memberlist.Node) error {
	if len(node.Name) > nameBytesMax {
		return errors.New("name is too long")
	}
	meta, err := decodeMetadata(node.Meta)
	if err != nil {
		return err
	}
	if meta.cluster != clusterTag(m.clusterID) {
		return errors.New("member of another cluster")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.seen[node.Name]; !known && len(m.seen) >= membersMax {
		if m.prune(); len(m.seen) >= membersMax {
			return errors.New("too many members")
		}
	}
	return nil
}

func (m *members) NotifyJoin(node *memberlist.Node) {
	m.note(node, Alive)
	if node.Name != m.self {
		m.log.Info("member seen", "node", node.Name, "address", node.Address())
	}
}

func (m *members) NotifyUpdate(node *memberlist.Node) { m.note(node, Alive) }

func (m *members) NotifyLeave(node *memberlist.Node) {
	if node.Name == m.self {
		m.note(node, Left)
		return
	}
	state := m.note(node, Dead)
	m.log.Info("member gone", "node", node.Name, "address", node.Address(), "state", state)
}

// note remembers what the library told. One that had announced to leave is left, not dead.
func (m *members) note(node *memberlist.Node, state string) string {
	// NotifyAlive has seen this metadata already.
	meta, _ := decodeMetadata(node.Meta)
	if state == Dead && meta.leaving {
		state = Left
	}
	s := sighting{Member: Member{NodeID: node.Name, Address: node.Address(), State: state}}
	if state != Alive {
		s.ended = time.Now()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[node.Name] = s
	return state
}

// NodeMeta is this node's own metadata.
func (m *members) NodeMeta(int) []byte {
	return metadata{cluster: clusterTag(m.clusterID), leaving: m.leaving.Load()}.encode()
}

// Nothing but membership travels by gossip.
func (m *members) NotifyMsg([]byte)                {}
func (m *members) GetBroadcasts(int, int) [][]byte { return nil }
func (m *members) LocalState(bool) []byte          { return nil }
func (m *members) MergeRemoteState([]byte, bool)   {}

// shuffled spreads the load of many nodes that look for the same seeds.
func shuffled(addresses []string) []string {
	mixed := slices.Clone(addresses)
	rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	return mixed
}
