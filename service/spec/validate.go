package spec

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Bounds of what a spec may ask for.
const (
	nameLengthMax    = 63
	replicasMax      = 1_000_000
	specSizeBytesMax = 1 << 20
	nanoCPUsMin      = 1e6
	memoryBytesMin   = 4 << 20
	spreadLevelsMax  = 8
	constraintsMax   = 64
)

var serviceName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// missing is for what docker has and we do not have yet.
func missing(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...))
}

// Validate refuses a service spec that cannot work, with an InvalidArgument (or NotImplemented) error that names the field and the remedy.
// Nothing is accepted that would then be ignored.
func Validate(s swarm.ServiceSpec) error {
	checks := []func() error{
		func() error { return validateName(s.Name) },
		func() error { return validateMode(s.Mode) },
		func() error { return validateTask(s.TaskTemplate) },
		func() error { return validateRollout("update", s.UpdateConfig) },
		func() error { return validateRollout("rollback", s.RollbackConfig) },
		func() error { return validateEndpoint(s.EndpointSpec) },
		func() error { return validateSize(s) },
	}
	return first(checks)
}

func first(checks []func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func validateName(name string) error {
	switch {
	case name == "":
		return invalid("meta: name must be provided")
	case len(name) > nameLengthMax:
		return invalid("name must be %d characters or fewer: %q has %d", nameLengthMax, name, len(name))
	case !serviceName.MatchString(name):
		return invalid("name must be valid as a DNS name component: %q; use letters, digits and inner - or _", name)
	}
	return nil
}

func validateMode(m swarm.ServiceMode) error {
	modes := 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			modes++
		}
	}
	switch {
	case modes > 1:
		return invalid("invalid service mode: more than one mode is given; choose one of replicated and global")
	case m.ReplicatedJob != nil || m.GlobalJob != nil:
		return missing("jobs are not there yet: use mode replicated or global, with --restart-condition none or on-failure for work that ends")
	case m.Replicated != nil && m.Replicated.Replicas != nil && *m.Replicated.Replicas > replicasMax:
		return invalid("replicas must be at most %d, not %d", replicasMax, *m.Replicated.Replicas)
	}
	return nil
}

func validateTask(t swarm.TaskSpec) error {
	if t.PluginSpec != nil || t.NetworkAttachmentSpec != nil || t.Runtime != "" && t.Runtime != swarm.RuntimeContainer {
		return missing("RuntimeSpec: unimplemented runtime in service spec: only containers run; give a ContainerSpec")
	}
	return first([]func() error{
		func() error { return validateContainer(t.ContainerSpec) },
		func() error { return validateResources(t.Resources) },
		func() error { return validateRestart(t.RestartPolicy) },
		func() error { return validatePlacement(t.Placement) },
		func() error { return validateNetworks(t.Networks) },
		func() error { return validateLogDriver(t.LogDriver) },
	})
}

func validateResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	if r.MemorySwappiness != nil {
		return missing("memory swappiness is not there: kernels with the unified cgroup hierarchy have none; remove --memory-swappiness")
	}
	if r.SwapBytes != nil && (r.Limits == nil || r.Limits.MemoryBytes == 0) {
		return invalid("a swap limit needs a memory limit: set --limit-memory too")
	}
	if l := r.Limits; l != nil {
		if err := validateAmounts(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
		if l.Pids < 0 {
			return invalid("invalid pids limit %d: must be at least 0, which means no limit", l.Pids)
		}
	}
	if v := r.Reservations; v != nil {
		if len(v.GenericResources) > 0 {
			return missing("generic resources are not there yet: remove --generic-resource; a node label and a constraint can choose the nodes meanwhile")
		}
		return validateAmounts(v.NanoCPUs, v.MemoryBytes)
	}
	return nil
}

func validateAmounts(nanoCPUs, memoryBytes int64) error {
	if nanoCPUs != 0 && nanoCPUs < nanoCPUsMin {
		return invalid("invalid cpu value %g: Must be at least %g", float64(nanoCPUs)/1e9, float64(nanoCPUsMin)/1e9)
	}
	if memoryBytes != 0 && memoryBytes < memoryBytesMin {
		return invalid("invalid memory value %d: Must be at least 4MiB", memoryBytes)
	}
	return nil
}

func validateRestart(p *swarm.RestartPolicy) error {
	if p == nil {
		return nil
	}
	switch p.Condition {
	case "", swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny:
	default:
		return invalid("invalid RestartCondition: %q; use none, on-failure or any", p.Condition)
	}
	if negative(p.Delay) {
		return invalid("TaskSpec: restart-delay cannot be negative")
	}
	if negative(p.Window) {
		return invalid("TaskSpec: restart-window cannot be negative")
	}
	return nil
}

func negative(d *time.Duration) bool { return d != nil && *d < 0 }

func validatePlacement(p *swarm.Placement) error {
	if p == nil {
		return nil
	}
	if len(p.Constraints) > constraintsMax {
		return invalid("a service takes at most %d constraints, not %d", constraintsMax, len(p.Constraints))
	}
	if len(p.Preferences) > spreadLevelsMax {
		return invalid("a service takes at most %d placement preferences, not %d", spreadLevelsMax, len(p.Preferences))
	}
	for _, pref := range p.Preferences {
		if pref.Spread == nil {
			return invalid("invalid placement preference: only spread is known; write for example spread=node.labels.zone")
		}
		if _, ok := SpreadLabel(pref.Spread.SpreadDescriptor, &Facts{}); !ok {
			return invalid("invalid spread descriptor %q: spread over node.labels.NAME or engine.labels.NAME", pref.Spread.SpreadDescriptor)
		}
	}
	_, err := ParseConstraints(p.Constraints)
	return err
}

// SpreadLabel is a node's value of a spread descriptor; ok is false when the descriptor names no label.
func SpreadLabel(descriptor string, f *Facts) (value string, ok bool) {
	switch {
	case hasPrefixFold(descriptor, nodeLabelPrefix):
		return f.Labels[descriptor[len(nodeLabelPrefix):]], true
	case hasPrefixFold(descriptor, engineLabelPrefix):
		return f.EngineLabels[descriptor[len(engineLabelPrefix):]], true
	}
	return "", false
}

// validateRollout checks update and rollback settings alike; kind is "update" or "rollback".
func validateRollout(kind string, c *swarm.UpdateConfig) error {
	if c == nil {
		return nil
	}
	switch {
	case c.Delay < 0:
		return invalid("TaskSpec: %s-delay cannot be negative", kind)
	case c.Monitor < 0:
		return invalid("TaskSpec: %s-monitor cannot be negative", kind)
	case !(c.MaxFailureRatio >= 0 && c.MaxFailureRatio <= 1):
		return invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", kind)
	}
	switch c.FailureAction {
	case "", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue:
	case swarm.UpdateFailureActionRollback:
		if kind == "rollback" {
			return invalid("invalid rollback failure action \"rollback\": a rollback is never rolled back; use pause or continue")
		}
	default:
		return invalid("unrecognized %s failure action %q; use pause, continue or (for updates) rollback", kind, c.FailureAction)
	}
	switch c.Order {
	case "", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst:
		return nil
	}
	return invalid("unrecognized %s order %q; use stop-first or start-first", kind, c.Order)
}

func validateEndpoint(e *swarm.EndpointSpec) error {
	if e == nil {
		return nil
	}
	switch e.Mode {
	case "", swarm.ResolutionModeVIP:
	case swarm.ResolutionModeDNSRR:
		if len(e.Ports) > 0 {
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		return missing("endpoint mode dnsrr is not there yet: it needs overlay networks; leave --endpoint-mode out")
	default:
		return invalid("EndpointSpec: unknown mode %q; use vip", e.Mode)
	}
	if len(e.Ports) > 0 {
		return missing("published ports are not there yet: remove --publish and attach the host network (--network host), on which the container listens by itself")
	}
	return nil
}

func validateLogDriver(d *swarm.Driver) error {
	if d == nil {
		return nil
	}
	switch d.Name {
	case "", "json-file", "none":
	default:
		return missing("log driver %q is not there: use json-file or none", d.Name)
	}
	for name := range d.Options {
		if name != "max-size" && name != "max-file" {
			return missing("log option %q is not there: use max-size and max-file", name)
		}
	}
	return nil
}

func validateSize(s swarm.ServiceSpec) error {
	b, err := json.Marshal(s)
	if err != nil {
		return invalid("service spec cannot be encoded: %v", err)
	}
	if len(b) > specSizeBytesMax {
		return invalid("service spec has %d bytes, at most %d are taken; move data into the image or a mount", len(b), specSizeBytesMax)
	}
	return nil
}
