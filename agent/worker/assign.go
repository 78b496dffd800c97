package worker

import (
	"cmp"
	"encoding/json"
	"slices"

	"swarm/rpc"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// Apply takes assignments from a manager (full set or change). It never blocks.
func (w *Worker) Apply(a *rpc.Assignments) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.GetFull() {
		clear(w.holders)
		w.journal.holders = true
	}
	w.takeSpecs(a.GetSpecs())
	w.takeHolders(a.GetHolders())
	assigned := map[string]bool{}
	for _, t := range a.GetTasks() {
		assigned[t.GetTaskId()] = true
		w.assign(t)
	}
	for _, id := range a.GetRemovedTaskIds() {
		if t, ok := w.tasks[id]; ok {
			w.want(t, task.Unassigned)
		}
	}
	if a.GetFull() {
		w.dropAbsent(assigned)
	}
	w.journal.wakeUp()
	signal(w.spawn)
}

// dropAbsent lets go of everything that a full set does not name.
func (w *Worker) dropAbsent(assigned map[string]bool) {
	for id, t := range w.tasks {
		if !assigned[id] {
			w.want(t, task.Unassigned)
		}
	}
	w.complete = true
	w.condemnStrays()
	w.pruneSpecs(0)
}

func (w *Worker) assign(a *rpc.Assignment) {
	desired, ok := task.FromNumber(a.GetDesiredState())
	if !ok || !task.Desirable(desired) || a.GetTaskId() == "" {
		w.log.Error("assignment is not understood; this agent may be older than its manager", "task", a.GetTaskId(), "desired", a.GetDesiredState())
		return
	}
	t, ok := w.tasks[a.GetTaskId()]
	if !ok {
		t = newWork(a.GetTaskId(), record{
			ServiceID: a.GetServiceId(), SpecVersion: a.GetSpecVersion(), Slot: a.GetSlot(),
			Status: status{State: swarm.TaskStateAssigned},
		})
		if o, ok := w.strays[t.containerID]; ok {
			t.see(o)
			delete(w.strays, t.containerID)
		}
		w.tasks[t.id] = t
		w.log.Info("task assigned", "task", t.id, "service", a.GetServiceId(), "desired", desired)
	}
	w.want(t, desired)
}

// want sets the desired state of a task, which only goes forward, and tells its goroutine.
func (w *Worker) want(t *work, desired swarm.TaskState) {
	old := t.record.Desired
	if old == desired || desired != task.Unassigned && old != task.Unassigned && task.Before(desired, old) {
		return
	}
	t.record.Desired = desired
	w.journal.task(t.id)
	// One that was given up and is assigned again has its status told again.
	t.due = t.record.Status.State != swarm.TaskStateAssigned && desired != task.Unassigned && (t.due || old == task.Unassigned)
	if t.due {
		signal(w.changed)
	}
	signal(t.wake)
	if t.cancelStep != nil && (desired == task.Unassigned || !task.Before(desired, swarm.TaskStateShutdown)) {
		t.cancelStep()
	}
}

func (w *Worker) takeSpecs(specs []*rpc.ServiceSpec) {
	for _, s := range specs {
		var spec swarm.ServiceSpec
		if err := json.Unmarshal(s.GetSpecJson(), &spec); err != nil {
			w.log.Error("service spec is not understood", "service", s.GetServiceId(), "version", s.GetVersion(), "error", err)
			continue
		}
		key := specKey{s.GetServiceId(), s.GetVersion()}
		w.specs[key] = &spec
		w.journal.specs[key] = s.GetSpecJson()
	}
	if len(w.specs) > specsMax {
		w.pruneSpecs(specsMax / 2)
	}
}

// pruneSpecs forgets specs that no task uses, but for the newest keep of them. Within a session a
// manager sends each spec once, so they are kept beyond the last task that used them.
func (w *Worker) pruneSpecs(keep int) {
	used := map[specKey]bool{}
	for _, t := range w.tasks {
		used[specKey{t.record.ServiceID, t.record.SpecVersion}] = true
	}
	var unused []specKey
	for key := range w.specs {
		if !used[key] {
			unused = append(unused, key)
		}
	}
	slices.SortFunc(unused, func(a, b specKey) int { return cmp.Compare(b.version, a.version) })
	for _, key := range unused[min(keep, len(unused)):] {
		delete(w.specs, key)
		w.journal.specs[key] = nil
	}
}

func (w *Worker) takeHolders(holders []*rpc.ImageHolders) {
	for _, h := range holders {
		if _, known := w.holders[h.GetDigest()]; !known && len(w.holders) >= holdersMax {
			continue
		}
		w.holders[h.GetDigest()] = slices.Clone(h.GetAddresses())
		w.journal.holders = true
	}
}

// specOf is the spec of a task, nil when it never arrived. Called with mu held.
func (w *Worker) specOf(t *work) *swarm.ServiceSpec {
	return w.specs[specKey{t.record.ServiceID, t.record.SpecVersion}]
}
