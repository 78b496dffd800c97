package raftstore

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// A manager that was away catches up by the log when it is there still, and by a snapshot when it is not; in both cases it
// starts again afterwards from what it then has.
func TestRestartedManagerCatchesUp(t *testing.T) {
	for name, story := range map[string]struct {
		trailing        uint64
		snapshot, files bool
	}{
		"by the log":            {trailing: 10_000},
		"by the log in files":   {trailing: 10_000, files: true},
		"by a snapshot":         {trailing: 2, snapshot: true},
		"by a snapshot, files":  {trailing: 2, snapshot: true, files: true},
		"by a snapshot, halted": {trailing: 2, snapshot: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				if story.files {
					c.disks = nil
				}
				c.adjust = func(cfg *Config) { cfg.TrailingEntries = story.trailing }
				all := c.form(3)
				leader := c.leader(all...)
				away := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
				c.kill(away)
				for i := range 40 {
					c.update(leader, createService(fmt.Sprint("s", i)))
				}
				check(t, leader.raft.Snapshot().Error())
				before := leader.Stats().Snapshot
				for round := range 3 {
					c.update(leader, createService(fmt.Sprint("later", round)))
					back := c.start(away.id, false)
					c.eventually("it has caught up", func() bool { return dump(back.Local()) == dump(leader.Local()) })
					if got := back.Stats().Snapshot.Index; (got == before.Index) != story.snapshot {
						t.Errorf("its snapshot is at %d, the leader's at %d", got, before.Index)
					}
					c.update(back, createService(fmt.Sprint("from it", round)))
					if name == "by a snapshot, halted" {
						// As if it had been cut off before it removed the entries that the snapshot replaces.
						c.kill(back)
						d := c.disks[away.id]
						if len(d.content.log) > 0 {
							d.content.first, d.content.log = 1, d.content.log[:0]
							for i := range uint64(5) {
								entry := &raft.Log{Index: i + 1, Term: 1, Type: raft.LogNoop}
								entry.Data, _ = testSealer(away.id).Seal(nil, place(entry))
								d.content.log = append(d.content.log, entry)
							}
						}
						continue
					}
					c.kill(back)
				}
			})
		})
	}
}

// A log is removed in parts, so that storing never waits long, and has no hole whenever that is interrupted.
func TestLogIsRemovedInParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := NewMemoryDisk()
		b, err := openMemory(disk, "n1")
		if err != nil {
			t.Fatal(err)
		}
		first := rapid.Uint64Range(1, 5).Draw(t, "first")
		last := first + rapid.Uint64Range(0, 3*deleteMax).Draw(t, "entries")
		var entries []*raft.Log
		for i := first; i <= last; i++ {
			entries = append(entries, &raft.Log{Index: i})
		}
		log := &sealedLog{LogStore: limited{b.log, t}, sealer: noSealer{}, applied: func() uint64 { return 0 }}
		if err := log.StoreLogs(entries); err != nil {
			t.Fatal(err)
		}
		from, to := uint64(0), rapid.Uint64Range(first, last).Draw(t, "to")
		if rapid.Bool().Draw(t, "at the end") {
			from, to = to, last+rapid.Uint64Range(0, 1).Draw(t, "beyond")
		}
		if err := log.DeleteRange(from, to); err != nil {
			t.Fatal(err)
		}
		for i := first; i <= last; i++ {
			if there, want := log.read(i, new(raft.Log)) == nil, i < from || i > to; there != want {
				t.Fatalf("%d to %d removed of %d to %d: entry %d is there: %v", from, to, first, last, i, there)
			}
		}
	})
}

// limited checks that each removal is short and leaves no hole.
type limited struct {
	raft.LogStore
	t *rapid.T
}

func (l limited) DeleteRange(from, to uint64) error {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if to-from >= deleteMax || from != first && to != last {
		l.t.Fatalf("removes %d to %d of %d to %d", from, to, first, last)
	}
	return l.LogStore.DeleteRange(from, to)
}

// A snapshot that is loaded in one go has its rows in the same order, under each index, as if they were written one by one.
func TestLoadedTablesAreInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		written := newState()
		for range rapid.IntRange(0, 200).Draw(t, "tasks") {
			r := &Task{Meta: Meta{ID: rapid.StringMatching("[a-d]{1,4}").Draw(t, "id")}}
			r.ServiceID = rapid.SampledFrom([]string{"", "s1", "s2", "s3"}).Draw(t, "service")
			r.NodeID = rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node")
			r.Slot = rapid.Uint64Range(0, 4).Draw(t, "slot")
			written.Tasks.put(r)
		}
		loaded := newState()
		var rows []row
		written.Tasks.scan(func(r row) bool { rows = append(rows, r); return true })
		loaded.Tasks.load(rows)
		more := &Task{Meta: Meta{ID: "b"}, ServiceID: "s2", NodeID: "n1", Slot: 2}
		for _, s := range []*State{written, loaded} {
			s.Tasks.put(more)
			s.Tasks.remove("c")
		}
		for _, service := range []string{"", "s1", "s2", "s3"} {
			if a, b := ids(written.TasksOf(service)), ids(loaded.TasksOf(service)); a != b {
				t.Errorf("tasks of %q: %s and %s", service, a, b)
			}
			for slot := range uint64(5) {
				if a, b := ids(written.TasksOfSlot(service, slot)), ids(loaded.TasksOfSlot(service, slot)); a != b {
					t.Errorf("tasks of %q in slot %d: %s and %s", service, slot, a, b)
				}
			}
		}
		for _, node := range []string{"", "n1", "n2"} {
			if a, b := ids(written.TasksOn(node)), ids(loaded.TasksOn(node)); a != b {
				t.Errorf("tasks on %q: %s and %s", node, a, b)
			}
		}
		if written.Tasks.tally != loaded.Tasks.tally || ids(written.Tasks.All()) != ids(loaded.Tasks.All()) {
			t.Errorf("%s and %s", ids(written.Tasks.All()), ids(loaded.Tasks.All()))
		}
	})
}

// A snapshot is taken when the log is worth it, by its entries or by its size, and not again before it has grown.
func TestSnapshotsFollowTheSizeOfTheLog(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.adjust = func(cfg *Config) { cfg.SnapshotBytes, cfg.SnapshotEntries = 1<<20, 10_000 }
		m := c.form(1)[0]
		c.leader(m)
		large := func(i int) func(*Tx) error {
			return func(tx *Tx) error {
				changed := *tx.Cluster()
				changed.RootPEM = bytes.Repeat([]byte{byte(i)}, 200<<10)
				tx.PutCluster(changed)
				return nil
			}
		}
		taken := 0
		last := m.Stats().Snapshot.Index
		for i := range 24 {
			c.update(m, large(i))
			time.Sleep(10 * time.Second)
			if now := m.Stats().Snapshot.Index; now != last {
				taken, last = taken+1, now
			}
		}
		if taken < 3 || taken > 5 {
			t.Errorf("%d snapshots of 24 entries of 200 KB", taken)
		}
		c.adjust = func(cfg *Config) { cfg.SnapshotEntries = 50 }
		c.kill(m)
		m = c.start("n1", false)
		c.leader(m)
		small := func(n int) bool {
			for range n {
				c.update(m, createService(NewID()))
			}
			time.Sleep(10 * time.Second)
			return m.Stats().Snapshot.Index != last
		}
		if small(100) {
			t.Error("a snapshot of 200 KB because of some 10 KB of entries")
		}
		if !small(700) {
			t.Error("no snapshot after 800 entries")
		}
	})
}

// The log that is kept for followers is bounded by number and by size.
func TestTrailingLogIsBoundedBySizeToo(t *testing.T) {
	cfg := Config{}.withDefaults()
	for _, story := range []struct {
		entries       uint64
		log, snapshot int64
		want          uint64
	}{
		{0, 0, 0, 10_000},
		{2048, 2048 * 300, 1 << 20, 10_000},
		{200, 200 * 512 << 10, 1 << 20, trailingMin}, // 128 of them would do, but more are on their way at once
		{2000, 2000 * 32 << 10, 1 << 20, 2048},
		{8000, 8000 * 32 << 10, 256 << 20, 8192}, // against a larger snapshot, more are worth it
	} {
		if got := cfg.trailing(story.entries, story.log, story.snapshot); got != story.want {
			t.Errorf("%d entries of %d bytes, snapshot of %d bytes: %d are kept, not %d", story.entries, story.log, story.snapshot, got, story.want)
		}
	}
	tiny := Config{TrailingEntries: 3}.withDefaults()
	if got := tiny.trailing(1, 1<<30, 0); got != 3 {
		t.Errorf("%d are kept, although at most 3 should be", got)
	}
}

func TestTrailingLogFollowsTheSizeOfEntries(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.adjust = func(cfg *Config) { cfg.SnapshotEntries, cfg.SnapshotBytes, cfg.TrailingEntries = 1<<30, 1<<20, 1000 }
		m := c.form(1)[0]
		for i := range 2 * trailingMin {
			c.update(m, func(tx *Tx) error {
				tx.PutService(Service{Meta: Meta{ID: NewID()}, Name: fmt.Sprint(i, strings.Repeat("x", 8<<10))})
				return nil
			})
		}
		c.eventually("a snapshot was taken", func() bool { return m.Stats().Snapshot.Index >= 2*trailingMin })
		first, err := m.disk.log.FirstIndex()
		check(t, err)
		if kept := m.Stats().Snapshot.Index - first + 1; kept < trailingMin-1 || kept > trailingMin+1 {
			t.Errorf("%d entries are kept", kept)
		}
	})
}
