// Package task is the life of a task: the order of its states, which steps are legal, and who may take them.
// service, service/dispatcher, agent/worker and api compare states only through it.
package task

import (
	"strconv"

	"github.com/moby/moby/api/types/swarm"
)

// order lists every state with its number, in order of a task's life. The gaps are those of the
// Engine API's model, so that the numbers mean the same to everyone.
func order() []numbered {
	return []numbered{
		{swarm.TaskStateNew, 0},
		{swarm.TaskStatePending, 64},
		{swarm.TaskStateAssigned, 192},
		{swarm.TaskStateAccepted, 256},
		{swarm.TaskStatePreparing, 320},
		{swarm.TaskStateReady, 384},
		{swarm.TaskStateStarting, 448},
		{swarm.TaskStateRunning, 512},
		{swarm.TaskStateComplete, 576},
		{swarm.TaskStateShutdown, 640},
		{swarm.TaskStateFailed, 704},
		{swarm.TaskStateRejected, 768},
		{swarm.TaskStateRemove, 800},
		{swarm.TaskStateOrphaned, 832},
	}
}

type numbered struct {
	state  swarm.TaskState
	number uint32
}

// Number is the position of a state in a task's life, from NEW 0 to ORPHANED 832; it is what travels
// between nodes. A word that names no state (the API's unused "allocated", or "") counts as NEW.
func Number(s swarm.TaskState) uint32 {
	switch s {
	case swarm.TaskStatePending:
		return 64
	case swarm.TaskStateAssigned:
		return 192
	case swarm.TaskStateAccepted:
		return 256
	case swarm.TaskStatePreparing:
		return 320
	case swarm.TaskStateReady:
		return 384
	case swarm.TaskStateStarting:
		return 448
	case swarm.TaskStateRunning:
		return 512
	case swarm.TaskStateComplete:
		return 576
	case swarm.TaskStateShutdown:
		return 640
	case swarm.TaskStateFailed:
		return 704
	case swarm.TaskStateRejected:
		return 768
	case swarm.TaskStateRemove:
		return 800
	case swarm.TaskStateOrphaned:
		return 832
	}
	return 0
}

// FromNumber is the inverse of Number; ok is false for a number that names no state.
func FromNumber(n uint32) (s swarm.TaskState, ok bool) {
	for _, o := range order() {
		if o.number == n {
			return o.state, true
		}
	}
	return "", false
}

// States lists every state in order of a task's life.
func States() []swarm.TaskState {
	var all []swarm.TaskState
	for _, o := range order() {
		all = append(all, o.state)
	}
	return all
}

// Before says whether a comes earlier in a task's life than b.
func Before(a, b swarm.TaskState) bool { return Number(a) < Number(b) }

// Ended says whether a task in state s will never run (again): any state beyond RUNNING.
func Ended(s swarm.TaskState) bool { return Before(swarm.TaskStateRunning, s) }

// Name is service.slot.taskid, with the node's id for the slot of a global service's task (slot 0).
func Name(serviceName string, slot uint64, nodeID, taskID string) string {
	if slot == 0 {
		return serviceName + "." + nodeID + "." + taskID
	}
	return serviceName + "." + strconv.FormatUint(slot, 10) + "." + taskID
}
