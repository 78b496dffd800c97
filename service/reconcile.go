package service

import (
	"cmp"
	"slices"

	"swarm/raftstore"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// decide says what shall change about a service now. It looks at nothing but the scene, so the same scene gives the same plan,
// whether the leader has just begun or one task has changed.
func decide(s *scene) plan {
	var p plan
	if s.service.Removing {
		removeAll(s, &p)
		return p
	}
	if s.spec == nil {
		return p // its spec comes in the same commit as its row; without one nothing can be decided
	}
	slots := s.slots()
	var kept []*slot
	if spec.IsGlobal(*s.spec) {
		kept = cover(s, &p, slots)
	} else {
		kept = count(s, &p, slots)
	}
	rollOut(s, &p, kept)
	abandon(s, &p, slots)
	reap(s, &p, slots)
	return p
}

// removeAll ends every task of a service, then the service itself. Tasks on nodes that are down do not hold it up.
func removeAll(s *scene, p *plan) {
	left := 0
	for _, t := range s.tasks {
		switch {
		case p.full():
			return
		case s.done(t):
			p.add("service removed", erase(t))
		case t.DesiredState != swarm.TaskStateRemove:
			p.add("service removed", desire(t, swarm.TaskStateRemove))
			left++
		default:
			left++
		}
	}
	if left > 0 || len(p.steps) > 0 || s.partial {
		return
	}
	last := step{why: "service removed"}
	for _, v := range s.versions {
		last.changes = append(last.changes, change{op: opEraseSpec, service: s.service, version: v})
	}
	last.changes = append(last.changes, change{op: opEraseService, service: s.service})
	p.steps = append(p.steps, last)
}

// count keeps as many slots as a replicated service has replicas. It returns those that existed and stay.
// Which slots exist is the orchestrator's own doing alone, so a look at some of them need not count.
func count(s *scene, p *plan, slots []*slot) (kept []*slot) {
	want := spec.Replicas(*s.spec)
	existing := slices.DeleteFunc(slices.Clone(slots), func(at *slot) bool { return !at.exists() })
	if !s.partial && uint64(len(existing)) > want {
		existing = shrink(s, p, existing, len(existing)-int(want))
	}
	for _, at := range existing {
		at.busy = tend(s, p, at)
	}
	if !s.partial {
		grow(s, p, slots, existing, int(want)-len(existing))
	}
	return existing
}

// shrink removes slots: those that do not run first, then from the nodes with most copies, high numbers first. It returns the rest.
func shrink(s *scene, p *plan, existing []*slot, surplus int) (kept []*slot) {
	type ranked struct {
		*slot
		// copy is 0 for a slot that does not run, else which of its node's copies it is, from 1.
		copy int
	}
	copies := map[string]int{}
	var order []ranked
	for _, at := range existing {
		r := ranked{slot: at}
		if n := at.newest(); live(n) && running(n) && s.fateOf(n) == fine {
			copies[n.NodeID]++
			r.copy = copies[n.NodeID]
		}
		order = append(order, r)
	}
	slices.SortStableFunc(order, func(a, b ranked) int {
		if (a.copy == 0) != (b.copy == 0) {
			return cmp.Compare(a.copy, b.copy)
		}
		return cmp.Or(cmp.Compare(b.copy, a.copy), cmp.Compare(b.number, a.number))
	})
	for _, r := range order[:surplus] {
		removeSlot(s, p, "scale down", r.slot)
	}
	for _, r := range order[surplus:] {
		kept = append(kept, r.slot)
	}
	slices.SortFunc(kept, func(a, b *slot) int { return cmp.Compare(a.number, b.number) })
	return kept
}

// removeSlot ends all tasks of a slot; its history is reaped then.
func removeSlot(s *scene, p *plan, why string, at *slot) {
	st := step{why: why}
	for _, t := range slices.Concat(at.live, at.past) {
		if !assigned(t) || t.DesiredState != swarm.TaskStateRemove {
			st.changes = append(st.changes, stop(t, swarm.TaskStateRemove))
		}
	}
	if len(st.changes) > 0 {
		p.steps = append(p.steps, st)
	}
}

// grow creates tasks in the lowest free slots.
func grow(s *scene, p *plan, slots, existing []*slot, missing int) {
	taken := map[uint64]bool{}
	for _, at := range existing {
		taken[at.number] = true
	}
	former := map[uint64]*slot{}
	for _, at := range slots {
		former[at.number] = at
	}
	for number := uint64(1); missing > 0 && !p.full(); number++ {
		if taken[number] {
			continue
		}
		at := former[number]
		if at == nil {
			at = &slot{number: number}
		}
		p.add("scale up", succeed(s, at))
		missing--
	}
}

// succeed creates the next task of a slot: at once, or once what is left of its predecessors has stopped.
func succeed(s *scene, at *slot) change {
	if slices.ContainsFunc(at.past, func(t *raftstore.Task) bool { return !s.done(t) }) {
		return s.create(at, swarm.TaskStateReady, s.now)
	}
	return s.create(at, swarm.TaskStateRunning, s.now)
}

// cover keeps one task of a global service on each node that suits it. It returns those that existed and stay, but for those of paused
// nodes: what such a node runs could be stopped and not replaced, so a rollout leaves it alone until the node is active again.
func cover(s *scene, p *plan, slots []*slot) (kept []*slot) {
	have := map[string]*slot{}
	for _, at := range slots {
		have[at.nodeID] = at
		m := s.machine(at.nodeID)
		if m == nil || m.down || m.drained || !s.group(s.service.SpecVersion).Suits(m.facts) {
			leave(s, p, at)
			continue
		}
		at.busy = tend(s, p, at)
		if !m.paused {
			kept = append(kept, at)
		}
	}
	for _, m := range s.machines() {
		if p.full() {
			break
		}
		if !m.open || !s.group(s.service.SpecVersion).Suits(m.facts) {
			continue
		}
		at := have[m.facts.ID]
		if at == nil {
			at = &slot{nodeID: m.facts.ID}
		}
		if len(at.live) == 0 && !finished(s, at) {
			at.busy = true
			p.add("node has none", succeed(s, at))
		}
	}
	return kept
}

// abandon gives up the stopped tasks of nodes that are gone, or down for so long that nobody will tell what became of them.
func abandon(s *scene, p *plan, slots []*slot) {
	for _, at := range slots {
		for _, t := range at.past {
			if !assigned(t) || task.Ended(t.Status.State) {
				continue
			}
			m := s.machine(t.NodeID)
			switch {
			case m == nil:
				p.add(string(lost), orphan(t, s.now))
			case m.down && !s.now.Before(m.since.Add(downMax)):
				p.add("node down for too long", orphan(t, s.now))
			case m.down:
				p.wakeSlot(at, m.since.Add(downMax))
			}
		}
	}
}

// finished says whether a global service's last task on a node ended and its policy wants no other.
func finished(s *scene, at *slot) bool {
	if len(at.past) == 0 {
		return false
	}
	t := at.past[0]
	return t.DesiredState == swarm.TaskStateShutdown && endedByItself(t) && !restarts(s, at, t, t.Status.Timestamp)
}

// leave ends a global service's task on a node that shall have none.
func leave(s *scene, p *plan, at *slot) {
	for _, t := range at.live {
		f := s.fateOf(t)
		switch f {
		case lost:
			p.add(string(f), orphan(t, s.now), stop(t, swarm.TaskStateShutdown))
		case unfit:
			p.add(string(f), evict(s, t)...)
		case fine:
			p.add("placement changed", stop(t, swarm.TaskStateShutdown))
		default:
			p.add(string(f), stop(t, swarm.TaskStateShutdown))
		}
	}
}

// evict stops a task whose node no longer fits it, and says so in its status.
func evict(s *scene, t *raftstore.Task) []change {
	if !assigned(t) || task.Ended(t.Status.State) {
		return []change{stop(t, swarm.TaskStateShutdown)}
	}
	return []change{reject(t, s.now), desire(t, swarm.TaskStateShutdown)}
}
