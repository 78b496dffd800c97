package dispatcher

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"
	"swarm/rpc"

	"github.com/moby/moby/api/types/swarm"
)

// The rows of the liveness table that a manager decides on what it sees itself.
func TestWhatAManagerSeesOfAnAgent(t *testing.T) {
	const patience = 2 * time.Second
	for _, row := range []struct {
		seen string
		sight
		want raftstore.Presence
	}{
		{"good-bye, restart", sight{closed: true, goodbye: rpc.GoodbyeRestart}, raftstore.PresenceAnnounced},
		{"good-bye, shutdown", sight{closed: true, goodbye: rpc.GoodbyeShutdown}, raftstore.PresenceAnnounced},
		{"good-bye, and its port refuses already", sight{closed: true, goodbye: rpc.GoodbyeLeave, quiet: time.Minute}, raftstore.PresenceAnnounced},
		{"stream closes, port accepts", sight{closed: true, probe: accepted}, raftstore.PresenceAway},
		{"stream closes, port refuses", sight{closed: true, probe: unanswered}, raftstore.PresenceSuspect},
		{"stream closes, no way to ask", sight{closed: true}, raftstore.PresenceSuspect},
		{"beats come", sight{quiet: 500 * time.Millisecond}, raftstore.PresenceHeard},
		{"beats missing, not yet for long", sight{quiet: patience - 1}, raftstore.PresenceHeard},
		{"beats missing, not yet for long, port silent", sight{quiet: patience / 2, probe: unanswered}, raftstore.PresenceSuspect},
		{"beats missing, not yet for long, port accepts", sight{quiet: patience / 2, probe: accepted}, raftstore.PresenceHeard},
		{"beats missing for 2 s, port accepts", sight{quiet: patience, probe: accepted}, raftstore.PresenceSuspect},
		{"beats missing for 2 s, port silent", sight{quiet: patience}, raftstore.PresenceSuspect},
	} {
		if got := row.presence(patience); got != row.want {
			t.Errorf("%s: got %s, want %s", row.seen, got, row.want)
		}
	}
}

// The rows that the leader decides: what becomes of a node that nobody hears, and when. Grace time 5 s.
func TestWhatALeaderMakesOfAMissingNode(t *testing.T) {
	type session = raftstore.Session
	on := func(manager string, p raftstore.Presence) session {
		return session{Manager: manager, ID: "s", Presence: p}
	}
	announced := func(reason string) session {
		return session{Manager: "n1", ID: "s", Presence: raftstore.PresenceAnnounced, Reason: reason}
	}
	for _, row := range []struct {
		seen    string
		session session
		fresh   bool  // the leader has just begun
		port    probe // what the node's port does when asked
		want    string
	}{
		{seen: "heard", session: on("n1", raftstore.PresenceHeard), want: ""},
		{seen: "down already", session: on("n1", raftstore.PresenceDown), want: ""},
		{seen: "announced shutdown", session: announced(rpc.GoodbyeShutdown), want: "0s down"},
		{seen: "announced leave", session: announced(rpc.GoodbyeLeave), want: "0s down"},
		{seen: "announced drain, new leader", session: announced(rpc.GoodbyeDrain), fresh: true, want: "0s down"},
		{seen: "announced restart, does not come back", session: announced(rpc.GoodbyeRestart), want: "5s suspect, 10s down"},
		{seen: "announced restart, takes too long", session: announced(rpc.GoodbyeRestart), port: accepted, want: "5s away, 10s down"},
		{seen: "away", session: on("n1", raftstore.PresenceAway), port: accepted, want: "5s down"},
		{seen: "away, then its machine goes", session: on("n1", raftstore.PresenceAway), want: "1s suspect, 5s down"},
		{seen: "suspect", session: on("n1", raftstore.PresenceSuspect), want: "5s down"},
		{seen: "suspect after 2 s of silence", session: session{Manager: "n1", ID: "s", Presence: raftstore.PresenceSuspect, Silence: 2 * time.Second}, want: "3s down"},
		{seen: "suspect, new leader", session: on("n1", raftstore.PresenceSuspect), fresh: true, want: "10s down"},
		{seen: "away, new leader", session: on("n1", raftstore.PresenceAway), fresh: true, port: accepted, want: "10s down"},
		{seen: "its manager is lost", session: on("gone", raftstore.PresenceHeard), want: "2s lost, 10s down"},
		{seen: "its manager is lost, new leader", session: on("gone", raftstore.PresenceHeard), fresh: true, want: "2s lost, 10s down"},
		{seen: "suspect, and then its manager is lost", session: on("gone", raftstore.PresenceSuspect), want: "10s down"},
		{seen: "lost, written by the manager itself", session: on("n1", raftstore.PresenceLost), want: "10s down"},
		{seen: "a manager that served itself, gone with its machine", session: on("n2", raftstore.PresenceHeard), want: "0s suspect, 5s down"},
		{seen: "a manager that served itself, its agent gone", session: on("n2", raftstore.PresenceHeard), port: accepted, want: "0s away, 5s down"},
		{seen: "a leader that served itself, gone with its machine", session: on("n2", raftstore.PresenceHeard), fresh: true, want: "0s suspect, 10s down"},
		{seen: "never came", session: session{}, want: "10s down"},
	} {
		if got := leaderStory(row.session, row.fresh, row.port); got != row.want {
			t.Errorf("%s: got %q, want %q", row.seen, got, row.want)
		}
	}
}

// leaderStory tells what a leader writes of node n2, and when, if nothing else happens.
func leaderStory(s raftstore.Session, fresh bool, port probe) string {
	start := time.Unix(1e9, 0)
	l := newLiveness("n1")
	l.managers, l.grace, l.begun = map[string]bool{"n1": true}, 5*time.Second, !fresh
	n := &raftstore.Node{Address: "n2:2377"}
	n.ID = "n2"
	n.Observe(s)
	l.judge(n, start)
	l.begun = true
	var told []string
	write := func(verdicts map[string]verdict, now time.Time) {
		for _, v := range verdicts {
			told = append(told, fmt.Sprint(now.Sub(start), " ", v.now.Presence))
			n.Observe(v.now)
			l.judge(n, now)
		}
	}
	for now := start; now.Before(start.Add(time.Minute)); now = now.Add(100 * time.Millisecond) {
		verdicts, probe := l.due(now)
		write(verdicts, now)
		for id, a := range probe {
			write(l.probed(id, a, port, now), now)
		}
	}
	return strings.Join(told, ", ")
}

func (m *manager) presence(id string) raftstore.Presence {
	n, _ := m.store.Local().Nodes.Get(id)
	return n.Session.Presence
}

// told is what another node's agent was told of a node.
func (m *manager) told(by, about string) (presence string) {
	m.agents[by].see(func() { presence = m.agents[by].members[about].GetPresence() })
	return presence
}

func (m *manager) wantPresence(id string, want raftstore.Presence) {
	m.t.Helper()
	if got := m.presence(id); got != want {
		m.t.Fatalf("%s is %s, want %s", id, got, want)
	}
	if told := m.told("n1", id); told != string(want) {
		m.t.Fatalf("%s is %s, but agents were told %s", id, want, told)
	}
}

func goodbye(reason string) *rpc.AgentMessage {
	return &rpc.AgentMessage{Kind: &rpc.AgentMessage_Goodbye{Goodbye: &rpc.Goodbye{Reason: reason}}}
}

func TestAnnouncedRestartIsNoSuspicion(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].send(goodbye(rpc.GoodbyeRestart))
		settled(4900 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceAnnounced)
		if m.nodeState("n2") != swarm.NodeStateDisconnected {
			t.Fatalf("the API says %s", m.nodeState("n2"))
		}
		m.start("n2")
		settled(rosterPaceMax)
		m.wantPresence("n2", raftstore.PresenceHeard)
		m.expect("web.1 n1 running, web.2 n2 running")
		m.agents["n2"].send(goodbye(rpc.GoodbyeRestart))
		settled(5100 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceSuspect)
		settled(4800 * time.Millisecond)
		m.expect("web.1 n1 running, web.2 n2 running")
		settled(300 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceDown)
		m.expect("web.1 n1 running, web.2 n1 running")
	})
}

func TestAnnouncedLeaveNeedsNoGraceTime(t *testing.T) {
	for _, reason := range []string{rpc.GoodbyeLeave, rpc.GoodbyeShutdown, rpc.GoodbyeDrain} {
		withManager(t, 2, func(m *manager) {
			m.start("n1", "n2")
			m.create("web", 2)
			settled(30 * time.Second)
			m.agents["n2"].send(goodbye(reason))
			settled(10 * time.Millisecond)
			m.wantPresence("n2", raftstore.PresenceDown)
			m.expect("web.1 n1 running, web.2 n1 running")
			n, _ := m.store.Local().Nodes.Get("n2")
			if n.Status.State != swarm.NodeStateDown || n.Status.Message != "the node announced: "+reason {
				t.Fatalf("%+v", n.Status)
			}
		})
	}
}

func TestAgentThatIsGoneAloneIsAway(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.port("n2", "accepts")
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].kill()
		settled(4900 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceAway)
		m.expect("web.1 n1 running, web.2 n2 running")
		m.start("n2")
		settled(time.Minute)
		m.wantPresence("n2", raftstore.PresenceHeard)
		m.expect("web.1 n1 running, web.2 n2 running")
		m.agents["n2"].kill()
		settled(5100 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceDown)
		m.expect("web.1 n1 running, web.2 n1 running")
	})
}

func TestMachineThatFollowsItsAgentIsSuspect(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.port("n2", "accepts")
		m.start("n1", "n2")
		settled(30 * time.Second)
		m.agents["n2"].kill()
		settled(500 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceAway)
		m.port("n2", "silent")
		settled(2100 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceSuspect)
		settled(2500 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceDown)
	})
}

func TestMachineThatRefusesIsSuspectAtOnce(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].kill()
		settled(10 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceSuspect)
		m.expect("web.1 n1 running, web.2 n2 running")
	})
}

// The suspicion has to reach every agent within 3 s of the last sign of life.
func TestSilentMachineIsSuspectWithinThreeSeconds(t *testing.T) {
	for _, port := range []string{"silent", "refuses"} {
		withManager(t, 3, func(m *manager) {
			m.start("n1", "n2", "n3")
			m.create("web", 2)
			settled(30 * time.Second)
			m.port("n2", port)
			m.agents["n2"].silence(true)
			last := time.Now()
			for m.told("n1", "n2") != "suspect" || m.told("n3", "n2") != "suspect" {
				settled(10 * time.Millisecond)
				if time.Since(last) > 3*time.Second {
					t.Fatalf("not told within 3 s: n2 is %s", m.presence("n2"))
				}
			}
			t.Logf("port %s: told after at most %s", port, time.Since(last))
			m.expect("web.1 n1 running, web.2 n2 running")
			m.agents["n2"].silence(false)
			settled(600 * time.Millisecond)
			m.wantPresence("n2", raftstore.PresenceHeard)
		})
	}
}

func TestHungAgentIsSuspect(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.port("n2", "accepts")
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].silence(true)
		settled(2600 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceSuspect)
		for range 3 {
			m.agents["n2"].silence(false)
			settled(600 * time.Millisecond)
			m.wantPresence("n2", raftstore.PresenceHeard)
			m.agents["n2"].silence(true)
			settled(2600 * time.Millisecond)
			m.wantPresence("n2", raftstore.PresenceSuspect)
		}
		settled(3 * time.Second)
		m.wantPresence("n2", raftstore.PresenceDown)
		m.expect("web.1 n1 running, web.2 n1 running")
	})
}

func TestNodeThatReturnsIsBackWithinTwoSeconds(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].kill()
		settled(20 * time.Second)
		m.expect("web.1 n1 running, web.2 n1 running")
		m.start("n2")
		settled(2 * time.Second)
		m.wantPresence("n2", raftstore.PresenceHeard)
		superfluous := 0
		for row := range m.store.Local().TasksOn("n2") {
			superfluous++
			if row.Status.State != swarm.TaskStateShutdown {
				t.Errorf("task %s is %s", row.ID, row.Status.State)
			}
		}
		if superfluous != 1 {
			t.Errorf("%d tasks, want the one that was replaced", superfluous)
		}
	})
}

func TestNodesThatAreNotHeardGetNoTasks(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		settled(30 * time.Second)
		m.agents["n2"].kill()
		m.node("n1", func(n *raftstore.Node) { n.Spec.Availability = swarm.NodeAvailabilityPause })
		m.create("web", 1)
		settled(0)
		for row := range m.store.Local().TasksOf("web") {
			if want := "no suitable node (1 node not available for new tasks; no word from 1 node)"; row.Status.Err != want {
				t.Fatalf("got %q, want %q", row.Status.Err, want)
			}
		}
		m.start("n2")
		settled(0)
		m.expect("web.1 n2 running")
	})
}

func TestNodesOfALostManagerAreUnknownAndGetTwiceTheTime(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1")
		settled(30 * time.Second)
		m.update(func(tx *raftstore.Tx) {
			row, _ := tx.Nodes.Get("n2")
			n := *row
			n.Observe(raftstore.Session{Manager: "lost", ID: "s", Presence: raftstore.PresenceHeard})
			tx.PutObservedNode(n)
		})
		settled(2100 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceLost)
		settled(7800 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceLost)
		settled(200 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceDown)
		if m.nodeState("n3") != swarm.NodeStateDown {
			t.Fatal("a node that never came counts as down too")
		}
		m.start("n2")
		m.wantPresence("n2", raftstore.PresenceHeard)
	})
}

// A manager that was killed has no session any more of which its rows speak; nobody else could tell.
func TestSessionsOfAFormerLifeAreFound(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1")
		m.update(func(tx *raftstore.Tx) {
			row, _ := tx.Nodes.Get("n2")
			n := *row
			n.Observe(raftstore.Session{Manager: "n1", ID: "of before", Presence: raftstore.PresenceHeard})
			tx.PutObservedNode(n)
		})
		settled(1900 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceHeard)
		settled(200 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceLost)
		settled(9700 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceLost)
		settled(400 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceDown)
	})
}

// A row that says that a node is lost is wrong while it talks to this manager.
func TestManagerContradictsWhoCallsItsNodesLost(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.update(func(tx *raftstore.Tx) {
			row, _ := tx.Nodes.Get("n2")
			n := *row
			s := n.Session
			s.Presence = raftstore.PresenceLost
			n.Observe(s)
			tx.PutObservedNode(n)
		})
		settled(600 * time.Millisecond)
		m.wantPresence("n2", raftstore.PresenceHeard)
		m.expect("web.1 n1 running, web.2 n2 running")
	})
}

// Many nodes whose streams break at once must not make more dials at a time than are allowed.
func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most int
		p := newProber(nil)
		turn := make(chan struct{}, 1)
		count := func(n int) {
			turn <- struct{}{}
			now += n
			most = max(most, now)
			<-turn
		}
		p.ask = func(ctx context.Context, _ string) error {
			count(1)
			defer count(-1)
			<-ctx.Done()
			return ctx.Err()
		}
		for range 4 * probesMax {
			go p.probe(t.Context(), "n:1", time.Second)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if most != probesMax || now != 0 {
			t.Errorf("%d at once, %d left, want %d and none", most, now, probesMax)
		}
	})
}

func TestLeaderWaitsForWhatIsDueAndForNothingElse(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return now.Add(d) }
	for _, c := range []struct {
		name        string
		next, until time.Time
		want        time.Duration
	}{
		{"nothing due, no other manager", time.Time{}, time.Time{}, waitMax},
		{"a node is due", at(time.Second), time.Time{}, time.Second},
		{"a manager falls silent before", at(3 * time.Second), at(time.Second), time.Second},
		{"a manager falls silent after", at(time.Second), at(3 * time.Second), time.Second},
		{"it is time already", at(-time.Second), time.Time{}, time.Millisecond},
	} {
		l := newLiveness("n1")
		l.next = c.next
		if got := l.wait(now, c.until); got != c.want {
			t.Errorf("%s: waits %s, want %s", c.name, got, c.want)
		}
	}
}
