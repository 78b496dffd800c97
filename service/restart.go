package service

import (
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

// The successor of a task waits for it to stop: its grace period and some time to report it, but at least a minute.
const (
	stopWaitMin   = time.Minute
	stopReportMax = 10 * time.Second
)

// downMax is how long a node may be down before its tasks are given up.
const downMax = 24 * time.Hour

// restartPauseMin is the least pause between restarts, also when the policy's delay is 0: a task that fails at once must not
// keep the whole cluster's log busy.
const restartPauseMin = 100 * time.Millisecond

// tend looks after the live tasks of a slot: replaces what cannot stay, promotes what waited long enough, keeps one.
// It says whether it changed anything.
func tend(s *scene, p *plan, at *slot) (changed bool) {
	before := len(p.steps)
	fresh, stale := split(s, at)
	spare(s, p, fresh)
	spare(s, p, stale)
	keep, old := head(fresh), head(stale)
	if keep != nil && old != nil && (running(keep) && s.fateOf(keep) == fine || s.fateOf(old) != fine) {
		p.add("successor in place", stop(old, swarm.TaskStateShutdown))
		old = nil
	}
	for _, t := range []*raftstore.Task{keep, old} {
		if t == nil {
			continue
		}
		switch f := s.fateOf(t); {
		case f == fine:
			promote(s, p, at, t)
		case f == ended && t.DesiredState == swarm.TaskStateReady && s.now.Before(t.NotBefore):
			// It failed while it was being prepared: its own delay has to pass first, or failures would follow each other at once.
			p.wakeSlot(at, t.NotBefore)
		default:
			replace(s, p, at, t, f)
		}
	}
	return len(p.steps) > before
}

// split parts a slot's live tasks: those that follow the current spec, and those that a rollout has yet to replace.
// A slot may hold one of each while a successor starts before its predecessor stops.
func split(s *scene, at *slot) (fresh, stale []*raftstore.Task) {
	for _, t := range at.live {
		if s.dirty(t) {
			stale = append(stale, t)
		} else {
			fresh = append(fresh, t)
		}
	}
	return fresh, stale
}

func head(tasks []*raftstore.Task) *raftstore.Task {
	if len(tasks) == 0 {
		return nil
	}
	return tasks[0]
}

// spare stops all but the best of several tasks of a slot.
func spare(s *scene, p *plan, tasks []*raftstore.Task) {
	for i, t := range tasks {
		if i > 0 {
			p.add("one per slot", stop(t, swarm.TaskStateShutdown))
		}
	}
}

// replace stops a task that cannot stay and, if its restart policy allows, creates its successor in the same step.
func replace(s *scene, p *plan, at *slot, t *raftstore.Task, f fate) {
	var changes []change
	switch f {
	case lost:
		changes = append(changes, orphan(t, s.now), stop(t, swarm.TaskStateShutdown))
	case unfit:
		changes = evict(s, t)
	default:
		changes = append(changes, stop(t, swarm.TaskStateShutdown))
	}
	if restarts(s, at, t, s.now) {
		switch policy := spec.RestartOf(s.spec.TaskTemplate); f {
		case ended:
			changes = append(changes, s.create(at, swarm.TaskStateReady, s.now.Add(max(policy.Delay, restartPauseMin))))
		case lost, silent:
			// Nobody can stop the old task, and nobody needs to wait for it.
			changes = append(changes, s.create(at, swarm.TaskStateRunning, s.now))
		default:
			changes = append(changes, s.create(at, swarm.TaskStateReady, s.now))
		}
	}
	p.add(string(f), changes...)
}

// restarts says whether the restart policy wants a successor for t, as of at time when.
func restarts(s *scene, at *slot, t *raftstore.Task, when time.Time) bool {
	policy := spec.RestartOf(s.spec.TaskTemplate)
	switch policy.Condition {
	case swarm.RestartPolicyConditionNone:
		return false
	case swarm.RestartPolicyConditionOnFailure:
		if t.Status.State == swarm.TaskStateComplete {
			return false
		}
	}
	return policy.MaxAttempts == 0 || attempts(at, t, policy.Window, when) < policy.MaxAttempts
}

// attempts counts the restarts that led to t: tasks of the same version in its slot that followed one which ended by itself.
// They are counted from the rows that are kept, so a new leader counts the same.
func attempts(at *slot, t *raftstore.Task, window time.Duration, when time.Time) (n uint64) {
	var same []*raftstore.Task
	for _, o := range slices.Concat(at.live, at.past) {
		if o.SpecVersion == t.SpecVersion {
			same = append(same, o)
		}
	}
	slices.SortFunc(same, byAge)
	for i := 1; i < len(same); i++ {
		inWindow := window == 0 || when.Sub(same[i].CreatedAt) <= window
		if endedByItself(same[i-1]) && inWindow {
			n++
		}
	}
	return n
}

func endedByItself(t *raftstore.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateComplete, swarm.TaskStateFailed:
		return true
	case swarm.TaskStateRejected:
		return t.Status.Err != errUnfit
	}
	return false
}

// promote lets a task that waited in READY run, once its delay is over and its predecessors have stopped.
func promote(s *scene, p *plan, at *slot, t *raftstore.Task) {
	if t.DesiredState != swarm.TaskStateReady {
		return
	}
	if s.now.Before(t.NotBefore) {
		p.wakeSlot(at, t.NotBefore)
		return
	}
	limit := t.NotBefore
	for _, o := range at.past {
		if !s.done(o) {
			limit = later(limit, t.CreatedAt.Add(s.stopWait(o)))
		}
	}
	if s.now.Before(limit) {
		p.wakeSlot(at, limit)
		return
	}
	p.add("delay over", desire(t, swarm.TaskStateRunning))
}

// stopWait is how long the successor of t waits for it at most.
func (s *scene) stopWait(t *raftstore.Task) time.Duration {
	wait := stopWaitMin
	if v := s.specOf(t.SpecVersion); v != nil {
		wait = max(wait, spec.StopGrace(v.TaskTemplate)+stopReportMax)
	}
	return wait
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
