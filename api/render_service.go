package api

import (
	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

func renderMeta(m raftstore.Meta) swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: m.Version}, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
}

func renderService(state *raftstore.State, row *raftstore.Service) swarm.Service {
	service := swarm.Service{ID: row.ID, Meta: renderMeta(row.Meta), UpdateStatus: row.UpdateStatus}
	if current := state.Spec(row.ID, row.SpecVersion); current != nil {
		service.Spec = renderSpec(*current)
	}
	if row.PreviousSpecVersion != 0 {
		if previous := state.Spec(row.ID, row.PreviousSpecVersion); previous != nil {
			rendered := renderSpec(*previous)
			service.PreviousSpec = &rendered
		}
	}
	if service.Spec.EndpointSpec != nil {
		service.Endpoint.Spec = *service.Spec.EndpointSpec
	}
	return service
}

// renderSpec gives clients a map of labels where the spec has none: some of them index it without a look.
func renderSpec(s swarm.ServiceSpec) swarm.ServiceSpec {
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	return s
}

// serviceStatus counts a service's tasks, so that clients need not list them.
func serviceStatus(state *raftstore.State, row *raftstore.Service, mode swarm.ServiceMode) *swarm.ServiceStatus {
	status := &swarm.ServiceStatus{}
	if mode.Replicated != nil && mode.Replicated.Replicas != nil {
		status.DesiredTasks = *mode.Replicated.Replicas
	}
	for t := range state.TasksOf(row.ID) {
		wanted := task.Before(t.DesiredState, swarm.TaskStateShutdown)
		if mode.Global != nil && wanted {
			status.DesiredTasks++
		}
		// What a lost node last said of a task does not make it run.
		if wanted && t.Status.State == swarm.TaskStateRunning && !nodeDown(state, t.NodeID) {
			status.RunningTasks++
		}
	}
	return status
}

func nodeDown(state *raftstore.State, id string) bool {
	node, ok := state.Nodes.Get(id)
	return !ok || node.Status.State == swarm.NodeStateDown
}
