package raftstore

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

func TestTheLastManagerIsRecovered(t *testing.T) {
	for _, where := range []string{"memory", "files"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				if where == "memory" {
					c.disks = map[string]*MemoryDisk{}
				}
				all := c.form(3)
				leader := c.leader(all...)
				for i := range 5 {
					c.update(leader, createService(fmt.Sprint("s", i)))
				}
				survivor := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
				c.eventually("it has all", func() bool { return survivor.Local().Services.Len() == 5 })
				gone := time.Now()
				for _, m := range all {
					if m != survivor {
						c.kill(m)
					}
				}
				time.Sleep(time.Hour)
				live, err := survivor.PreviewRecovery()
				check(t, err)
				if where == "files" {
					if _, err := PreviewRecovery(c.config(survivor.id)); err == nil || !strings.Contains(err.Error(), "in use by another process") {
						t.Errorf("preview of a directory in use: %v", err)
					}
				}
				c.stop(survivor)
				before := dump(survivor.Local())
				preview, err := PreviewRecovery(c.config(survivor.id))
				check(t, err)
				for name, p := range map[string]Recovery{"running": live, "stopped": preview} {
					if away := p.LastContact.Sub(gone).Abs(); p.NodeID != survivor.id || p.Services != 5 || len(p.Removed) != 2 || away > 3*time.Second ||
						p.Unconfirmed > 1 || p.LastIndex == 0 || gone.Sub(p.LastChange) > 10*time.Second || p.LastChange.After(gone) {
						t.Errorf("preview of a %s manager, %s from the last contact: %+v", name, away, p)
					}
				}
				done, err := Recover(c.config(survivor.id))
				check(t, err)
				if fmt.Sprint(done) != fmt.Sprint(preview) {
					t.Errorf("previewed %+v, did %+v", preview, done)
				}
				m := c.start(survivor.id, false)
				c.leader(m)
				if after := dump(m.Local()); strings.Count(after, "\n") != strings.Count(before, "\n") {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
				for row := range m.Local().Nodes.All() {
					if manager := row.Role == swarm.NodeRoleManager && row.Spec.Role == swarm.NodeRoleManager; manager != (row.ID == m.id) {
						t.Errorf("%s has role %s, wanted %s", row.ID, row.Role, row.Spec.Role)
					}
				}
				c.update(m, createService("after"))
				c.kill(m)
				m = c.start(survivor.id, false)
				c.leader(m)
				if n := m.Local().Services.Len(); n != 6 || len(m.Members()) != 1 {
					t.Errorf("%d services, members %v", n, m.Members())
				}
				// A new manager under another name is taken up as ever.
				c.start("n9", false)
				c.update(m, func(tx *Tx) error { tx.PutNode(managerNode("n9")); return nil })
				c.eventually("two managers", func() bool { return c.voters(m) == 2 })
			})
		})
	}
}

// What a leader acknowledged is in the log of most managers before they know that it is committed.
func TestRecoveryKeepsWhatMayHaveBeenAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		c.update(leader, createService("acknowledged"))
		// The followers have it in their logs; at the same moment everything ends.
		for _, id := range []string{"n1", "n2", "n3"} {
			c.disks[id].Crash(false)
		}
		for _, m := range all {
			c.kill(m)
		}
		kept := 0
		for _, m := range rest {
			r, err := Recover(c.config(m.id))
			check(t, err)
			kept += r.Services
		}
		if kept == 0 {
			t.Error("no follower kept it")
		}
	})
}

// Old managers, alone or with a majority among them and newer entries than the recovered one ever had, neither vote it down nor overwrite it.
func TestOldManagersThatComeBackDoNoHarm(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		survivor := all[0]
		c.update(survivor, createService("before"))
		c.kill(survivor)
		rest := all[1:]
		for i := range 10 {
			c.update(rest[0], createService(fmt.Sprint("unknown to the survivor ", i)))
		}
		for _, m := range rest {
			c.kill(m)
		}
		_, err := Recover(c.config(survivor.id))
		check(t, err)
		m := c.start(survivor.id, false)
		c.leader(m)
		c.update(m, createService("after"))
		term := m.raft.CurrentTerm()
		for i := range rest {
			rest[i] = c.start(rest[i].id, false)
		}
		for _, old := range rest {
			if err := old.work.Wait(); !IsSuperseded(err) {
				t.Errorf("%s ended with %v", old.id, err)
			}
			c.mu.Lock()
			delete(c.managers, old.id)
			c.mu.Unlock()
		}
		c.update(m, createService("later"))
		if m.Local().Services.Len() != 3 || m.raft.CurrentTerm() != term {
			t.Errorf("term %d became %d, the state:\n%s", term, m.raft.CurrentTerm(), dump(m.Local()))
		}
		// Without its old state it may be a manager again.
		c.disks[rest[0].id].Erase()
		c.start(rest[0].id, false)
		c.update(m, func(tx *Tx) error {
			row, _ := tx.Nodes.Get(rest[0].id)
			again := managerNode(row.ID)
			again.Meta = row.Meta
			tx.PutNode(again)
			return nil
		})
		c.eventually("it is a manager again", func() bool { return c.voters(m) == 2 })
	})
}

// Two managers that were both recovered are two clusters.
func TestTwoRecoveriesDoNotMix(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		for _, m := range all {
			c.kill(m)
		}
		for _, id := range []string{"n1", "n2"} {
			_, err := Recover(c.config(id))
			check(t, err)
		}
		one, two := c.start("n1", false), c.start("n2", false)
		c.update(one, setRole("n2", swarm.NodeRoleManager))
		c.update(one, func(tx *Tx) error {
			row, _ := tx.Nodes.Get("n2")
			again := *row
			again.Role = swarm.NodeRoleManager
			tx.PutObservedNode(again)
			return nil
		})
		time.Sleep(10 * time.Second)
		c.update(one, createService("one"))
		c.update(two, createService("two"))
		if one.Local().Services.Len() != 1 || two.Local().Services.Len() != 1 || c.voters(one) != 1 || c.voters(two) != 1 {
			t.Errorf("%v and %v", one.Members(), two.Members())
		}
	})
}

func TestInterruptedRecoveryIsDoneAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		c.update(all[0], createService("web"))
		for _, m := range all {
			c.kill(m)
		}
		for writes := range 6 {
			c.disks["n1"].SetDelay(time.Second)
			ended := make(chan error, 1)
			go func() {
				_, err := Recover(c.config("n1"))
				ended <- err
			}()
			time.Sleep(time.Duration(writes)*time.Second + time.Second/2)
			c.disks["n1"].Crash(false)
			<-ended
			c.disks["n1"].SetDelay(0)
		}
		_, err := Recover(c.config("n1"))
		check(t, err)
		m := c.start("n1", false)
		c.leader(m)
		if m.Local().Services.Len() != 1 {
			t.Error(dump(m.Local()))
		}
	})
}

func TestNothingIsRecoveredFromNothing(t *testing.T) {
	cfg := Config{NodeID: "n1", Address: "n1:2377", Dir: filepath.Join(t.TempDir(), "raft"), Sealer: testSealer("n1")}
	if _, err := Recover(cfg); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

// stop ends a manager in order.
func (c *cluster) stop(m *manager) {
	c.t.Helper()
	m.stop()
	if err := m.work.Wait(); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	delete(c.managers, m.id)
	c.mu.Unlock()
}
