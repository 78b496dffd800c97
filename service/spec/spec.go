// Package spec is what a service spec means: defaults, validation, constraint syntax, network modes. Pure.
// api validates with it; service and service/scheduler read specs through it.
package spec

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Defaults of a service, as docker documents them.
const (
	RestartDelayDefault    = 5 * time.Second
	StopGraceDefault       = 10 * time.Second
	UpdateMonitorDefault   = 5 * time.Second
	TaskHistoryDefault     = 5
	HeartbeatPeriodDefault = 5 * time.Second
)

// Restart is a restart policy with every default filled in.
type Restart struct {
	Condition swarm.RestartPolicyCondition
	Delay     time.Duration
	// MaxAttempts bounds the restarts of one slot; 0: unbounded.
	MaxAttempts uint64
	// Window is how far back restarts count; 0: all of them.
	Window time.Duration
}

// RestartOf is the restart policy of a task spec.
func RestartOf(s swarm.TaskSpec) Restart {
	r := Restart{Condition: swarm.RestartPolicyConditionAny, Delay: RestartDelayDefault}
	p := s.RestartPolicy
	if p == nil {
		return r
	}
	if p.Condition != "" {
		r.Condition = p.Condition
	}
	if p.Delay != nil {
		r.Delay = *p.Delay
	}
	if p.MaxAttempts != nil {
		r.MaxAttempts = *p.MaxAttempts
	}
	if p.Window != nil {
		r.Window = *p.Window
	}
	return r
}

// UpdateOf is how a change of s is rolled out, with every default filled in. Parallelism 0 means all at once.
func UpdateOf(s swarm.ServiceSpec) swarm.UpdateConfig { return rolloutOf(s.UpdateConfig) }

// RollbackOf is how a rollback to s is rolled out; its defaults are those of an update.
func RollbackOf(s swarm.ServiceSpec) swarm.UpdateConfig { return rolloutOf(s.RollbackConfig) }

func rolloutOf(c *swarm.UpdateConfig) swarm.UpdateConfig {
	r := swarm.UpdateConfig{Parallelism: 1}
	if c != nil {
		r = *c
	}
	if r.FailureAction == "" {
		r.FailureAction = swarm.UpdateFailureActionPause
	}
	if r.Monitor == 0 {
		r.Monitor = UpdateMonitorDefault
	}
	if r.Order == "" {
		r.Order = swarm.UpdateOrderStopFirst
	}
	return r
}

// IsGlobal says whether a service runs one task on every node that fits, rather than a number of replicas.
func IsGlobal(s swarm.ServiceSpec) bool { return s.Mode.Global != nil }

// Replicas is the wanted number of tasks of a replicated service.
func Replicas(s swarm.ServiceSpec) uint64 {
	if r := s.Mode.Replicated; r != nil && r.Replicas != nil {
		return *r.Replicas
	}
	return 1
}

// Reserved is what one task takes of its node's resources: CPU in billionths and memory in bytes.
func Reserved(s swarm.TaskSpec) (nanoCPUs, memoryBytes int64) {
	if s.Resources == nil || s.Resources.Reservations == nil {
		return 0, 0
	}
	return s.Resources.Reservations.NanoCPUs, s.Resources.Reservations.MemoryBytes
}

// StopGrace is how long a container may take to end after its stop signal.
func StopGrace(s swarm.TaskSpec) time.Duration {
	if s.ContainerSpec != nil && s.ContainerSpec.StopGracePeriod != nil {
		return *s.ContainerSpec.StopGracePeriod
	}
	return StopGraceDefault
}

// TaskHistory is how many ended tasks are kept per slot; negative: all.
func TaskHistory(s swarm.Spec) int64 {
	if n := s.Orchestration.TaskHistoryRetentionLimit; n != nil {
		return *n
	}
	return TaskHistoryDefault
}

// HeartbeatPeriod is the grace time after which a silent node counts as down.
func HeartbeatPeriod(s swarm.Spec) time.Duration {
	if s.Dispatcher.HeartbeatPeriod > 0 {
		return s.Dispatcher.HeartbeatPeriod
	}
	return HeartbeatPeriodDefault
}

// SameContainers says whether tasks of one version of a service can stand for those of another: everything
// that a running container depends on is the same. Placement and restart policy concern tasks to come only.
func SameContainers(a, b swarm.ServiceSpec) bool { return bytes.Equal(essence(a), essence(b)) }

func essence(s swarm.ServiceSpec) []byte {
	t := WithDefaults(s).TaskTemplate
	t.Placement, t.RestartPolicy = nil, nil
	encoded, err := json.Marshal(t)
	if err != nil {
		panic(err) // specs came as JSON
	}
	return encoded
}
