package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"

	"swarm/agent/containerd"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"
)

// describe is what this node reports of itself: the machine's facts, then what the flags say instead.
func describe(cfg Config) (swarm.NodeDescription, error) {
	d := swarm.NodeDescription{
		Hostname: cfg.Hostname,
		Platform: swarm.Platform{OS: runtime.GOOS, Architecture: machine()},
		Engine: swarm.EngineDescription{
			EngineVersion: cfg.Version,
			Labels:        map[string]string{},
			Plugins: []swarm.PluginDescription{
				{Type: "Log", Name: "json-file"},
				{Type: "Log", Name: "none"},
				{Type: "Network", Name: "host"},
				{Type: "Network", Name: "null"},
				{Type: "Volume", Name: "local"},
			},
		},
	}
	if d.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return d, fmt.Errorf("find the host's name (--hostname sets it): %w", err)
		}
		d.Hostname = name
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return d, fmt.Errorf("read the machine's memory: %w", err)
	}
	d.Resources.NanoCPUs = int64(runtime.NumCPU()) * 1e9
	d.Resources.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	if err := overrideResources(&d.Resources, cfg.NodeResources); err != nil {
		return d, err
	}
	for _, l := range cfg.NodeLabels {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return d, fmt.Errorf("--node-label %q has no key: write key=value", l)
		}
		d.Engine.Labels[key] = value
	}
	return d, nil
}

func overrideResources(r *swarm.Resources, settings []string) error {
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		amount, err := strconv.ParseInt(value, 10, 64)
		if err != nil || amount < 0 {
			return fmt.Errorf("--node-resources %q: write NanoCPUs=N or MemoryBytes=N with a whole number", s)
		}
		switch strings.ToLower(key) {
		case "nanocpus":
			r.NanoCPUs = amount
		case "memorybytes":
			r.MemoryBytes = amount
		default:
			return fmt.Errorf("--node-resources %q: only NanoCPUs and MemoryBytes can be set", s)
		}
	}
	return nil
}

// machine is the hardware name of uname(2), such as x86_64: what the Engine API calls a node's architecture.
func machine() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// containerdVersion is for GET /version only, so a containerd that does not answer costs no more than an empty text.
func containerdVersion(ctx context.Context, r *containerd.Runtime, log *slog.Logger) string {
	v, err := r.Version(ctx)
	if err != nil {
		log.Warn("containerd's version not known", "err", err)
	}
	return v
}
