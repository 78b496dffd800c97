// Package raftstore keeps the cluster's state: replicated by raft, sealed on disk, read as immutable snapshots.
// api, service and service/dispatcher change the cluster only through its Update.
package raftstore

import (
	"context"
	"iter"
	"net"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Sealer encrypts what reaches the disk. Implemented by secrets.
type Sealer interface {
	// Seal returns plain encrypted and authenticated together with context, which Open must be given again.
	Seal(plain, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

// Leader reaches another manager. Implemented by agent on rpc.
type Peers interface {
	// Propose has the manager at address commit an encoded commit.
	Propose(ctx context.Context, address string, commit []byte) (index uint64, refusal []byte, err error)
	// ReadIndex asks the leader at address for the index of a linearizable read.
	ReadIndex(ctx context.Context, address string) (uint64, error)
}

// Config is what a store needs.
type Config struct {
	NodeID string
	// Address is the host:port at which other managers dial this node.
	Address string
	// Dir holds the sealed log and snapshots.
	Dir    string
	Sealer Sealer
	Peers  Peers
	// Listener accepts raft streams, already authenticated; Dial opens one.
	Listener net.Listener
	Dial     func(ctx context.Context, address string) (net.Conn, error)
	// Bootstrap makes a new cluster of one in an empty Dir.
	Bootstrap bool
}

// State is one immutable version of the cluster.
type State struct {
	Nodes    Table[*Node]
	Services Table[*Service]
	Specs    Table[*Spec]
	Tasks    Table[*Task]
	Images   Table[*Image]
}

// Table reads one kind of rows.
type Table[R any] struct{}

func (t Table[R]) Get(id string) (R, bool) { panic("contract") }

// Find looks up by full id, then exact name, then id prefix; several matches are an InvalidArgument
// error "… is ambiguous (N matches found)", none is NotFound.
func (t Table[R]) Find(ref string) (R, error) { panic("contract") }

// All iterates in order of ids.
func (t Table[R]) All() iter.Seq[R] { panic("contract") }
func (t Table[R]) Len() int         { panic("contract") }

// Index is the raft index of the last commit in s.
func (s *State) Index() uint64 { panic("contract") }

// Cluster is the cluster's row, nil before init.
func (s *State) Cluster() *Cluster { panic("contract") }

// TasksOf iterates over the tasks of a service, TasksOn over those assigned to a node.
func (s *State) TasksOf(serviceID string) iter.Seq[*Task] { panic("contract") }
func (s *State) TasksOn(nodeID string) iter.Seq[*Task]    { panic("contract") }

// Spec is the spec of a service at a version; nil when there is none.
func (s *State) Spec(serviceID string, version uint64) *swarm.ServiceSpec { panic("contract") }

// ImagesNamed iterates over the image rows with a name, ImagesByDigest over those with a digest.
func (s *State) ImagesNamed(name string) iter.Seq[*Image]      { panic("contract") }
func (s *State) ImagesByDigest(digest string) iter.Seq[*Image] { panic("contract") }

// Tx is a State that a closure may change; it reads its own writes.
type Tx struct{ State }

// Put* write a row whose Index is that of the row it replaces (0: create). A spec write moves Version;
// PutObserved* leave Version and UpdatedAt alone.
func (tx *Tx) PutCluster(r Cluster)         { panic("contract") }
func (tx *Tx) PutNode(r Node)               { panic("contract") }
func (tx *Tx) PutObservedNode(r Node)       { panic("contract") }
func (tx *Tx) PutService(r Service)         { panic("contract") }
func (tx *Tx) PutObservedService(r Service) { panic("contract") }
func (tx *Tx) PutSpec(r Spec)               { panic("contract") }
func (tx *Tx) PutTask(r Task)               { panic("contract") }
func (tx *Tx) PutObservedTask(r Task)       { panic("contract") }
func (tx *Tx) PutImage(r Image)             { panic("contract") }
func (tx *Tx) DeleteNode(id string)         { panic("contract") }
func (tx *Tx) DeleteService(id string)      { panic("contract") }
func (tx *Tx) DeleteSpec(id string)         { panic("contract") }
func (tx *Tx) DeleteTask(id string)         { panic("contract") }
func (tx *Tx) DeleteImage(id string)        { panic("contract") }

// AssertNode makes the commit fail (and the closure run again) when the row changed since this snapshot.
func (tx *Tx) AssertNode(id string)    { panic("contract") }
func (tx *Tx) AssertService(id string) { panic("contract") }

// Guard names an invariant shared by several rows (such as "managers"): of two commits that name the
// same guard, the one that read the older state runs again.
func (tx *Tx) Guard(name string) { panic("contract") }

// Store is one manager's replica.
type Store struct{}

// Open reads the log and snapshots of cfg.Dir and takes part in raft until Run ends.
func Open(cfg Config) (*Store, error) { panic("contract") }

// Run keeps the replica alive until ctx ends, then shuts raft down. A corrupted log ends it with an error that names the file.
func (s *Store) Run(ctx context.Context) error { panic("contract") }

// Update runs change on a snapshot and commits what it wrote; change runs again after a conflict, a bounded
// number of times, and must have no effects of its own. An error from change is returned as it is and nothing is written.
// When Update returns, this replica has the commit.
func (s *Store) Update(ctx context.Context, change func(*Tx) error) error { panic("contract") }

// View returns a linearizable State.
func (s *Store) View(ctx context.Context) (*State, error) { panic("contract") }

// Local returns the state of this replica, which may be behind.
func (s *Store) Local() *State { panic("contract") }

// Watch subscribes to changes; the first Take is Dirty.All.
func (s *Store) Watch() *Watch { panic("contract") }

// Watch collects what changed since the last Take.
type Watch struct{}

// Changed receives after a change; one receive may stand for many changes.
func (w *Watch) Changed() <-chan struct{} { panic("contract") }
func (w *Watch) Take() (*State, Dirty)    { panic("contract") }
func (w *Watch) Close()                   { panic("contract") }

// Dirty names the rows that changed, by id. All means anything may have changed.
type Dirty struct {
	All      bool
	Cluster  bool
	Services map[string]struct{} // also those whose tasks or specs changed
	Nodes    map[string]struct{} // also those whose tasks changed
	Tasks    map[string]struct{}
	Images   map[string]struct{}
}

// ProposeLocal commits an encoded commit that another manager forwarded. Unavailable when this node does not lead.
func (s *Store) ProposeLocal(ctx context.Context, commit []byte) (index uint64, refusal []byte, err error) {
	panic("contract")
}

// ReadIndexLocal confirms leadership and returns the index a linearizable read waits for.
func (s *Store) ReadIndexLocal(ctx context.Context) (uint64, error) { panic("contract") }

// WhileLeader runs lead each time this node wins leadership, with a context that ends when it is lost, and waits for it.
func (s *Store) WhileLeader(ctx context.Context, lead func(ctx context.Context) error) error {
	panic("contract")
}

// Leader is the leader's node id and address as known here; empty without one.
func (s *Store) Leader() (id, address string) { panic("contract") }

// TransferLeadership hands leadership to another voter, if there is one.
func (s *Store) TransferLeadership() error { panic("contract") }

// Members is raft's configuration.
func (s *Store) Members() []Member { panic("contract") }

// Member is a manager in raft's configuration.
type Member struct {
	NodeID  string
	Address string
	Voter   bool
	Leader  bool
	// Reachable is the leader's view when this node leads; otherwise true.
	Reachable bool
}

// RunMembership makes raft's configuration follow the node rows while this node leads: a node whose certificate
// role is manager and whose Spec.Role is manager becomes a non-voter and, once it caught up, a voter; one whose Spec.Role
// is worker (or whose row is gone) is removed, never so that quorum is lost. Run it inside WhileLeader.
func (s *Store) RunMembership(ctx context.Context) error { panic("contract") }

// NewID returns 25 random characters of base 36, the form of every id in the API.
func NewID() string { panic("contract") }

func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }

var _ = time.Now
