package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"
	"swarm/rpc"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// agents lists the machines whose sessions another one serves, as that one's replica tells.
func (m *computer) agents() (names []string) {
	if m.store() == nil {
		return nil
	}
	for n := range m.store().Local().Nodes.All() {
		if n.Session.Heard() && n.Session.Manager == m.node.id() {
			names = append(names, n.Description.Hostname)
		}
	}
	slices.Sort(names)
	return names
}

// A manager that falls silent, as a machine without power does, loses its agents to the others before any of them is taken for dead.
func TestAgentsMoveOnWhenTheirManagerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 9)
		defer closeAll(all)
		all[0].service("web", 18)
		all[0].within(10*time.Second, "all run", func() bool { return all[0].running() == 18 })
		lost := leader(all)
		theirs := slices.DeleteFunc(lost.agents(), func(name string) bool { return name == lost.name })
		if len(theirs) == 0 {
			t.Fatalf("%s serves nobody but itself", lost.name)
		}
		lost.cutOff()
		other := all[slices.IndexFunc(all, func(m *computer) bool { return m != lost })]
		took := other.within(8*time.Second, "the others serve them", func() bool {
			heard := 0
			for _, m := range all {
				if r := m.row(other); m != lost && r.Session.Heard() && r.Session.Manager != lost.node.id() {
					heard++
				}
			}
			return heard == len(all)-1
		})
		t.Logf("%d agents of %s moved on in %s", len(theirs), lost.name, took)
		if took > 4*time.Second {
			t.Errorf("moving on took %s", took)
		}
		started := 0
		for _, m := range all {
			if m != lost {
				started += m.runtime.started
			}
		}
		if started+lost.runtime.started != 18 {
			t.Errorf("%d containers were started instead of 18", started+lost.runtime.started)
		}
	})
}

// raft goes on without a demoted manager and does not tell it. Until it knows, whoever asks it waits.
func TestDemotedLeaderIsAWorkerSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		old := leader(all)
		other := all[slices.IndexFunc(all, func(m *computer) bool { return m != old })]
		id := old.node.id()
		got, err := other.client().NodeInspect(t.Context(), id, client.NodeInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		spec := got.Node.Spec
		spec.Role = swarm.NodeRoleWorker
		if _, err := other.client().NodeUpdate(t.Context(), id, client.NodeUpdateOptions{Version: got.Node.Version, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		took := other.within(20*time.Second, "it is a worker", func() bool { return old.node.current().manager.Load() == nil })
		t.Logf("a worker after %s", took)
		// A renewal that came a moment before the managers agreed is tried once more.
		if took > time.Second+renewRetry {
			t.Errorf("it took %s until the demoted leader knew", took)
		}
	})
}

// A manager that came back serves its own agent soon, and its share of the others after a while.
func TestManagerThatCameBackGetsAgentsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 6)
		defer closeAll(all)
		back := all[1]
		back.halt()
		time.Sleep(20 * time.Second)
		back.start()
		all[0].within(40*time.Second, "the manager's agent is at home", func() bool { return slices.Contains(back.agents(), back.name) })
		took := all[0].within(20*time.Minute, "it serves its share", func() bool { return len(back.agents()) >= 2 })
		t.Logf("it serves %s after %s", back.agents(), took)
		time.Sleep(2 * time.Minute)
		served := fmt.Sprint(all[0].agents(), all[1].agents(), all[2].agents())
		time.Sleep(2 * time.Minute)
		if later := fmt.Sprint(all[0].agents(), all[1].agents(), all[2].agents()); later != served {
			t.Errorf("agents still move:\n%s\n%s", served, later)
		}
	})
}

// An agent that ends in order says so, on a manager too, and a leader that ends hands over without a gap.
func TestAgentsSayGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		worker := all[3]
		leads := leader(all)
		other := all[slices.IndexFunc(all, func(m *computer) bool { return m != leads })]
		for _, m := range []*computer{worker, leads} {
			m.halt()
			other.within(time.Second, m.name+" said good-bye", func() bool {
				s := m.row(other).Session
				return s.Presence == raftstore.PresenceAnnounced && s.Reason == rpc.GoodbyeRestart
			})
		}
		took := other.within(time.Second, "there is a leader", func() bool { return leader(all) != nil })
		t.Logf("hand-over took %s", took)
	})
}

// The surplus is asked for in parts, and never so that agents go round in circles.
func TestSurplusIsTakenFromWhoHasFarTooMuch(t *testing.T) {
	for _, c := range []struct{ a, b, c, want int }{
		{4, 4, 4, 0},
		{6, 3, 3, 0},
		{6, 0, 6, 1},
		{8, 2, 2, 0},
		{0, 6, 6, 0},
		{10, 1, 1, 1},
		{30, 0, 0, 5},
		{2000, 0, 0, 32},
	} {
		served := map[string][]string{"a": make([]string, c.a), "b": make([]string, c.b), "c": make([]string, c.c)}
		if got := len(surplus(served, "a")); got != c.want {
			t.Errorf("of %d, with %d and %d at the others, %d are to go, not %d", c.a, c.b, c.c, got, c.want)
		}
	}
}

// An agent that was cut off while all managers it knew were replaced finds the new ones among the nodes it knows.
func TestAgentFindsManagersThatWerePromotedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 2)
		defer closeAll(all)
		n1, n2, n3 := all[0], all[1], all[2]
		n3.cutOff()
		if err := n2.setRole(n1, swarm.NodeRoleManager); err != nil {
			t.Fatal(err)
		}
		n1.within(20*time.Second, "both manage", func() bool { return n2.store() != nil && len(n2.store().Members()) == 2 && leader(all) != nil })
		n1.within(20*time.Second, "the first one is demoted", func() bool {
			_ = n1.setRole(n2, swarm.NodeRoleWorker)
			return n2.store() != nil && len(n2.store().Members()) == 1 && n1.row(n2).Role == swarm.NodeRoleWorker
		})
		time.Sleep(time.Minute) // until nothing is left of its session
		n3.rejoins()
		took := n2.within(40*time.Second, "it is heard again", func() bool { return n3.row(n2).Session.Heard() && n3.node.current().inSession.Load() })
		t.Logf("found after %s", took)
	})
}
