package raftstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// BenchmarkCommits compares committed updates of one manager with what the disk can do: a bare loop of 4 KB writes, each
// followed by fdatasync, right before.
func BenchmarkCommits(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			dir := b.TempDir()
			bare := bareSyncsPerSecond(b, dir)
			cfg := Config{
				NodeID: "n1", Address: "n1:2377", Dir: filepath.Join(dir, "n1"), Sealer: testSealer("n1"), Bootstrap: true,
				Listener: &pipeListener{closed: make(chan struct{})},
			}
			store, err := Open(cfg)
			if err != nil {
				b.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			var run errgroup.Group
			run.Go(func() error { return store.Run(ctx) })
			if err := store.Update(ctx, createService("first")); err != nil {
				b.Fatal(err)
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			var work errgroup.Group
			b.ResetTimer()
			for range writers {
				work.Go(func() error {
					for left.Add(-1) >= 0 {
						if err := store.Update(ctx, putTask); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := work.Wait(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			perSecond := float64(b.N) / b.Elapsed().Seconds()
			b.ReportMetric(perSecond, "commits/s")
			b.ReportMetric(perSecond/bare, "of-bare-fdatasync")
			stop()
			if err := run.Wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func putTask(tx *Tx) error {
	tx.PutTask(Task{Meta: Meta{ID: NewID()}, ServiceID: "service", NodeID: "node", Slot: 1})
	return nil
}

func bareSyncsPerSecond(b *testing.B, dir string) float64 {
	const blocks = 256
	file, err := os.Create(filepath.Join(dir, "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	block := make([]byte, 4096)
	for i := range blocks {
		if _, err := file.WriteAt(block, int64(i)*4096); err != nil {
			b.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		b.Fatal(err)
	}
	began, n := time.Now(), 0
	for ; time.Since(began) < 500*time.Millisecond; n++ {
		if _, err := file.WriteAt(block, int64(n%blocks)*4096); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(file.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(began).Seconds()
}

// BenchmarkApply is the state machine alone: entries of 100 commits of one task each, on a table of growing size.
func BenchmarkApply(b *testing.B) {
	f := newFSM(func(err error) { b.Error(err) })
	index := uint64(0)
	for b.Loop() {
		b.StopTimer()
		var commits []rawCommit
		for range 100 {
			c := commit{format: entryFormat, id: newCommitID(), time: time.Unix(1, 0)}
			id := NewID()
			c.changes = append(c.changes, change{table: tableTasks, op: opPut, id: id, row: &Task{Meta: Meta{ID: id}, ServiceID: "s", NodeID: "n"}})
			raw, err := encodeCommit(&c)
			if err != nil {
				b.Fatal(err)
			}
			commits = append(commits, raw)
		}
		entry, err := encodeEntry(commits...)
		if err != nil {
			b.Fatal(err)
		}
		index++
		b.StartTimer()
		applyEntry(b, f, index, entry)
	}
	b.ReportMetric(float64(index)*100/b.Elapsed().Seconds(), "commits/s")
}
