package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"swarm/api"
	"swarm/rpc"

	"github.com/containerd/errdefs"
)

// openMetrics opens a local socket for scrapes and, if the configuration names an address, a port for members of the cluster.
func (n *node) openMetrics(ctx context.Context) ([]api.MetricsListener, error) {
	path := filepath.Join(n.cfg.RunDir, "metrics.sock")
	local, err := n.edges.Sockets.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the metrics socket %s: %w", path, err)
	}
	all := []api.MetricsListener{{Listener: local, Profiles: n.cfg.Debug}}
	if n.cfg.MetricsAddr == "" {
		return all, nil
	}
	remote, err := n.edges.Sockets.Listen(ctx, "tcp", n.cfg.MetricsAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the metrics port --metrics-addr %s: %w", n.cfg.MetricsAddr, err), local.Close())
	}
	return append(all, api.MetricsListener{Listener: remote, TLS: rpc.MembersOnly(n.credentials)}), nil
}

// credentials are those of the cluster that this node is in now.
func (n *node) credentials() (rpc.Identity, rpc.Authorizer, error) {
	m := n.current()
	if m == nil {
		return nil, nil, errdefs.ErrUnavailable.WithMessage("this node is in no swarm")
	}
	return m.identity, m, nil
}

// measure reads what the parts that the API does not know count.
func (n *node) measure() api.Measured {
	measured := api.Measured{WorkerTasks: n.worker.TaskStates()}
	m := n.current()
	if m == nil {
		return measured
	}
	if mg := m.manager.Load(); mg != nil {
		served, decided := mg.dispatcher.Stats(), mg.orchestrator.Stats()
		measured.Manager = &api.MeasuredManager{
			Sessions: served.Sessions, Silences: served.Silences,
			StatusesWritten: served.StatusesWritten, StatusesWaiting: served.StatusesWaiting, Send: served.Send, SendsWaiting: served.SendsWaiting,
			SchedulingDelay: decided.Delay, Decide: decided.Decide,
		}
	}
	return measured
}
