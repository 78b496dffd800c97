package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/agent/worker"
	"swarm/raftstore"
	"swarm/scenarios/history"

	"github.com/moby/moby/api/types/swarm"
)

// wants a violation with that text, or none if it is empty.
func wants(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("no violation, but: %v", err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("got %v, want a violation %q", err, text)
	}
}

func TestEveryCheckOfReplicasCanFail(t *testing.T) {
	row := func(index uint64, state, desired swarm.TaskState, node string) *raftstore.Task {
		return &raftstore.Task{Meta: raftstore.Meta{ID: "t1", Index: index}, NodeID: node, DesiredState: desired, Status: raftstore.TaskStatus{State: state}}
	}
	run := row(5, swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
	steps := func(rows ...*raftstore.Task) func(*checks) {
		return func(c *checks) {
			for _, r := range rows {
				c.step("n1", 0, r)
			}
		}
	}
	for name, test := range map[string]struct {
		see  func(*checks)
		want string
	}{
		"one leader per term":   {func(c *checks) { c.elected(2, "n1"); c.elected(3, "n2"); c.elected(2, "n1") }, ""},
		"two leaders of a term": {func(c *checks) { c.elected(2, "n1"); c.elected(2, "n2") }, "term 2 was won by n1 and by n2"},
		"equal replicas": {func(c *checks) {
			c.sameDigest("n1", moment{0, 7}, [32]byte{1})
			c.sameDigest("n2", moment{0, 7}, [32]byte{1})
		}, ""},
		"unequal replicas": {func(c *checks) {
			c.sameDigest("n1", moment{0, 7}, [32]byte{1})
			c.sameDigest("n2", moment{0, 7}, [32]byte{2})
		}, "differ at index 7"},
		"of two recoveries": {func(c *checks) {
			c.sameDigest("n1", moment{1, 7}, [32]byte{1})
			c.sameDigest("n2", moment{2, 7}, [32]byte{2})
		}, ""},
		"a task goes its way":       {steps(row(4, swarm.TaskStatePending, swarm.TaskStateRunning, ""), run, row(6, swarm.TaskStateFailed, swarm.TaskStateShutdown, "a")), ""},
		"a replica that is behind":  {steps(run, row(4, swarm.TaskStateAssigned, swarm.TaskStateRunning, "a")), ""},
		"a state goes back":         {steps(run, row(6, swarm.TaskStateStarting, swarm.TaskStateRunning, "a")), "from running to starting"},
		"an ended task ends anew":   {steps(row(5, swarm.TaskStateFailed, swarm.TaskStateShutdown, "a"), row(6, swarm.TaskStateComplete, swarm.TaskStateShutdown, "a")), "from failed to complete"},
		"a wish goes back":          {steps(row(5, swarm.TaskStateRunning, swarm.TaskStateShutdown, "a"), row(6, swarm.TaskStateRunning, swarm.TaskStateRunning, "a")), "was wanted shutdown and then running"},
		"a task moves":              {steps(run, row(6, swarm.TaskStateRunning, swarm.TaskStateRunning, "b")), "moved from node a to b"},
		"two histories of one task": {steps(run, row(5, swarm.TaskStateStarting, swarm.TaskStateRunning, "a")), "both written at index 5"},
		"an agent that gives up":    {func(c *checks) { c.wrong("the agent on %s ended by itself", "n1") }, "ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChecks()
			test.see(c)
			wants(t, c.Err(), test.want)
		})
	}
}

func TestEveryCheckOfTheEndCanFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n1 := &Machine{Name: "n1", runtime: NewRuntime(1)}
		members := map[string]*Machine{"a": n1}
		nodes := map[string]swarm.Node{"a": {Spec: swarm.NodeSpec{Availability: swarm.NodeAvailabilityActive}}}
		web := swarm.Service{ID: "web", Spec: emptyService("web")}
		web.Spec.TaskTemplate.ContainerSpec.Args = []string{"sleep"}
		web.Spec.Mode.Replicated.Replicas = new(uint64(2))
		task := func(id string, slot int) swarm.Task {
			return swarm.Task{ID: id, ServiceID: "web", Slot: slot, NodeID: "a", DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStateRunning}}
		}
		p := &player{wanted: map[string]int{"web": 2}, doubtful: map[string]bool{}}
		services, good := []swarm.Service{web}, []swarm.Task{task("t1", 1), task("t2", 2)}

		wants(t, p.tasksFit(services, good, nodes, members), "")
		wants(t, p.tasksFit(services, good[:1], nodes, members), "has 1 running tasks, want 2")
		wants(t, p.tasksFit(services, append(good, task("t3", 2)), nodes, members), "both run as web.2")
		wants(t, p.tasksFit(nil, good, nodes, members), "which is gone")
		busy := web
		busy.Spec.TaskTemplate.ForceUpdate, busy.UpdateStatus = 1, &swarm.UpdateStatus{State: swarm.UpdateStateUpdating}
		wants(t, p.tasksFit([]swarm.Service{busy}, good, nodes, members), "still being updated")

		wants(t, p.wantedExists(services), "")
		wants(t, p.wantedExists(nil), "is lost")
		p.wanted["web"] = 3
		wants(t, p.wantedExists(services), "3 were acknowledged")
		delete(p.wanted, "web")
		wants(t, p.wantedExists(services), "although its removal was acknowledged")
		p.doubtful["web"] = true
		wants(t, p.wantedExists(services), "")

		r := runtimeOf{n1.runtime, t.Context()}
		launch := func(id string) {
			c := worker.Container{ID: id, Spec: &swarm.ContainerSpec{Args: []string{"sleep"}}, Labels: map[string]string{"com.docker.swarm.task.id": id}}
			_, err := r.Start(t.Context(), id)
			if err != nil {
				err = r.Create(t.Context(), c)
				if err == nil {
					_, err = r.Start(t.Context(), id)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		launch("t1")
		wants(t, containersFit(good, members), "task t2 runs on n1, but has no container")
		launch("t2")
		wants(t, containersFit(good, members), "")
		wants(t, containersFit(good[:1], members), "a container of task t2 runs on n1, but the task does not")
		n1.runtime.starts["t1"]++
		wants(t, containersFit(good, members), "[t1] were started more than once")

		before := (&player{Lab: &Lab{machines: []*Machine{n1}}}).places()
		wants(t, compare(before, maps.Clone(before)), "")
		wants(t, compare(before, map[string]string{"t1": before["t1"]}), "task t2 ran on n1")
		wants(t, compare(map[string]string{}, before), "is new on n1")
		n1.runtime.PowerOff()
	})
}

func TestGoroutinesLeftBehindAreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if left := leftovers(); len(left) != 0 {
			t.Errorf("before: %v", left)
		}
		release := make(chan struct{})
		go func() { <-release }()
		synctest.Wait()
		if left := leftovers(); len(left) != 1 || !strings.Contains(left[0], "TestGoroutinesLeftBehindAreSeen") {
			t.Errorf("got %v", left)
		}
		close(release)
	})
}

// A cluster whose disks forget what they said they had cannot be right: the simulation must say so.
func TestAcknowledgedWritesThatAreLostAreFound(t *testing.T) {
	for name, after := range map[string]string{
		"an operator's": "? service create --name lost --replicas 1 hello sleep",
		"clients'":      "history start\nwait 3s",
	} {
		t.Run(name, func(t *testing.T) {
			_, report := lie(t, `
cluster 3+0
image load < $HELLO
service create --name web --replicas 3 hello sleep
* running web 3
wait 2s
lying-disk n1 n2 n3
`+after+`
wait 1s
power-off n1 n2 n3
start
settle
`)
			if report == "" {
				t.Error("nobody noticed")
			}
			t.Log(strings.SplitN(report, "\n", 2)[0])
		})
	}
}

// lie plays a story with a verb more.
func lie(t *testing.T, text string) (*Outcome, string) {
	story, err := ParseStory(text)
	if err != nil {
		t.Fatal(err)
	}
	return playWith(t, story, func(p *player) {
		p.verbs["lying-disk"] = onNodes(func(m *Machine) error { m.disk.SetLying(true); return nil })
	})
}

// A manager that answers reads from its replica alone is found by the histories of clients: here they look past its API.
func TestStaleReadsAreFound(t *testing.T) {
	story, err := ParseStory(`
cluster 3+0
image load < $HELLO
history start 3
wait 2s
stale-reads n3
partition n1 n2 | n3
wait 6s
stale-reads n3
settle
`)
	if err != nil {
		t.Fatal(err)
	}
	_, report := playWith(t, story, func(p *player) {
		p.verbs["stale-reads"] = onNodes(func(m *Machine) error {
			call := p.load.recorder.Begin("stale@"+m.Name, history.Read{Key: registerPrefix + "0"})
			state := p.checks.open(m.Name).Local()
			row, err := state.Services.Find(registerPrefix + "0")
			if err != nil {
				return err
			}
			call.Done(history.Value{Value: state.Spec(row.ID, row.SpecVersion).Labels[registerLabel], Version: row.Version})
			return nil
		})
	})
	if !strings.Contains(report, "contradicts itself") {
		t.Errorf("nobody noticed: %q", report)
	}
}

func TestFakeProgramsBehaveAsTheyAreCalled(t *testing.T) {
	for program, want := range map[string]string{
		"sleep":     "ends 0 after 20ms",
		"exit 3 2s": "ends 3 after 2s",
		"stubborn":  "ends 137 after 5.02s",
		"hang":      "ends 0 after 1m0s",
	} {
		t.Run(program, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				base := NewRuntime(1)
				r := runtimeOf{base, t.Context()}
				c := worker.Container{ID: "c", Spec: &swarm.ContainerSpec{Args: strings.Fields(program)}}
				if err := r.Create(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Start(t.Context(), "c"); err != nil {
					t.Fatal(err)
				}
				if err := r.Remove(t.Context(), "c"); err == nil {
					t.Error("a running container was removed")
				}
				time.Sleep(time.Second - time.Duration(time.Now().Nanosecond()))
				began := time.Now()
				stopped := make(chan error, 1)
				if !strings.HasPrefix(program, "exit") {
					go func() { stopped <- r.Stop(t.Context(), "c", "", 5*time.Second) }()
				}
				exit, err := r.Wait(t.Context(), "c")
				got := fmt.Sprintf("ends %d after %s", exit.Code, time.Since(began).Round(10*time.Millisecond))
				if program == "exit 3 2s" {
					got = fmt.Sprintf("ends %d after %s", exit.Code, exit.At.Sub(base.containers["c"].started))
				}
				if err != nil || got != want {
					t.Errorf("%s, %v; want %s", got, err, want)
				}
				if err := r.Remove(t.Context(), "c"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestContainersOutliveAgentsAndObeyNoGhosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := NewRuntime(1)
		alive, kill := context.WithCancel(t.Context())
		ghost, heir := runtimeOf{base, alive}, runtimeOf{base, t.Context()}
		c := worker.Container{ID: "c", Spec: &swarm.ContainerSpec{Args: []string{"sleep"}}}
		if err := ghost.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if _, err := ghost.Start(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		kill()
		if err := ghost.Stop(t.Context(), "c", "", time.Second); !errors.Is(err, errKilled) {
			t.Errorf("a ghost stopped it: %v", err)
		}
		list, err := heir.List(t.Context())
		if err != nil || len(list) != 1 || !list[0].Running {
			t.Errorf("the next agent finds %v, %v", list, err)
		}
		base.PowerOff()
		if list, _ = heir.List(t.Context()); list[0].Running || list[0].Exit == nil {
			t.Errorf("after the power was off: %v", list)
		}
	})
}

func TestStatusErrorsAreKnown(t *testing.T) {
	err := fmt.Errorf("n1: %w", &statusError{Status: http.StatusConflict, Message: "taken"})
	if !refused(err, http.StatusConflict) || refused(err, http.StatusNotFound) || refused(errStale, http.StatusConflict) {
		t.Error("statuses are mixed up")
	}
}
