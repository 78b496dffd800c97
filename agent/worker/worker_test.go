package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swarm/rpc"
	"swarm/service/task"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

const (
	running = swarm.TaskStateRunning
)

// lab is one node in virtual time: a worker that can be killed and started again over a runtime that stays.
type lab struct {
	t       *testing.T
	dir     string
	runtime *fakeRuntime
	images  *fakeImages
	removed []string // logs
	worker  *Worker
	kill    func()

	mu      sync.Mutex
	story   []string // statuses as the managers got them
	offline bool
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, dir: t.TempDir(), runtime: newFakeRuntime(), images: &fakeImages{}}
	l.start()
	return l
}

func inBubble(t *testing.T, story func(t *testing.T, l *lab)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		story(t, l)
		l.kill()
		l.runtime.killAll()
	})
}

func (l *lab) start() {
	l.t.Helper()
	w, err := Open(Config{
		NodeID: func() string { return "node1" }, Hostname: "host1", Dir: l.dir, Runtime: l.runtime, Images: l.images,
		RemoveLog: func(_ context.Context, id string) error {
			l.removed = append(l.removed, id[:4])
			return nil
		},
		Log: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.worker = w
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- w.Run(ctx) }()
	go func() { done <- l.listen(ctx, w) }()
	l.kill = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				l.t.Error(err)
			}
		}
	}
}

// listen is the managers' side: it writes down and acknowledges.
func (l *lab) listen(ctx context.Context, w *Worker) error {
	for {
		select {
		case <-w.Changed():
		case <-ctx.Done():
			return nil
		}
		l.note(w)
	}
}

func (l *lab) note(w *Worker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.offline {
		return
	}
	statuses := w.Statuses()
	for _, s := range statuses {
		l.story = append(l.story, describe(s))
	}
	w.Acknowledge(statuses)
}

func (l *lab) setOffline(offline bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offline = offline
}

// forget drops the statuses so far.
func (l *lab) forget() {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.story = nil
}

func describe(s *rpc.TaskStatus) string {
	state, _ := task.FromNumber(s.State)
	text := fmt.Sprintf("%s %s %s", s.TaskId, state, s.Message)
	if s.Err != "" {
		text += ": " + s.Err
	}
	return text
}

// assign sends assignments: each an id, an image and the desired state.
func (l *lab) assign(full bool, tasks ...[3]string) {
	a := &rpc.Assignments{Full: full}
	for n, t := range tasks {
		service := "s-" + t[1]
		grace := 3 * time.Second
		spec := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{
			Image: t[1], Labels: map[string]string{"own": "label"}, StopSignal: "INT", StopGracePeriod: &grace,
		}}}
		if t[1] == "mounts" {
			spec.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/nowhere", Target: "/x"}}
		}
		text, err := json.Marshal(spec)
		if err != nil {
			l.t.Fatal(err)
		}
		a.Specs = append(a.Specs, &rpc.ServiceSpec{ServiceId: service, Version: 1, SpecJson: text})
		a.Tasks = append(a.Tasks, &rpc.Assignment{TaskId: t[0], ServiceId: service, SpecVersion: 1, Slot: uint64(n + 1), DesiredState: task.Number(swarm.TaskState(t[2]))})
	}
	l.worker.Apply(a)
}

func (l *lab) want(want string) {
	l.t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	want = strings.TrimSpace(strings.ReplaceAll(want, "\t", ""))
	if got := strings.Join(l.story, "\n"); got != want {
		l.t.Errorf("statuses:\n%s\nwanted:\n%s", got, want)
	}
	l.story = nil
}

func (l *lab) wantContainers(want string) {
	l.t.Helper()
	synctest.Wait()
	if got := l.runtime.String(); got != want {
		l.t.Errorf("containers:\n%s\nwanted:\n%s", got, want)
	}
}

// last keeps only the newest status of each task: agents may skip those in between.
func (l *lab) last() {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := map[string]string{}
	for _, s := range l.story {
		id, _, _ := strings.Cut(s, " ")
		newest[id] = s
	}
	l.story = slices.Sorted(maps.Values(newest))
}

func TestTaskRunsAndIsShutDown(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "ready"})
		l.last()
		l.want(`t1 ready prepared`)
		l.wantContainers("web.1.t1 created")
		time.Sleep(time.Hour)
		l.assign(false, [3]string{"t1", "sleep", "running"})
		l.last()
		l.want(`t1 running started`)
		l.wantContainers("web.1.t1 running 1")
		l.assign(false, [3]string{"t1", "sleep", "shutdown"})
		l.want(`t1 shutdown shutdown`)
		l.wantContainers("")
		if got, want := strings.Join(l.runtime.calls, ", "), "create web.1.t1, start web.1.t1, wait web.1.t1, stop[INT 3s] web.1.t1, wait web.1.t1, remove web.1.t1"; got != want {
			t.Errorf("calls %s", got)
		}
		if len(l.removed) > 0 {
			t.Error("the log is gone before its task")
		}
		l.worker.Apply(&rpc.Assignments{RemovedTaskIds: []string{"t1"}})
		synctest.Wait()
		if len(l.removed) != 1 || len(l.worker.tasks) != 0 {
			t.Errorf("removed logs %v, tasks %v", l.removed, l.worker.tasks)
		}
	})
}

func TestEndedContainerStaysUntilItsTaskIsShutDown(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.runtime.createTakes = time.Second
		l.assign(true, [3]string{"t1", "exit 3", "running"})
		synctest.Wait()
		l.want("t1 preparing preparing")
		time.Sleep(1500 * time.Millisecond)
		l.last()
		l.want("t1 running started")
		time.Sleep(time.Minute)
		l.want("t1 failed started: task: non-zero exit (3)")
		l.wantContainers("web.1.t1 exited 3") // for those who want to look at it
		l.assign(false, [3]string{"t1", "exit 3", "shutdown"})
		l.want(``)
		l.wantContainers("")
	})
}

func TestHowTasksEnd(t *testing.T) {
	for image, want := range map[string]string{
		"exit 0":   "t1 complete finished",
		"exit 127": "t1 failed started: task: non-zero exit (127)",
		"oom":      "t1 failed started: task: non-zero exit (137): OOM killed: the container used more memory than its limit",
		"nope":     `t1 failed starting: starting container failed: exec: "nope": executable file not found in $PATH`,
		"missing":  "t1 rejected preparing: No such image: missing (asked 2 nodes and the registry)",
		"mounts":   `t1 rejected preparing: invalid mount config for type "bind": bind source path does not exist: /nowhere`,
		"flaky":    "t1 complete finished",
		"dead":     "t1 rejected preparing: registry: connection refused",
	} {
		t.Run(image, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *lab) {
				l.assign(true, [3]string{"t1", image, "running"})
				time.Sleep(time.Hour)
				l.last()
				l.want(want)
			})
		})
	}
}

func TestStubbornTaskIsKilledAfterItsGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "stubborn", "running"})
		synctest.Wait()
		began := time.Now()
		l.assign(false, [3]string{"t1", "stubborn", "remove"})
		time.Sleep(3*time.Second + time.Millisecond)
		l.last()
		l.want(`t1 shutdown shutdown`)
		l.wantContainers("")
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestShutdownInterruptsAPull(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "slow", "running"})
		time.Sleep(time.Hour)
		l.want("t1 preparing preparing")
		l.assign(false, [3]string{"t1", "slow", "shutdown"})
		l.want("t1 shutdown shutdown")
		l.wantContainers("")
	})
}

// A manager that is behind sends a full set without a task that it learns of a moment later.
func TestTaskThatIsAssignedAgainAfterItWasStoppedIsNotRunTwice(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "stubborn", "running"})
		l.forget()
		l.assign(true)
		time.Sleep(time.Second) // it is being stopped
		l.assign(false, [3]string{"t1", "stubborn", "running"})
		time.Sleep(time.Minute)
		l.last()
		l.want("t1 shutdown shutdown")
		if strings.Count(strings.Join(l.runtime.calls, " "), "start") != 1 {
			t.Errorf("calls %s", l.runtime.calls)
		}
	})
}

func TestDesiredStateNeverGoesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "stubborn", "running"})
		synctest.Wait()
		l.assign(false, [3]string{"t1", "stubborn", "shutdown"})
		l.assign(true, [3]string{"t1", "stubborn", "running"})
		time.Sleep(time.Minute)
		l.last()
		l.want("t1 shutdown shutdown")
	})
}

func TestTaskWithoutItsSpecIsRejected(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.worker.Apply(&rpc.Assignments{Full: true, Tasks: []*rpc.Assignment{{TaskId: "t1", ServiceId: "s", SpecVersion: 7, DesiredState: task.Number(running)}}})
		l.want("t1 rejected accepted: version 7 of the service's spec did not reach this node")
	})
}

func TestManyStatusesAreToldInPortions(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.setOffline(true)
		var tasks [][3]string
		for n := range statusesMax + 5 {
			tasks = append(tasks, [3]string{fmt.Sprintf("t%d", n), "missing", "running"})
		}
		l.assign(true, tasks...)
		synctest.Wait()
		if first := l.worker.Statuses(); len(first) != statusesMax {
			t.Errorf("%d statuses", len(first))
		}
		l.setOffline(false)
		l.worker.Resend()
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.story) != statusesMax+5 {
			t.Errorf("%d statuses told", len(l.story))
		}
	})
}

func TestRestartedWorkerAdoptsWhatRuns(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"}, [3]string{"t2", "sleep", "ready"}, [3]string{"t3", "exit 5", "running"}, [3]string{"t4", "sleep", "running"})
		synctest.Wait()
		before := l.runtime.String()
		l.kill()
		time.Sleep(time.Hour) // t3 ends meanwhile
		l.forget()
		l.start()
		time.Sleep(time.Minute)
		l.last()
		l.want(`t1 running started
			t2 ready prepared
			t3 failed started: task: non-zero exit (5)
			t4 running started`)
		l.wantContainers(regexp.MustCompile(`(t3) running \d+`).ReplaceAllString(before, "$1 exited 5"))
		// Without any manager it still knows how to stop them.
		l.assign(false, [3]string{"t4", "sleep", "shutdown"})
		l.want("t4 shutdown shutdown")
	})
}

func TestFullSetReplacesEverything(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"}, [3]string{"t2", "sleep", "running"})
		synctest.Wait()
		l.assign(true, [3]string{"t2", "sleep", "running"}, [3]string{"t3", "sleep", "running"})
		l.last()
		l.want(`t1 running started
			t2 running started
			t3 running started`)
		synctest.Wait()
		if got := l.runtime.String(); !strings.HasPrefix(got, "web.2.t2 running") || strings.Contains(got, "t1") {
			t.Errorf("containers:\n%s", got)
		}
		if len(l.removed) != 1 {
			t.Errorf("removed logs: %v", l.removed)
		}
	})
}

// An agent that lost its file (or another life of this machine) left containers behind.
func TestContainersThatNobodyWantsAreRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"}, [3]string{"t2", "sleep", "running"})
		synctest.Wait()
		before := l.runtime.String()
		l.kill()
		if err := os.Remove(filepath.Join(l.dir, "tasks.db")); err != nil {
			t.Fatal(err)
		}
		l.start()
		time.Sleep(time.Hour)
		l.wantContainers(before) // nobody said that they are unwanted
		l.forget()
		l.assign(true, [3]string{"t1", "sleep", "running"})
		l.last()
		l.want("t1 running started")
		l.wantContainers(strings.Split(before, "\n")[0])
	})
}

func TestCutOffWorkerKeepsItsTasksAndTellsLater(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.setOffline(true)
		l.assign(true, [3]string{"t1", "sleep", "running"}, [3]string{"t2", "exit 1", "running"})
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if got := l.runtime.String(); !regexp.MustCompile(`^web.1.t1 running \d\nweb.2.t2 exited 1$`).MatchString(got) {
			t.Errorf("containers:\n%s", got)
		}
		l.setOffline(false)
		l.worker.Resend()
		l.last()
		l.want(`t1 running started
			t2 failed started: task: non-zero exit (1)`)
	})
}

func TestAcknowledgedStatusDoesNotHideANewerOne(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.setOffline(true)
		l.assign(true, [3]string{"t1", "exit 1", "running"})
		synctest.Wait()
		old := l.worker.Statuses()
		time.Sleep(time.Minute)
		l.worker.Acknowledge(old)
		now := l.worker.Statuses()
		if len(now) != 1 || now[0].State != task.Number(swarm.TaskStateFailed) || now[0].ExitCode != 1 || now[0].ContainerId != ContainerID("t1") {
			t.Fatalf("due: %v", now)
		}
		l.worker.Acknowledge(now)
		if due := l.worker.Statuses(); len(due) > 0 {
			t.Errorf("due: %v", due)
		}
		l.worker.Resend()
		if due := l.worker.Statuses(); len(due) != 1 {
			t.Errorf("due: %v", due)
		}
	})
}

func TestWorkerOutlivesItsRuntime(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"})
		synctest.Wait()
		l.forget()
		l.runtime.setDown(true)
		l.assign(false, [3]string{"t1", "sleep", "shutdown"}, [3]string{"t2", "sleep", "running"})
		time.Sleep(10 * time.Second)
		l.last()
		l.want(`t2 preparing preparing: connection refused (trying again)`)
		l.runtime.setDown(false)
		time.Sleep(time.Minute)
		l.last()
		l.want(`t1 shutdown shutdown
			t2 running started`)
		l.wantContainers("web.2.t2 running 2")
	})
}

func TestContainerRemovedFromOutsideFails(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"})
		synctest.Wait()
		l.kill()
		l.runtime.killAll()
		synctest.Wait()
		if err := l.runtime.Remove(context.Background(), ContainerID("t1")); err != nil {
			t.Fatal(err)
		}
		l.forget()
		l.start()
		l.last()
		l.want("t1 failed started: the container is gone: it was removed from outside, or the runtime lost it")
	})
}

func TestPreparingIsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.runtime.createTakes = time.Second
		var tasks [][3]string
		for n := range 20 {
			tasks = append(tasks, [3]string{fmt.Sprintf("t%d", n), "sleep", "running"})
		}
		l.assign(true, tasks...)
		time.Sleep(time.Minute)
		synctest.Wait()
		if l.runtime.busyMax != preparingMax || len(l.runtime.containers) != 20 {
			t.Errorf("%d at a time, %d containers", l.runtime.busyMax, len(l.runtime.containers))
		}
	})
}

func TestHoldersReachTheImageStoreAlsoAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.runtime.setDown(true) // nothing is prepared yet
		l.worker.Apply(&rpc.Assignments{Full: true, Holders: []*rpc.ImageHolders{{Digest: "sha256:2", Addresses: []string{"10.0.0.1:2377"}}}})
		l.kill()
		l.runtime.setDown(false)
		l.start()
		l.assign(false, [3]string{"t1", "far@sha256:2", "ready"})
		l.last()
		l.want("t1 ready prepared")
	})
}

func TestClearRemovesEverything(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"}, [3]string{"t2", "exit 1", "running"}, [3]string{"t3", "stubborn", "running"})
		time.Sleep(time.Minute)
		if err := l.worker.Clear(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.wantContainers("")
		synctest.Wait()
		if len(l.removed) != 3 || len(l.worker.Tasks()) != 0 {
			t.Errorf("removed logs %v", l.removed)
		}
	})
}

func TestContainerCarriesTheLabelsThatToolsSelectOn(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.assign(true, [3]string{"t1", "sleep", "running"})
		synctest.Wait()
		tasks := l.worker.Tasks()
		if len(tasks) != 1 || tasks[0].Name != "web.1.t1" || tasks[0].State != running || len(tasks[0].ContainerID) != 64 {
			t.Fatalf("%+v", tasks)
		}
		got := fmt.Sprint(tasks[0].Container.Labels)
		want := "map[com.docker.swarm.node.id:node1 com.docker.swarm.service.id:s-sleep com.docker.swarm.service.name:web com.docker.swarm.task: com.docker.swarm.task.id:t1 com.docker.swarm.task.name:web.1.t1 own:label]"
		if got != want {
			t.Errorf("labels %s", got)
		}
		if c := tasks[0].Container; c.Network != "none" || c.ImageDigest != "sha256:1" {
			t.Errorf("%+v", c)
		}
	})
}
