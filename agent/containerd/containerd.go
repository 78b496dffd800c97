// Package containerd is the worker's Runtime on containerd, and keeps the private containerd process.
// agent starts it and gives its runtime to agent/worker.
package containerd

import (
	"context"
	"log/slog"

	"github.com/containerd/containerd/v2/client"
)

// Config says where containerd lives.
type Config struct {
	// Address of an existing containerd's socket; empty: start and watch a private one.
	Address string
	// BinDir holds containerd and its shim (next to the program); empty: looked up in PATH.
	BinDir  string
	DataDir string // containerd's root
	RunDir  string // its state and sockets
	// CgroupParent is where containers go, e.g. /swarm; "" is /swarm.
	CgroupParent string
	Logs         Logs
	Log          *slog.Logger
}

// Logs opens a container's FIFOs. Implemented by agent on keeper.Client.
type Logs interface {
	OpenLog(ctx context.Context, containerID string, driver string, options map[string]string) (stdout, stderr string, err error)
	CloseLog(ctx context.Context, containerID string) error
}

// Runtime implements worker.Runtime.
type Runtime struct{}

// Open adopts the running private containerd or starts one, and connects. FailedPrecondition errors name what the machine lacks (runc, overlayfs, rights).
func Open(ctx context.Context, cfg Config) (*Runtime, error) { panic("contract") }

// Run watches containerd and starts it again when it dies, until ctx ends. Containers and containerd itself live on.
func (r *Runtime) Run(ctx context.Context) error { panic("contract") }

// Client is the connection, for agent/images; its default namespace is set.
func (r *Runtime) Client() *client.Client { panic("contract") }

// Shutdown ends the private containerd process; containers must be gone.
func (r *Runtime) Shutdown(ctx context.Context) error { panic("contract") }
