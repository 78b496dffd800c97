package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// lab is one manager in real time for benchmarks: store on disk, orchestrator and dispatcher.
type lab struct {
	testing.TB
	store *raftstore.Store
	d     *Dispatcher
	ctx   context.Context
}

// newLab has an orchestrator only if it is to place tasks itself.
func newLab(tb testing.TB, orchestrate bool) *lab {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := raftstore.Open(raftstore.Config{
		NodeID: "n0", Address: "n0:2377", Dir: tb.TempDir(), Sealer: plain{}, Bootstrap: true, Log: log,
		Listener: silentListener{make(chan struct{})},
		Dial: func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("a cluster of one dials nobody")
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &lab{TB: tb, store: store, ctx: ctx}
	l.d = New(Config{NodeID: "n0", Store: store, Log: log, Peer: func(ctx context.Context) rpc.Peer {
		if id, ok := ctx.Value(nodeKey{}).(string); ok {
			return rpc.Peer{NodeID: id, Role: rpc.Worker}
		}
		return rpc.PeerFrom(ctx)
	}})
	var work errgroup.Group
	work.Go(func() error { return store.Run(ctx) })
	work.Go(func() error { return l.d.Run(ctx) })
	work.Go(func() error {
		return store.WhileLeader(ctx, func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			if orchestrate {
				g.Go(func() error { return service.New(store, log).Run(ctx) })
			}
			g.Go(func() error { return l.d.RunLiveness(ctx) })
			return g.Wait()
		})
	})
	tb.Cleanup(func() {
		cancel()
		if err := work.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			tb.Error(err)
		}
	})
	l.write(func(tx *raftstore.Tx) {
		c := raftstore.Cluster{}
		c.ID = "cluster"
		// The machine is busy with everything at once: nobody shall count as down for that.
		c.Spec.Dispatcher.HeartbeatPeriod = time.Minute
		tx.PutCluster(c)
	})
	return l
}

// write makes a change, and waits for the leader of the first moments.
func (l *lab) write(change func(tx *raftstore.Tx)) {
	l.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := l.store.Update(l.ctx, func(tx *raftstore.Tx) error { change(tx); return nil })
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// nodes declares nodes named by prefix and number.
func (l *lab) nodes(prefix string, count int) (ids []string) {
	for begin := 0; begin < count; begin += 500 {
		l.write(func(tx *raftstore.Tx) {
			for i := begin; i < min(begin+500, count); i++ {
				n := raftstore.Node{Role: swarm.NodeRoleWorker, Spec: swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}}
				n.ID = fmt.Sprintf("%s%05d", prefix, i)
				tx.PutNode(n)
				ids = append(ids, n.ID)
			}
		})
	}
	return ids
}

// service declares a replicated service.
func (l *lab) service(tx *raftstore.Tx, id string, replicas uint64) {
	s := raftstore.Service{Name: id, SpecVersion: 1}
	s.ID = id
	v := raftstore.Spec{ServiceID: id, SpecVersion: 1}
	v.ID = raftstore.SpecID(id, 1)
	v.Spec.Name = id
	v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "docker.io/library/" + id + ":1@sha256:" + id}
	v.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	tx.PutService(s)
	tx.PutSpec(v)
}

// mailbox is the server's end of a session over memory; what comes down is taken at once by a function.
type mailbox struct {
	grpc.ServerStream
	ctx  context.Context
	up   chan *rpc.AgentMessage
	take func(*rpc.ManagerMessage)
}

func (s *mailbox) Context() context.Context { return s.ctx }

func (s *mailbox) Send(m *rpc.ManagerMessage) error { s.take(m); return nil }

func (s *mailbox) Recv() (*rpc.AgentMessage, error) {
	select {
	case m := <-s.up:
		return m, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}

// join begins the session of a node, which beats until the lab ends. It returns when the node was welcomed.
func (l *lab) join(id string, take func(send func(*rpc.AgentMessage), m *rpc.ManagerMessage)) {
	description, _ := json.Marshal(swarm.NodeDescription{Hostname: id, Resources: swarm.Resources{NanoCPUs: 1e15, MemoryBytes: 1 << 50}})
	ctx, cancel := context.WithCancel(context.WithValue(l.ctx, nodeKey{}, id))
	s := &mailbox{ctx: ctx, up: make(chan *rpc.AgentMessage, 4)}
	send := func(m *rpc.AgentMessage) {
		select {
		case s.up <- m:
		case <-ctx.Done():
		}
	}
	welcomed := make(chan time.Duration, 1)
	s.take = func(m *rpc.ManagerMessage) {
		if w := m.GetWelcome(); w != nil {
			welcomed <- time.Duration(w.BeatNs)
		}
		take(send, m)
	}
	over := make(chan error, 1)
	go func() { defer cancel(); over <- l.d.Session(s) }()
	send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Hello{Hello: &rpc.Hello{FormatVersion: 1, DescriptionJson: description, Address: id + ":2377"}}})
	var beat time.Duration
	select {
	case beat = <-welcomed:
	case err := <-over:
		l.Errorf("session of %s: %v", id, err)
		return
	}
	go func() {
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Beat{Beat: &rpc.Beat{}}})
			case <-ctx.Done():
				return
			}
		}
	}()
}

// joinAll joins nodes, some at a time.
func (l *lab) joinAll(ids []string, take func(id string) func(send func(*rpc.AgentMessage), m *rpc.ManagerMessage)) {
	var joins errgroup.Group
	joins.SetLimit(256)
	for _, id := range ids {
		joins.Go(func() error { l.join(id, take(id)); return nil })
	}
	_ = joins.Wait()
}

// BenchmarkScale places, commits and delivers tasks through the real loop, store and dispatcher of one manager. Sessions go over memory.
// tasks/s is from the first service declared until the last task is delivered to its agent; with statuses, agents also report every
// task as running, and tasks/s is until the last of these is committed.
func BenchmarkScale(b *testing.B) {
	for _, size := range []struct {
		nodes, services, replicas int
		statuses                  bool
	}{
		{1000, 50, 1000, false}, {1000, 50, 1000, true}, {1000, 1, 50_000, false},
		{3000, 150, 1000, false}, {10_000, 500, 1000, false},
	} {
		b.Run(fmt.Sprintf("nodes=%d/services=%d/tasks=%d/statuses=%v", size.nodes, size.services, size.services*size.replicas, size.statuses), func(b *testing.B) {
			for range b.N {
				scale(b, size.nodes, size.services, size.replicas, size.statuses)
			}
		})
	}
}

func scale(b *testing.B, nodes, services, replicas int, report bool) {
	b.StopTimer()
	l := newLab(b, true)
	ids := l.nodes("n", nodes)
	total := int64(services * replicas)
	var delivered atomic.Int64
	done := make(chan struct{})
	began := time.Now()
	l.joinAll(ids, func(string) func(func(*rpc.AgentMessage), *rpc.ManagerMessage) {
		var mu sync.Mutex
		sequence := uint64(0)
		return func(send func(*rpc.AgentMessage), m *rpc.ManagerMessage) {
			tasks := m.GetAssignments().GetTasks()
			if len(tasks) == 0 {
				return
			}
			if delivered.Add(int64(len(tasks))) == total {
				close(done)
			}
			if !report {
				return
			}
			statuses := &rpc.TaskStatuses{}
			for _, t := range tasks {
				statuses.Statuses = append(statuses.Statuses, &rpc.TaskStatus{TaskId: t.TaskId, State: task.Number(swarm.TaskStateRunning), TimestampNs: time.Now().UnixNano()})
			}
			go func() {
				mu.Lock()
				defer mu.Unlock()
				sequence++
				statuses.Sequence = sequence
				send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Statuses{Statuses: statuses}})
			}()
		}
	})
	b.Logf("%d nodes joined in %s", nodes, time.Since(began).Round(time.Millisecond))
	b.ReportMetric(time.Since(began).Seconds(), "join-s")
	b.StartTimer()
	worked := cpuTime()
	began = time.Now()
	for i := range services {
		l.write(func(tx *raftstore.Tx) { l.service(tx, fmt.Sprintf("s%04d", i), uint64(replicas)) })
	}
	<-done
	if report {
		for l.store.Local().TasksInState(swarm.TaskStateRunning) < int(total) {
			time.Sleep(time.Millisecond)
		}
	}
	took := time.Since(began)
	b.StopTimer()
	b.ReportMetric(float64(total)/took.Seconds(), "tasks/s")
	b.ReportMetric(float64((cpuTime()-worked).Microseconds())/float64(total), "cpu-us/task")
	b.ReportMetric(0, "ns/op")
}
