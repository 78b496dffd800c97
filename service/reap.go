package service

import (
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

// specSweep is how long after a task of an old version was deleted it is looked whether it was the last one.
const specSweep = time.Minute

// reap deletes tasks that are over: removed ones at once, others when their slot has more history than is kept.
func reap(s *scene, p *plan, slots []*slot) {
	keep := s.history
	if attempts := spec.RestartOf(s.spec.TaskTemplate).MaxAttempts; attempts > 0 && keep >= 0 {
		// Restarts are counted from the rows of the tasks.
		keep = max(keep, int64(attempts)+1)
	}
	used := map[uint64]bool{}
	for _, at := range slots {
		kept := int64(0)
		goneNode := at.number == 0 && s.machine(at.nodeID) == nil
		for i, t := range at.past {
			last := i == 0 && len(at.live) == 0 && t.DesiredState == swarm.TaskStateShutdown && !goneNode
			switch {
			case !s.done(t):
			case last, t.DesiredState != swarm.TaskStateRemove && !goneNode && assigned(t) && (keep < 0 || kept < keep):
				kept++
			default:
				p.add("history", erase(t))
				if s.partial && t.SpecVersion != s.service.SpecVersion {
					p.wakeAt(s.now.Add(specSweep))
				}
				continue
			}
			used[t.SpecVersion] = true
		}
		for _, t := range at.live {
			used[t.SpecVersion] = true
		}
	}
	if !s.partial {
		reapSpecs(s, p, used)
	}
}

// reapSpecs deletes versions that neither a task nor a rollback can want. A version that a task created by this very plan
// uses is the current one.
func reapSpecs(s *scene, p *plan, used map[uint64]bool) {
	for _, v := range s.versions {
		if v < s.service.SpecVersion && v != s.service.PreviousSpecVersion && !used[v] {
			p.add("unused", change{op: opEraseSpec, service: s.service, version: v})
		}
	}
}

// versionsOf lists the stored versions of a service's spec: of those known, and all that came since, the ones that has finds.
func versionsOf(known []uint64, service *raftstore.Service, has func(version uint64) bool) (stored []uint64) {
	slices.Sort(known)
	next := uint64(1) // a service that is new to a leader since it began has had few versions
	if len(known) > 0 {
		next = known[len(known)-1] + 1
	}
	for v := next; v <= service.SpecVersion; v++ {
		known = append(known, v)
	}
	for _, v := range known {
		if has(v) {
			stored = append(stored, v)
		}
	}
	return stored
}
