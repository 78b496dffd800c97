// Package agent is one node's life: it builds every part, and starts and stops them by the node's role.
// cli's agent command runs it; nothing else constructs long-lived things.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"swarm/agent/containerd"
	"swarm/agent/images"
	"swarm/agent/keeper"
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
	Debug                     bool
	Version                   string
}

const (
	socketGroup = "swarm"
	socketMode  = 0o660
	// logDirName holds the containers' logs below the data directory.
	logDirName = "logs"
)

// Run is the agent until ctx ends. Containers, keeper and containerd live on.
func Run(ctx context.Context, cfg Config) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level(cfg.Debug)}))
	unlock, err := prepareDirs(cfg)
	if err != nil {
		return err
	}
	defer unlock()

	description, err := describe(cfg)
	if err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	runtimeConfig := containerd.Config{
		Address:      cfg.Containerd,
		BinDir:       filepath.Dir(executable),
		DataDir:      cfg.DataDir,
		RunDir:       cfg.RunDir,
		CgroupParent: cfg.CgroupParent,
		Log:          log,
	}
	// An agent that cannot run containers here must leave no keeper behind.
	if err := containerd.Preflight(runtimeConfig); err != nil {
		return err
	}
	holder, err := keeper.Ensure(ctx, keeper.Config{
		RunDir:     cfg.RunDir,
		LogDir:     filepath.Join(cfg.DataDir, logDirName),
		Executable: executable,
		Log:        log.With("component", "keeper"),
	})
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			// The keeper holds the API socket of an earlier agent: nobody shall wait there for one that does not come up.
			err = errors.Join(err, holder.Release(ctx, "unix", socketPath(cfg)))
		}
	}()
	runtimeConfig.Logs = containerLogs{holder}
	runtime, err := containerd.Open(ctx, runtimeConfig)
	if err != nil {
		return err
	}
	n := &node{cfg: cfg, log: log.With("component", "node"), rootLog: log, description: description, keeper: holder, runtime: runtime}
	n.images = images.New(images.Config{
		Client:             runtime.Client(),
		Peers:              n.transport(),
		InsecureRegistries: cfg.InsecureRegistries,
		Log:                log,
	})
	n.worker, err = worker.Open(worker.Config{
		NodeID:    n.id,
		Hostname:  description.Hostname,
		Dir:       filepath.Join(cfg.DataDir, "worker"),
		Runtime:   runtime,
		Images:    n.images,
		RemoveLog: holder.RemoveLog,
		Log:       log.With("component", "worker"),
	})
	if err != nil {
		return err
	}
	n.api = api.New(api.Config{
		Node:              n,
		Containers:        containers{runtime: runtime, logDir: filepath.Join(cfg.DataDir, logDirName)},
		Images:            n.images,
		Nodes:             n.transport(),
		NewJoinToken:      pki.NewJoinToken,
		Version:           cfg.Version,
		ContainerdVersion: containerdVersion(ctx, runtime, log),
		DataDir:           cfg.DataDir,
		StartedAt:         time.Now(),
		Log:               log,
	})
	return n.run(ctx)
}

// run starts what lives as long as the agent.
func (n *node) run(ctx context.Context) error {
	if err := n.resume(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	listener, err := n.listenAPI(ctx)
	if err != nil {
		return err
	}
	g.Go(func() error { return n.keeper.Run(ctx) })
	g.Go(func() error { return n.runtime.Run(ctx) })
	g.Go(func() error { return n.worker.Run(ctx) })
	g.Go(func() error { return n.api.Serve(ctx, listener) })
	g.Go(func() error { return n.runMemberships(ctx) })
	n.log.Info("agent started", "version", n.cfg.Version, "socket", n.socketPath(), "state", n.Status().State)
	err = g.Wait()
	n.log.Info("agent stopped", "containers", "running on")
	return err
}

// RunKeeper is the keeper process.
func RunKeeper(ctx context.Context, runDir, logDir string) error {
	return keeper.Run(ctx, keeper.Config{
		RunDir: runDir,
		LogDir: logDir,
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)).With("component", "keeper"),
	})
}

func (n *node) socketPath() string { return socketPath(n.cfg) }

func socketPath(cfg Config) string { return filepath.Join(cfg.RunDir, "swarm.sock") }

// listenAPI takes the API socket from the keeper, which keeps it open while the agent is away.
func (n *node) listenAPI(ctx context.Context) (net.Listener, error) {
	gid := os.Getgid()
	if g, err := user.LookupGroup(socketGroup); err == nil {
		if id, err := strconv.Atoi(g.Gid); err == nil {
			gid = id
		}
	}
	l, err := n.keeper.Listen(ctx, "unix", n.socketPath(), socketMode, gid)
	if err != nil {
		return nil, fmt.Errorf("open the API socket %s: %w", n.socketPath(), err)
	}
	return l, nil
}

// transport is the way to other nodes' node-local API; it follows the node from cluster to cluster.
func (n *node) transport() clusterTransport { return clusterTransport{n} }

func level(debug bool) slog.Level {
	if debug {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
