package worker

import (
	"maps"
	"strings"
	"time"

	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// container is what the runtime is told about a task. Templates in environment, host name and mounts
// are to be expanded here. Called with mu held.
func (w *Worker) container(t *work, s *swarm.ServiceSpec) Container {
	nodeID := w.cfg.NodeID()
	name := task.Name(s.Name, t.record.Slot, nodeID, t.id)
	c := Container{
		ID: t.containerID, Name: name,
		ImageRef: imageRef(s), ImageDigest: t.record.Digest,
		Labels:    map[string]string{},
		Spec:      s.TaskTemplate.ContainerSpec,
		Resources: s.TaskTemplate.Resources,
		Network:   spec.NetworkMode(s.TaskTemplate),
		LogDriver: s.TaskTemplate.LogDriver,
	}
	if c.Spec != nil {
		c.Hostname = c.Spec.Hostname
		maps.Copy(c.Labels, c.Spec.Labels)
	}
	if c.Hostname == "" && c.Network == "host" {
		c.Hostname = w.cfg.Hostname
	}
	// Tools find the containers of a service by these labels; a spec's own do not replace them.
	maps.Copy(c.Labels, map[string]string{
		"com.docker.swarm.task":         "",
		"com.docker.swarm.task.id":      t.id,
		"com.docker.swarm.task.name":    name,
		"com.docker.swarm.node.id":      nodeID,
		"com.docker.swarm.service.id":   t.record.ServiceID,
		"com.docker.swarm.service.name": s.Name,
	})
	return c
}

func imageRef(s *swarm.ServiceSpec) string {
	if s == nil || s.TaskTemplate.ContainerSpec == nil {
		return ""
	}
	return s.TaskTemplate.ContainerSpec.Image
}

// holdersOf are the nodes that have an image: by the digest in its reference, else by the reference itself. Called with mu held.
func (w *Worker) holdersOf(ref string) []string {
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		return w.holders[digest]
	}
	return w.holders[ref]
}

// stopping is how a task's container is asked to end; without a spec as by default.
func stopping(s *swarm.ServiceSpec) (signal string, grace time.Duration) {
	grace = stopGraceDefault
	if s == nil || s.TaskTemplate.ContainerSpec == nil {
		return "", grace
	}
	if g := s.TaskTemplate.ContainerSpec.StopGracePeriod; g != nil {
		grace = *g
	}
	return s.TaskTemplate.ContainerSpec.StopSignal, grace
}
