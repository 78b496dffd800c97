package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service"
	"swarm/service/task"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

func TestServiceRunsOnAgents(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2", "n3")
		m.create("web", 3)
		settled(0)
		m.expect("web.1 n1 running, web.2 n2 running, web.3 n3 running")
		m.create("all", 0)
		settled(0)
		m.expect("all.0 n1 running, all.0 n2 running, all.0 n3 running, web.1 n1 running, web.2 n2 running, web.3 n3 running")
		m.change("web", replicas(1))
		m.update(func(tx *raftstore.Tx) {
			row, _ := tx.Services.Get("all")
			s := *row
			s.Removing = true
			tx.PutService(s)
		})
		settled(0)
		m.expect("web.1 n1 running")
		if n := m.store.Local().Tasks.Len(); n != 1 || m.store.Local().Services.Len() != 1 {
			t.Fatalf("%d tasks are left", n)
		}
	})
}

func TestAssignmentsComeWholeThenAsChanges(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.create("web", 250)
		m.start("n1")
		m.create("db", 1)
		settled(0)
		a := m.agents["n1"]
		a.see(func() {
			if len(a.tasks) != 251 || a.log[0] != "full=true tasks=0 removed=0 specs=0 holders=0" {
				t.Fatalf("%d tasks: %v", len(a.tasks), a.log)
			}
			specs := 0
			for _, line := range a.log {
				if strings.Contains(line, "specs=1") {
					specs++
				}
			}
			if specs != 2 {
				t.Fatalf("each spec goes once: %v", a.log)
			}
		})
		a.kill()
		a.log = nil
		m.start("n1")
		a.see(func() {
			if a.log[0] != "full=true tasks=251 removed=0 specs=2 holders=0" {
				t.Fatalf("a new session begins with everything: %v", a.log)
			}
		})
	})
}

func TestBrokenStreamIsForgivenWithinTheGraceTime(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(0)
		m.agents["n2"].kill()
		settled(4900 * time.Millisecond)
		if m.nodeState("n2") == swarm.NodeStateDown {
			t.Fatal("too early")
		}
		m.start("n2")
		settled(time.Minute)
		m.expect("web.1 n1 running, web.2 n2 running")
	})
}

func TestNodeGoesDownAfterTheGraceTimeAndItsTasksAreReplacedAtOnce(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(30 * time.Second)
		m.agents["n2"].kill()
		settled(5100 * time.Millisecond)
		if m.nodeState("n2") != swarm.NodeStateDown {
			t.Fatal("not down")
		}
		m.expect("web.1 n1 running, web.2 n1 running")
		m.start("n2")
		if m.nodeState("n2") != swarm.NodeStateReady {
			t.Fatal("not ready again")
		}
		settled(0)
		a := m.agents["n2"]
		a.see(func() {
			for id, desired := range a.tasks {
				if row, _ := m.store.Local().Tasks.Get(id); desired != swarm.TaskStateShutdown || row.Status.State != swarm.TaskStateShutdown {
					t.Errorf("task %s: wanted %s, is %s", id, desired, row.Status.State)
				}
			}
		})
		m.expect("web.1 n1 running, web.2 n1 running")
	})
}

func TestDrainMovesTasks(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 2)
		settled(0)
		m.node("n1", func(n *raftstore.Node) { n.Spec.Availability = swarm.NodeAvailabilityDrain })
		settled(0)
		m.expect("web.1 n2 running, web.2 n2 running")
		m.agents["n1"].see(func() {
			if m.agents["n1"].order.Availability != "drain" {
				t.Error("the node was not told")
			}
		})
	})
}

func TestFailingTaskIsRestartedAfterItsDelay(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.start("n1")
		m.agents["n1"].see(func() { m.agents["n1"].crash = true })
		m.create("web", 1)
		settled(31 * time.Second)
		tasks := slices.Collect(m.store.Local().TasksOf("web"))
		if len(tasks) != 6 {
			t.Fatalf("%d tasks after 31 s, want 5 of history and one", len(tasks))
		}
		settled(10 * time.Second)
		if len(slices.Collect(m.store.Local().TasksOf("web"))) != 6 {
			t.Fatal("history grows")
		}
	})
}

// An image that nobody has is rejected while it is prepared, before any delay: there must be one try per delay all the same.
func TestTaskThatCannotBePreparedIsTriedOncePerDelay(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.start("n1")
		m.agents["n1"].see(func() { m.agents["n1"].reject = true })
		before := m.store.Local().Index()
		m.create("web", 1)
		settled(59 * time.Second)
		if commits := m.store.Local().Index() - before; commits > 60 {
			t.Fatalf("%d commits in a minute", commits)
		}
		m.agents["n1"].see(func() { m.agents["n1"].reject = false })
		settled(12 * time.Second)
		m.expect("web.1 n1 running")
	})
}

func TestUpdateRollsOutAndOldSpecGoes(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 4)
		settled(0)
		for range 3 {
			m.change("web", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.ContainerSpec.Env = append(s.TaskTemplate.ContainerSpec.Env, "A=1")
			})
			settled(20 * time.Second)
		}
		s, _ := m.store.Local().Services.Get("web")
		if s.UpdateStatus == nil || s.UpdateStatus.State != swarm.UpdateStateCompleted {
			t.Fatalf("update is %+v", s.UpdateStatus)
		}
		m.expect("web.1 n1 running, web.2 n2 running, web.3 n1 running, web.4 n2 running")
		for range 5 {
			m.change("web", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{} })
		}
		settled(0)
		before := m.store.Local().Index()
		settled(time.Minute)
		if n, now := m.store.Local().Specs.Len(), m.store.Local().Index(); n != 6 || now != before {
			// Versions 1 to 4 have tasks; 8 is the previous one of 9.
			t.Fatalf("%d specs are kept, and %d commits were made for nothing", n, now-before)
		}
		for row := range m.store.Local().TasksOf("web") {
			if current := row.SpecVersion == 4; current != (row.Status.State == swarm.TaskStateRunning) {
				t.Errorf("task of version %d is %s", row.SpecVersion, row.Status.State)
			}
		}
	})
}

func TestBigServiceGoesInSeveralCommits(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2", "n3")
		before := m.store.Local().Index()
		m.create("web", 1000)
		settled(0)
		if n := strings.Count(m.states(), "running"); n != 1000 {
			t.Fatalf("%d run", n)
		}
		t.Logf("%d log entries", m.store.Local().Index()-before)
		m.change("web", replicas(0))
		settled(0)
		if n := m.store.Local().Tasks.Len(); n != 0 {
			t.Fatalf("%d tasks are left", n)
		}
	})
}

func TestHoldersFollowTheImagesThatNodesReport(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2")
		hold := func(node string, names ...string) {
			images := &rpc.HeldImages{}
			for _, name := range names {
				images.Images = append(images.Images, &rpc.HeldImage{Name: "docker.io/library/" + name + ":1", Digest: "sha256:" + name})
			}
			m.agents[node].send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Images{Images: images}})
			settled(0)
		}
		hold("n1", "web", "db")
		hold("n2", "web")
		var rows []string
		list := func() string {
			rows = rows[:0]
			for i := range m.store.Local().Images.All() {
				rows = append(rows, i.Digest+fmt.Sprint(i.Holders))
			}
			return strings.Join(rows, " ")
		}
		if got := list(); got != "sha256:db[n1] sha256:web[n1 n2]" {
			t.Fatal(got)
		}
		// The agent of n3 takes the task and never runs it, so it goes on to need the image.
		row := raftstore.Task{ServiceID: "late", SpecVersion: 1, Slot: 1, NodeID: "n3", DesiredState: swarm.TaskStateReady}
		row.ID, row.Status.State = "t1", swarm.TaskStateAssigned
		m.start("n3")
		m.update(func(tx *raftstore.Tx) {
			v := raftstore.Spec{ServiceID: "late", SpecVersion: 1}
			v.ID = raftstore.SpecID("late", 1)
			v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:1"}
			tx.PutSpec(v)
			m.agents["n3"].see(func() { m.agents["n3"].acked = 99 })
			tx.PutTask(row)
		})
		settled(0)
		told := func() (addresses []string) {
			m.agents["n3"].see(func() { addresses = slices.Sorted(slices.Values(m.agents["n3"].holders["web:1"])) })
			return addresses
		}
		if got := told(); !slices.Equal(got, []string{"n1:2377", "n2:2377"}) {
			t.Fatal(got)
		}
		m.update(func(tx *raftstore.Tx) {
			v := raftstore.Spec{ServiceID: "pinned", SpecVersion: 1}
			v.ID = raftstore.SpecID("pinned", 1)
			v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "docker.io/library/db:1@sha256:db"}
			tx.PutSpec(v)
			pinned := row
			pinned.ID, pinned.ServiceID = "t2", "pinned"
			tx.PutTask(pinned)
		})
		settled(0)
		m.agents["n3"].see(func() {
			if got := m.agents["n3"].holders["sha256:db"]; !slices.Equal(got, []string{"n1:2377"}) {
				t.Fatal(got)
			}
		})
		hold("n1", "db")
		if got := told(); !slices.Equal(got, []string{"n2:2377"}) {
			t.Fatal(got)
		}
		hold("n1")
		if got := list(); got != "sha256:web[n2]" {
			t.Fatal(got)
		}
		m.update(func(tx *raftstore.Tx) { tx.DeleteNode("n2") })
		settled(0)
		if got := list(); got != "" {
			t.Fatalf("a removed node holds %s", got)
		}
	})
}

func TestRosterNamesEveryNodeAndFollows(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2")
		m.start("n3")
		settled(rosterPaceMax) // newcomers are told together
		a := m.agents["n1"]
		members := func() (text string) {
			a.see(func() {
				for _, id := range []string{"n1", "n2", "n3"} {
					if member := a.members[id]; member != nil {
						text += fmt.Sprintf("%s %s %v %s, ", id, member.Role, member.Voter, member.Address)
					}
				}
			})
			return text
		}
		if got := members(); got != "n1 worker true n1:2377, n2 worker false n2:2377, n3 worker false n3:2377, " {
			t.Fatal(got)
		}
		m.node("n2", func(n *raftstore.Node) { n.Role = swarm.NodeRoleManager })
		m.update(func(tx *raftstore.Tx) { tx.DeleteNode("n3") })
		settled(0)
		if got := members(); got != "n1 worker true n1:2377, n2 manager false n2:2377, " {
			t.Fatal(got)
		}
	})
}

func TestRemovedNodeIsToldAndRefused(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.update(func(tx *raftstore.Tx) { tx.DeleteNode("n2") })
		settled(0)
		a := m.agents["n2"]
		a.ended()
		if !a.order.Removed || !errdefs.IsPermissionDenied(a.err) {
			t.Fatalf("order %v, error %v", a.order, a.err)
		}
		a.order = nil
		m.start("n2")
		a.ended()
		a.see(func() {
			if !a.order.GetRemoved() || !strings.Contains(a.err.Error(), "then join again") {
				t.Fatalf("order %v, error %v", a.order, a.err)
			}
		})
	})
}

func TestDemotedManagerStaysOneUntilRaftGoesOnWithoutIt(t *testing.T) {
	n := raftstore.Node{Spec: swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}}
	n.ID = "n1"
	withManager(t, 1, func(m *manager) {
		for _, c := range []struct {
			members map[string]bool
			want    string
		}{{map[string]bool{"n1": true}, "manager"}, {map[string]bool{"n1": false}, "manager"}, {nil, "worker"}} {
			if got := orderFor(m.store.Local(), "n1", c.members).Role; got != c.want {
				t.Errorf("%v: got %s, want %s", c.members, got, c.want)
			}
		}
	})
}

func TestNewerSessionReplacesTheOldOne(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.start("n1")
		over := m.agents["n1"].over
		m.start("n1")
		<-over
		settled(time.Minute)
		if n, _ := m.store.Local().Nodes.Get("n1"); !n.Session.Heard() || n.Status.State != swarm.NodeStateReady {
			t.Fatalf("%+v", n)
		}
	})
}

func TestHellosThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		change func(*rpc.Hello)
		want   string
	}{
		{func(h *rpc.Hello) { h.FormatVersion = 2 }, "the agent speaks format 2, this manager up to 1: upgrade swarm on the managers first"},
		{func(h *rpc.Hello) { h.FormatVersion = 0 }, "the agent speaks format 0, this manager needs 1: upgrade swarm on node n1"},
		{func(h *rpc.Hello) { h.Address = "n1" }, `address "n1" is no host:port`},
		{func(h *rpc.Hello) { h.Address = "0.0.0.0:2377" }, "cannot be reached by others"},
		{func(h *rpc.Hello) { h.DescriptionJson = []byte("{") }, "description cannot be read"},
		{func(h *rpc.Hello) { h.DescriptionJson = make([]byte, 1<<20) }, "at most 65536 are taken"},
	} {
		withManager(t, 1, func(m *manager) {
			a := m.agent("n1")
			c.change(a.hello)
			m.agents["n1"] = a
			m.start("n1")
			a.ended()
			if a.err == nil || !strings.Contains(a.err.Error(), c.want) {
				t.Errorf("got %v, want %q", a.err, c.want)
			}
		})
	}
}

func TestStatusesOfOthersAndBackwardsAreIgnored(t *testing.T) {
	withManager(t, 2, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 1)
		settled(0)
		m.expect("web.1 n1 running")
		var id string
		for row := range m.store.Local().Tasks.All() {
			id = row.ID
		}
		report := func(node string, state swarm.TaskState) {
			m.agents[node].see(func() { m.agents[node].sequence, m.agents[node].acked = 50, 50 })
			m.agents[node].send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Statuses{Statuses: &rpc.TaskStatuses{
				Sequence: 50, Statuses: []*rpc.TaskStatus{{TaskId: id, State: task.Number(state), Err: strings.Repeat("é", 2000)}},
			}}})
			settled(0)
		}
		report("n2", swarm.TaskStateFailed)
		m.expect("web.1 n1 running")
		report("n1", swarm.TaskStatePreparing)
		m.expect("web.1 n1 running")
		report("n1", swarm.TaskStateFailed)
		row, _ := m.store.Local().Tasks.Get(id)
		if row.Status.State != swarm.TaskStateFailed || len(row.Status.Err) > statusTextBytesMax || strings.ContainsRune(row.Status.Err, '\uFFFD') {
			t.Fatalf("%s with %d bytes of text", row.Status.State, len(row.Status.Err))
		}
	})
}

func TestChangedGraceTimeBeginsNewSessions(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.start("n1")
		m.update(func(tx *raftstore.Tx) {
			c := *tx.Cluster()
			c.Spec.Dispatcher.HeartbeatPeriod = 20 * time.Second
			tx.PutCluster(c)
		})
		synctest.Wait()
		a := m.agents["n1"]
		a.ended()
		if !errdefs.IsUnavailable(a.err) {
			t.Fatal(a.err)
		}
		m.start("n1")
		a.see(func() {
			if a.welcome.BeatNs != int64(2*time.Second) || a.welcome.GraceNs != int64(20*time.Second) {
				t.Fatalf("%v", a.welcome)
			}
		})
	})
}

// A leader that lost its place without knowing may decide beside its successor: nothing is done twice.
func TestTwoOrchestratorsDoNothingTwice(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2", "n3")
		ctx, cancel := context.WithCancel(m.ctx)
		var second errgroup.Group
		second.Go(func() error { return service.New(m.store, slog.New(slog.DiscardHandler)).Run(ctx) })
		defer func() { cancel(); _ = second.Wait() }()
		for i := range 10 {
			m.create(fmt.Sprint("web", i), 30)
			m.change("web0", replicas(uint64(30+i*7%20)))
			settled(0)
		}
		// A task that was created twice would leave its twin behind, shut down.
		want := 9*30 + 30 + 9*7%20
		if got := strings.Count(m.states(), "running"); got != want || m.store.Local().Tasks.Len() != want {
			t.Fatalf("%d tasks run, %d are there, want %d", got, m.store.Local().Tasks.Len(), want)
		}
	})
}

func TestDemotedManagerHearsAtOnceThatRaftGoesOnWithoutIt(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		ctx, cancel := context.WithCancel(m.ctx)
		var members sync.WaitGroup
		members.Go(func() { _ = m.store.RunMembership(ctx) })
		defer members.Wait()
		defer cancel()
		m.start("n2", "n3")
		role := func() (role string, voter bool) {
			m.agents["n2"].see(func() { role = m.agents["n2"].order.Role })
			return role, (*m.d.voters.Load())["n2"]
		}
		m.node("n1", func(n *raftstore.Node) {
			n.Role, n.Spec.Role, n.Address = swarm.NodeRoleManager, swarm.NodeRoleManager, "n1:2377"
		})
		m.node("n2", func(n *raftstore.Node) { n.Role, n.Spec.Role = swarm.NodeRoleManager, swarm.NodeRoleManager })
		settled(0)
		if _, member := (*m.d.voters.Load())["n2"]; !member {
			t.Fatal("n2 is no member of raft's configuration")
		}
		m.node("n2", func(n *raftstore.Node) { n.Spec.Role = swarm.NodeRoleWorker })
		settled(0) // no time passes: nothing has to be polled for
		if got, _ := role(); got != string(swarm.NodeRoleWorker) {
			t.Errorf("n2 is told to be a %s, want worker", got)
		}
	})
}

// What many are told is encoded once, and arrives as if it were not.
func TestRosterIsEncodedOnceForAll(t *testing.T) {
	r := newRoster()
	r.set("n1", &rpc.Member{NodeId: "n1", Role: "manager", Address: "n1:2377", Voter: true})
	whole, at := r.since(0)
	if again, _ := r.since(0); again != whole {
		t.Error("the whole roster was made twice")
	}
	r.set("n2", &rpc.Member{NodeId: "n2", Role: "worker"})
	r.set("n1", nil)
	change, now := r.since(at)
	if again, _ := r.since(at); again != change {
		t.Error("the change was made twice")
	}
	got := fmt.Sprint(travelled(whole).GetRoster().Members[0].NodeId, travelled(change).GetRoster().Members[0].NodeId, travelled(change).GetRoster().RemovedNodeIds)
	if want := "n1n2[n1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.set("n3", &rpc.Member{NodeId: "n3", Role: "worker"})
	if later, _ := r.since(at); later == change {
		t.Error("an old change is told after a new one")
	}
	if nothing, _ := r.since(now + 1); nothing != nil {
		t.Errorf("told %v to who knows all", nothing)
	}
}

// An agent hears something for every beat, and no more than that while nothing happens.
func TestEveryBeatIsAnsweredOnce(t *testing.T) {
	withManager(t, 1, func(m *manager) {
		m.start("n1")
		settled(time.Second)
		var before, after int
		m.agents["n1"].see(func() { before = m.agents["n1"].words })
		settled(10 * time.Second)
		m.agents["n1"].see(func() { after = m.agents["n1"].words })
		if after-before != 20 {
			t.Errorf("%d words in the time of 20 beats", after-before)
		}
	})
}
