package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// ownCgroup is the leaf beside the containers where containerd and its shims live.
	ownCgroup = "containerd"
	// shimsMax is how long shims have to end by themselves after the last container.
	shimsMax = 2 * time.Second
)

// cgroupUnified reports cgroup v2 alone (no v1 hierarchy beside it).
func cgroupUnified() bool {
	var s unix.Statfs_t
	return unix.Statfs(cgroupRoot, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
}

// cgroupHierarchies are the directories of all mounted hierarchies: one with cgroup v2,
// one per v1 controller (and the unified one in hybrid mode) otherwise.
func cgroupHierarchies() ([]string, error) {
	if cgroupUnified() {
		return []string{cgroupRoot}, nil
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroups: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		name := strings.TrimPrefix(fields[1], "name=")
		if name == "" {
			name = "unified"
		}
		dir := filepath.Join(cgroupRoot, name)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// enterCgroup moves a process to a cgroup of its own under parent in every hierarchy, so that
// whoever kills the agent's cgroup leaves it alone.
func enterCgroup(parent string, pid int) error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range hierarchies {
		if filepath.Base(dir) == "cpuset" {
			continue // a new v1 cpuset has no cpus until somebody chooses them
		}
		leaf := filepath.Join(dir, parent, ownCgroup)
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644))
	}
	return errors.Join(errs...)
}

// endShims waits for the last shims beside a containerd that ended, and kills those that
// nobody is left to tell: their containers are gone.
func endShims(ctx context.Context, parent string) {
	deadline := time.Now().Add(shimsMax)
	for {
		pids := processesIn(filepath.Join(parent, ownCgroup))
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !pause(ctx, probeEvery) {
			return
		}
	}
}

// killCgroup ends what outlived its shim, so that nothing runs on that no task knows of.
func killCgroup(ctx context.Context, path string) error {
	deadline := time.Now().Add(killEvery)
	for {
		pids := processesIn(path)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) || !pause(ctx, probeEvery) {
			return fmt.Errorf("processes %v do not end: %w", pids, errdefs.ErrUnavailable)
		}
	}
}

// processesIn are the processes of a cgroup, by any hierarchy.
func processesIn(path string) []int {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return nil
	}
	var pids []int
	for _, dir := range hierarchies {
		text, _ := os.ReadFile(filepath.Join(dir, path, "cgroup.procs"))
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// removeCgroups deletes our empty cgroups. What still has processes stays.
func removeCgroups(path string) error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, dir := range hierarchies {
		top := filepath.Join(dir, path)
		var below []string
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, p)
			}
			return nil
		})
		for i := len(below) - 1; i >= 0; i-- {
			_ = unix.Rmdir(below[i])
		}
	}
	return nil
}

// oomKilled reports whether the kernel killed a process of this cgroup for want of memory.
// It has to be asked while the cgroup exists: before the ended task is deleted.
func oomKilled(cgroupPath string) bool {
	file := filepath.Join(cgroupRoot, "memory", cgroupPath, "memory.oom_control")
	if cgroupUnified() {
		file = filepath.Join(cgroupRoot, cgroupPath, "memory.events")
	}
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if count, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			return count != "0"
		}
	}
	return false
}

// swapLimits reports whether the kernel can limit swap.
func swapLimits() bool {
	if cgroupUnified() {
		_, err := os.Stat("/proc/swaps")
		return err == nil
	}
	_, err := os.Stat(filepath.Join(cgroupRoot, "memory", "memory.memsw.limit_in_bytes"))
	return err == nil
}
