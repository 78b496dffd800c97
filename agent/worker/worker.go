// Package worker runs this node's assigned tasks; it declares the Runtime and Images that it needs.
// agent feeds it assignments and carries its statuses to the managers.
package worker

import (
	"context"
	"log/slog"

	"swarm/rpc"

	"github.com/moby/moby/api/types/swarm"
)

// Config is what a worker needs.
type Config struct {
	NodeID   func() string // known once the node joined
	Hostname string
	// Dir holds the small file of assigned tasks and their progress.
	Dir     string
	Runtime Runtime
	Images  Images
	// RemoveLog deletes the log of a container whose task is gone.
	RemoveLog func(ctx context.Context, containerID string) error
	Log       *slog.Logger
}

// Worker keeps the assigned tasks true.
type Worker struct{}

func Open(cfg Config) (*Worker, error) { panic("contract") }

// Run lives until ctx ends. Containers keep running when it returns.
func (w *Worker) Run(ctx context.Context) error { panic("contract") }

// Apply takes assignments from a manager (full set or change).
func (w *Worker) Apply(a *rpc.Assignments) { panic("contract") }

// Statuses returns the latest status of every task that changed since the last acknowledged
// call; Changed receives when there is something. Unacked makes all of them due again (a new session).
func (w *Worker) Changed() <-chan struct{}               { panic("contract") }
func (w *Worker) Statuses() []*rpc.TaskStatus            { panic("contract") }
func (w *Worker) Acknowledge(statuses []*rpc.TaskStatus) { panic("contract") }
func (w *Worker) Resend()                                { panic("contract") }

// Clear stops and removes every task: the node left its cluster.
func (w *Worker) Clear(ctx context.Context) error { panic("contract") }

// Tasks is what runs here, for the node-local API.
func (w *Worker) Tasks() []Running { panic("contract") }

// Running is one task of this node.
type Running struct {
	TaskID, ServiceID, ContainerID, Name string
	State                                swarm.TaskState
	Container                            Container
}

// ContainerID is the id of a task's container: 64 hex digits, the same each time it is asked.
func ContainerID(taskID string) string { panic("contract") }
