package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"
)

// TestDisksBehaveAlike does the same random things to a directory and to a disk in memory and compares what is seen of them.
func TestDisksBehaveAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "disk")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		memory := NewMemoryDisk()
		cfg := Config{NodeID: "n1", Dir: dir, Log: slog.New(slog.DiscardHandler), noSync: true}
		open := func() [2]*bottom {
			files, err := openFiles(cfg)
			if err != nil {
				t.Fatal(err)
			}
			mem, err := openMemory(memory, "n1")
			if err != nil {
				t.Fatal(err)
			}
			return [2]*bottom{files, mem}
		}
		disks := open()
		next, term := uint64(1), uint64(1)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			var step func(b *bottom) error
			switch rapid.SampledFrom([]string{"append", "append", "overwrite", "compact", "drop", "value", "snapshot", "cancel", "contact", "reopen"}).Draw(t, "step") {
			case "append":
				entries := drawEntries(t, next, term)
				next += uint64(len(entries))
				step = func(b *bottom) error { return b.log.StoreLogs(entries) }
			case "overwrite":
				if next == 1 {
					continue
				}
				entry := &raft.Log{Index: next - 1, Term: term + 1, Data: []byte("again")}
				step = func(b *bottom) error { return b.log.StoreLog(entry) }
			case "compact":
				upTo := rapid.Uint64Range(0, next).Draw(t, "up to")
				step = func(b *bottom) error { return b.log.DeleteRange(1, upTo) }
			case "drop":
				from := rapid.Uint64Range(1, next).Draw(t, "from")
				end := next
				step = func(b *bottom) error { return b.log.DeleteRange(from, end) }
				next = from
			case "value":
				value := rapid.Uint64().Draw(t, "value")
				step = func(b *bottom) error {
					return errors.Join(b.stable.SetUint64([]byte("number"), value), b.stable.Set([]byte("text"), fmt.Append(nil, value)))
				}
			case "snapshot":
				term++
				step = func(b *bottom) error { return writeSnapshot(b, next, term, true) }
			case "cancel":
				step = func(b *bottom) error { return writeSnapshot(b, next, term+7, false) }
			case "contact":
				step = func(b *bottom) error { return b.writeContact(fmt.Append(nil, next)) }
			case "reopen":
				for _, b := range disks {
					if err := b.close(); err != nil {
						t.Fatal(err)
					}
				}
				disks = open()
				continue
			}
			for _, b := range disks {
				if err := step(b); err != nil {
					t.Fatal(err)
				}
			}
			if files, mem := seen(t, disks[0], next), seen(t, disks[1], next); files != mem {
				t.Fatalf("files:\n%s\nmemory:\n%s", files, mem)
			}
		}
		for _, b := range disks {
			if err := b.close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func drawEntries(t *rapid.T, next, term uint64) []*raft.Log {
	var entries []*raft.Log
	for i := range rapid.Uint64Range(1, 5).Draw(t, "entries") {
		entries = append(entries, &raft.Log{Index: next + i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d", next+i)})
	}
	return entries
}

func writeSnapshot(b *bottom, index, term uint64, whole bool) error {
	configuration := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1:2377"}}}
	_, transport := raft.NewInmemTransport("n1")
	sink, err := b.snapshots.Create(1, index, term, configuration, 1, transport)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(sink, "state at %d", index); err != nil {
		return err
	}
	if whole {
		return sink.Close()
	}
	return sink.Cancel()
}

// seen is all that can be read of a disk.
func seen(t *rapid.T, b *bottom, next uint64) string {
	var out strings.Builder
	first, err := b.log.FirstIndex()
	last, lastErr := b.log.LastIndex()
	fmt.Fprintln(&out, "log", first, last, err, lastErr)
	for index := range next + 2 {
		var entry raft.Log
		if err := b.log.GetLog(index, &entry); err == nil {
			fmt.Fprintf(&out, "entry %d: %d %d %s %q\n", index, entry.Index, entry.Term, entry.Type, entry.Data)
		} else if !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatal(err)
		}
	}
	number, err := b.stable.GetUint64([]byte("number"))
	text, textErr := b.stable.Get([]byte("text"))
	fmt.Fprintln(&out, "values", number, err, string(text), textErr)
	metas, err := b.snapshots.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metas {
		_, data, err := b.snapshots.Open(m.ID)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(data)
		fmt.Fprintf(&out, "snapshot %d %d %d %v %d %q %v\n", m.Index, m.Term, m.Size, m.Configuration, m.ConfigurationIndex, content, err)
		data.Close()
	}
	newest, err := b.newest()
	fmt.Fprintln(&out, "newest", strings.Join(strings.Split(newest+"--", "-")[:2], "-"), err)
	contact, err := b.readContact()
	fmt.Fprintln(&out, "contact", string(contact), err)
	return out.String()
}

func TestCrashLosesWhatWasNotSynced(t *testing.T) {
	for _, story := range []struct {
		torn bool
		last uint64
	}{{false, 2}, {true, 4}} {
		synctest.Test(t, func(t *testing.T) {
			d := NewMemoryDisk()
			before, err := openMemory(d, "n1")
			check(t, err)
			check(t, before.log.StoreLogs([]*raft.Log{{Index: 1}, {Index: 2}}))
			check(t, before.stable.SetUint64([]byte("n"), 1))
			d.SetDelay(time.Second)
			answers := make(chan error, 3)
			go func() { answers <- before.log.StoreLogs([]*raft.Log{{Index: 3}, {Index: 4}, {Index: 5}, {Index: 6}}) }()
			synctest.Wait()
			go func() { answers <- before.stable.SetUint64([]byte("n"), 2) }()
			go func() { answers <- writeSnapshot(before, 2, 1, true) }()
			time.Sleep(time.Second / 2)
			d.Crash(story.torn)
			for range 3 {
				if err := <-answers; !errors.Is(err, errPowerOff) {
					t.Errorf("a write during the crash: %v", err)
				}
			}
			after, err := openMemory(d, "n1")
			check(t, err)
			last, _ := after.log.LastIndex()
			n, _ := after.stable.GetUint64([]byte("n"))
			snapshots, _ := after.snapshots.List()
			if last != story.last || n != 1 || len(snapshots) != 0 {
				t.Errorf("torn %v: last entry %d, value %d, %d snapshots", story.torn, last, n, len(snapshots))
			}
			if err := before.log.StoreLog(&raft.Log{Index: 3}); !errors.Is(err, errPowerOff) {
				t.Errorf("a write after the crash: %v", err)
			}
		})
	}
}

func TestFaultsOfADiskInMemory(t *testing.T) {
	d := NewMemoryDisk()
	b, err := openMemory(d, "n1")
	check(t, err)
	if _, err := openMemory(d, "n1"); err == nil {
		t.Error("opened twice")
	}
	d.SetFull(true)
	if err := b.log.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	d.SetFull(false)
	d.SetFailing(true)
	if err := writeSnapshot(b, 1, 1, true); !errors.Is(err, syscall.EIO) {
		t.Errorf("failing: %v", err)
	}
	d.SetFailing(false)
	check(t, b.log.StoreLog(&raft.Log{Index: 1, Data: []byte("x")}))
	var entry raft.Log
	check(t, b.log.GetLog(1, &entry))
	entry.Data[0] = 'y'
	if check(t, b.log.GetLog(1, &entry)); !bytes.Equal(entry.Data, []byte("x")) {
		t.Error("the disk was changed through what was read from it")
	}
	check(t, b.close())
	if _, err := openMemory(d, "n2"); err == nil || !strings.Contains(err.Error(), `belongs to node "n1"`) {
		t.Errorf("opened by another node: %v", err)
	}
}

// Power cuts at random moments of a slow disk, torn writes included, lose nothing that was acknowledged.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		var acknowledged []string
		for round := range 8 {
			c.leader(m)
			c.disks["n1"].SetDelay(10 * time.Millisecond)
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("s%d-%d", round, i)
					if m.Update(ctx, createService(name)) == nil {
						acknowledged = append(acknowledged, name)
					}
				}
			}()
			time.Sleep(time.Duration(200+37*round) * time.Millisecond)
			c.disks["n1"].Crash(round%2 == 0)
			c.disks["n1"].SetDelay(0)
			m.stop()
			check(t, m.work.Wait())
			stop()
			<-done
			m = c.start("n1", false)
		}
		c.leader(m)
		for _, name := range acknowledged {
			if _, err := m.Local().Services.Find(name); err != nil {
				t.Error(err)
			}
		}
		if len(acknowledged) < 40 {
			t.Errorf("only %d acknowledged", len(acknowledged))
		}
	})
}
