// Package api is the Docker-Engine-compatible HTTP API: decode, check, one store call, render.
// agent serves it on the unix socket, and its node-local part to other nodes.
package api

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Config is what the API serves from.
type Config struct {
	Node       Node
	Containers Containers
	Images     Images
	Nodes      NodeTransport
	// Description is what this node reports of itself: platform, resources, engine labels.
	Description swarm.NodeDescription
	// NewJoinToken makes a join token that names a root certificate; without it tokens cannot be rotated.
	NewJoinToken func(rootPEM []byte) (string, error)
	// Version of this program and of containerd, for GET /version and /info.
	Version, ContainerdVersion string
	DataDir                    string
	StartedAt                  time.Time
	// Measure reads what the rest of the agent counts; it must not block. Without it these metrics are zero.
	Measure func() Measured
	Log     *slog.Logger
}

// API answers Engine API requests.
type API struct {
	cfg        Config
	log        *slog.Logger
	events     *eventHub
	metrics    *metrics
	renderings renderings
	bodies     bodies
	// containers remembers which task a container id belongs to.
	containers containerIndex
}

// New makes an API that answers from cfg. Serve gives it a listener and its background work.
func New(cfg Config) *API {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &API{
		cfg:    cfg,
		log:    log.With("component", "api"),
		events: newEventHub(),
	}
	a.metrics = newMetrics(a)
	return a
}

// Handler is the whole API, for the unix socket.
func (a *API) Handler() http.Handler { return a.router(a.routes(), requestsMax, streamsMax, a.metrics) }

// NodeLocal is the part that other nodes may call over swarm-node: containers, their logs and images, all of this
// node alone and read only. It never asks another node, so requests cannot go round in circles.
func (a *API) NodeLocal() http.Handler {
	return a.router(a.nodeRoutes(), nodeRequestsMax, nodeStreamsMax, nil)
}
