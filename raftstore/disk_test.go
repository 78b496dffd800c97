package raftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// stopped makes a directory with some state: a snapshot, entries before and after it.
func stopped(t *testing.T) *cluster {
	c := newCluster(t)
	c.adjust = func(cfg *Config) { cfg.TrailingEntries = 3 }
	m := c.start("n1", true)
	c.leader(m) // the barrier of its term comes before the first commit
	for i := range 10 {
		if i == 6 {
			if err := m.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		c.update(m, createService(fmt.Sprint("s", i)))
	}
	c.kill(m)
	return c
}

func TestDamagedDirectoryIsNamedAndNotTouched(t *testing.T) {
	for name, story := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   []string
	}{
		"flipped bit in an entry": {
			func(t *testing.T, dir string) {
				alterLog(t, dir, func(b *bbolt.Bucket, last uint64) {
					key := fmt.Appendf(nil, "%c%c%c%c%c%c%c%c", 0, 0, 0, 0, 0, 0, 0, last)
					value := bytes.Clone(b.Get(key))
					value[len(value)/2] ^= 1
					check(t, b.Put(key, value))
				})
			},
			[]string{"entry 13 of the cluster log", "raft.db cannot be read", "join it again"},
		},
		"entry gone": {
			func(t *testing.T, dir string) {
				alterLog(t, dir, func(b *bbolt.Bucket, last uint64) {
					check(t, b.Delete([]byte{0, 0, 0, 0, 0, 0, 0, byte(last - 1)}))
				})
			},
			[]string{"entry 12 of the cluster log", "log not found"},
		},
		"log cut in the middle": {
			func(t *testing.T, dir string) { check(t, os.Truncate(filepath.Join(dir, logFile), 9000)) },
			[]string{"the cluster log", "raft.db is damaged"},
		},
		"log overwritten": {
			func(t *testing.T, dir string) {
				check(t, os.WriteFile(filepath.Join(dir, logFile), bytes.Repeat([]byte("x"), 1<<16), 0o600))
			},
			[]string{"the cluster log", "raft.db is damaged"},
		},
		"flipped bit in the snapshot": {
			func(t *testing.T, dir string) { flip(t, snapshotFiles(t, dir)["state.bin"], 100) },
			[]string{"snapshots/2-9-", "cannot be read", "join it again"},
		},
		"snapshot and its checksum replaced": {
			func(t *testing.T, dir string) {
				meta := snapshotFiles(t, dir)["meta.json"]
				raw, err := os.ReadFile(meta)
				check(t, err)
				var fields map[string]any
				check(t, json.Unmarshal(raw, &fields))
				fields["Index"] = 8
				raw, err = json.Marshal(fields)
				check(t, err)
				check(t, os.WriteFile(meta, raw, 0o600))
			},
			[]string{"snapshots/2-9-", "chunk 0"},
		},
		"snapshot without description": {
			func(t *testing.T, dir string) { check(t, os.Remove(snapshotFiles(t, dir)["meta.json"])) },
			[]string{"snapshots/2-9-", "cannot be read"},
		},
		"snapshot gone": {
			func(t *testing.T, dir string) { check(t, os.RemoveAll(filepath.Join(dir, "snapshots"))) },
			[]string{"begins at entry 7", "ends at 0", "missing"},
		},
		"newer version": {
			func(t *testing.T, dir string) {
				check(t, os.WriteFile(filepath.Join(dir, formatFile), []byte("swarm state 2\nnode n1\n"), 0o600))
			},
			[]string{"has format 2, this version of swarm reads up to 1: upgrade swarm"},
		},
		"another node": {
			func(t *testing.T, dir string) {
				check(t, os.WriteFile(filepath.Join(dir, formatFile), []byte("swarm state 1\nnode n7\n"), 0o600))
			},
			[]string{`belongs to node "n7", not to this node "n1"`},
		},
		"format file damaged": {
			func(t *testing.T, dir string) {
				check(t, os.WriteFile(filepath.Join(dir, formatFile), []byte("?"), 0o600))
			},
			[]string{"format is damaged"},
		},
		"format file gone": {
			func(t *testing.T, dir string) { check(t, os.Remove(filepath.Join(dir, formatFile))) },
			[]string{`no file "format"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := stopped(t)
				dir := filepath.Join(c.dir, "n1")
				story.damage(t, dir)
				store, err := Open(c.config("n1"))
				if err == nil {
					c.managers["n1"] = runOnly(store)
					t.Fatal("opened")
				}
				for _, want := range append(story.want, dir) {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q is not in: %v", want, err)
					}
				}
			})
		})
	}
}

func runOnly(s *Store) *manager {
	m := &manager{Store: s}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.work.Go(func() error { return s.Run(m.ctx) })
	return m
}

func TestUndamagedDirectoryOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := stopped(t)
		m := c.start("n1", true) // Bootstrap does nothing to an existing cluster
		c.leader(m)
		if n := m.Local().Services.Len(); n != 10 {
			t.Fatalf("%d services", n)
		}
	})
}

func TestInterruptedBootstrapIsDoneAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.kill(c.start("n1", false))
		db, err := bbolt.Open(filepath.Join(c.dir, "n1", logFile), 0o600, nil)
		check(t, err)
		check(t, db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("conf")).Put([]byte(raftTermKey), []byte{0, 0, 0, 0, 0, 0, 0, 1})
		}))
		check(t, db.Close())
		c.update(c.start("n1", true), createService("web"))
	})
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	c := newCluster(t)
	c.start("n1", true)
	if _, err := Open(c.config("n1")); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("got %v", err)
	}
}

func TestNothingOfTheStateIsReadableOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error {
			tx.PutCluster(Cluster{Meta: Meta{ID: "cluster"}, RootKeyPEM: []byte("very secret key")})
			return nil
		})
		check(t, m.raft.Snapshot().Error())
		files := 0
		check(t, filepath.Walk(filepath.Join(c.dir, "n1"), func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			if bytes.Contains(content, []byte("very secret")) {
				t.Errorf("%s shows it", path)
			}
			return err
		}))
		if files < 4 {
			t.Errorf("only %d files", files)
		}
	})
}

func TestEntryOfANewerFormatStopsTheReplica(t *testing.T) {
	for name, data := range map[string]struct{ entry, want string }{
		"newer entry":  {"\x08\x03\x12\x00", "log entry has format 3, this version of swarm reads up to 2: upgrade swarm"},
		"newer commit": {"\x08\x02\x12\x02\x08\x03", "commit 0: commit has format 3"},
		"unknown kind": {"\x08\x01\x1a\x00", "unknown or misplaced field 3"},
		"empty":        {"\x08\x01", "without commits"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				m := c.start("n1", true)
				c.update(m, createService("web"))
				before := dump(m.Local())
				m.raft.Apply([]byte(data.entry), 0)
				err := m.work.Wait()
				if err == nil || !strings.Contains(err.Error(), data.want) || !strings.Contains(err.Error(), "apply log entry") {
					t.Fatalf("got %v", err)
				}
				if dump(m.Local()) != before {
					t.Error("state changed")
				}
				if err := m.Update(context.Background(), createService("x")); !errdefs.IsUnavailable(err) {
					t.Errorf("update of a stopped replica: %v", err)
				}
				delete(c.managers, "n1")
			})
		})
	}
}

func TestFullDiskOfTheOnlyManager(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		c.update(m, createService("before"))
		c.disks["n1"].SetFull(true)
		for range 3 {
			err := m.Update(context.Background(), createService("lost"))
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "ree space") {
				t.Fatalf("got %v", err)
			}
			time.Sleep(2 * time.Second)
			if fault := m.DiskFault(); !strings.Contains(fault, "no space left on device: free space") {
				t.Fatalf("the fault is %q", fault)
			}
		}
		c.disks["n1"].SetFull(false)
		c.leader(m)
		c.update(m, createService("after"))
		if fault := m.DiskFault(); fault != "" {
			t.Fatalf("there is room again, but the fault is %q", fault)
		}
		c.kill(m)
		m = c.start("n1", false)
		c.leader(m)
		if _, err := m.Local().Services.Find("lost"); err == nil || m.Local().Services.Len() != 2 {
			t.Fatalf("%d services", m.Local().Services.Len())
		}
	})
}

func TestFullDiskOfTheLeaderCostsNoWrite(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		c.disks[leader.id].SetFull(true)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		for i := range 5 {
			c.update(rest[i%2], createService(fmt.Sprint("s", i)))
		}
		if err := leader.Update(context.Background(), createService("x")); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no space left on device: free space on its disk") {
			t.Fatalf("update through the manager whose disk is full: %v", err)
		}
		c.disks[leader.id].SetFull(false)
		c.eventually("all have all", func() bool {
			one := dump(all[0].Local())
			return all[0].Local().Services.Len() >= 5 && dump(all[1].Local()) == one && dump(all[2].Local()) == one
		})
	})
}

// raft panics over an entry that cannot be read, so it never hears of one.
func TestEntryDamagedAtRunTimeStopsTheReplicaWithoutAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.start("n1", true)
		c.update(m, createService("web"))
		garbled := testSealer("another key")
		store := raft.NewInmemStore()
		check(t, (&sealedLog{LogStore: store, sealer: garbled, applied: func() uint64 { return 0 }}).StoreLog(&raft.Log{Index: 7, Term: 1}))
		damaged := &sealedLog{LogStore: store, sealer: testSealer("n1"), path: m.disk.log.path, broken: m.fail}
		damaged.live.Store(true)
		go func() { _ = damaged.GetLog(7, new(raft.Log)) }()
		err := m.work.Wait()
		if err == nil || !strings.Contains(err.Error(), "entry 7 of the cluster log") || !strings.Contains(err.Error(), "join it again") {
			t.Fatalf("got %v", err)
		}
		delete(c.managers, "n1")
	})
}

func alterLog(t *testing.T, dir string, change func(b *bbolt.Bucket, last uint64)) {
	db, err := bbolt.Open(filepath.Join(dir, logFile), 0o600, nil)
	check(t, err)
	check(t, db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("logs"))
		key, _ := b.Cursor().Last()
		change(b, uint64(key[7]))
		return nil
	}))
	check(t, db.Close())
}

func snapshotFiles(t *testing.T, dir string) map[string]string {
	paths, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "*"))
	check(t, err)
	files := map[string]string{}
	for _, path := range paths {
		files[filepath.Base(path)] = path
	}
	return files
}

func flip(t *testing.T, path string, at int) {
	content, err := os.ReadFile(path)
	check(t, err)
	content[at] ^= 1
	check(t, os.WriteFile(path, content, 0o600))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A manager that cannot vote waits, and says why until it can again.
func TestVoteThatCannotBeWrittenIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		log := &sealedLog{}
		log.live.Store(true)
		stable := patientStable{StableStore: fullStable{&full}, live: &log.live, report: log.setVoteFault}
		full.Store(true)
		written := make(chan error)
		go func() { written <- stable.SetUint64([]byte("term"), 2) }()
		synctest.Wait()
		if fault := log.standingFault(); !errors.Is(fault, syscall.ENOSPC) {
			t.Errorf("the fault is %v", fault)
		}
		full.Store(false)
		if err := <-written; err != nil || log.standingFault() != nil {
			t.Errorf("written with %v, the fault is %v", err, log.standingFault())
		}
	})
}

type fullStable struct{ full *atomic.Bool }

func (s fullStable) Set([]byte, []byte) error         { return s.SetUint64(nil, 0) }
func (s fullStable) Get([]byte) ([]byte, error)       { return nil, nil }
func (s fullStable) GetUint64([]byte) (uint64, error) { return 0, nil }

func (s fullStable) SetUint64([]byte, uint64) error {
	if s.full.Load() {
		return syscall.ENOSPC
	}
	return nil
}

// slowSealer takes a second, of virtual time, for each chunk of a snapshot.
type slowSealer struct{ testSealer }

func (s slowSealer) Seal(plain, context []byte) ([]byte, error) {
	if bytes.HasPrefix(context, []byte("swarm snapshot ")) {
		time.Sleep(time.Second)
	}
	return s.testSealer.Seal(plain, context)
}

func (s slowSealer) Open(sealed, context []byte) ([]byte, error) {
	if bytes.HasPrefix(context, []byte("swarm snapshot ")) {
		time.Sleep(time.Second)
	}
	return s.testSealer.Open(sealed, context)
}

// A snapshot that takes longer than the store may take to end does not hold up the end: the directory is free once Run has returned.
func TestStoreEndsInTheMiddleOfALargeSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.start("n1", true)
		c.leader(m)
		for i := range 40 {
			c.update(m, func(tx *Tx) error {
				tx.PutService(Service{Meta: Meta{ID: NewID()}, Name: fmt.Sprint(i, strings.Repeat("x", snapshotChunkBytes))})
				return nil
			})
		}
		c.kill(m)
		c.adjust = func(cfg *Config) { cfg.Sealer = slowSealer{testSealer("n1")} }
		m = c.start("n1", false)
		c.leader(m)
		go func() { _ = m.raft.Snapshot().Error() }()
		time.Sleep(2500 * time.Millisecond)
		c.kill(m)
		c.adjust = nil
		m = c.start("n1", false)
		c.leader(m)
		if n := m.Local().Services.Len(); n != 40 {
			t.Errorf("%d services", n)
		}
	})
}
