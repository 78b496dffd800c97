package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	shimapi "github.com/containerd/containerd/api/runtime/task/v3"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"
)

// shimTimeout bounds one question to a shim.
const shimTimeout = time.Second

// recordShims asks every shim how its process ended. It runs while containerd is down: on
// its start containerd deletes ended tasks, and with them their exit codes.
func (r *Runtime) recordShims(ctx context.Context) {
	dir := filepath.Join(r.cfg.RunDir, "state", "io.containerd.runtime.v2.task", namespace)
	bundles, err := os.ReadDir(dir)
	if err != nil {
		return // nothing ran since the machine started
	}
	for _, b := range bundles {
		if checkID(b.Name()) != nil {
			continue
		}
		if err := r.recordShim(ctx, filepath.Join(dir, b.Name()), b.Name()); err != nil {
			r.log.Warn("shim does not answer", "container", b.Name(), "err", err)
		}
	}
}

func (r *Runtime) recordShim(ctx context.Context, bundle, id string) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), shimTimeout)
	defer cancel()
	conn, err := dialShim(ctx, bundle)
	if err != nil {
		return err
	}
	c := ttrpc.NewClient(conn)
	defer c.Close()
	s, err := shimapi.NewTTRPCTaskClient(c).State(ctx, &shimapi.StateRequest{ID: id})
	if err != nil {
		return err
	}
	if s.Status == taskapi.Status_STOPPED {
		_, err = r.recordExit(id, int(s.ExitStatus), s.ExitedAt.AsTime())
	}
	return err
}

// dialShim reaches a shim by the address that it left in its bundle.
func dialShim(ctx context.Context, bundle string) (net.Conn, error) {
	text, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return nil, err
	}
	var bootstrap struct{ Address, Protocol string }
	if err := json.Unmarshal(text, &bootstrap); err != nil {
		return nil, fmt.Errorf("bootstrap.json of a shim: %w", err)
	}
	if bootstrap.Protocol != "ttrpc" {
		return nil, notYet("shim speaks %q", bootstrap.Protocol)
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", strings.TrimPrefix(bootstrap.Address, "unix://"))
}
