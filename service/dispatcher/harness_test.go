package dispatcher

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// plain seals nothing.
type plain struct{}

func (plain) Seal(b, _ []byte) ([]byte, error) { return slices.Clone(b), nil }
func (plain) Open(b, _ []byte) ([]byte, error) { return slices.Clone(b), nil }

// silentListener accepts nothing: a raft cluster of one.
type silentListener struct{ done chan struct{} }

func (l silentListener) Accept() (net.Conn, error) { <-l.done; return nil, net.ErrClosed }
func (l silentListener) Close() error              { close(l.done); return nil }
func (l silentListener) Addr() net.Addr            { return &net.TCPAddr{} }

// manager is one real manager: store, orchestrator and dispatcher, in virtual time.
type manager struct {
	t      *testing.T
	store  *raftstore.Store
	d      *Dispatcher
	ctx    context.Context
	agents map[string]*agent
	// ports says what the node's ports do when they are asked: "accepts", or nothing for those that refuse, or "silent".
	ports sync.Map
}

// probe is what dialing a node's port would tell.
func (m *manager) probe(ctx context.Context, address string) error {
	switch does, _ := m.ports.Load(address); does {
	case "accepts":
		return nil
	case "silent":
		<-ctx.Done()
		return ctx.Err()
	}
	return errors.New("connection refused")
}

// port sets what a node's port does.
func (m *manager) port(nodeID, does string) { m.ports.Store(nodeID+":2377", does) }

// withManager runs a test in a bubble with one manager whose cluster has the nodes given.
func withManager(t *testing.T, nodes int, test func(m *manager)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		if os.Getenv("DISPATCHER_TEST_LOG") != "" {
			log = slog.New(slog.NewTextHandler(os.Stderr, nil))
		}
		store, err := raftstore.Open(raftstore.Config{
			NodeID: "n1", Address: "n1:2377", Dir: dir, Sealer: plain{}, Bootstrap: true, Log: log,
			Listener: silentListener{make(chan struct{})},
			Dial: func(context.Context, string) (net.Conn, error) {
				return nil, errors.New("a cluster of one dials nobody")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		m := &manager{t: t, store: store, ctx: ctx, agents: map[string]*agent{}}
		m.d = New(Config{NodeID: "n1", Store: store, Log: log, Probe: m.probe, Peer: func(ctx context.Context) rpc.Peer {
			return rpc.Peer{NodeID: ctx.Value(nodeKey{}).(string), Role: rpc.Worker}
		}})
		var work errgroup.Group
		work.Go(func() error { return store.Run(ctx) })
		work.Go(func() error { return m.d.Run(ctx) })
		work.Go(func() error {
			return store.WhileLeader(ctx, func(ctx context.Context) error {
				g, ctx := errgroup.WithContext(ctx)
				g.Go(func() error { return service.New(store, log).Run(ctx) })
				g.Go(func() error { return m.d.RunLiveness(ctx) })
				return g.Wait()
			})
		})
		m.update(func(tx *raftstore.Tx) {
			c := raftstore.Cluster{}
			c.ID = "cluster"
			tx.PutCluster(c)
			for i := range nodes {
				n := raftstore.Node{Role: swarm.NodeRoleWorker, Spec: swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}}
				n.ID = fmt.Sprint("n", i+1)
				tx.PutNode(n)
			}
		})
		defer func() {
			for _, a := range m.agents {
				a.kill()
			}
			cancel()
			if err := work.Wait(); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		test(m)
	})
}

func (m *manager) update(change func(tx *raftstore.Tx)) {
	m.t.Helper()
	err := m.store.Update(m.ctx, func(tx *raftstore.Tx) error { change(tx); return nil })
	for range 100 {
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
		err = m.store.Update(m.ctx, func(tx *raftstore.Tx) error { change(tx); return nil })
	}
	m.t.Fatal(err)
}

// create declares a replicated service, or a global one with 0 replicas.
func (m *manager) create(name string, replicas uint64) {
	m.update(func(tx *raftstore.Tx) {
		s := raftstore.Service{Name: name, SpecVersion: 1}
		s.ID = name
		v := raftstore.Spec{ServiceID: name, SpecVersion: 1}
		v.ID = raftstore.SpecID(name, 1)
		v.Spec.Name = name
		v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "docker.io/library/" + name + ":1@sha256:" + name}
		v.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		if replicas == 0 {
			v.Spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		}
		tx.PutService(s)
		tx.PutSpec(v)
	})
}

// change gives a service a new spec.
func (m *manager) change(name string, change func(*swarm.ServiceSpec)) {
	m.update(func(tx *raftstore.Tx) {
		row, _ := tx.Services.Get(name)
		s := *row
		v := raftstore.Spec{ServiceID: name, SpecVersion: s.SpecVersion + 1, Spec: *tx.State.Spec(name, s.SpecVersion)}
		v.ID = raftstore.SpecID(name, v.SpecVersion)
		c := *v.Spec.TaskTemplate.ContainerSpec
		v.Spec.TaskTemplate.ContainerSpec = &c
		change(&v.Spec)
		s.PreviousSpecVersion, s.SpecVersion, s.UpdateStatus = s.SpecVersion, v.SpecVersion, nil
		tx.PutService(s)
		tx.PutSpec(v)
	})
}

// replicas scales. Rows are shared, so the count is replaced and not written through its pointer.
func replicas(n uint64) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n} }
}

func (m *manager) node(id string, change func(*raftstore.Node)) {
	m.update(func(tx *raftstore.Tx) {
		row, _ := tx.Nodes.Get(id)
		n := *row
		change(&n)
		tx.PutNode(n)
	})
}

// states tells where the tasks that are meant to run are, such as "web.1 n2 running".
func (m *manager) states() string {
	var lines []string
	for t := range m.store.Local().Tasks.All() {
		if task.Before(swarm.TaskStateRunning, t.DesiredState) {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s.%d %s %s", t.ServiceID, t.Slot, cmp.Or(t.NodeID, "-"), t.Status.State))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func (m *manager) expect(want string) {
	m.t.Helper()
	if got := m.states(); got != want {
		m.t.Fatalf("tasks are\n\t%s\nwant\n\t%s", got, want)
	}
}

func (m *manager) nodeState(id string) swarm.NodeState {
	n, _ := m.store.Local().Nodes.Get(id)
	return n.Status.State
}

// settled lets d pass and everything that follows from it happen.
func settled(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

type nodeKey struct{}

// stream is the server's end of a session without a network.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	up   chan *rpc.AgentMessage
	down chan *rpc.ManagerMessage
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Recv() (*rpc.AgentMessage, error) {
	select {
	case m, ok := <-s.up:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *stream) Send(m *rpc.ManagerMessage) error {
	select {
	case s.down <- travelled(m):
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// travelled is a message as it arrives: what was encoded before is decoded then.
func travelled(m *rpc.ManagerMessage) *rpc.ManagerMessage {
	if len(m.ProtoReflect().GetUnknown()) == 0 {
		return m
	}
	arrived := &rpc.ManagerMessage{}
	if err := proto.Unmarshal(must(proto.Marshal(m)), arrived); err != nil {
		panic(err)
	}
	return arrived
}

// agent is a small real agent: it runs tasks by saying so.
type agent struct {
	m      *manager
	nodeID string
	hello  *rpc.Hello
	cancel context.CancelFunc
	over   chan struct{}
	err    error
	mute   chan bool
	say    chan *rpc.AgentMessage

	mu       sync.Mutex
	log      []string
	tasks    map[string]swarm.TaskState
	specs    map[string]bool
	holders  map[string][]string
	members  map[string]*rpc.Member
	order    *rpc.NodeOrder
	welcome  *rpc.Welcome
	sequence uint64
	acked    uint64
	words    int  // all messages of the manager
	crash    bool // tasks fail as soon as they run
	reject   bool // tasks are rejected as soon as they come
}

func (m *manager) agent(nodeID string) *agent {
	description, _ := json.Marshal(swarm.NodeDescription{
		Hostname: nodeID, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
		Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30},
	})
	return &agent{
		m: m, nodeID: nodeID, hello: &rpc.Hello{FormatVersion: 1, DescriptionJson: description, Address: nodeID + ":2377"},
		tasks: map[string]swarm.TaskState{}, specs: map[string]bool{}, holders: map[string][]string{}, members: map[string]*rpc.Member{},
	}
}

// start begins a session; the agent keeps what it runs.
func (m *manager) start(nodeIDs ...string) {
	for _, id := range nodeIDs {
		if m.agents[id] == nil {
			m.agents[id] = m.agent(id)
		}
		m.agents[id].run()
	}
	settled(0)
}

func (a *agent) run() {
	ctx, cancel := context.WithCancel(context.WithValue(a.m.ctx, nodeKey{}, a.nodeID))
	s := &stream{ctx: ctx, up: make(chan *rpc.AgentMessage), down: make(chan *rpc.ManagerMessage)}
	a.cancel, a.over, a.mute, a.say = cancel, make(chan struct{}), make(chan bool), make(chan *rpc.AgentMessage)
	over, mute, say := a.over, a.mute, a.say
	go func() {
		a.err = a.m.d.Session(s)
		cancel()
		close(over)
	}()
	go a.live(s, over, mute, say)
}

// live is the agent's loop: it sends beats and statuses, and takes what comes.
func (a *agent) live(s *stream, over chan struct{}, mute chan bool, say chan *rpc.AgentMessage) {
	send := func(m *rpc.AgentMessage) {
		for {
			select {
			case s.up <- m:
				return
			case got := <-s.down:
				a.take(got)
			case <-s.ctx.Done():
				return
			}
		}
	}
	send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Hello{Hello: a.hello}})
	beats := time.NewTicker(500 * time.Millisecond)
	defer beats.Stop()
	muted := false
	for {
		if statuses := a.work(); len(statuses) > 0 && !muted {
			a.sequence++
			send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Statuses{Statuses: &rpc.TaskStatuses{Sequence: a.sequence, Statuses: statuses}}})
			continue
		}
		select {
		case got := <-s.down:
			a.take(got)
		case <-beats.C:
			if !muted {
				send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Beat{Beat: &rpc.Beat{}}})
			}
		case muted = <-mute:
		case m := <-say:
			send(m)
		case <-over:
			return
		}
	}
}

func (a *agent) take(m *rpc.ManagerMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.words++
	switch k := m.Kind.(type) {
	case *rpc.ManagerMessage_Welcome:
		a.welcome = k.Welcome
	case *rpc.ManagerMessage_Order:
		a.order = k.Order
	case *rpc.ManagerMessage_Ack:
		a.acked = k.Ack.Sequence
	case *rpc.ManagerMessage_Roster:
		if k.Roster.Full {
			clear(a.members)
		}
		for _, member := range k.Roster.Members {
			a.members[member.NodeId] = member
		}
		for _, id := range k.Roster.RemovedNodeIds {
			delete(a.members, id)
		}
	case *rpc.ManagerMessage_Assignments:
		a.takeAssignments(k.Assignments)
	}
}

func (a *agent) takeAssignments(as *rpc.Assignments) {
	a.log = append(a.log, fmt.Sprintf("full=%v tasks=%d removed=%d specs=%d holders=%d", as.Full, len(as.Tasks), len(as.RemovedTaskIds), len(as.Specs), len(as.Holders)))
	for _, v := range as.Specs {
		a.specs[raftstore.SpecID(v.ServiceId, v.Version)] = true
	}
	for _, h := range as.Holders {
		a.holders[h.Digest] = h.Addresses
	}
	given := map[string]bool{}
	for _, t := range as.Tasks {
		given[t.TaskId] = true
		if !a.specs[raftstore.SpecID(t.ServiceId, t.SpecVersion)] {
			a.m.t.Errorf("%s: task %s came without its spec", a.nodeID, t.TaskId)
		}
		desired, _ := task.FromNumber(t.DesiredState)
		a.tasks[t.TaskId] = desired
	}
	for _, id := range as.RemovedTaskIds {
		delete(a.tasks, id)
	}
	if as.Full {
		maps.DeleteFunc(a.tasks, func(id string, _ swarm.TaskState) bool { return !given[id] })
	}
}

// work says for every task what an agent would have made of it, where the cluster does not know yet.
func (a *agent) work() (statuses []*rpc.TaskStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sequence != a.acked {
		return nil
	}
	state := a.m.store.Local()
	for _, id := range slices.Sorted(maps.Keys(a.tasks)) {
		to := a.tasks[id]
		row, ok := state.Tasks.Get(id)
		if !ok || task.Ended(row.Status.State) {
			continue
		}
		if to == swarm.TaskStateRemove {
			to = swarm.TaskStateShutdown
		}
		if a.reject && !task.Before(swarm.TaskStateRunning, to) {
			to = swarm.TaskStateRejected
		}
		if a.crash && to == swarm.TaskStateRunning && row.Status.State == swarm.TaskStateRunning {
			to = swarm.TaskStateFailed
		}
		if task.Before(row.Status.State, to) {
			statuses = append(statuses, &rpc.TaskStatus{TaskId: id, State: task.Number(to), TimestampNs: time.Now().UnixNano()})
		}
	}
	return statuses
}

// kill breaks the stream without a word.
func (a *agent) kill() {
	a.cancel()
	<-a.over
	synctest.Wait()
}

// silence keeps the stream but sends nothing, or speaks again.
func (a *agent) silence(on bool) { a.mute <- on; synctest.Wait() }

func (a *agent) send(m *rpc.AgentMessage) { a.say <- m; synctest.Wait() }

// ended waits for the end of the session.
func (a *agent) ended() {
	<-a.over
	synctest.Wait()
}

func (a *agent) see(what func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	what()
}
