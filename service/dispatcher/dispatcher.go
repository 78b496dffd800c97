// Package dispatcher hands assignments to agents and takes their statuses: sessions, node liveness, status write-back.
// agent registers it on every manager's port; raftstore is its only memory.
package dispatcher

import (
	"context"
	"log/slog"

	"swarm/raftstore"
	"swarm/rpc"
)

// Config is what a dispatcher needs.
type Config struct {
	NodeID string // of this manager
	Store  *raftstore.Store
	Log    *slog.Logger
}

// Dispatcher implements rpc.DispatcherServer.
type Dispatcher struct {
	rpc.UnimplementedDispatcherServer
}

func New(cfg Config) *Dispatcher { panic("contract") }

// Run writes session and task statuses back until ctx ends; sessions are closed then.
func (d *Dispatcher) Run(ctx context.Context) error { panic("contract") }

// RunLiveness writes nodes down after the grace time. Leader only: run it inside WhileLeader.
func (d *Dispatcher) RunLiveness(ctx context.Context) error { panic("contract") }
