package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

func TestSingleManagerCommits(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, createService("web"))
		s, err := m.Local().Services.Find("web")
		if err != nil || s.Version != m.Local().Index() || s.Index != s.Version || s.CreatedAt.IsZero() || s.UpdatedAt != s.CreatedAt {
			t.Fatalf("got %+v, %v", s, err)
		}
		state, err := m.View(context.Background())
		if err != nil || state.Services.Len() != 1 {
			t.Fatalf("view: %v", err)
		}
	})
}

func TestEveryManagerReadsItsOwnWrites(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		for _, m := range c.form(3) {
			c.update(m, createService(m.id))
			if _, err := m.Local().Services.Find(m.id); err != nil {
				t.Fatalf("%s: %v", m.id, err)
			}
		}
	})
}

func TestViewOnAnyManagerSeesWritesOfOthers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		for i := range 20 {
			name := fmt.Sprint("s", i)
			c.update(all[i%3], createService(name))
			state, err := all[(i+1)%3].View(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := state.Services.Find(name); err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
		}
	})
}

// A client may create through one manager and update through another right after.
func TestUpdateElsewhereFindsWhatWasJustCreated(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		behind := 0
		for i := range 10 {
			for _, m := range all {
				name := fmt.Sprint(m.id, "-", i)
				c.update(leader, createService(name))
				if _, err := m.Local().Services.Find(name); err != nil {
					behind++
				}
				c.update(m, func(tx *Tx) error {
					s, err := tx.Services.Find(name)
					if err == nil {
						tx.PutService(*s)
					}
					return err
				})
			}
		}
		if behind == 0 {
			t.Error("no replica was behind, so this proves nothing")
		}
	})
}

func TestOnlySpecWritesMoveVersion(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error { tx.PutNode(managerNode("n1")); return nil })
		first, _ := m.Local().Nodes.Get("n1")
		time.Sleep(time.Second)
		c.update(m, func(tx *Tx) error {
			r, _ := tx.Nodes.Get("n1")
			seen := *r
			seen.Status.State = swarm.NodeStateReady
			tx.PutObservedNode(seen)
			return nil
		})
		second, _ := m.Local().Nodes.Get("n1")
		if second.Version != first.Version || second.UpdatedAt != first.UpdatedAt || second.Index <= first.Index {
			t.Fatalf("observed write: %+v then %+v", first.Meta, second.Meta)
		}
		c.update(m, func(tx *Tx) error {
			r, _ := tx.Nodes.Get("n1")
			wanted := *r
			wanted.Spec.Availability = swarm.NodeAvailabilityDrain
			tx.PutNode(wanted)
			return nil
		})
		third, _ := m.Local().Nodes.Get("n1")
		if third.Version != third.Index || third.Version <= first.Version || !third.UpdatedAt.After(first.UpdatedAt) || third.CreatedAt != first.CreatedAt {
			t.Fatalf("spec write: %+v then %+v", second.Meta, third.Meta)
		}
	})
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		c.update(all[0], func(tx *Tx) error { tx.PutTask(Task{Meta: Meta{ID: "counter"}}); return nil })
		var work errgroup.Group
		for i := range 12 {
			work.Go(func() error {
				for range 5 {
					if err := all[i%3].Update(context.Background(), increment); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := work.Wait(); err != nil {
			t.Fatal(err)
		}
		state, err := all[2].View(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := state.Tasks.Get("counter"); got.Slot != 60 {
			t.Fatalf("counted %d of 60", got.Slot)
		}
	})
}

func increment(tx *Tx) error {
	r, ok := tx.Tasks.Get("counter")
	if !ok {
		return errors.New("no counter")
	}
	next := *r
	next.Slot++
	tx.PutTask(next)
	return nil
}

func TestOneNameIsGivenOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		var done, refused atomic.Int32
		var work errgroup.Group
		for i := range 9 {
			work.Go(func() error {
				err := all[i%3].Update(context.Background(), createService("web"))
				switch {
				case err == nil:
					done.Add(1)
				case errdefs.IsAlreadyExists(err) && err.Error() == "service web already exists":
					refused.Add(1)
				default:
					return err
				}
				return nil
			})
		}
		if err := work.Wait(); err != nil || done.Load() != 1 || refused.Load() != 8 {
			t.Fatalf("done %d, refused %d, %v", done.Load(), refused.Load(), err)
		}
	})
}

func TestGuardKeepsASharedInvariant(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error {
			for i := range 5 {
				tx.PutNode(managerNode(fmt.Sprint("m", i)))
			}
			return nil
		})
		var work errgroup.Group
		for i := range 5 { // each deletes its own row, but never the last one
			work.Go(func() error {
				return m.Update(context.Background(), func(tx *Tx) error {
					tx.Guard("managers")
					if tx.Nodes.Len() > 1 {
						tx.DeleteNode(fmt.Sprint("m", i))
					}
					return nil
				})
			})
		}
		if err := work.Wait(); err != nil || m.Local().Nodes.Len() != 1 {
			t.Fatalf("%d nodes left, %v", m.Local().Nodes.Len(), err)
		}
	})
}

func TestAssertRunsTheClosureAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error { tx.PutNode(managerNode("n1")); return nil })
		runs := 0
		c.update(m, func(tx *Tx) error {
			runs++
			if runs == 1 { // somebody else writes the node meanwhile
				c.update(m, func(tx *Tx) error {
					r, _ := tx.Nodes.Get("n1")
					tx.PutObservedNode(*r)
					return nil
				})
			}
			tx.AssertNode("n1")
			return createService("web")(tx)
		})
		if runs != 2 {
			t.Fatalf("%d runs", runs)
		}
	})
}

func TestRefusedUpdatesChangeNothing(t *testing.T) {
	boom := errors.New("boom")
	for name, story := range map[string]struct {
		change func(*Tx) error
		is     func(error) bool
	}{
		"error of the closure": {func(tx *Tx) error { tx.DeleteService("s1"); return boom }, func(err error) bool { return err == boom }},
		"stale row": {func(tx *Tx) error { tx.PutService(Service{Meta: Meta{ID: "s1", Index: 1}, Name: "x"}); return nil },
			func(err error) bool {
				return errdefs.IsConflict(err) && strings.Contains(err.Error(), "update out of sequence")
			}},
		"row that exists": {func(tx *Tx) error { tx.PutService(Service{Meta: Meta{ID: "s1"}, Name: "x"}); return nil }, errdefs.IsConflict},
		"row without id":  {func(tx *Tx) error { tx.PutTask(Task{}); return nil }, errdefs.IsInvalidArgument},
		"unknown state": {func(tx *Tx) error { tx.PutTask(Task{Meta: Meta{ID: "t"}, DesiredState: "flying"}); return nil },
			errdefs.IsInvalidArgument},
		"too many rows": {func(tx *Tx) error {
			for i := range CommitChangesMax + 1 {
				tx.PutTask(Task{Meta: Meta{ID: fmt.Sprint(i)}})
			}
			return nil
		}, errdefs.IsInvalidArgument},
		"too many bytes": {func(tx *Tx) error {
			tx.PutTask(Task{Meta: Meta{ID: "t"}, Status: TaskStatus{Err: strings.Repeat("x", CommitSizeBytesMax)}})
			return nil
		}, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				m := c.start("n1", true)
				c.update(m, func(tx *Tx) error {
					tx.PutService(Service{Meta: Meta{ID: "s1"}, Name: "web"})
					return nil
				})
				before := dump(m.Local())
				if err := m.Update(context.Background(), story.change); err == nil || !story.is(err) {
					t.Fatalf("got %v", err)
				}
				if after := dump(m.Local()); after != before {
					t.Fatalf("changed\n%s to\n%s", before, after)
				}
			})
		})
	}
}

func TestClosureReadsItsOwnWritesAndCommitsTheirSum(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, func(tx *Tx) error {
			for i := range 3 {
				tx.PutTask(Task{Meta: Meta{ID: fmt.Sprint("old", i)}, ServiceID: "s", NodeID: "n"})
			}
			return nil
		})
		c.update(m, func(tx *Tx) error {
			for r := range tx.TasksOf("s") { // writing while iterating is allowed
				tx.DeleteTask(r.ID)
				tx.PutTask(Task{Meta: Meta{ID: "new" + r.ID}, ServiceID: "s"})
			}
			r, _ := tx.Tasks.Get("newold0")
			moved := *r
			moved.ServiceID = "other"
			tx.PutTask(moved)
			tx.DeleteTask("newold1")
			if got := ids(tx.TasksOf("s")); got != "newold2" {
				t.Errorf("inside: %s", got)
			}
			return nil
		})
		if got := ids(m.Local().TasksOf("s")) + " " + ids(m.Local().TasksOf("other")) + " " + ids(m.Local().TasksOn("n")); got != "newold2 newold0 " {
			t.Fatalf("after: %s", got)
		}
	})
}

func TestWatchNamesWhatChanged(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		w := m.Watch()
		<-w.Changed()
		if _, dirty := w.Take(); !dirty.All {
			t.Fatal("the first take is not everything")
		}
		c.update(m, createService("web"))
		c.update(m, func(tx *Tx) error {
			tx.PutTask(Task{Meta: Meta{ID: "t1"}, ServiceID: "s9", NodeID: "n1"})
			return nil
		})
		<-w.Changed()
		state, dirty := w.Take()
		web, _ := state.Services.Find("web")
		got := fmt.Sprint(dirty.All, dirty.Cluster, len(dirty.Services), slices.Sorted(maps.Keys(dirty.Nodes)), slices.Sorted(maps.Keys(dirty.Tasks)))
		if _, ok := dirty.Services[web.ID]; !ok || got != "false false 2 [n1] [t1]" {
			t.Fatalf("got %s", got)
		}
		c.update(m, func(tx *Tx) error { // a task that moves dirties both nodes
			r, _ := tx.Tasks.Get("t1")
			moved := *r
			moved.NodeID = "n2"
			tx.PutObservedTask(moved)
			return nil
		})
		<-w.Changed()
		if _, dirty := w.Take(); len(dirty.Nodes) != 2 {
			t.Fatalf("got %v", dirty.Nodes)
		}
		w.Close()
		c.update(m, createService("more"))
		select {
		case <-w.Changed():
			t.Fatal("told after Close")
		default:
		}
	})
}

// A dead leader's port may still take connections and never answer: what was asked of it is asked of the next leader.
func TestCallsToALostLeaderGoToTheNextOne(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		c.isolate(leader.id)
		began := time.Now()
		for _, m := range all {
			if m == leader {
				continue
			}
			c.update(m, createService(m.id))
			if _, err := m.View(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("it took %s, as if the lost leader had been waited for", took)
		}
		c.heal()
	})
}

func TestCommitProposedTwiceAppliesOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.update(m, createService("web"))
		twice, err := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), time: time.Now(), guards: []guard{{name: "g"}}})
		if err != nil {
			t.Fatal(err)
		}
		propose := func() Answer {
			t.Helper()
			answers, err := m.ProposeLocal(context.Background(), [][]byte{twice})
			if err != nil || answers[0].Refusal != nil {
				t.Fatal(answers, err)
			}
			return answers[0]
		}
		first := propose()
		if again := propose(); again.Index != first.Index {
			t.Fatalf("at %d, then at %d", first.Index, again.Index)
		}
		if err := m.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		c.kill(m)
		m = c.start("n1", false)
		c.leader(m)
		if again := propose(); again.Index != first.Index {
			t.Fatalf("after a restart from a snapshot: at %d", again.Index)
		}
	})
}

func TestForwardedGarbageIsRefusedBeforeTheLog(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", true)
		c.leader(m)
		before := m.raft.LastIndex()
		for _, garbage := range []string{"", "garbage", "\x08\x03"} {
			if _, err := m.ProposeLocal(context.Background(), [][]byte{[]byte(garbage)}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", garbage, err)
			}
		}
		if m.raft.LastIndex() != before {
			t.Fatal("something reached the log")
		}
	})
}

func TestIdsAreUniqueAndWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := NewID()
		if len(id) != 25 || strings.Trim(id, idChars) != "" || seen[id] {
			t.Fatalf("bad id %q", id)
		}
		seen[id] = true
	}
}

func TestUpdateEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.start("n1", false) // nobody ever contacts it
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		err := m.Update(ctx, createService("web"))
		if !errors.Is(err, context.DeadlineExceeded) || !errdefs.IsUnavailable(err) || !strings.HasPrefix(err.Error(), noLeaderText) {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
	})
}

func createService(name string) func(*Tx) error {
	return func(tx *Tx) error {
		tx.PutService(Service{Meta: Meta{ID: NewID()}, Name: name})
		return nil
	}
}

func ids(rows func(func(*Task) bool)) string {
	var all []string
	for r := range rows {
		all = append(all, r.ID)
	}
	return strings.Join(all, " ")
}

// dump is a state as text.
func dump(s *State) string {
	var b strings.Builder
	for _, t := range tableIDs() {
		s.table(t).scan(func(r row) bool {
			raw, err := marshal(r.wire)
			fmt.Fprintf(&b, "%s %s %x %v\n", s.table(t).kind(), r.meta().ID, raw, err)
			return true
		})
	}
	return b.String()
}
