package service

import (
	"slices"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

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
				continue
			}
			used[t.SpecVersion] = true
		}
		for _, t := range at.live {
			used[t.SpecVersion] = true
		}
	}
	reapSpecs(s, p, used)
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

// versionsOf lists the known versions of a service's spec: all that its rows name.
func versionsOf(known []uint64, service *raftstore.Service) []uint64 {
	for _, v := range []uint64{service.SpecVersion, service.PreviousSpecVersion} {
		if v != 0 && !slices.Contains(known, v) {
			known = append(known, v)
		}
	}
	slices.Sort(known)
	return known
}
