// Package containerd is the worker's Runtime on containerd, and keeps the private containerd process.
// agent starts it and gives its runtime to agent/worker.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"
)

const (
	// namespace is the containerd namespace of everything that is ours.
	namespace = "swarm"
	// snapshotter is the one that every container uses.
	snapshotter = "overlayfs"
	// defaultCgroupParent is where containers go when nothing else is said.
	defaultCgroupParent = "/swarm"
	// settleQueueMax bounds ended processes that wait for being settled; who looks at the container later asks again.
	settleQueueMax = 1024
	// outageMax is how long a call waits for containerd to come back.
	outageMax = 15 * time.Second
)

// Config says where containerd lives.
type Config struct {
	// Address of an existing containerd's socket; empty: start and watch a private one.
	Address string
	// BinDir holds containerd and its shim (next to the program); empty: looked up in PATH.
	BinDir  string
	DataDir string // containerd's root, volumes, and the small files of containers
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

// Runtime implements worker.Runtime. What must survive the agent is in containerd's
// own records and in one directory per container; fields here are caches and handles.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	client  *client.Client
	process *process // nil when an existing containerd is used
	runc    string
	settles chan string // containers whose process ended

	images imageCache
	users  userCache

	deletes singleflight.Group // of tasks, by container id

	statesMu  sync.Mutex // one state file is changed at a time
	volumesMu sync.Mutex // one volume is filled at a time

	mu       sync.Mutex
	prepared map[string]prepared // created and not yet started, by container id
	settling map[string]bool     // ids that are in settles or are being settled
}

var _ worker.Runtime = (*Runtime)(nil)

// Open adopts the running private containerd or starts one, and connects. FailedPrecondition errors name what the machine lacks (runc, overlayfs, rights).
func Open(ctx context.Context, cfg Config) (*Runtime, error) {
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = defaultCgroupParent
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	runc, err := preflight(cfg)
	if err != nil {
		return nil, err
	}
	for _, dir := range []*string{&cfg.DataDir, &cfg.RunDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, fmt.Errorf("find the runtime's directories: %w", err)
		}
	}
	r := &Runtime{
		cfg:      cfg,
		log:      cfg.Log.With("component", "containerd"),
		runc:     runc,
		settles:  make(chan string, settleQueueMax),
		prepared: make(map[string]prepared),
		settling: make(map[string]bool),
	}
	for _, dir := range []string{cfg.DataDir, cfg.RunDir, r.containersDir(), r.volumesDir(), r.mountsDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the runtime's directories: %w", err)
		}
	}
	r.unmountLeftovers()
	address := cfg.Address
	if address == "" {
		if r.process, err = newProcess(cfg, r.log, r.recordShims); err != nil {
			return nil, err
		}
		if err := r.process.ensure(ctx); err != nil {
			return nil, err
		}
		address = r.process.socket
	}
	if r.client, err = connect(ctx, address); err != nil {
		return nil, err
	}
	if err := r.removeLeftoverViews(ctx); err != nil {
		return nil, errors.Join(err, r.client.Close())
	}
	return r, nil
}

// connect opens a client and makes sure that something answers.
func connect(ctx context.Context, address string) (*client.Client, error) {
	address = strings.TrimPrefix(address, "unix://")
	c, err := client.New(address, client.WithDefaultNamespace(namespace), client.WithTimeout(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := c.Version(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("containerd at %s does not answer: %w: %w", address, err, errdefs.ErrUnavailable)
	}
	return c, nil
}

// Run watches containerd and starts it again when it dies, until ctx ends. Containers and containerd itself live on.
func (r *Runtime) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.settleEnded(ctx) })
	if r.process == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return r.process.watch(ctx, r.reconnect)
}

// reconnect makes the client try at once instead of at the end of its back-off.
func (r *Runtime) reconnect() {
	if c, ok := r.client.Conn().(interface{ ResetConnectBackoff() }); ok {
		c.ResetConnectBackoff()
	}
}

// Client is the connection, for agent/images; its default namespace is set.
func (r *Runtime) Client() *client.Client { return r.client }

// Shutdown ends the private containerd process; containers must be gone, and Run must have returned.
func (r *Runtime) Shutdown(ctx context.Context) error {
	err := r.client.Close()
	if r.process == nil {
		return err
	}
	r.unmountLeftovers()
	err = errors.Join(err, r.process.stop(ctx))
	endShims(ctx, r.cfg.CgroupParent)
	return errors.Join(err, removeCgroups(r.cfg.CgroupParent))
}

// Version of the containerd that is connected.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	v, err := r.client.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", err)
	}
	return v.Version, nil
}

func (r *Runtime) containers() containers.Store     { return r.client.ContainerService() }
func (r *Runtime) snapshots() snapshots.Snapshotter { return r.client.SnapshotService(snapshotter) }
func (r *Runtime) containersDir() string            { return filepath.Join(r.cfg.DataDir, "containers") }
func (r *Runtime) containerDir(id string) string    { return filepath.Join(r.containersDir(), id) }
func (r *Runtime) volumesDir() string               { return filepath.Join(r.cfg.DataDir, "volumes") }
func (r *Runtime) mountsDir() string                { return filepath.Join(r.cfg.RunDir, "m") }
func (r *Runtime) cgroupPath(id string) string      { return filepath.Join(r.cfg.CgroupParent, id) }

// outlast repeats an idempotent call while containerd is away for a moment.
func outlast(ctx context.Context, call func() error) error {
	deadline := time.Now().Add(outageMax)
	for retry := waitRetryMin; ; retry = min(2*retry, waitRetryMax) {
		err := call()
		if !errdefs.IsUnavailable(err) || time.Now().After(deadline) || !pause(ctx, retry) {
			return err
		}
	}
}

// pause waits for a retry; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
