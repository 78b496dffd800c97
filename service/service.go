// Package service is the orchestrator: one loop that reconciles, places, restarts and reaps tasks by pure decisions.
// agent runs it on the leader.
package service

import (
	"context"
	"log/slog"

	"swarm/raftstore"
)

// Run keeps the cluster's services true until ctx ends. Leader only: run it inside WhileLeader.
func Run(ctx context.Context, store *raftstore.Store, log *slog.Logger) error { panic("contract") }
