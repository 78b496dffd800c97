package worker

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Runtime runs containers. Every call is idempotent, so that a worker that was killed can repeat it.
// Container ids are made by the worker (ContainerID), not by the runtime. Errors carry errdefs kinds.
type Runtime interface {
	// Create prepares a container from an image that is already held. Its log FIFOs are open when it returns.
	Create(ctx context.Context, c Container) error
	// Start runs it and returns its pid. NotFound/InvalidArgument when the command cannot be executed.
	Start(ctx context.Context, id string) (pid int, err error)
	// Wait returns when the process has ended, also one that was started by an earlier agent.
	Wait(ctx context.Context, id string) (Exit, error)
	// Stop sends signal (empty: the image's or SIGTERM), waits for grace, then kills; it returns when the process is gone.
	Stop(ctx context.Context, id, signal string, grace time.Duration) error
	// Remove deletes a container that does not run, its snapshot and FIFOs. Its log stays until RemoveLog of the keeper.
	Remove(ctx context.Context, id string) error
	// List reports every container of this agent's.
	List(ctx context.Context) ([]Observed, error)
}

// Images brings images to this node.
type Images interface {
	// Ensure makes ref available: from the local store, else from a holder (host:port of node ports), else from the registry.
	// It returns the digest under which Runtime.Create finds it. NotFound when nobody has it; the text says who was asked.
	Ensure(ctx context.Context, ref string, holders []string, auth string) (digest string, err error)
}

// Container is everything a runtime must know about one container.
type Container struct {
	ID          string
	Name        string
	ImageRef    string // as in the spec
	ImageDigest string // what Images.Ensure returned
	Hostname    string // of the container; empty: the first 12 characters of ID
	Labels      map[string]string
	Spec        *swarm.ContainerSpec
	Resources   *swarm.ResourceRequirements
	// Network is "host" (the node's own namespace) or "none" (only loopback).
	Network   string
	LogDriver *swarm.Driver
}

// Observed is a container as the runtime sees it.
type Observed struct {
	ID        string
	Labels    map[string]string
	Running   bool
	PID       int
	StartedAt time.Time
	Exit      *Exit // of one that ended
}

// Exit is how a container's process ended.
type Exit struct {
	Code      int
	OOMKilled bool
	At        time.Time
}
