package task

import "github.com/moby/moby/api/types/swarm"

// Step is what a worker does next for a task.
type Step string

const (
	Idle            Step = "idle"             // nothing until something changes
	Accept          Step = "accept"           // say that the task arrived
	PullImage       Step = "pull image"       // make the image available
	Create          Step = "create"           // create the container
	Start           Step = "start"            // start it
	Watch           Step = "watch"            // wait for its end
	Finish          Step = "finish"           // report how it ended by itself
	Lose            Step = "lose"             // report that its container is gone
	Stop            Step = "stop"             // stop it: signal, grace, kill
	ReportShutdown  Step = "report shutdown"  // report that it was shut down
	RemoveContainer Step = "remove container" // delete the container
	Forget          Step = "forget"           // delete its log and its record
)

// Phase is what became of a task's container.
type Phase string

const (
	NoContainer Phase = "none"
	Created     Phase = "created"
	Running     Phase = "running"
	Exited      Phase = "exited"
)

// Progress is how far a worker is with a task.
type Progress struct {
	// State is what the worker last reported.
	State swarm.TaskState
	// Image is true once the image was found on this node.
	Image     bool
	Container Phase
}

// Unassigned is the desired state of a task that left its node's assignments.
const Unassigned swarm.TaskState = ""

// Next says what brings a task closer to its desired state. It is asked again after every step.
func Next(desired swarm.TaskState, p Progress) Step {
	switch {
	case desired == Unassigned:
		return nextUnassigned(p)
	case !Before(desired, swarm.TaskStateShutdown):
		return nextShutdown(p)
	case Ended(p.State):
		// The container stays for those who want to look at it.
		return nextEnded(p)
	case Before(p.State, swarm.TaskStateAccepted):
		return Accept
	}
	return nextRunning(desired, p)
}

func nextRunning(desired swarm.TaskState, p Progress) Step {
	switch p.Container {
	case Running:
		return Watch
	case Exited:
		return Finish
	case Created:
		// A task runs once: one that ran before and has a container again is never started again.
		switch {
		case p.State == swarm.TaskStateRunning:
			return Lose
		case Before(p.State, swarm.TaskStateReady) && !p.Image:
			return PullImage
		case Before(p.State, swarm.TaskStateReady):
			// Creating it again changes nothing, and READY gets reported.
			return Create
		case Before(desired, swarm.TaskStateRunning):
			return Idle
		}
		return Start
	}
	switch {
	case !Before(p.State, swarm.TaskStateStarting):
		return Lose
	case !p.Image:
		return PullImage
	}
	return Create
}

// nextShutdown tells the end before it removes the container, so that nothing is forgotten in between.
func nextShutdown(p Progress) Step {
	switch {
	case p.Container == Running:
		return Stop
	case p.Container == Exited && !Ended(p.State):
		return Finish
	case !Ended(p.State):
		return ReportShutdown
	case p.Container != NoContainer:
		return RemoveContainer
	}
	return Idle
}

func nextUnassigned(p Progress) Step {
	switch p.Container {
	case Running:
		return Stop
	case NoContainer:
		return Forget
	}
	return RemoveContainer
}

// nextEnded stops a container that runs although its end was reported, which only a lost runtime can cause.
func nextEnded(p Progress) Step {
	if p.Container == Running {
		return Stop
	}
	return Idle
}
