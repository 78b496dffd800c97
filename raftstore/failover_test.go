package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
)

func TestWritesGoOnAfterTheLeaderDies(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		c.update(leader, createService("before"))
		c.kill(leader)
		rest := slices.DeleteFunc(all, func(m *manager) bool { return m == leader })
		began := time.Now()
		c.update(rest[0], createService("after"))
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("first commit after %s", took)
		}
		for _, m := range rest {
			state, err := m.View(context.Background())
			if err != nil || state.Services.Len() != 2 {
				t.Fatalf("%s: %d services, %v", m.id, state.Services.Len(), err)
			}
		}
		back := c.start(leader.id, false)
		c.eventually("the old leader has caught up", func() bool { return back.Local().Services.Len() == 2 })
	})
}

// The time from a leader's death to the first commit of another manager, with nothing but raft's timers in it.
func TestFailoverIsShort(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		var times []time.Duration
		for round := range 40 {
			leader := c.leader(all...)
			place := slices.Index(all, leader)
			writer := all[(place+1)%3]
			began, done := time.Now(), make(chan struct{})
			c.isolate(leader.id) // from here on nobody hears of it; its end takes longer
			go func() {
				defer close(done)
				c.update(writer, createService(fmt.Sprint("s", round)))
				times = append(times, time.Since(began))
			}()
			c.kill(leader)
			<-done
			all[place] = c.start(leader.id, false)
			c.eventually("all agree", func() bool { return c.agree(all) })
			time.Sleep(time.Duration(round) * 37 * time.Millisecond)
		}
		slices.Sort(times)
		median, p90 := times[len(times)/2], times[len(times)*9/10]
		t.Logf("leader killed to first commit: least %s, median %s, p90 %s, longest %s", times[0], median, p90, times[len(times)-1])
		if median > 900*time.Millisecond || p90 > 1200*time.Millisecond {
			t.Errorf("median %s, p90 %s", median, p90)
		}
	})
}

// Writers hammer all managers while leaders are isolated one after the other: each acknowledged increment counts exactly once.
func TestNothingAcknowledgedIsLostOrDoubledWhenLeadersChange(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		c.update(all[0], func(tx *Tx) error { tx.PutTask(Task{Meta: Meta{ID: "counter"}}); return nil })
		var acknowledged, unknown atomic.Uint64
		ctx, stop := context.WithCancel(context.Background())
		var writers []chan struct{}
		for _, m := range all {
			done := make(chan struct{})
			writers = append(writers, done)
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					if err := m.Update(context.Background(), increment); err == nil {
						acknowledged.Add(1)
					} else {
						unknown.Add(1)
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
		}
		for range 4 {
			time.Sleep(2 * time.Second)
			leader := c.leader(all...)
			c.isolate(leader.id)
			time.Sleep(3 * time.Second)
			c.heal()
		}
		stop()
		for _, done := range writers {
			<-done
		}
		c.leader(all...)
		for _, m := range all {
			state, err := m.View(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			got, _ := state.Tasks.Get("counter")
			if low, high := acknowledged.Load(), acknowledged.Load()+unknown.Load(); got.Slot < low || got.Slot > high || low < 100 {
				t.Errorf("%s: counted %d, acknowledged %d, unknown %d", m.id, got.Slot, low, high-low)
			}
		}
		if a, b := dump(all[0].Local()), dump(all[1].Local()); a != b {
			t.Errorf("replicas differ:\n%s\n%s", a, b)
		}
	})
}

func TestWithoutMajorityTheErrorSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		c.isolate(leader.id)
		began := time.Now()
		err := leader.Update(context.Background(), createService("web"))
		var others []string
		for _, m := range all {
			if m != leader {
				others = append(others, fmt.Sprintf("%s (%s)", m.id, m.id))
			}
		}
		notReachable := " Not reachable: " + strings.Join(others, ", ") + ". Start them or mend the network; if they are lost for good, " +
			"`swarm init --force-new-cluster` makes this manager a cluster of its own with what it knows."
		want := noLeaderText + " (1 of 3 managers can be reached from here, this one included.)" + notReachable
		if !errdefs.IsUnavailable(err) || err.Error() != want+mayStillHappen {
			t.Fatalf("update: got %v", err)
		}
		if took := time.Since(began); took > electionWait+time.Second {
			t.Errorf("said after %s", took)
		}
		began = time.Now()
		if _, err := leader.View(context.Background()); !errdefs.IsUnavailable(err) || err.Error() != want {
			t.Fatalf("view: got %v", err)
		}
		if err := leader.Update(context.Background(), createService("web")); !errdefs.IsUnavailable(err) {
			t.Fatalf("second update: got %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("once known, said only after %s", took)
		}
		if leader.Local().Nodes.Len() != 3 {
			t.Error("the local state is gone")
		}
		c.heal()
		c.leader(all...)
		c.update(leader, createService("more"))
	})
}

// A read without a leader is answered a second after it was lost, by the replica; while an election is under way it waits.
func TestReadsWithoutALeaderSaySo(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		c.update(leader, createService("web"))
		if state, stale, err := rest[0].ViewOrStale(context.Background()); err != nil || stale != 0 || state.Services.Len() != 1 {
			t.Errorf("with a leader: %v, %v", stale, err)
		}
		c.isolate(rest[0].id)
		if _, err := rest[0].View(context.Background()); !errdefs.IsUnavailable(err) {
			t.Errorf("without a leader: %v", err)
		}
		time.Sleep(5 * time.Second)
		began := time.Now()
		state, stale, err := rest[0].ViewOrStale(context.Background())
		if err != nil || stale < 5*time.Second || stale > 8*time.Second || state.Services.Len() != 1 || time.Since(began) > 0 {
			t.Errorf("five seconds later: stale %s, %v, after %s", stale, err, time.Since(began))
		}
		c.heal()
		c.leader(all...)
		c.kill(leader)
		began = time.Now()
		if _, stale, err := rest[1].ViewOrStale(context.Background()); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("while another is elected: stale %s, %v, after %s", stale, err, time.Since(began))
		}
	})
}

// A leader that is known but cannot be asked, as behind a link that is cut in one direction, holds a read up only for a while.
func TestReadsPastALeaderThatDoesNotAnswerSaySo(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		reader := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
		c.mu.Lock()
		c.cut[[2]string{reader.id, leader.id}] = true
		c.mu.Unlock()
		began := time.Now()
		_, stale, err := reader.ViewOrStale(context.Background())
		if took := time.Since(began); err != nil || stale != confirmWait || took != confirmWait {
			t.Errorf("stale %s, %v, after %s", stale, err, took)
		}
	})
}

func TestAnIsolatedLeaderServesNoStaleView(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		old := c.leader(all...)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == old })
		c.isolate(old.id)
		c.update(rest[0], createService("web"))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if state, err := old.View(ctx); err == nil {
			t.Fatalf("stale view with %d services", state.Services.Len())
		}
	})
}

// What an update finds wrong is an answer to a client, as a view is: a replica that was left behind must not give it, whatever it
// takes itself for, and once it is back it gives the one that is right.
func TestAnIsolatedManagerBlamesNoUpdateForItsOwnStaleState(t *testing.T) {
	for name, leads := range map[string]bool{"the leader": true, "a follower": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				all := c.form(3)
				c.update(all[0], createService("gone"))
				lost := all[slices.IndexFunc(all, func(m *manager) bool { return (m == c.leader(all...)) == leads })]
				rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == lost })
				c.eventually("it has the service", func() bool { return lost.Local().Services.Len() == 1 })
				c.isolate(lost.id)
				c.update(rest[0], createService("web"))
				c.update(rest[0], func(tx *Tx) error {
					row, err := tx.Services.Find("gone")
					if err == nil {
						tx.DeleteService(row.ID)
					}
					return err
				})
				refused := func(when string) {
					t.Helper()
					for what, change := range map[string]func(*Tx) error{
						"not found":   func(tx *Tx) error { _, err := tx.Services.Find("web"); return err },
						"name taken":  createService("gone"),
						"own refusal": func(*Tx) error { return errdefs.ErrConflict },
					} {
						if err := lost.Update(context.Background(), change); !errdefs.IsUnavailable(err) {
							t.Errorf("%s, %s: %v", when, what, err)
						}
					}
				}
				refused("while it may still believe in the leader")
				time.Sleep(10 * time.Second)
				refused("without a leader")
				c.kill(lost) // which heals
				c.isolate(lost.id)
				lost = c.start(lost.id, false)
				refused("after a restart")
				c.heal()
				c.leader(append(rest, lost)...)
				c.update(lost, createService("gone"))
				if err := lost.Update(context.Background(), createService("web")); !errdefs.IsAlreadyExists(err) {
					t.Errorf("back again: %v", err)
				}
			})
		})
	}
}

func TestAllManagersRestartWithTheirState(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		for i := range 10 {
			c.update(all[i%3], createService(fmt.Sprint("s", i)))
		}
		want := dump(c.leader(all...).Local())
		for _, m := range all {
			c.kill(m)
		}
		for i, m := range all {
			all[i] = c.start(m.id, false)
		}
		for _, m := range all {
			c.eventually("state is back", func() bool { return dump(m.Local()) == want })
		}
		c.update(c.leader(all...), createService("more"))
	})
}

// Before the snapshot that it is sent, a manager has entries of its own, and none between them and the ones that follow.
func TestManagerThatCaughtUpBySnapshotRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.disks = nil // the file keeps what is below a gap
		c.adjust = func(cfg *Config) { cfg.TrailingEntries = 20 }
		all := c.form(3)
		lead := c.leader(all...)
		i := slices.IndexFunc(all, func(m *manager) bool { return m != lead })
		c.kill(all[i])
		for n := range 50 {
			c.update(lead, createService(fmt.Sprint("while away ", n)))
		}
		check(t, lead.raft.Snapshot().Error())
		all[i] = c.start(all[i].id, false)
		c.eventually("the same state", func() bool { return dump(all[i].Local()) == dump(lead.Local()) })
		if all[i].raft.Stats()["last_snapshot_index"] == "0" {
			t.Fatal("no snapshot was sent")
		}
		c.update(lead, createService("after"))
		c.eventually("the entry after", func() bool { return dump(all[i].Local()) == dump(lead.Local()) })
		c.kill(all[i])
		all[i] = c.start(all[i].id, false)
		c.update(all[i], createService("more"))
	})
}

func TestLateManagerGetsASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.adjust = func(cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 1, 1 }
		first := c.form(1)[0]
		for i := range 50 {
			c.update(first, func(tx *Tx) error {
				tx.PutTask(Task{Meta: Meta{ID: NewID()}, ServiceID: "s", Slot: uint64(i)})
				tx.PutSpec(Spec{Meta: Meta{ID: SpecID("s", uint64(i))}, ServiceID: "s"})
				tx.Guard("g")
				return nil
			})
		}
		if err := first.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		late := c.start("n2", false)
		w := late.Watch()
		w.Take()
		c.update(first, func(tx *Tx) error { tx.PutNode(managerNode("n2")); return nil })
		c.eventually("both are voters", func() bool { return c.voters(first) == 2 })
		c.eventually("the same state", func() bool { return dump(late.Local()) == dump(first.Local()) })
		if late.disk.log.FirstIndex(); late.raft.Stats()["last_snapshot_index"] == "0" {
			t.Error("no snapshot was sent")
		}
		if _, dirty := w.Take(); !dirty.All {
			t.Error("a restored snapshot does not dirty everything")
		}
		c.update(late, createService("web"))
	})
}

func TestLeadersWorkEndsWithItsTerm(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		var leading, runs atomic.Int32
		for _, m := range all {
			m.work.Go(func() error {
				return m.WhileLeader(m.ctx, func(ctx context.Context) error {
					runs.Add(1)
					leading.Add(1)
					<-ctx.Done()
					leading.Add(-1)
					return ctx.Err()
				})
			})
		}
		for range 3 {
			time.Sleep(time.Second)
			if n := leading.Load(); n != 1 {
				t.Errorf("%d lead", n)
			}
			if err := c.leader(all...).TransferLeadership(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			c.leader(all...)
		}
		if got := runs.Load(); got < 4 {
			t.Errorf("%d runs", got)
		}
	})
}

func TestAnOldLeadersWriteIsRefusedInALaterTerm(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		old := c.leader(all...)
		lead, _ := old.leadership()
		ctx := context.WithValue(context.Background(), termKey{}, lead.term)
		if err := old.Update(ctx, createService("in time")); err != nil {
			t.Fatal(err)
		}
		stale, err := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), term: lead.term, guards: []guard{{name: "g"}}})
		check(t, err)
		check(t, old.TransferLeadership())
		c.eventually("another leads", func() bool { id, _ := old.Leader(); return id != "" && id != old.id })
		if err := old.Update(ctx, createService("too late")); !errdefs.IsUnavailable(err) || err.Error() != "leadership was lost: unavailable" {
			t.Errorf("update: %v", err)
		}
		answers, err := c.leader(all...).ProposeLocal(context.Background(), [][]byte{stale})
		check(t, err)
		if answer, err := answers[0].verdict(); err != nil || answer.refusal == nil || answer.refusal.reason != termOver {
			t.Errorf("proposed to the new leader: %+v, %v", answer, err)
		}
	})
}

func TestStoppedLeaderCostsNoElection(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		leader.stop()
		check(t, leader.work.Wait())
		began := time.Now()
		c.update(rest[0], createService("web"))
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Errorf("next commit after %s", took)
		}
		if err := leader.Update(context.Background(), createService("late")); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "stopping") {
			t.Errorf("update of a stopped manager: %v", err)
		}
	})
}

func TestDemotedLeaderHandsOverAndLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		old := c.leader(all...)
		c.update(old, setRole(old.id, swarm.NodeRoleWorker))
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == old })
		c.eventually("two are left", func() bool { return len(rest[0].Members()) == 2 })
		c.update(c.leader(rest...), setRole(old.id, swarm.NodeRoleManager))
		c.eventually("it is back", func() bool { return c.voters(rest[0]) == 3 })
	})
}

func TestQuorumIsNeverGivenAway(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		rest := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		c.isolate(rest[0].id) // it is away, so the other one must stay
		time.Sleep(3 * time.Second)
		c.update(leader, setRole(rest[1].id, swarm.NodeRoleWorker))
		time.Sleep(10 * time.Second)
		if n := c.voters(leader); n != 3 {
			t.Fatalf("%d voters while one is away", n)
		}
		for _, member := range leader.Members() {
			if reachable := member.NodeID != rest[0].id; member.Reachable != reachable {
				t.Errorf("%s reachable: %v", member.NodeID, member.Reachable)
			}
		}
		c.heal()
		c.eventually("two voters", func() bool { return c.voters(leader) == 2 })
	})
}

func TestLastManagerStays(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		c.update(m, setRole("n1", swarm.NodeRoleWorker))
		time.Sleep(5 * time.Second)
		if c.voters(m) != 1 {
			t.Fatal("the last manager is gone")
		}
		c.update(m, createService("web"))
	})
}

func TestManagerThatMovedIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		moved := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
		c.kill(moved)
		c.adjust = func(cfg *Config) { cfg.Address = moved.id + ":9999" }
		c.start(moved.id, false)
		c.update(leader, func(tx *Tx) error {
			r, _ := tx.Nodes.Get(moved.id)
			seen := *r
			seen.Address = moved.id + ":9999"
			tx.PutObservedNode(seen)
			return nil
		})
		c.eventually("the new address is known", func() bool {
			return slices.ContainsFunc(leader.Members(), func(m Member) bool {
				return m.NodeID == moved.id && m.Address == moved.id+":9999" && m.Voter && m.Reachable
			})
		})
	})
}

func setRole(id string, role swarm.NodeRole) func(*Tx) error {
	return func(tx *Tx) error {
		r, _ := tx.Nodes.Get(id)
		wanted := *r
		wanted.Spec.Role = role
		tx.PutNode(wanted)
		return nil
	}
}

// TestMembershipSteps reads: servers in raft's configuration (capital: voter; ? does not answer; ~ answers but is behind),
// node rows (M: wanted and certified as manager, m: wanted only, w: worker), the step. The leader is a.
func TestMembershipSteps(t *testing.T) {
	for _, story := range []struct{ servers, nodes, want string }{
		{"A", "aM", ""},
		{"A", "aM bM", "add as non-voter b"},
		{"A", "aM bm", ""},
		{"A", "aM bw", ""},
		{"A b~", "aM bM", "manager b is not up to date yet or does not answer"},
		{"A b?", "aM bM", "manager b is not up to date yet or does not answer"},
		{"A b", "aM bM", "promote to voter b"},
		{"A B? c", "aM bM cM", "promote to voter c"},
		{"A B? c d", "aM bM cM dM", "promote to voter c"},
		{"A B? C? d", "aM bM cM dM", "with d as a voter, only 2 of 4 managers would answer"},
		{"A B C", "aM bM cw", "remove c"},
		{"A B C", "aM bM", "remove c"},
		{"A b", "aM", "remove b"},
		{"A B? C", "aM bM cw", "without c, only 1 of 2 managers would answer"},
		{"A B? C", "aM bw cM", "remove b"},
		{"A B? C", "aM bw cw", "remove b"},
		{"A B", "aM bw", "remove b"},
		{"A B?", "aM bw", "remove b"},
		{"A B?", "aw bM", "without a, only 0 of 1 managers would answer"},
		{"A B C", "aw bM cM", "hand over leadership a"},
		{"A", "aw", "manager a is the last one"},
		{"A", "", "manager a is the last one"},
		{"A B", "aM bw cM", "add as non-voter c"},
		{"A B@old", "aM bM", "manager b still answers at old, and without it only 1 of 2 managers would"},
		{"A B?@old", "aM bM", "change address b"},
		{"A@old B?", "aM bM", "change address a"},
		{"A B@old C", "aM bM cM", "change address b"},
		{"A B@old C?", "aM bM cM", "manager b still answers at old, and without it only 1 of 3 managers would"},
		{"A B@d C", "aM bM cM dM", "change address b"},
		{"A B C@d", "aM bM dM", "remove c"},
		{"A B? C@d", "aM bM dM", "without c, only 1 of 2 managers would answer"},
		{"A B C@d", "aM bM cw dM", "change address c"},
	} {
		if got := nextStep(story.servers, story.nodes); got != strings.ToLower(story.want) && got != story.want {
			t.Errorf("%s | %s: got %q, want %q", story.servers, story.nodes, got, story.want)
		}
	}
}

func nextStep(servers, nodes string) string {
	m := membership{self: "a", nodes: newState().Nodes}
	quiet, behind := map[raft.ServerID]bool{}, map[raft.ServerID]bool{}
	for _, word := range strings.Fields(servers) {
		word, address, moved := strings.Cut(word, "@")
		id := raft.ServerID(strings.ToLower(word[:1]))
		server := raft.Server{ID: id, Address: raft.ServerAddress(id), Suffrage: raft.Nonvoter}
		if moved {
			server.Address = raft.ServerAddress(address)
		}
		if word[0] < 'a' {
			server.Suffrage = raft.Voter
		}
		quiet[id], behind[id] = strings.HasSuffix(word, "?"), len(word) > 1
		m.servers = append(m.servers, server)
	}
	for _, word := range strings.Fields(nodes) {
		node := &Node{Meta: Meta{ID: word[:1]}, Address: word[:1], Role: swarm.NodeRoleWorker}
		node.Spec.Role = swarm.NodeRoleWorker
		if word[1] != 'w' {
			node.Spec.Role = swarm.NodeRoleManager
		}
		if word[1] == 'M' {
			node.Role = swarm.NodeRoleManager
		}
		m.nodes.put(node)
	}
	m.answers = func(id raft.ServerID) bool { return !quiet[id] }
	m.caughtUp = func(id raft.ServerID) bool { return !behind[id] }
	step, blocked := m.next()
	if step == nil {
		return blocked
	}
	got := fmt.Sprintf("%s %s", step.verb, step.id)
	if blocked != "" {
		got = blocked + "; " + got
	}
	return got
}
