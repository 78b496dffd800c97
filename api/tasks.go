package api

import (
	"iter"
	"net/http"
	"strings"

	"swarm/raftstore"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// findTask looks up by id, name (service.slot.id) or id prefix.
func findTask(state *raftstore.State, ref string) (*raftstore.Task, error) {
	if row, ok := state.Tasks.Get(ref); ok {
		return row, nil
	}
	if dot := strings.LastIndexByte(ref, '.'); dot >= 0 {
		if row, ok := state.Tasks.Get(ref[dot+1:]); ok && taskName(state, row) == ref {
			return row, nil
		}
		return nil, notFound("task %s not found", ref)
	}
	row, err := state.Tasks.Find(ref)
	if errdefs.IsNotFound(err) {
		return nil, notFound("task %s not found", ref)
	}
	return row, err
}

func taskName(state *raftstore.State, row *raftstore.Task) string {
	name := row.ServiceID
	if s := state.Spec(row.ServiceID, row.SpecVersion); s != nil {
		name = s.Name
	}
	return task.Name(name, row.Slot, row.NodeID, row.ID)
}

func (a *API) taskInspect(w http.ResponseWriter, r *request) error {
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	row, err := findTask(state, r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, renderTask(state, row))
}

func (a *API) taskList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("id", "name", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
	if err != nil {
		return err
	}
	for _, s := range f["desired-state"] {
		if task.Number(swarm.TaskState(s)) == 0 && s != string(swarm.TaskStateNew) {
			return invalid("invalid desired-state filter: '%s'", s)
		}
	}
	upToDateOnly, _, err := f.truth("_up-to-date")
	if err != nil {
		return err
	}
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	a.resolveTaskFilters(state, f)
	list := []swarm.Task{}
	current := upToDate(state)
	for row := range candidates(state, f) {
		if matchTask(state, f, row) && (!upToDateOnly || current(row)) {
			list = append(list, renderTask(state, row))
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// resolveTaskFilters turns names of services and nodes into ids.
func (a *API) resolveTaskFilters(state *raftstore.State, f filters) {
	for i, ref := range f["service"] {
		if row, err := findService(state, ref); err == nil {
			f["service"][i] = row.ID
		}
	}
	for i, ref := range f["node"] {
		if row, err := a.findNode(state, ref); err == nil {
			f["node"][i] = row.ID
		}
	}
}

// candidates are the tasks worth a look: those of the wanted services or nodes where such are named, so that a client
// which asks for one service does not cost a walk over all.
func candidates(state *raftstore.State, f filters) iter.Seq[*raftstore.Task] {
	switch {
	case len(f["service"]) > 0:
		return concat(f["service"], state.TasksOf)
	case len(f["node"]) > 0:
		return concat(f["node"], state.TasksOn)
	}
	return state.Tasks.All()
}

func concat(ids []string, tasks func(string) iter.Seq[*raftstore.Task]) iter.Seq[*raftstore.Task] {
	return func(yield func(*raftstore.Task) bool) {
		seen := map[string]bool{}
		for _, id := range ids {
			if seen[id] {
				continue
			}
			seen[id] = true
			for t := range tasks(id) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

func matchTask(state *raftstore.State, f filters, row *raftstore.Task) bool {
	if !f.prefix("id", row.ID) || !f.exact("service", row.ServiceID) || !f.exact("node", row.NodeID) ||
		!f.exact("desired-state", string(row.DesiredState)) || !f.exact("runtime", string(swarm.RuntimeContainer)) {
		return false
	}
	if len(f["name"]) > 0 && !f.prefix("name", taskName(state, row)) {
		return false
	}
	if len(f["label"]) == 0 {
		return true
	}
	s := state.Spec(row.ServiceID, row.SpecVersion)
	if s == nil {
		return false
	}
	if s.TaskTemplate.ContainerSpec != nil {
		return f.labels("label", s.Labels, s.TaskTemplate.ContainerSpec.Labels)
	}
	return f.labels("label", s.Labels)
}

// upToDate returns the test whether a task runs what its service now asks for. Labels, replicas, restart and update settings
// do not reach a container, nor do placement rules, so a difference in those alone does not count.
func upToDate(state *raftstore.State) func(*raftstore.Task) bool {
	type version struct {
		service string
		number  uint64
	}
	known := map[version]bool{}
	return func(row *raftstore.Task) bool {
		service, ok := state.Services.Get(row.ServiceID)
		if !ok || service.SpecVersion == row.SpecVersion {
			return ok
		}
		v := version{row.ServiceID, row.SpecVersion}
		same, seen := known[v]
		if !seen {
			now, then := state.Spec(service.ID, service.SpecVersion), state.Spec(service.ID, row.SpecVersion)
			same = now != nil && then != nil && spec.SameContainers(*now, *then)
			known[v] = same
		}
		return same
	}
}

// renderTask makes an API task of a row and the spec that it shares with the others of its version.
func renderTask(state *raftstore.State, row *raftstore.Task) swarm.Task {
	t := swarm.Task{
		ID: row.ID,
		// A task has no spec of its own to write, so its version counts every write.
		Meta:         swarm.Meta{Version: swarm.Version{Index: row.Index}, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt},
		Annotations:  swarm.Annotations{Labels: map[string]string{}},
		ServiceID:    row.ServiceID,
		Slot:         int(row.Slot),
		NodeID:       row.NodeID,
		DesiredState: row.DesiredState,
		Status: swarm.TaskStatus{
			Timestamp: row.Status.Timestamp, State: row.Status.State, Message: row.Status.Message, Err: row.Status.Err,
		},
		Volumes: []swarm.VolumeAttachment{},
	}
	if row.Status.Timestamp.After(t.UpdatedAt) {
		t.UpdatedAt = row.Status.Timestamp
	}
	if row.Status.ContainerID != "" {
		t.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: row.Status.ContainerID, PID: row.Status.PID, ExitCode: row.Status.ExitCode}
	}
	if s := state.Spec(row.ServiceID, row.SpecVersion); s != nil {
		t.Spec = s.TaskTemplate
	}
	return t
}
