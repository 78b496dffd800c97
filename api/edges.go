package api

import (
	"context"
	"io"
	"net/http"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
)

// Node is the life of this node in a cluster. Implemented by agent.
type Node interface {
	// Status never blocks.
	Status() Status
	// Store is that of Status alone, for what asks often.
	Store() *raftstore.Store
	Init(ctx context.Context, r swarm.InitRequest) (nodeID string, err error)
	Join(ctx context.Context, r swarm.JoinRequest) error
	Leave(ctx context.Context, force bool) error
	// PreviewRecovery says what Init with ForceNewCluster would do. It needs a manager whose cluster has no leader.
	PreviewRecovery(ctx context.Context) (Recovery, error)
}

// Status is where this node stands.
type Status struct {
	NodeID    string
	ClusterID string
	Address   string // host part as advertised
	State     swarm.LocalNodeState
	Error     string
	// Store is set while this node is a manager whose replica is usable.
	Store *raftstore.Store
	// Managers are the managers this node knows: node id and host:port.
	Managers []swarm.Peer
	// Suspects are ids of nodes that new connections avoid.
	Suspects []string
	// Warnings are what an operator should know of this agent besides.
	Warnings []string
	// Heard says that some manager hears this node.
	Heard bool
	// Gossip are the members that gossip sees.
	Gossip []GossipMember
}

// GossipMember is one node as gossip sees it; it appears in GET /info as SwarmMembers.
type GossipMember struct {
	NodeID  string
	Address string
	State   string // alive, suspect, dead or left
}

// Recovery is the answer of GET /swarm/recovery: what becoming a cluster of one would mean for a manager without a quorum.
type Recovery struct {
	// NodeID and Address are of the manager that would be the only one.
	NodeID  string
	Address string
	// Services and Tasks are how many are kept.
	Services, Tasks int
	// LastChange is when the newest change that is kept was made. What other managers committed after LeaderlessSince, if they
	// still had a majority, is lost.
	LastChange      time.Time
	LeaderlessSince time.Time
	// Unconfirmed is how many changes are kept that are not known to have been committed.
	Unconfirmed int
	// Removed are the managers that become workers; Reachable are the ids of those that can be reached now.
	Removed   []swarm.Peer
	Reachable []string `json:",omitempty"`
}

// Containers is this node's containers. Implemented by agent on worker, containerd and keeper.
type Containers interface {
	List(ctx context.Context) ([]container.Summary, error)
	// Inspect takes a full id, name or id prefix. NotFound with docker's text "No such container: X".
	Inspect(ctx context.Context, id string) (container.InspectResponse, error)
	Logs(ctx context.Context, id string, o LogOptions, emit func(LogLine) error) error
}

// LogOptions choose lines of a container's log.
type LogOptions struct {
	Stdout, Stderr, Follow bool
	Since, Until           time.Time
	Tail                   int // -1: all
}

// LogLine is one line of output, with its newline.
type LogLine struct {
	Stream string // stdout or stderr
	Time   time.Time
	Text   []byte
}

// Images is this node's image store. Implemented by agent/images.
type Images interface {
	// Load imports a docker-save or OCI archive and reports each loaded reference.
	Load(ctx context.Context, archive io.Reader, progress func(message string)) error
	List(ctx context.Context) ([]image.Summary, error)
	Inspect(ctx context.Context, ref string) (image.InspectResponse, error)
	Remove(ctx context.Context, ref string, force bool) ([]image.DeleteResponse, error)
	// Pull fetches from holders (host:port of node ports), else the registry.
	Pull(ctx context.Context, ref string, holders []string, auth string, progress func(message string)) error
	// Distribution resolves a reference to its digest and platforms: locally, else in the registry.
	Distribution(ctx context.Context, ref, auth string) (registry.DistributionInspect, error)
}

// NodeTransport reaches the node-local API (swarm-node) of another node. Implemented on rpc: the URL's host is the host:port of its node port.
type NodeTransport = http.RoundTripper
