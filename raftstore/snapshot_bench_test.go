package raftstore

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

// snapshotBenchTasks is the size of the largest cluster that figures are given for.
const snapshotBenchTasks = 1_000_000

// BenchmarkMillionTasks takes a snapshot of a million tasks while others commit, and starts again from it. A pause is the time
// between two commits that follow each other, of four writers together.
func BenchmarkMillionTasks(b *testing.B) {
	sealer, err := realSealer(filepath.Join(b.TempDir(), "key"))
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(b.TempDir(), "raft")
	config := func() Config {
		return Config{
			NodeID: "n1", Address: "n1:2377", Dir: dir, Sealer: sealer, Bootstrap: true,
			Listener:         &pipeListener{closed: make(chan struct{})},
			SnapshotInterval: time.Hour, // one that begins by itself would hold up the end
		}
	}
	for b.Loop() {
		store, end := runBench(b, config())
		fillTasks(store, snapshotBenchTasks)
		idle := longestPause(b, store, func() { time.Sleep(2 * time.Second) })
		began := time.Now()
		var took time.Duration
		paused := longestPause(b, store, func() {
			if err := store.raft.Snapshot().Error(); err != nil {
				b.Fatal(err)
			}
			took = time.Since(began)
		})
		stats := store.Stats().Snapshot
		end()
		runtime.GC()
		began = time.Now()
		store, end = runBench(b, config())
		restored := time.Since(began)
		if n := store.Local().Tasks.Len(); n < snapshotBenchTasks {
			b.Fatalf("only %d tasks came back", n)
		}
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		end()
		b.ReportMetric(took.Seconds(), "snapshot-s")
		b.ReportMetric(restored.Seconds(), "restore-s")
		b.ReportMetric(float64(paused.Milliseconds()), "pause-ms")
		b.ReportMetric(float64(idle.Milliseconds()), "idle-pause-ms")
		b.ReportMetric(float64(stats.SizeBytes)/snapshotBenchTasks, "snapshot-B/task")
		b.ReportMetric(float64(memory.HeapAlloc)/snapshotBenchTasks, "B/task")
	}
}

// runBench runs a manager alone until the function is called.
func runBench(b testing.TB, cfg Config) (*Store, func()) {
	store, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run errgroup.Group
	run.Go(func() error { return store.Run(ctx) })
	return store, func() {
		stop()
		if err := run.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// fillTasks writes tasks below raft, as a snapshot of another manager would.
func fillTasks(s *Store, n int) {
	f := s.fsm
	at := time.Now()
	var services, nodes []string
	for i := range n / 100 {
		id := NewID()
		services = append(services, id)
		f.work.Services.put(&Service{Meta: Meta{ID: id, Index: 1, Version: 1, CreatedAt: at, UpdatedAt: at}, Name: fmt.Sprint("service-", i)})
		nodes = append(nodes, NewID())
	}
	for i := range n {
		task := &Task{
			Meta: Meta{ID: NewID(), Index: 1, Version: 1, CreatedAt: at, UpdatedAt: at}, ServiceID: services[i%len(services)],
			NodeID: nodes[i*7%len(nodes)], Slot: uint64(i/len(services) + 1), SpecVersion: 1, DesiredState: swarm.TaskStateRunning,
			Status: TaskStatus{State: swarm.TaskStateRunning, Timestamp: at, Message: "started", ContainerID: NewID() + NewID(), PID: 1000 + i},
		}
		f.work.share(task)
		f.work.Tasks.put(task)
	}
	f.publish(&Dirty{All: true})
}

// longestPause commits from four writers until work is done.
func longestPause(b testing.TB, s *Store, work func()) time.Duration {
	var (
		mu      sync.Mutex
		last    time.Time
		longest time.Duration
		writers errgroup.Group
	)
	ctx, stop := context.WithCancel(context.Background())
	if err := s.Update(ctx, putTask); err != nil {
		b.Fatal(err)
	}
	last = time.Now()
	for range 4 {
		writers.Go(func() error {
			for ctx.Err() == nil {
				if err := s.Update(context.Background(), putTask); err != nil {
					return err
				}
				mu.Lock()
				now := time.Now()
				longest, last = max(longest, now.Sub(last)), now
				mu.Unlock()
			}
			return nil
		})
	}
	work()
	stop()
	if err := writers.Wait(); err != nil {
		b.Fatal(err)
	}
	return longest
}
