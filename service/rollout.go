package service

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// A rollout has no memory of its own: which slots it still has to replace, which are under way and which failed is read from
// the tasks each time. So a new leader, or a further update, goes on from the tasks as they are.

// rollOut replaces slots that do not follow the current spec, as many at a time as the update settings allow.
func rollOut(s *scene, p *plan, slots []*slot) {
	status := s.service.UpdateStatus
	older := func(t *raftstore.Task) bool { return t.SpecVersion != s.service.SpecVersion }
	if status != nil && paused(status) || !inProgress(status) && !slices.ContainsFunc(s.tasks, older) {
		return
	}
	dirty, trials := survey(s, slots)
	if s.partial {
		p.widen = len(dirty) > 0
		return
	}
	if len(dirty) == 0 && !inProgress(status) {
		return
	}
	settings := spec.UpdateOf(*s.spec)
	if status != nil && status.State == swarm.UpdateStateRollbackStarted {
		settings = spec.RollbackOf(*s.spec)
	}
	if !inProgress(status) {
		started := s.now
		announce(s, p, swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &started, Message: "update in progress"})
	}
	if t := tooManyFailed(s, p, settings, trials, len(dirty)); t != nil {
		giveUp(s, p, settings, status, t)
		return
	}
	underWay := countUnderWay(s, p, settings, trials)
	busy := slices.ContainsFunc(slots, func(at *slot) bool { return at.busy })
	if len(dirty) == 0 && underWay == 0 && !busy {
		complete(s, p, status, settings, trials)
		return
	}
	room := len(dirty)
	if settings.Parallelism > 0 {
		room = int(min(settings.Parallelism, uint64(1<<30))) - underWay
	}
	advance(s, p, settings.Order, dirty, room)
}

// survey sorts slots into those that are still to be replaced, and the trials: the first tasks of the current version in
// slots that had an older one.
func survey(s *scene, slots []*slot) (dirty []*slot, trials []*raftstore.Task) {
	for _, at := range slots {
		if t := firstTrial(s, at); t != nil {
			trials = append(trials, t)
		} else if fresh, stale := split(s, at); len(fresh) > 0 && len(stale) > 0 {
			// A successor of an earlier update that follows this one too.
			trials = append(trials, fresh[0])
		} else if n := at.newest(); n != nil && s.dirty(n) && !at.busy {
			dirty = append(dirty, at)
		}
	}
	return dirty, trials
}

func inProgress(u *swarm.UpdateStatus) bool {
	return u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted)
}

func paused(u *swarm.UpdateStatus) bool {
	return u.State == swarm.UpdateStatePaused || u.State == swarm.UpdateStateRollbackPaused
}

// firstTrial returns nil for a slot that this update has not touched.
func firstTrial(s *scene, at *slot) *raftstore.Task {
	var first *raftstore.Task
	older := false
	for _, t := range slices.Concat(at.live, at.past) {
		if t.SpecVersion != s.service.SpecVersion {
			older = true
		} else if first == nil || byAge(t, first) < 0 {
			first = t
		}
	}
	if first == nil || older {
		return first
	}
	// A task that never got a node leaves no row behind when it is replaced.
	if u := s.service.UpdateStatus; inProgress(u) && u.StartedAt != nil && !first.CreatedAt.Before(*u.StartedAt) {
		return first
	}
	return nil
}

// advance starts the replacement of up to room slots, those first that do not run anyway.
func advance(s *scene, p *plan, order swarm.UpdateOrder, dirty []*slot, room int) {
	slices.SortStableFunc(dirty, func(a, b *slot) int { return cmp.Compare(activity(a), activity(b)) })
	for _, at := range dirty[:max(0, min(room, len(dirty)))] {
		if p.full() {
			return
		}
		switch {
		case len(at.live) == 0:
			p.add("update", succeed(s, at))
		case order == swarm.UpdateOrderStartFirst && assigned(at.live[0]):
			p.add("update", s.create(at, swarm.TaskStateRunning, s.now))
		case assigned(at.live[0]):
			p.add("update", stop(at.live[0], swarm.TaskStateShutdown), s.create(at, swarm.TaskStateReady, s.now))
		default:
			p.add("update", stop(at.live[0], swarm.TaskStateShutdown), s.create(at, swarm.TaskStateRunning, s.now))
		}
	}
}

func activity(at *slot) uint32 {
	if len(at.live) == 0 {
		return 0
	}
	return task.Number(at.live[0].Status.State)
}

// countUnderWay counts the trials that hold up the next ones: they do not run yet, or run for less than the delay.
func countUnderWay(s *scene, p *plan, settings swarm.UpdateConfig, trials []*raftstore.Task) (n int) {
	for _, t := range trials {
		switch {
		case task.Ended(t.Status.State) || !live(t):
		case !running(t):
			n++
		default:
			if over := s.runningSince(t).Add(settings.Delay); s.now.Before(over) {
				p.wakeAt(over)
				n++
			}
		}
	}
	return n
}

// runningSince is when a running task began to run, by this leader's clock as far as it can tell.
func (s *scene) runningSince(t *raftstore.Task) time.Time {
	if seen, ok := s.seenRunning[t.ID]; ok {
		return seen
	}
	return s.now
}

// tooManyFailed returns a failed trial once the share of failures is greater than the ratio allows, and the action is not to go on.
func tooManyFailed(s *scene, p *plan, settings swarm.UpdateConfig, trials []*raftstore.Task, dirty int) *raftstore.Task {
	var last *raftstore.Task
	failures := 0
	for _, t := range trials {
		if failed(s, settings.Monitor, t) {
			failures++
			last = t
		}
	}
	if last == nil || settings.FailureAction == swarm.UpdateFailureActionContinue {
		return nil
	}
	if float32(failures)/float32(len(trials)+dirty) > settings.MaxFailureRatio {
		return last
	}
	return nil
}

// failed says whether a trial ended by itself before it ran, or within the monitor time after that.
func failed(s *scene, monitor time.Duration, t *raftstore.Task) bool {
	if !endedByItself(t) {
		return false
	}
	if seen, ok := s.seenRunning[t.ID]; ok {
		return t.Status.Timestamp.Sub(seen) < monitor
	}
	if t.CreatedAt.Before(s.since) && t.Status.State != swarm.TaskStateRejected {
		// Another leader saw it run, or not; its whole life bounds how long it ran.
		return t.Status.Timestamp.Sub(t.CreatedAt) < monitor
	}
	return true
}

// giveUp goes back to the previous spec, if that is wanted and there is one, or pauses. A rollback is never rolled back.
func giveUp(s *scene, p *plan, settings swarm.UpdateConfig, status *swarm.UpdateStatus, t *raftstore.Task) {
	u := carryOn(status, swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused)
	previous := s.service.PreviousSpecVersion
	if settings.FailureAction == swarm.UpdateFailureActionRollback && u.State == swarm.UpdateStatePaused && previous != 0 && s.specAt(previous) != nil {
		u = swarm.UpdateStatus{
			State: swarm.UpdateStateRollbackStarted, StartedAt: &s.now,
			Message: fmt.Sprintf("update rolled back due to failure or early termination of task %s", t.ID),
		}
		p.add("rollout", change{op: opRollback, service: s.service, version: previous, update: &u})
		return
	}
	u.Message = fmt.Sprintf("%s paused due to failure or early termination of task %s", u.Message, t.ID)
	announce(s, p, u)
}

// complete ends an update one monitor time after the last slot ran.
func complete(s *scene, p *plan, status *swarm.UpdateStatus, settings swarm.UpdateConfig, trials []*raftstore.Task) {
	if !inProgress(status) {
		return
	}
	watch := settings.Monitor
	if settings.Delay > watch {
		watch = settings.Delay + time.Second
	}
	for _, t := range trials {
		if running(t) && live(t) {
			if over := s.runningSince(t).Add(watch); s.now.Before(over) {
				p.wakeAt(over)
				return
			}
		}
	}
	u := carryOn(status, swarm.UpdateStateCompleted, swarm.UpdateStateRollbackCompleted)
	u.Message += " completed"
	u.CompletedAt = &s.now
	announce(s, p, u)
}

// carryOn is the next status of a rollout: one state for an update, another for a rollback. Its message is the word for which it is.
func carryOn(status *swarm.UpdateStatus, update, rollback swarm.UpdateState) swarm.UpdateStatus {
	u := swarm.UpdateStatus{State: update, Message: "update"}
	if status != nil {
		u.StartedAt = status.StartedAt
		if status.State == swarm.UpdateStateRollbackStarted {
			u.State, u.Message = rollback, "rollback"
		}
	}
	return u
}

func announce(s *scene, p *plan, u swarm.UpdateStatus) {
	p.add("rollout", change{op: opUpdateStatus, service: s.service, update: &u})
}
