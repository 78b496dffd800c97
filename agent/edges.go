package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http"

	"swarm/agent/worker"
	"swarm/api"
	"swarm/gossip"
	"swarm/raftstore"
	"swarm/rpc"

	"github.com/moby/moby/api/types/swarm"
)

// Edges is everything that an agent touches outside of the control plane: with others in place of the real ones, whole
// agents run in memory and virtual time. Only node.json, the certificate, the data key and the worker's file of tasks
// are real files in any case, below Config.DataDir, which must exist.
type Edges struct {
	// Network carries what this node sends to others, and gossip.
	Network gossip.Network
	// Sockets opens the API's socket and the node port.
	Sockets Sockets
	Runtime worker.Runtime
	// OpenImages makes the image store. Peers reaches other nodes' blobs.
	OpenImages func(peers http.RoundTripper) Images
	// Containers is what Runtime runs, as the API shows it.
	Containers api.Containers
	// RemoveLog deletes the log of a container whose task is gone.
	RemoveLog func(ctx context.Context, containerID string) error
	// Store says where and how a manager's replica is kept: disk, timing, bounds of snapshots. The agent fills in the rest.
	Store raftstore.Config
	// Replica is told of each replica that this node opens as a manager, for those who check it from outside; what it
	// returns is called when the replica is closed. It may be nil.
	Replica func(*raftstore.Store) (closed func())
	// NoSync leaves writing the worker's file to the disk to the kernel: faster, where no machine is lost.
	NoSync bool
	// Description is what this node reports of itself.
	Description swarm.NodeDescription
	// ContainerdVersion is for GET /version.
	ContainerdVersion string
	// Beside runs as long as the agent does; what it returns ends the agent. It may be nil.
	Beside func(ctx context.Context) error
	// Farewell is why the agent ends, as the cluster is told: restart or shutdown; nil: restart. It must be quick.
	Farewell func() string
	// Log may be nil.
	Log *slog.Logger
}

// Sockets are listening sockets that stay open while the agent is away, until they are released.
type Sockets interface {
	// Listen opens or takes over a socket; network is tcp (address host:port) or unix (a path).
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	// Release closes a socket for good. One that is not held is no error.
	Release(ctx context.Context, network, address string) error
}

// Images is this node's image store, for the worker, the API, the managers and, as a handler of blobs, other nodes.
type Images interface {
	worker.Images
	api.Images
	http.Handler
	// Held lists every complete image; Changed receives when the list may have changed.
	Held(ctx context.Context) ([]*rpc.HeldImage, error)
	Changed() <-chan struct{}
}
