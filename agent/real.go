package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"swarm/agent/containerd"
	"swarm/agent/images"
	"swarm/agent/keeper"
	"swarm/gossip"
	"swarm/rpc"

	"golang.org/x/sync/errgroup"
)

const (
	socketGroup = "swarm"
	socketMode  = 0o660
	// logDirName holds the containers' logs below the data directory.
	logDirName = "logs"
	// gcPercent lets the heap grow to three times what lives in it. With Go's 100, a busy manager spends a fifth of its time on
	// collecting, as little lives there; the variable GOGC has the last word.
	gcPercent = 200
)

// Run is the agent of this machine until ctx ends. Containers, keeper and containerd live on.
func Run(ctx context.Context, cfg Config) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level(cfg.Debug)}))
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
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
	logDir := filepath.Join(cfg.DataDir, logDirName)
	holder, err := keeper.Ensure(ctx, keeper.Config{RunDir: cfg.RunDir, LogDir: logDir, Executable: executable, Log: log.With("component", "keeper")})
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
	return RunOn(ctx, cfg, Edges{
		Network: gossip.Kernel{},
		Sockets: heldSockets{holder},
		Runtime: runtime,
		OpenImages: func(peers http.RoundTripper) Images {
			return images.New(images.Config{Client: runtime.Client(), Peers: peers, InsecureRegistries: cfg.InsecureRegistries, Log: log})
		},
		Containers:        containers{runtime: runtime, logDir: logDir},
		RemoveLog:         holder.RemoveLog,
		Description:       description,
		ContainerdVersion: containerdVersion(ctx, runtime, log),
		Beside:            both(holder.Run, runtime.Run),
		Farewell:          farewell,
		Log:               log,
	})
}

// RunKeeper is the keeper process.
func RunKeeper(ctx context.Context, runDir, logDir string) error {
	return keeper.Run(ctx, keeper.Config{
		RunDir: runDir,
		LogDir: logDir,
		Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)).With("component", "keeper"),
	})
}

// systemctlMax bounds the question whether the machine goes down.
const systemctlMax = 500 * time.Millisecond

// farewell tells the end of the machine from that of the agent alone, where systemd knows it.
func farewell() string {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return rpc.GoodbyeRestart
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemctlMax)
	defer cancel()
	// Its exit code is not 0 unless all is well; what it prints counts.
	state, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	if strings.TrimSpace(string(state)) == "stopping" {
		return rpc.GoodbyeShutdown
	}
	return rpc.GoodbyeRestart
}

func both(a, b func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return a(ctx) })
		g.Go(func() error { return b(ctx) })
		return g.Wait()
	}
}

// heldSockets are the keeper's, which keeps them open while the agent is away.
type heldSockets struct{ keeper *keeper.Client }

// Listen gives sockets with a path to root and the group swarm.
func (s heldSockets) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network != "unix" {
		return s.keeper.Listen(ctx, network, address, 0, 0)
	}
	gid := os.Getgid()
	if g, err := user.LookupGroup(socketGroup); err == nil {
		if id, err := strconv.Atoi(g.Gid); err == nil {
			gid = id
		}
	}
	return s.keeper.Listen(ctx, network, address, socketMode, gid)
}

func (s heldSockets) Release(ctx context.Context, network, address string) error {
	return s.keeper.Release(ctx, network, address)
}

func level(debug bool) slog.Level {
	if debug {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
