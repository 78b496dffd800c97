package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// plain seals nothing.
type plain struct{}

func (plain) Seal(b, _ []byte) ([]byte, error) { return slices.Clone(b), nil }
func (plain) Open(b, _ []byte) ([]byte, error) { return slices.Clone(b), nil }

type silentListener struct{ done chan struct{} }

func (l silentListener) Accept() (net.Conn, error) { <-l.done; return nil, net.ErrClosed }
func (l silentListener) Close() error              { close(l.done); return nil }
func (l silentListener) Addr() net.Addr            { return &net.TCPAddr{} }

// openStore is a real store of one manager.
func openStore(t testing.TB) *raftstore.Store {
	t.Helper()
	store, err := raftstore.Open(raftstore.Config{
		NodeID: "n1", Address: "n1:2377", Dir: t.TempDir(), Sealer: plain{}, Bootstrap: true, Log: slog.New(slog.DiscardHandler),
		Listener: silentListener{make(chan struct{})},
		Dial: func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("a cluster of one dials nobody")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return store
}

func write(t testing.TB, store *raftstore.Store, change func(tx *raftstore.Tx)) {
	t.Helper()
	var err error
	for range 50 {
		if err = store.Update(context.Background(), func(tx *raftstore.Tx) error { change(tx); return nil }); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
}

func putNode(tx *raftstore.Tx, id string) {
	n := raftstore.Node{Session: raftstore.Session{Presence: raftstore.PresenceHeard}, Spec: swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive}}
	n.ID = id
	n.Description.Resources = swarm.Resources{NanoCPUs: 1e15, MemoryBytes: 1 << 50}
	tx.PutNode(n)
}

func putService(tx *raftstore.Tx, id string, replicas uint64) {
	s := raftstore.Service{Name: id, SpecVersion: 1}
	s.ID = id
	v := raftstore.Spec{ServiceID: id, SpecVersion: 1}
	v.ID = raftstore.SpecID(id, 1)
	v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "x"}
	v.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	tx.PutService(s)
	tx.PutSpec(v)
}

// BenchmarkOneTaskEnds measures how long the loop takes from a changed task to its plan, in a cluster of services with 100 tasks each.
func BenchmarkOneTaskEnds(b *testing.B) {
	const nodes, services, replicas = 1000, 500, 100
	store := openStore(b)
	for i := 0; i < nodes; i += 500 {
		write(b, store, func(tx *raftstore.Tx) {
			for j := range 500 {
				putNode(tx, fmt.Sprintf("n%04d", i+j))
			}
		})
	}
	for i := 0; i < services; i += 100 {
		write(b, store, func(tx *raftstore.Tx) {
			for j := range 100 {
				putService(tx, fmt.Sprintf("s%04d", i+j), replicas)
			}
		})
	}
	watch := store.Watch()
	defer watch.Close()
	l := newLoop(slog.New(slog.DiscardHandler))
	began := time.Now()
	for {
		l.notice(watch.Take())
		work := l.decide(time.Now())
		if len(work) == 0 {
			break
		}
		if err := l.commit(context.Background(), store, work); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("%d tasks on %d nodes placed and committed at %.0f/s", services*replicas, nodes, services*replicas/time.Since(began).Seconds())
	var some []string
	for t := range store.Local().Tasks.All() {
		if some = append(some, t.ID); len(some) == 1000 {
			break
		}
	}
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		write(b, store, func(tx *raftstore.Tx) {
			row, _ := tx.Tasks.Get(some[i%len(some)])
			t := *row
			t.Status.State, t.Status.Timestamp = swarm.TaskStateFailed, time.Now()
			tx.PutObservedTask(t)
		})
		state, dirty := watch.Take()
		b.StartTimer()
		l.notice(state, dirty)
		l.decide(time.Now())
	}
}
