package spec

import (
	"github.com/moby/moby/api/types/swarm"
)

// WithDefaults returns a copy of s with every default filled in (GET /services/{id}?insertDefaults=true); stored specs stay as they came.
func WithDefaults(s swarm.ServiceSpec) swarm.ServiceSpec {
	s.TaskTemplate = taskWithDefaults(s.TaskTemplate)
	if s.Mode.Global == nil && s.Mode.ReplicatedJob == nil && s.Mode.GlobalJob == nil {
		replicas := Replicas(s)
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	}
	update, rollback := UpdateOf(s), RollbackOf(s)
	s.UpdateConfig, s.RollbackConfig = &update, &rollback
	endpoint := swarm.EndpointSpec{}
	if s.EndpointSpec != nil {
		endpoint = *s.EndpointSpec
	}
	if endpoint.Mode == "" {
		endpoint.Mode = swarm.ResolutionModeVIP
	}
	s.EndpointSpec = &endpoint
	return s
}

func taskWithDefaults(t swarm.TaskSpec) swarm.TaskSpec {
	if t.ContainerSpec != nil {
		c := *t.ContainerSpec
		grace := StopGrace(t)
		c.StopGracePeriod = &grace
		if c.DNSConfig == nil {
			c.DNSConfig = &swarm.DNSConfig{}
		}
		t.ContainerSpec = &c
	}
	r := RestartOf(t)
	t.RestartPolicy = &swarm.RestartPolicy{Condition: r.Condition, Delay: &r.Delay, MaxAttempts: &r.MaxAttempts}
	if r.Window != 0 {
		t.RestartPolicy.Window = &r.Window
	}
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{}
	}
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	if t.Runtime == "" {
		t.Runtime = swarm.RuntimeContainer
	}
	return t
}
