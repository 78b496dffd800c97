package task

import "github.com/moby/moby/api/types/swarm"

// Actor is a part of the cluster that changes tasks. Every state change has one owner.
type Actor string

const (
	// Orchestrator creates tasks and rejects those whose node no longer meets their constraints.
	Orchestrator Actor = "orchestrator"
	// Scheduler gives a task its node.
	Scheduler Actor = "scheduler"
	// Agent runs a task and reports what became of it.
	Agent Actor = "agent"
	// Reaper deletes tasks, and gives up those whose node is lost for good.
	Reaper Actor = "reaper"
)

// Absent is the state of a task that has no row: before its creation and after its deletion.
const Absent swarm.TaskState = ""

// Transition is one step in the life of a task.
type Transition struct {
	From, To swarm.TaskState
	By       Actor
}

// Transitions is the whole table of single steps. A writer that saw several steps at once (agents
// send only the latest status, a plan may create a task already assigned) may take them as one: see Legal.
func Transitions() []Transition {
	var table []Transition
	add := func(by Actor, to swarm.TaskState, from ...swarm.TaskState) {
		for _, f := range from {
			table = append(table, Transition{f, to, by})
		}
	}
	onNode := []swarm.TaskState{
		swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing,
		swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning,
	}
	add(Orchestrator, swarm.TaskStateNew, Absent)
	add(Orchestrator, swarm.TaskStatePending, swarm.TaskStateNew)
	add(Scheduler, swarm.TaskStateAssigned, swarm.TaskStatePending)
	add(Agent, swarm.TaskStateAccepted, swarm.TaskStateAssigned)
	add(Agent, swarm.TaskStatePreparing, swarm.TaskStateAccepted)
	add(Agent, swarm.TaskStateReady, swarm.TaskStatePreparing)
	add(Agent, swarm.TaskStateStarting, swarm.TaskStateReady)
	add(Agent, swarm.TaskStateRunning, swarm.TaskStateStarting)
	add(Agent, swarm.TaskStateComplete, swarm.TaskStateStarting, swarm.TaskStateRunning)
	add(Agent, swarm.TaskStateShutdown, onNode...)
	add(Agent, swarm.TaskStateFailed, swarm.TaskStateStarting, swarm.TaskStateRunning)
	add(Agent, swarm.TaskStateRejected, onNode[:4]...)
	// A node whose labels or resources changed keeps no task that no longer fits it.
	add(Orchestrator, swarm.TaskStateRejected, onNode...)
	add(Reaper, swarm.TaskStateOrphaned, onNode...)
	add(Reaper, Absent,
		swarm.TaskStateNew, swarm.TaskStatePending, swarm.TaskStateComplete, swarm.TaskStateShutdown,
		swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned)
	return table
}

// Legal says whether by may move a task from one state to another, in one step or by several of its
// own steps taken at once. Staying in a state is legal for whoever may bring a task there: it changes the message alone.
// The orchestrator's plan may also do the scheduler's step.
func Legal(from, to swarm.TaskState, by Actor) bool {
	if from == to {
		return from != Absent && reaches(to, by)
	}
	reached := map[swarm.TaskState]bool{from: true}
	// The table is in order of a task's life, except for deletion, which ends it: one pass finds every chain.
	for _, t := range Transitions() {
		if !reached[t.From] || !mayTake(by, t.By) {
			continue
		}
		if t.To == to {
			return true
		}
		if t.To != Absent {
			reached[t.To] = true
		}
	}
	return false
}

func mayTake(by, owner Actor) bool {
	return by == owner || by == Orchestrator && owner == Scheduler
}

func reaches(s swarm.TaskState, by Actor) bool {
	for _, t := range Transitions() {
		if t.To == s && mayTake(by, t.By) {
			return true
		}
	}
	// The scheduler tells in PENDING why a task fits nowhere.
	return by == Scheduler && s == swarm.TaskStatePending
}

// Desirable says whether s is a state that the orchestrator may want a task to be in.
func Desirable(s swarm.TaskState) bool {
	switch s {
	case swarm.TaskStateReady, swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateRemove:
		return true
	}
	return false
}

// LegalDesired says whether the desired state of a task may go from one to another: only forward.
func LegalDesired(from, to swarm.TaskState) bool {
	return Desirable(from) && Desirable(to) && !Before(to, from)
}
