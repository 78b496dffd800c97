package service

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

// loop is the memory of one leader between passes. It is a cache of the state and of what is due; nothing is lost with it.
type loop struct {
	log     *slog.Logger
	since   time.Time
	state   *raftstore.State
	cluster *cluster
	// committed is the index of a state that has this loop's last commit.
	committed uint64
	// todo is what to decide on, deadlines what to decide on later.
	todo      todo
	deadlines *deadlines
	// decided is the index of each service's row that was decided on as a whole.
	decided map[string]uint64
	// guard is the index of the last commit of any orchestrator in state.
	guard uint64
	// waiting are the services with a task that fits nowhere, global those that follow the set of nodes.
	waiting map[string]struct{}
	global  map[string]struct{}
	// touched are the nodes whose load was changed by plans: it has to be read again.
	touched map[string]struct{}
	// versions are the known spec versions per service.
	versions map[string][]uint64
	// seenRunning is when tasks of a service under update were first seen to run.
	seenRunning map[string]map[string]time.Time
	newID       func() string
	// placed is told how long each task that got a node had waited for it; nil tells nobody.
	placed func(time.Duration)
}

func newLoop(log *slog.Logger) *loop {
	return &loop{
		log: log, since: wallClock(), cluster: newCluster(), newID: raftstore.NewID,
		todo: todo{}, deadlines: newDeadlines(), decided: map[string]uint64{}, waiting: map[string]struct{}{}, global: map[string]struct{}{},
		touched: map[string]struct{}{}, versions: map[string][]uint64{}, seenRunning: map[string]map[string]time.Time{},
	}
}

// notice turns what changed into services, and slots of them, to decide on. Leader start is the case in which everything changed.
func (l *loop) notice(state *raftstore.State, dirty raftstore.Dirty) {
	l.state, l.guard = state, state.GuardIndex(guardName)
	if dirty.All {
		l.noticeAll()
		return
	}
	if dirty.Cluster {
		for s := range state.Services.All() {
			l.todo.service(s.ID)
		}
	}
	for id := range dirty.Services {
		l.noticeService(id)
	}
	for id := range dirty.Tasks {
		if t, ok := state.Tasks.Get(id); ok {
			l.todo.slot(t.ServiceID, slotOf(t))
		}
	}
	for id := range dirty.Nodes {
		l.touched[id] = struct{}{}
	}
	for id := range l.touched {
		l.noticeNode(id)
	}
	clear(l.touched)
}

func (l *loop) noticeAll() {
	l.cluster = newCluster()
	for n := range l.state.Nodes.All() {
		l.cluster.refresh(l.state, n.ID)
	}
	clear(l.touched)
	clear(l.versions)
	clear(l.decided)
	for v := range l.state.Specs.All() {
		l.versions[v.ServiceID] = append(l.versions[v.ServiceID], v.SpecVersion)
	}
	for s := range l.state.Services.All() {
		l.noticeService(s.ID)
	}
}

// noticeService has a service decided on as a whole if it is another than the one that was. Tasks alone do not change its row;
// what they are and do matters beyond their slots during a rollout, and when the last one of a removed service is gone.
func (l *loop) noticeService(id string) {
	service, ok := l.state.Services.Get(id)
	if !ok {
		l.forget(id)
		return
	}
	last := service.Removing && !l.hasTasks(id)
	if l.decided[id] == service.Index && !last && (service.Removing || !inProgress(service.UpdateStatus)) {
		return
	}
	l.decided[id] = service.Index
	l.todo.service(id)
	l.versions[id] = versionsOf(l.versions[id], service, func(v uint64) bool { return l.state.Spec(id, v) != nil })
	if v := l.state.Spec(id, service.SpecVersion); v != nil && spec.IsGlobal(*v) {
		l.global[id] = struct{}{}
	}
}

func (l *loop) hasTasks(serviceID string) bool {
	for range l.state.TasksOf(serviceID) {
		return true
	}
	return false
}

func (l *loop) forget(id string) {
	delete(l.todo, id)
	delete(l.decided, id)
	delete(l.waiting, id)
	delete(l.global, id)
	delete(l.versions, id)
	delete(l.seenRunning, id)
}

// noticeNode looks at a node whose row or tasks changed.
func (l *loop) noticeNode(id string) {
	moved, room := l.cluster.refresh(l.state, id)
	if moved {
		for t := range l.state.TasksOn(id) {
			l.todo.slot(t.ServiceID, slotOf(t))
		}
		for service := range l.global {
			l.todo.slot(service, slotKey{nodeID: id})
		}
	}
	if room || moved { // what moved may change the reason that waiting tasks show
		for service := range l.waiting {
			l.todo.service(service)
		}
	}
}

// work is the plan of one service as far as one commit takes it.
type work struct {
	service *raftstore.Service
	steps   []step
}

// decide plans for what changed or is due, as much as one commit takes; the rest stays to do.
func (l *loop) decide(now time.Time) []work {
	l.deadlines.due(now, l.todo)
	var all []work
	room := changesMax
	for _, id := range slices.Sorted(maps.Keys(l.todo)) {
		if room <= 0 {
			break
		}
		what := l.todo[id]
		delete(l.todo, id)
		s := l.scene(id, what, now)
		if s == nil {
			continue
		}
		p := decide(s)
		if p.widen {
			s = l.scene(id, &pending{all: true}, now)
			p = decide(s)
		}
		whole := limit(&p, room)
		touched, placed := place(s, &p, l.cluster.nodes)
		if !whole || !placed || p.cut {
			l.todo.service(id)
		}
		l.remember(s, &p, touched)
		if len(p.steps) > 0 {
			all = append(all, work{service: s.service, steps: p.steps})
			room -= countChanges(p.steps)
		}
	}
	return all
}

// limit cuts a plan to what a commit takes and says whether it was left whole.
func limit(p *plan, room int) bool {
	for i := range p.steps {
		room -= len(p.steps[i].changes)
		if room <= 0 && i+1 < len(p.steps) {
			p.steps = p.steps[:i+1]
			return false
		}
	}
	return true
}

func countChanges(steps []step) (n int) {
	for _, s := range steps {
		n += len(s.changes)
	}
	return n
}

// remember keeps when the service is due, whether it waits for room, and which nodes' loads its plan touched.
func (l *loop) remember(s *scene, p *plan, touched []string) {
	id := s.service.ID
	if !s.partial {
		delete(l.waiting, id)
	}
	if p.waiting {
		l.waiting[id] = struct{}{}
	}
	if !p.wake.IsZero() {
		l.deadlines.set(deadlineKey{serviceID: id, all: true}, p.wake)
	}
	for slot, at := range p.wakes {
		l.deadlines.set(deadlineKey{serviceID: id, slot: slot}, at)
	}
	for _, nodeID := range touched {
		if nodeID != "" {
			l.touched[nodeID] = struct{}{}
		}
	}
}

// scene collects what a decision about a service, or slots of it, looks at; nil when the service is gone.
func (l *loop) scene(id string, what *pending, now time.Time) *scene {
	service, ok := l.state.Services.Get(id)
	if !ok {
		l.forget(id)
		return nil
	}
	state := l.state
	s := &scene{
		now: now, since: l.since, service: service,
		spec:     state.Spec(id, service.SpecVersion),
		specAt:   func(version uint64) *swarm.ServiceSpec { return state.Spec(id, version) },
		machine:  func(nodeID string) *machine { return l.cluster.machines[nodeID] },
		machines: l.cluster.sorted,
		history:  spec.TaskHistoryDefault,
		versions: l.versions[id],
		newID:    l.newID,
	}
	if what.all || !service.Removing && inProgress(service.UpdateStatus) {
		s.tasks = slices.Collect(state.TasksOf(id))
	} else {
		s.partial = true
		s.tasks, s.machines = l.part(id, what.slots)
	}
	if c := state.Cluster(); c != nil {
		s.history = spec.TaskHistory(c.Spec)
	}
	s.seenRunning = l.watchTrials(s)
	return s
}

// part collects the tasks of some slots, and the machines that these slots are.
func (l *loop) part(id string, slots map[slotKey]struct{}) (tasks []*raftstore.Task, machines func() []*machine) {
	var own []*machine
	for k := range slots {
		if k.nodeID == "" {
			tasks = slices.AppendSeq(tasks, l.state.TasksOfSlot(id, k.number))
			continue
		}
		for t := range l.state.TasksOn(k.nodeID) {
			if t.ServiceID == id && t.Slot == 0 {
				tasks = append(tasks, t)
			}
		}
		if m := l.cluster.machines[k.nodeID]; m != nil {
			own = append(own, m)
		}
	}
	return tasks, func() []*machine { return own }
}

// watchTrials notes when the tasks of an update began to run. Agents' clocks may be wrong, so their time stamps count only
// for tasks that this leader has not seen start, and only between its creation and now.
func (l *loop) watchTrials(s *scene) map[string]time.Time {
	if !inProgress(s.service.UpdateStatus) {
		delete(l.seenRunning, s.service.ID)
		return nil
	}
	seen := l.seenRunning[s.service.ID]
	if seen == nil {
		seen = map[string]time.Time{}
		l.seenRunning[s.service.ID] = seen
	}
	for _, t := range s.tasks {
		if _, known := seen[t.ID]; known || !running(t) || t.SpecVersion != s.service.SpecVersion {
			continue
		}
		at := s.now
		if t.CreatedAt.Before(s.since) && t.Status.Timestamp.Before(s.now) {
			at = later(t.CreatedAt, t.Status.Timestamp)
		}
		seen[t.ID] = at
	}
	return seen
}

// commit writes plans in one commit. Steps that no longer make sense are left out, and their services decided on again.
func (l *loop) commit(ctx context.Context, store *raftstore.Store, all []work) error {
	var done []bool
	err := store.Update(ctx, func(tx *raftstore.Tx) error {
		// A leader that was replaced must not go on from what it saw before. Where it cannot know yet, the guard has one of
		// two orchestrators run this again, and the guard's index tells it that its plan is of the past.
		if err := ctx.Err(); err != nil {
			return err
		}
		tx.Guard(guardName)
		current := tx.GuardIndex(guardName) == l.guard
		done = done[:0]
		for _, w := range all {
			for _, s := range w.steps {
				done = append(done, current && s.apply(tx))
			}
		}
		return nil
	})
	if err != nil {
		for _, w := range all {
			l.todo.service(w.service.ID)
		}
		return err
	}
	l.committed = store.Local().Index()
	for _, w := range all {
		for _, s := range w.steps {
			if done[0] {
				s.log(l.log, w.service.Name)
				l.observe(s)
			} else {
				l.todo.service(w.service.ID)
			}
			done = done[1:]
		}
	}
	return nil
}

// observe tells how long the tasks that a step placed had waited.
func (l *loop) observe(s step) {
	if l.placed == nil {
		return
	}
	for _, c := range s.changes {
		if c.op == opCreate && c.task.Status.State == swarm.TaskStateAssigned || c.op == opObserve && c.status.State == swarm.TaskStateAssigned {
			l.placed(time.Since(c.task.CreatedAt))
		}
	}
}
