// Package api is the Docker-Engine-compatible HTTP API: decode, check, one store call, render.
// agent serves it on the unix socket, and its node-local part to other nodes.
package api

import (
	"log/slog"
	"net/http"
	"time"
)

// Config is what the API serves from.
type Config struct {
	Node       Node
	Containers Containers
	Images     Images
	Nodes      NodeTransport
	// Version of this program and of containerd, for GET /version and /info.
	Version, ContainerdVersion string
	DataDir                    string
	StartedAt                  time.Time
	Log                        *slog.Logger
}

// API answers Engine API requests.
type API struct{}

func New(cfg Config) *API { panic("contract") }

// Handler is the whole API, for the unix socket.
func (a *API) Handler() http.Handler { panic("contract") }

// NodeLocal is the part that other nodes may call over swarm-node: /containers/*, /images/* except blobs.
func (a *API) NodeLocal() http.Handler { panic("contract") }
