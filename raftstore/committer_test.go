package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// interruptedPeers lets a test step in when a commit is forwarded.
type interruptedPeers struct {
	Peers
	propose *atomic.Pointer[func(commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error)]
}

func (p interruptedPeers) Propose(ctx context.Context, address string, commits [][]byte) ([]Answer, error) {
	pass := func() ([]Answer, error) { return p.Peers.Propose(ctx, address, commits) }
	if step := p.propose.Swap(nil); step != nil {
		return (*step)(commits, pass)
	}
	return pass()
}

// interruptible returns what makes the next forwarded batch of any manager go through a step.
func (c *cluster) interruptible() func(step func(commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error)) {
	var next atomic.Pointer[func(commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error)]
	c.adjust = func(cfg *Config) { cfg.Peers = interruptedPeers{cfg.Peers, &next} }
	return func(step func(commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error)) { next.Store(&step) }
}

func (c *cluster) followers(all []*manager) []*manager {
	leader := c.leader(all...)
	return slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
}

// The leader goes away at each point of a commit that a follower forwards: it is made exactly once.
func TestCommitIsMadeOnceWhereverTheLeaderDies(t *testing.T) {
	lost := errors.New("connection lost")
	for point, step := range map[string]func(c *cluster, leader *manager, commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error){
		"before it hears of it": func(c *cluster, leader *manager, _ [][]byte, _ func() ([]Answer, error)) ([]Answer, error) {
			c.isolate(leader.id)
			return nil, lost
		},
		"once it is in its own log": func(c *cluster, leader *manager, commits [][]byte, _ func() ([]Answer, error)) ([]Answer, error) {
			c.isolate(leader.id)
			last := leader.raft.LastIndex()
			go leader.ProposeLocal(context.Background(), commits)
			for leader.raft.LastIndex() == last {
				time.Sleep(time.Millisecond)
			}
			return nil, lost
		},
		"once it is done and not answered": func(c *cluster, leader *manager, _ [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			if _, err := pass(); err != nil {
				return nil, err
			}
			c.isolate(leader.id)
			return nil, lost
		},
		"once it is answered": func(c *cluster, leader *manager, _ [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			answers, err := pass()
			c.isolate(leader.id)
			return answers, err
		},
		"never, only the answer is lost": func(c *cluster, leader *manager, _ [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			_, _ = pass()
			return nil, lost
		},
		"never, and the request arrives twice": func(c *cluster, leader *manager, commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			if _, err := leader.ProposeLocal(context.Background(), commits); err != nil {
				return nil, err
			}
			return pass()
		},
	} {
		t.Run(point, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				interrupt := c.interruptible()
				all := c.form(3)
				c.update(all[0], func(tx *Tx) error { tx.PutTask(Task{Meta: Meta{ID: "counter"}}); return nil })
				leader := c.leader(all...)
				follower := c.followers(all)[0]
				interrupt(func(commits [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
					return step(c, leader, commits, pass)
				})
				c.update(follower, increment)
				c.heal()
				c.leader(all...)
				c.update(leader, increment) // the old leader too
				for _, m := range all {
					state, err := m.View(context.Background())
					check(t, err)
					if got, _ := state.Tasks.Get("counter"); got.Slot != 2 {
						t.Errorf("%s counted %d, want 2", m.id, got.Slot)
					}
				}
			})
		})
	}
}

// An answer is lost, and before the commit is proposed again more is committed than is remembered.
func TestForgottenCommitIsNotMadeTwice(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		interrupt := c.interruptible()
		all := c.form(3)
		c.update(all[0], func(tx *Tx) error { tx.PutTask(Task{Meta: Meta{ID: "counter"}}); return nil })
		leader := c.leader(all...)
		interrupt(func(_ [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			if _, err := pass(); err != nil {
				return nil, err
			}
			commitOthers(t, leader, commitIDsMax)
			return nil, errors.New("connection lost")
		})
		err := c.followers(all)[0].Update(context.Background(), increment)
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "cannot be told whether the change was made") {
			t.Errorf("got %v", err)
		}
		if got, _ := leader.Local().Tasks.Get("counter"); got.Slot != 1 {
			t.Errorf("counted %d", got.Slot)
		}
	})
}

// commitOthers makes a leader commit n things that concern nobody.
func commitOthers(t *testing.T, leader *manager, n int) {
	t.Helper()
	for made := 0; made < n; made += entryCommitsMax {
		var others [][]byte
		for range entryCommitsMax {
			raw, err := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), asserts: []assertion{{table: tableTasks, id: "none"}}})
			check(t, err)
			others = append(others, raw)
		}
		if _, err := leader.ProposeLocal(context.Background(), others); err != nil {
			t.Fatal(err)
		}
	}
}

// A replica that is far behind may try with a new commit: its first one was surely never made.
func TestCommitThatIsTooOldAtItsFirstTryRunsAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		interrupt := c.interruptible()
		all := c.form(3)
		leader := c.leader(all...)
		interrupt(func(_ [][]byte, pass func() ([]Answer, error)) ([]Answer, error) {
			commitOthers(t, leader, commitIDsMax)
			return pass()
		})
		c.update(c.followers(all)[0], createService("web"))
		if n := leader.Local().Services.Len(); n != 1 {
			t.Errorf("%d services", n)
		}
	})
}

// A copy of a commit arrives when its proposer has been told that it was refused, and what refused it is gone.
func TestRefusedCommitStaysRefused(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		c.update(m, createService("web"))
		late, err := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), changes: []change{
			{table: tableServices, op: opPut, id: "other", row: &Service{Meta: Meta{ID: "other"}, Name: "web"}},
		}})
		check(t, err)
		propose := func() reason {
			t.Helper()
			answers, err := m.ProposeLocal(context.Background(), [][]byte{late})
			check(t, err)
			v, err := answers[0].verdict()
			check(t, err)
			if v.refusal == nil {
				t.Fatal("done")
			}
			return v.refusal.reason
		}
		if got := propose(); got != nameTaken {
			t.Errorf("refused by %d", got)
		}
		c.update(m, func(tx *Tx) error {
			web, err := tx.Services.Find("web")
			if err == nil {
				tx.DeleteService(web.ID)
			}
			return err
		})
		if got := propose(); got != decidedBefore {
			t.Errorf("the copy is refused by %d", got)
		}
		check(t, m.raft.Snapshot().Error())
		c.kill(m)
		m = c.start("n1", false)
		c.leader(m)
		if got := propose(); got != decidedBefore {
			t.Errorf("after a restart from a snapshot, the copy is refused by %d", got)
		}
	})
}

// formSlow is form on disks in memory whose writes then take a time.
func (c *cluster) formSlow(n int, delay time.Duration) []*manager {
	c.t.Helper()
	c.disks = map[string]*MemoryDisk{}
	all := c.form(n)
	for _, disk := range c.disks {
		disk.SetDelay(delay)
	}
	return all
}

func TestManyWritersShareEntries(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.formSlow(3, time.Millisecond)
		before, began := all[0].raft.LastIndex(), time.Now()
		const writers, each = 255, 4
		var work errgroup.Group
		for i := range writers {
			work.Go(func() error {
				for range each {
					if err := all[i%3].Update(context.Background(), putTask); err != nil {
						return err
					}
				}
				return nil
			})
		}
		check(t, work.Wait())
		entries, took := all[0].raft.LastIndex()-before, time.Since(began)
		t.Logf("%d commits in %d entries, %s", writers*each, entries, took)
		if entries > writers*each/20 || took > 200*time.Millisecond {
			t.Errorf("%d commits took %d entries and %s", writers*each, entries, took)
		}
		for _, m := range all {
			state, err := m.View(context.Background())
			check(t, err)
			if n := state.Tasks.Len(); n != writers*each {
				t.Errorf("%s has %d tasks", m.id, n)
			}
			if stats := m.Stats(); stats.PendingCommits != 0 || stats.CommitLatency.Count == 0 {
				t.Errorf("%s: %d pending, %d observed", m.id, stats.PendingCommits, stats.CommitLatency.Count)
			}
		}
	})
}

func TestLoneWriterOnAFollowerWaitsForNoTimer(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		follower := c.followers(all)[0]
		c.update(follower, createService("first")) // raft's stream of entries is open from here
		began := time.Now()
		for i := range 10 {
			c.update(follower, createService(fmt.Sprint(i)))
		}
		if took := time.Since(began); took > commitTimeout {
			t.Errorf("10 writes took %s of network and disk that take no time", took)
		}
	})
}

func TestWhatWaitsIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.formSlow(1, time.Second)[0]
		var done, refused atomic.Int64
		var work errgroup.Group
		began := time.Now()
		for range waitingCommitsMax + 2*entryCommitsMax {
			work.Go(func() error {
				err := m.Update(context.Background(), putTask)
				switch {
				case err == nil:
					done.Add(1)
				case errdefs.IsUnavailable(err) && strings.HasPrefix(err.Error(), "this manager is busy") && time.Since(began) == 0:
					refused.Add(1)
				default:
					return err
				}
				return nil
			})
		}
		check(t, work.Wait())
		if done.Load() < waitingCommitsMax || refused.Load() == 0 || m.Local().Tasks.Len() != int(done.Load()) {
			t.Errorf("%d done, %d refused, %d tasks", done.Load(), refused.Load(), m.Local().Tasks.Len())
		}
	})
}

func TestCommitWithdrawnInTimeNeverHappens(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.formSlow(1, time.Second)[0]
		for range entriesInFlightMax {
			m.work.Go(func() error { return m.Update(context.Background(), putTask) })
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		err := m.Update(ctx, createService("web"))
		if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), strings.TrimSpace(mayStillHappen)) {
			t.Errorf("got %v", err)
		}
		c.update(m, createService("other"))
		if n := m.Local().Services.Len(); n != 1 {
			t.Errorf("%d services", n)
		}
	})
}

// All who wait when leadership is lost are told once: what they wanted happens through the next leader, or they hear why not.
func TestWaitingCommitsOutliveALeadership(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		c.isolate(leader.id)
		var acknowledged, unknown atomic.Int64
		var work errgroup.Group
		const writers = 50
		for range writers {
			work.Go(func() error {
				err := leader.Update(context.Background(), putTask)
				switch {
				case err == nil:
					acknowledged.Add(1)
				case errdefs.IsUnavailable(err):
					unknown.Add(1)
				default:
					return err
				}
				return nil
			})
		}
		time.Sleep(time.Second)
		c.heal()
		check(t, work.Wait())
		c.leader(all...)
		state, err := leader.View(context.Background())
		check(t, err)
		if n := int64(state.Tasks.Len()); n < acknowledged.Load() || n > writers || acknowledged.Load()+unknown.Load() != writers {
			t.Errorf("%d tasks, %d acknowledged, %d unknown", n, acknowledged.Load(), unknown.Load())
		}
	})
}

func TestLargeCommitGoesAlone(t *testing.T) {
	c := newCommitter()
	propose := func(changes, size int) *proposal {
		return &proposal{commit: make([]byte, size), changes: changes, done: make(chan outcome, 1)}
	}
	small, many, large, last := propose(1, 10), propose(CommitChangesMax, 10), propose(1, CommitSizeBytesMax), propose(1, 10)
	check(t, c.add(small, small, many, large, last))
	for i, want := range [][]*proposal{{small, small}, {many}, {large}, {last}} {
		if got := c.take(); !slices.Equal(got, want) {
			t.Errorf("entry %d has %d commits", i, len(got))
		}
	}
	if c.sizeBytes != 0 {
		t.Errorf("%d bytes are left of nothing", c.sizeBytes)
	}
}
