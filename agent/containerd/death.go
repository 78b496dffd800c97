package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"swarm/agent/worker"

	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// over is how a container that was started ended; nil while that is not proved. That containerd knows no task
// proves nothing: it may not know it yet, and leaves out whose shim answers late. The process has the last word.
func (r *Runtime) over(ctx context.Context, id string, s state) (*worker.Exit, error) {
	if s.Exit != nil {
		return s.Exit, nil
	}
	if alive, err := r.lives(id, s); alive || err != nil {
		return nil, err
	}
	t, err := r.task(ctx, id)
	var exit worker.Exit
	switch {
	case errdefs.IsNotFound(err):
		exit, err = r.ended(id, exitUnknown, time.Now().UTC())
	case err != nil:
		return nil, ctx.Err() // dead, and containerd may tell later how
	case t.Status == taskapi.Status_STOPPED:
		exit, err = r.ended(id, int(t.ExitStatus), t.ExitedAt.AsTime())
	default:
		return nil, nil // its shim is about to see it
	}
	if err != nil {
		return nil, err
	}
	return &exit, nil
}

// lives reports whether a container's own process is there.
func (r *Runtime) lives(id string, s state) (bool, error) {
	if s.Born == "" { // written by an earlier version
		return slices.Contains(processesIn(r.cgroupPath(id)), s.PID), nil
	}
	alive, err := lives(s.PID, s.Born)
	if err != nil {
		return false, fmt.Errorf("look for the process of container %s: %w", id, err)
	}
	return alive, nil
}

// lives reports whether the process with this pid is there and not over, and is the one that was born then;
// born may be empty when that is not known.
func lives(pid int, born string) (bool, error) {
	if pid <= 0 {
		return false, nil
	}
	fd, err := unix.PidfdOpen(pid, 0) // from here on it is one process that is spoken of
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return false, nil // none, or by now a thread of another
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	now, err := birth(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if born != "" && born != now {
		return false, nil
	}
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(ended, 0)
		if !errors.Is(err, unix.EINTR) {
			return n == 0, err
		}
	}
}

// birth tells processes with the same pid apart: the boot of the machine and the ticks from there to the process's start.
func birth(pid int) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses, which may hold anything; the start is field 22.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields: %w", pid, len(fields)+2, errdefs.ErrInternal)
	}
	return strings.TrimSpace(string(boot)) + " " + string(fields[19]), nil
}
