package service

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/scheduler"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// scene is all that a decision about one service looks at: plain values of one moment.
type scene struct {
	now time.Time
	// since is when this leader began to look.
	since   time.Time
	service *raftstore.Service
	// spec is the service's current one.
	spec *swarm.ServiceSpec
	// specAt finds older versions; nil when there is none.
	specAt func(version uint64) *swarm.ServiceSpec
	tasks  []*raftstore.Task
	// partial says that tasks and machines are those of some slots only, of a service that is not updated.
	partial bool
	// machine is nil for a node that has no row; machines lists them in order of ids.
	machine  func(nodeID string) *machine
	machines func() []*machine
	// history is how many ended tasks are kept per slot; negative: all.
	history int64
	// seenRunning is when this leader first saw a task run.
	seenRunning map[string]time.Time
	// versions are those of the service's specs that are known to be stored.
	versions []uint64
	newID    func() string

	groups map[uint64]*scheduler.Group
	stale  map[uint64]bool
}

// machine is a node as decisions about its tasks see it.
type machine struct {
	facts *spec.Facts
	// open: it takes new tasks. down: it was silent beyond the grace time, since then. drained: it shall have no tasks. paused: it
	// keeps what it has.
	open, down, drained, paused bool
	since                       time.Time
}

// slot is the tasks that stand in for each other: a number of a replicated service, a node of a global one.
type slot struct {
	number uint64
	nodeID string // of a global service's slot
	// live are the tasks that are meant to run, the one to keep first; past are all others, the newest first.
	live, past []*raftstore.Task
	// busy says that this plan changed it already.
	busy bool
}

// exists says whether the slot counts as a replica: it has a task, or its last one ended and its restart policy wants no other.
// A task is told to shut down only together with the creation of its successor, or because none shall follow.
func (s *slot) exists() bool {
	return len(s.live) > 0 || len(s.past) > 0 && s.past[0].DesiredState == swarm.TaskStateShutdown
}

// newest is the task that speaks for the slot; nil when it never had one.
func (s *slot) newest() *raftstore.Task {
	switch {
	case len(s.live) > 0:
		return s.live[0]
	case len(s.past) > 0:
		return s.past[0]
	}
	return nil
}

// byAge orders tasks by creation. Row versions come from the log, so they need no agreement of clocks.
func byAge(a, b *raftstore.Task) int {
	return cmp.Or(cmp.Compare(a.Version, b.Version), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
}

// slots sorts the tasks into slots, in order of slot number or node id.
func (s *scene) slots() []*slot {
	found := map[slotKey]*slot{}
	var all []*slot
	for _, t := range s.tasks {
		k := slotOf(t)
		at := found[k]
		if at == nil {
			at = &slot{number: k.number, nodeID: k.nodeID}
			found[k] = at
			all = append(all, at)
		}
		if live(t) {
			at.live = append(at.live, t)
		} else {
			at.past = append(at.past, t)
		}
	}
	for _, at := range all {
		slices.SortFunc(at.live, s.better)
		slices.SortFunc(at.past, func(a, b *raftstore.Task) int { return byAge(b, a) })
	}
	slices.SortFunc(all, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.nodeID, b.nodeID))
	})
	return all
}

// better puts the task to keep first: one that nothing speaks against, then the one furthest in its life, then the oldest.
func (s *scene) better(a, b *raftstore.Task) int {
	fine := func(t *raftstore.Task) int {
		if s.fateOf(t) == fine {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(fine(a), fine(b)),
		cmp.Compare(task.Number(b.Status.State), task.Number(a.Status.State)),
		cmp.Compare(task.Number(b.DesiredState), task.Number(a.DesiredState)),
		byAge(a, b))
}

// fate is why a live task cannot stay.
type fate string

const (
	fine    fate = ""
	ended   fate = "task ended"
	lost    fate = "node removed"
	silent  fate = "node down"
	drained fate = "node drained"
	unfit   fate = "constraints no longer met"
)

func (s *scene) fateOf(t *raftstore.Task) fate {
	if task.Ended(t.Status.State) {
		return ended
	}
	if t.NodeID == "" {
		return fine
	}
	m := s.machine(t.NodeID)
	switch {
	case m == nil:
		return lost
	case m.down:
		return silent
	case m.drained:
		return drained
	case !s.group(t.SpecVersion).Allows(m.facts):
		return unfit
	}
	return fine
}

// done says whether nothing of a task can run any more, or whether nobody is left to say so.
func (s *scene) done(t *raftstore.Task) bool {
	if !assigned(t) || task.Ended(t.Status.State) {
		return true
	}
	m := s.machine(t.NodeID)
	return m == nil || m.down
}

// group is what the scheduler knows of a version. A version whose spec is gone restricts nothing.
func (s *scene) group(version uint64) *scheduler.Group {
	if g := s.groups[version]; g != nil {
		return g
	}
	var t swarm.TaskSpec
	if v := s.specOf(version); v != nil {
		t = v.TaskTemplate
	}
	g := scheduler.NewGroup(scheduler.Version{ServiceID: s.service.ID, SpecVersion: version}, t)
	if s.groups == nil {
		s.groups = map[uint64]*scheduler.Group{}
	}
	s.groups[version] = g
	return g
}

func (s *scene) specOf(version uint64) *swarm.ServiceSpec {
	if version == s.service.SpecVersion {
		return s.spec
	}
	return s.specAt(version)
}

// dirty says whether a task has to be replaced to follow the current spec. Labels and counts of the service
// matter to no task; new placement rules matter to those whose node does not fit them.
func (s *scene) dirty(t *raftstore.Task) bool {
	if t.SpecVersion == s.service.SpecVersion {
		return false
	}
	if s.differs(t.SpecVersion) {
		return true
	}
	if !assigned(t) {
		old, err := json.Marshal(s.specOf(t.SpecVersion).TaskTemplate.Placement)
		now, nowErr := json.Marshal(s.spec.TaskTemplate.Placement)
		return err != nil || nowErr != nil || !bytes.Equal(old, now)
	}
	m := s.machine(t.NodeID)
	return m != nil && !s.group(s.service.SpecVersion).Suits(m.facts)
}

func (s *scene) differs(version uint64) bool {
	if d, known := s.stale[version]; known {
		return d
	}
	old := s.specOf(version)
	d := old == nil || !spec.SameContainers(*old, *s.spec)
	if s.stale == nil {
		s.stale = map[uint64]bool{}
	}
	s.stale[version] = d
	return d
}

// create is a new task in a slot, for the scheduler to place.
func (s *scene) create(at *slot, desired swarm.TaskState, notBefore time.Time) change {
	t := &raftstore.Task{
		ServiceID: s.service.ID, SpecVersion: s.service.SpecVersion, Slot: at.number, NodeID: at.nodeID,
		DesiredState: desired, NotBefore: notBefore,
		Status: raftstore.TaskStatus{State: swarm.TaskStateNew, Timestamp: s.now, Message: messageNew},
	}
	t.ID, t.CreatedAt = s.newID(), s.now
	return change{op: opCreate, task: t}
}
