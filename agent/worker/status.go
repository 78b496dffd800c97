package worker

import (
	"slices"
	"strings"
	"time"

	"swarm/rpc"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// status is what was last observed of a task.
type status struct {
	State     swarm.TaskState
	Timestamp time.Time
	Message   string
	Err       string `json:",omitempty"`
	PID       int    `json:",omitempty"`
	ExitCode  int    `json:",omitempty"`
	// Container is set once there was one.
	Container bool `json:",omitempty"`
}

// Changed receives when Statuses has something.
func (w *Worker) Changed() <-chan struct{} { return w.changed }

// Statuses returns the latest status of every task that changed since it was acknowledged, but no more
// than 1000: the others' turn comes when these are acknowledged.
func (w *Worker) Statuses() []*rpc.TaskStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*rpc.TaskStatus
	for _, t := range w.tasks {
		if t.due {
			all = append(all, t.message())
		}
	}
	slices.SortFunc(all, func(a, b *rpc.TaskStatus) int { return strings.Compare(a.TaskId, b.TaskId) })
	return all[:min(len(all), statusesMax)]
}

// Acknowledge takes note that the managers have statuses. One that changed since stays due, and Changed receives.
func (w *Worker) Acknowledge(statuses []*rpc.TaskStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range statuses {
		t, ok := w.tasks[s.GetTaskId()]
		if !ok || !t.due {
			continue
		}
		now := t.message()
		if now.State == s.State && now.TimestampNs == s.TimestampNs && now.Message == s.Message && now.Err == s.Err {
			t.due = false
		}
	}
	for _, t := range w.tasks {
		if t.due {
			signal(w.changed)
			return
		}
	}
}

// Resend makes the status of every task due again: a new session.
func (w *Worker) Resend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tasks {
		if t.tellable() {
			t.due = true
			signal(w.changed)
		}
	}
}

// tellable says whether there is something to tell of a task to somebody who knows it.
func (t *work) tellable() bool {
	return t.record.Desired != task.Unassigned && task.Before(swarm.TaskStateAssigned, t.record.Status.State)
}

func (t *work) message() *rpc.TaskStatus {
	s := t.record.Status
	m := &rpc.TaskStatus{
		TaskId: t.id, State: task.Number(s.State), TimestampNs: s.Timestamp.UnixNano(),
		Message: s.Message, Err: s.Err, Pid: int32(s.PID), ExitCode: int32(s.ExitCode),
	}
	if s.Container {
		m.ContainerId = t.containerID
	}
	return m
}

// report sets the status of a task. A state never goes back. Called with mu held.
func (w *Worker) report(t *work, s status) {
	old := t.record.Status
	if task.Before(s.State, old.State) {
		return
	}
	s.Timestamp = time.Now()
	s.Container = old.Container || t.phase != task.NoContainer
	if s.PID == 0 {
		s.PID = old.PID
	}
	t.record.Status = s
	w.journal.note(t.id)
	// What comes before STARTING is on the way to it: each step of each task would cost the disk two syncs that the next one waits for.
	if !task.Before(s.State, swarm.TaskStateStarting) {
		w.journal.wakeUp()
	}
	w.log.Info("task state", "task", t.id, "service", t.record.ServiceID, "state", s.State, "message", s.Message, "error", s.Err)
	if t.tellable() {
		t.due = true
		signal(w.changed)
	}
}
