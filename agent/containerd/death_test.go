package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// shims are the processes beside containerd itself.
func (b *bench) shims() []int {
	var pids []int
	for _, pid := range processesIn(filepath.Join(b.cfg.CgroupParent, ownCgroup)) {
		if pid != b.runtime.process.running() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone reports whether a process has ended, reaped or not.
func (b *bench) gone(pid int) bool {
	b.Helper()
	alive, err := lives(pid, "")
	check(b.T, err)
	return !alive
}

// Containerd leaves a container whose shim answers late out of its list of tasks, as it does for one that ended.
func TestContainerWithASlowShimRuns(t *testing.T) {
	b := newBench(t)
	c := b.container(args("graceful"))
	pid := b.start(c)
	b.await(c.ID, "ready")
	for _, shim := range b.shims() {
		check(t, unix.Kill(shim, unix.SIGSTOP))
		defer unix.Kill(shim, unix.SIGCONT)
	}
	all, err := b.runtime.List(t.Context())
	check(t, err)
	if len(all) != 1 || !all[0].Running || all[0].Exit != nil || all[0].PID != pid {
		t.Errorf("while the shim does not answer: %+v", all)
	}
	for _, shim := range b.shims() {
		check(t, unix.Kill(shim, unix.SIGCONT))
	}
	check(t, b.runtime.Stop(t.Context(), c.ID, "", time.Minute))
	if code := b.wait(c.ID).Code; code != 7 {
		t.Errorf("exit code %d", code)
	}
}

// The tasks are listed first: one that is started after that is not among them.
func TestContainerThatIsJustStartingRuns(t *testing.T) {
	b := newBench(t)
	c := b.container(args("sleep"))
	pid := b.start(c)
	info, err := b.runtime.containers().Get(t.Context(), c.ID)
	check(t, err)
	d, err := b.runtime.describe(t.Context(), info, nil)
	check(t, err)
	if !d.Running || d.Exit != nil || d.PID != pid {
		t.Errorf("seen as: %+v", d.Observed)
	}
}

// A worker stops what it is told to run and removes what it is told to have ended: one of both has to help.
func TestRemoveRefusesOnlyWhatIsToldToRun(t *testing.T) {
	b := newBench(t)
	c := b.container(args("sleep"))
	pid := b.start(c)
	if err := b.runtime.Remove(t.Context(), c.ID); !errdefs.IsFailedPrecondition(err) || b.gone(pid) {
		t.Errorf("while it runs: %v", err)
	}
	_, err := b.runtime.recordExit(c.ID, exitUnknown, time.Now())
	check(t, err)
	check(t, b.runtime.Remove(t.Context(), c.ID))
	if !b.gone(pid) {
		t.Error("the process outlived its container")
	}
	all, err := b.runtime.List(t.Context())
	check(t, err)
	if len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
}

func TestProcessIsKnownByItsBirth(t *testing.T) {
	own, err := birth(os.Getpid())
	check(t, err)
	child := exec.Command("true")
	check(t, child.Start())
	defer child.Wait()
	childBirth, err := birth(child.Process.Pid)
	check(t, err)
	ended, err := processEnd(t.Context(), child.Process.Pid)
	check(t, err)
	<-ended
	for what, c := range map[string]struct {
		pid  int
		born string
		want bool
	}{
		"this process":                        {os.Getpid(), own, true},
		"this process, whenever it was born":  {os.Getpid(), "", true},
		"another process with a recycled pid": {os.Getpid(), childBirth + "0", false},
		"an ended process nobody waited for":  {child.Process.Pid, childBirth, false},
		"no process":                          {1 << 30, own, false},
		"never started":                       {0, "", false},
	} {
		got, err := lives(c.pid, c.born)
		check(t, err)
		if got != c.want {
			t.Errorf("%s: got %v", what, got)
		}
	}
}

func TestRemovalMeetsTheSettlingOfAnEnd(t *testing.T) {
	r := &Runtime{cfg: Config{DataDir: t.TempDir()}}
	for i := range 300 {
		id := fmt.Sprint("c", i)
		check(t, os.MkdirAll(r.containerDir(id), 0o700))
		check(t, r.writeState(id, state{PID: 1, Exit: &worker.Exit{}}))
		settled := make(chan error)
		go func() { settled <- r.recordSettled(id) }()
		if err := r.removeDir(id); err != nil {
			t.Error(err)
		}
		if err := <-settled; err != nil {
			t.Error(err)
		}
	}
}
