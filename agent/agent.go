// Package agent is one node's life: it builds every part, and starts and stops them by the node's role.
// cli's agent command runs it; nothing else constructs long-lived things.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"swarm/agent/worker"
	"swarm/api"
	"swarm/secrets/pki"

	"golang.org/x/sync/errgroup"
)

// Config is the flags of swarm agent.
type Config struct {
	DataDir, RunDir           string
	ListenAddr, AdvertiseAddr string // of the node port; ListenAddr defaults to 0.0.0.0:2377
	GossipPort                int
	Hostname, CgroupParent    string
	Containerd                string   // address of an existing containerd
	NodeResources             []string // NanoCPUs=…, MemoryBytes=…
	NodeLabels                []string // engine labels, key=value
	InsecureRegistries        []string // host:port that may be spoken to over plain HTTP
	MetricsAddr               string   // host:port where other members may read metrics; empty: nowhere
	Debug                     bool
	Version                   string
}

// RunOn is an agent on the given edges until ctx ends. The API is served on Sockets' "unix" socket RunDir/swarm.sock.
func RunOn(ctx context.Context, cfg Config, edges Edges) error {
	n, err := build(cfg, edges)
	if err != nil {
		return err
	}
	return n.run(ctx)
}

// build makes the parts that live as long as the agent; none of them runs yet.
func build(cfg Config, edges Edges) (*node, error) {
	if edges.Log == nil {
		edges.Log = slog.New(slog.DiscardHandler)
	}
	n := &node{cfg: cfg, edges: edges, log: edges.Log.With("component", "node"), rootLog: edges.Log}
	n.images = edges.OpenImages(n.transport())
	var err error
	n.worker, err = worker.Open(worker.Config{
		NodeID:    n.id,
		Hostname:  edges.Description.Hostname,
		Dir:       filepath.Join(cfg.DataDir, "worker"),
		NoSync:    edges.NoSync,
		Runtime:   edges.Runtime,
		Images:    n.images,
		RemoveLog: edges.RemoveLog,
		Log:       edges.Log.With("component", "worker"),
	})
	if err != nil {
		return nil, err
	}
	n.api = api.New(api.Config{
		Node:              n,
		Containers:        edges.Containers,
		Images:            n.images,
		Nodes:             n.transport(),
		Description:       edges.Description,
		NewJoinToken:      pki.NewJoinToken,
		Version:           cfg.Version,
		ContainerdVersion: edges.ContainerdVersion,
		DataDir:           cfg.DataDir,
		StartedAt:         time.Now(),
		Measure:           n.measure,
		Log:               edges.Log,
	})
	return n, nil
}

// run starts what lives as long as the agent.
func (n *node) run(ctx context.Context) error {
	if err := checkMetricsAddr(n.cfg.MetricsAddr); err != nil {
		return err
	}
	n.resume(ctx)
	listener, err := n.edges.Sockets.Listen(ctx, "unix", n.socketPath())
	if err != nil {
		return fmt.Errorf("open the API socket %s: %w", n.socketPath(), err)
	}
	scraped, err := n.openMetrics(ctx)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.api.ServeMetrics(ctx, scraped) })
	g.Go(func() error { return n.serveMetricsPort(ctx) })
	if n.edges.Beside != nil {
		g.Go(func() error { return n.edges.Beside(ctx) })
	}
	g.Go(func() error { return n.worker.Run(ctx) })
	g.Go(func() error { return n.api.Serve(ctx, listener) })
	g.Go(func() error { return n.runMemberships(ctx) })
	n.log.Info("agent started", "version", n.cfg.Version, "socket", n.socketPath(), "state", n.Status().State)
	err = g.Wait()
	n.log.Info("agent stopped", "containers", "running on")
	return err
}

func (n *node) socketPath() string { return socketPath(n.cfg) }

func socketPath(cfg Config) string { return filepath.Join(cfg.RunDir, "swarm.sock") }

// transport is the way to other nodes' node-local API; it follows the node from cluster to cluster.
func (n *node) transport() clusterTransport { return clusterTransport{n} }
