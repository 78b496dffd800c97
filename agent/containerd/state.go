package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"swarm/agent/worker"
)

// exitUnknown is the exit code of a process whose end nobody saw: the machine was restarted, or its shim killed.
const exitUnknown = 255

// state is what is known of a container's process beyond containerd's own task, which is
// deleted once it ended. It lies in the container's directory.
type state struct {
	PID       int
	Born      string // birth of the process with this pid
	StartedAt time.Time
	Exit      *worker.Exit
	Settled   bool // nothing is left to do about the exit: the task is deleted, the log closed
}

func (r *Runtime) statePath(id string) string { return filepath.Join(r.containerDir(id), "state.json") }

// readState is empty for a container that never started.
func (r *Runtime) readState(id string) (state, error) {
	var s state
	text, err := os.ReadFile(r.statePath(id))
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read the state of container %s: %w", id, err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("state of container %s: %w", id, err)
	}
	return s, nil
}

func (r *Runtime) writeState(id string, s state) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := writeFile(r.statePath(id), text); err != nil {
		return fmt.Errorf("write the state of container %s: %w", id, err)
	}
	return nil
}

// recordExit writes how a container ended, once; what was recorded first stays.
func (r *Runtime) recordExit(id string, code int, at time.Time) (worker.Exit, error) {
	r.statesMu.Lock()
	defer r.statesMu.Unlock()
	s, err := r.readState(id)
	if err != nil {
		return worker.Exit{}, err
	}
	if s.Exit != nil {
		return *s.Exit, nil
	}
	s.Exit = &worker.Exit{Code: code, OOMKilled: oomKilled(r.cgroupPath(id)), At: at}
	return *s.Exit, r.writeState(id, s)
}

// recordSettled writes that nothing is left of an ended process. Nothing is written of one that was removed meanwhile.
func (r *Runtime) recordSettled(id string) error {
	r.statesMu.Lock()
	defer r.statesMu.Unlock()
	s, err := r.readState(id)
	if err != nil || s.Exit == nil || s.Settled {
		return err
	}
	s.Settled = true
	if err := r.writeState(id, s); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
