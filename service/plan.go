package service

import (
	"fmt"
	"strings"
	"time"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// plan is what shall change about one service now.
type plan struct {
	steps []step
	// wake is when to decide on the whole service again although nothing changed, wakes when on single slots; zero: never.
	wake  time.Time
	wakes map[slotKey]time.Time
	// cut says that the plan became too long: there is more to do once it is done.
	cut bool
	// widen says that some slots alone do not tell enough: the plan is to be made for the whole service.
	widen bool
	// waiting says that a task fits nowhere, so that the service wants to hear of room on any node.
	waiting bool
}

// step is changes that happen together or not at all, such as stopping a task and creating its replacement.
type step struct {
	// why is for the log and for tests: node down, task ended, scale up, …
	why     string
	changes []change
}

// change is one row's change. Rows are changed as they are at commit time; what was seen is only checked.
type change struct {
	op op
	// task is the row as seen, or the one to create.
	task *raftstore.Task
	// desired is for opDesire, status (and nodeID, with ASSIGNED) for opObserve.
	desired swarm.TaskState
	status  raftstore.TaskStatus
	nodeID  string
	// service is the row as seen, for the ops that follow.
	service *raftstore.Service
	update  *swarm.UpdateStatus
	version uint64
}

type op string

const (
	opCreate        op = "create"
	opDesire        op = "desire"
	opObserve       op = "observe"
	opErase         op = "erase"
	opRollback      op = "roll back"
	opUpdateStatus  op = "update status"
	opEraseSpec     op = "erase spec"
	opEraseService  op = "erase service"
	messageNew         = "created"
	messagePending     = "pending task scheduling"
	messageAssigned    = "scheduler assigned task to node"
	messageRejected    = "task rejected by constraint enforcer"
	errUnfit           = "assigned node no longer meets constraints"
	messageOrphaned    = "task belonged to a node that has been removed"
)

func (p *plan) add(why string, changes ...change) {
	p.steps = append(p.steps, step{why: why, changes: changes})
}

// wakeAt asks for a decision at t, unless an earlier one is asked for already; wakeSlot asks for one about a slot alone.
func (p *plan) wakeAt(t time.Time) {
	if p.wake.IsZero() || t.Before(p.wake) {
		p.wake = t
	}
}

// full says, and keeps in mind, that the plan is long enough.
func (p *plan) full() bool {
	p.cut = p.cut || len(p.steps) >= stepsMax
	return p.cut
}

func (p *plan) wakeSlot(at *slot, t time.Time) {
	k := slotKey{number: at.number, nodeID: at.nodeID}
	if known, ok := p.wakes[k]; ok && !t.Before(known) {
		return
	}
	if p.wakes == nil {
		p.wakes = map[slotKey]time.Time{}
	}
	p.wakes[k] = t
}

func desire(t *raftstore.Task, s swarm.TaskState) change {
	return change{op: opDesire, task: t, desired: s}
}
func erase(t *raftstore.Task) change { return change{op: opErase, task: t} }

func reject(t *raftstore.Task, now time.Time) change {
	s := t.Status
	s.State, s.Timestamp, s.Message, s.Err = swarm.TaskStateRejected, now, messageRejected, errUnfit
	return change{op: opObserve, task: t, status: s}
}

func orphan(t *raftstore.Task, now time.Time) change {
	s := t.Status
	s.State, s.Timestamp, s.Message = swarm.TaskStateOrphaned, now, messageOrphaned
	return change{op: opObserve, task: t, status: s}
}

// stop ends a task: one that was never given to a node leaves no history.
func stop(t *raftstore.Task, s swarm.TaskState) change {
	if !assigned(t) {
		return erase(t)
	}
	return desire(t, s)
}

// assigned says whether an agent knows, or knew, the task.
func assigned(t *raftstore.Task) bool {
	return t.NodeID != "" && !task.Before(t.Status.State, swarm.TaskStateAssigned)
}

// live says whether a task is meant to run, now or after its delay.
func live(t *raftstore.Task) bool { return !task.Before(swarm.TaskStateRunning, t.DesiredState) }

// running says whether a task is seen to run.
func running(t *raftstore.Task) bool { return t.Status.State == swarm.TaskStateRunning }

// String is the form in which tests read plans.
func (s step) String() string {
	var parts []string
	for _, c := range s.changes {
		parts = append(parts, c.String())
	}
	return s.why + ": " + strings.Join(parts, ", ")
}

func (c change) String() string {
	switch c.op {
	case opCreate:
		return fmt.Sprintf("create %s slot %s v%d%s%s", c.task.ID, slotName(c.task), c.task.SpecVersion, desiredText(c.task), placeText(c.task.NodeID, c.task.Status))
	case opDesire:
		return fmt.Sprintf("%s -> %s", c.task.ID, c.desired)
	case opObserve:
		return c.task.ID + placeText(c.nodeID, c.status)
	case opErase:
		return "erase " + c.task.ID
	case opRollback:
		return fmt.Sprintf("roll back to v%d (%s)", c.version, c.update.Message)
	case opUpdateStatus:
		return fmt.Sprintf("update %s (%s)", c.update.State, c.update.Message)
	case opEraseSpec:
		return fmt.Sprintf("erase spec v%d", c.version)
	}
	return string(c.op)
}

func slotName(t *raftstore.Task) string {
	if t.Slot == 0 {
		return t.NodeID
	}
	return fmt.Sprint(t.Slot)
}

func desiredText(t *raftstore.Task) string {
	if t.DesiredState == swarm.TaskStateReady {
		return " not before " + t.NotBefore.Format("15:04:05")
	}
	return ""
}

func placeText(nodeID string, s raftstore.TaskStatus) string {
	switch {
	case s.State == swarm.TaskStateAssigned:
		return " on " + nodeID
	case s.State == swarm.TaskStatePending:
		return " waits: " + s.Err
	case s.State == swarm.TaskStateNew:
		return ""
	}
	return " is " + string(s.State)
}
