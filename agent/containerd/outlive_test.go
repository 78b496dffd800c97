package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestStopSignalsWaitsAndKills(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		verb, signal string
		grace        time.Duration
		code         int
		said         string
	}{
		{"graceful", "", time.Minute, 7, "got user defined signal 1"},
		{"graceful", "SIGTERM", time.Minute, 7, "got terminated"},
		{"stubborn", "TERM", 300 * time.Millisecond, 137, ""},
	} {
		one := b.container(args(c.verb))
		b.start(one)
		b.await(one.ID, "ready")
		check(t, b.runtime.Stop(t.Context(), one.ID, c.signal, c.grace))
		equal(t, "code", fmt.Sprint(b.wait(one.ID).Code), fmt.Sprint(c.code))
		b.await(one.ID, c.said)
		check(t, b.runtime.Stop(t.Context(), one.ID, c.signal, c.grace))
		check(t, b.runtime.Remove(t.Context(), one.ID))
		check(t, b.runtime.Remove(t.Context(), one.ID))
	}
}

func TestContainersOutliveTheAgent(t *testing.T) {
	b := newBench(t)
	c := b.container(args("graceful"))
	pid := b.start(c)
	b.await(c.ID, "ready")
	containerd := b.runtime.process.running()
	b.close()
	b.open()
	equal(t, "containerd", fmt.Sprint(b.runtime.process.running()), fmt.Sprint(containerd))
	all, err := b.runtime.Details(t.Context())
	check(t, err)
	if len(all) != 1 || !all[0].Running || all[0].PID != pid || all[0].Container.Name != "web.1" || all[0].StartedAt.IsZero() {
		t.Fatalf("adopted: %+v", all)
	}
	check(t, b.runtime.Create(t.Context(), c))
	again, err := b.runtime.Start(t.Context(), c.ID)
	check(t, err)
	equal(t, "pid", fmt.Sprint(again), fmt.Sprint(pid))
	check(t, b.runtime.Stop(t.Context(), c.ID, "", time.Minute))
	equal(t, "code", fmt.Sprint(b.wait(c.ID).Code), "7")
}

func TestContainersOutliveContainerd(t *testing.T) {
	b := newBench(t)
	stays, ends := b.container(args("graceful")), b.container(args("graceful"))
	pid := b.start(stays)
	ending := b.start(ends)
	b.await(stays.ID, "ready")
	b.await(ends.ID, "ready")
	waited := make(chan worker.Exit)
	go func() { waited <- b.wait(ends.ID) }()
	containerd := b.runtime.process.running()
	check(t, unix.Kill(containerd, unix.SIGKILL))
	// This one ends while nobody but its shim can see it.
	check(t, unix.Kill(ending, unix.SIGUSR1))
	equal(t, "code of the one that ended meanwhile", fmt.Sprint((<-waited).Code), "7")
	if b.runtime.process.running() == containerd {
		t.Fatal("containerd was not killed")
	}
	d, err := b.runtime.Container(t.Context(), stays.ID)
	check(t, err)
	equal(t, "pid", fmt.Sprint(d.Running, d.PID), fmt.Sprint(true, pid))
	check(t, b.runtime.Stop(t.Context(), stays.ID, "", time.Minute))
	equal(t, "code", fmt.Sprint(b.wait(stays.ID).Code), "7")
}

func TestKilledShimEndsItsContainer(t *testing.T) {
	b := newBench(t)
	c := b.container(args("sleep"))
	pid := b.start(c)
	b.await(c.ID, "sleeping")
	containerd := b.runtime.process.running()
	for _, own := range processesIn(filepath.Join(b.cfg.CgroupParent, ownCgroup)) {
		if own != containerd {
			unix.Kill(own, unix.SIGKILL)
		}
	}
	exit := b.wait(c.ID)
	if exit.Code != exitUnknown && exit.Code != 137 {
		t.Errorf("exit code %d", exit.Code)
	}
	check(t, b.runtime.Remove(t.Context(), c.ID))
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if len(status) > 0 && !strings.Contains(string(status), "State:\tZ") {
		t.Errorf("the process outlived its shim: %s", status)
	}
}

func TestExistingContainerdIsShared(t *testing.T) {
	b := newBench(t)
	b.start(b.container(args("sleep")))
	cfg := b.cfg
	cfg.Address, cfg.DataDir, cfg.RunDir = b.runtime.process.socket, t.TempDir(), t.TempDir()
	other, err := Open(t.Context(), cfg)
	check(t, err)
	defer other.Client().Close()
	all, err := other.List(t.Context())
	check(t, err)
	equal(t, "containers of the other agent's", fmt.Sprint(len(all)), "0")
	c := b.container(args("exit", "4"))
	check(t, other.Create(t.Context(), c))
	_, err = other.Start(t.Context(), c.ID)
	check(t, err)
	exit, err := other.Wait(t.Context(), c.ID)
	check(t, err)
	equal(t, "code", fmt.Sprint(exit.Code), "4")
	check(t, other.Remove(t.Context(), c.ID))
}

func TestLeftoversOfAKilledAgentAreUndone(t *testing.T) {
	b := newBench(t)
	info, err := b.runtime.image(t.Context(), b.digest)
	check(t, err)
	// An agent is killed while it reads an image: the snapshot and what it mounted stay.
	_, err = b.runtime.snapshots().View(t.Context(), "view-x", info.chainID, snapshots.WithLabels(map[string]string{viewLabel: "1", gcRootLabel: "x"}))
	check(t, err)
	left := filepath.Join(b.runtime.mountsDir(), "view-x")
	check(t, os.Mkdir(left, 0o700))
	check(t, unix.Mount(left, left, "", unix.MS_BIND, ""))
	b.close()
	b.open()
	if entries, _ := os.ReadDir(b.runtime.mountsDir()); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
	if _, err := b.runtime.snapshots().Stat(t.Context(), "view-x"); !errdefs.IsNotFound(err) {
		t.Errorf("snapshot is left: %v", err)
	}
}
