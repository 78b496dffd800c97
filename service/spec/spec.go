// Package spec is what a service spec means: defaults, validation, constraint syntax, templates. Pure.
// api validates with it; service and service/scheduler read specs through it.
package spec

import "github.com/moby/moby/api/types/swarm"

// Validate refuses a service spec that cannot work, with an InvalidArgument (or NotImplemented) error that names the field and the remedy.
func Validate(s swarm.ServiceSpec) error { panic("contract") }

// ValidateNode and ValidateCluster do the same for node and cluster settings.
func ValidateNode(s swarm.NodeSpec) error { panic("contract") }
func ValidateCluster(s swarm.Spec) error  { panic("contract") }

// WithDefaults returns a copy of s with every default filled in (GET /services/{id}?insertDefaults=true); stored specs stay as they came.
func WithDefaults(s swarm.ServiceSpec) swarm.ServiceSpec { panic("contract") }

// Constraint is one parsed placement constraint.
type Constraint struct {
	Key, Value string
	Equal      bool
}

// ParseConstraints reads node.X==y and node.X!=y expressions (S32).
func ParseConstraints(exprs []string) ([]Constraint, error) { panic("contract") }

// NetworkMode is "host" when the spec attaches the predefined host network, else "none".
func NetworkMode(s swarm.TaskSpec) string { panic("contract") }
