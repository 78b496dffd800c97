package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"swarm/api"
	"swarm/rpc"

	"github.com/containerd/errdefs"
)

const (
	// metricsRetry is how often a port for metrics that cannot be had is tried again.
	metricsRetry = 10 * time.Second
	// metricsReleaseMax bounds giving it back.
	metricsReleaseMax = time.Second
)

// checkMetricsAddr refuses what will never be an address to listen on.
func checkMetricsAddr(address string) error {
	if address == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(address)
	if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || number == 0 || host != "" && net.ParseIP(host) == nil {
		return fmt.Errorf("--metrics-addr %q: give an IP address of this machine and a port, such as 0.0.0.0:9323: %w", address, errdefs.ErrInvalidArgument)
	}
	return nil
}

// openMetrics opens the local socket for scrapes.
func (n *node) openMetrics(ctx context.Context) (api.MetricsListener, error) {
	path := filepath.Join(n.cfg.RunDir, "metrics.sock")
	local, err := n.edges.Sockets.Listen(ctx, "unix", path)
	if err != nil {
		return api.MetricsListener{}, fmt.Errorf("open the metrics socket %s: %w", path, err)
	}
	return api.MetricsListener{Listener: local, Profiles: n.cfg.Debug}, nil
}

// serveMetricsPort serves scrapes by members of the cluster until ctx ends. A port that another program has, or an address that
// this machine does not have yet, is a warning and is tried again: what an agent does is worth more than to be measured.
func (n *node) serveMetricsPort(ctx context.Context) error {
	for address := n.cfg.MetricsAddr; address != "" && ctx.Err() == nil; {
		err := n.serveMetricsOn(ctx, address)
		if ctx.Err() != nil {
			break
		}
		if last := n.setMetricsFault(err); last == nil || last.Error() != err.Error() {
			n.log.Warn("metrics port not served", "address", address, "err", err, "retry", metricsRetry)
		}
		pauseFor(ctx, metricsRetry)
	}
	return nil
}

// serveMetricsOn does not return without an error before ctx ends. The port is given back then: a scrape of an agent that is
// away shall fail, not wait.
func (n *node) serveMetricsOn(ctx context.Context, address string) error {
	listener, err := n.edges.Sockets.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	n.setMetricsFault(nil)
	err = n.api.ServeMetrics(ctx, api.MetricsListener{Listener: listener, TLS: rpc.MembersOnly(n.credentials)})
	release, cancel := context.WithTimeout(context.WithoutCancel(ctx), metricsReleaseMax)
	defer cancel()
	return errors.Join(err, n.edges.Sockets.Release(release, "tcp", address))
}

// setMetricsFault notes why the port for metrics is not served, nil when it is, and returns what was noted before.
func (n *node) setMetricsFault(err error) (last error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last, n.metricsFault = n.metricsFault, err
	return last
}

// warnings are what an operator should know of this agent, whatever its part in a cluster.
func (n *node) warnings() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.metricsFault == nil {
		return nil
	}
	return []string{fmt.Sprintf("metrics are not served on --metrics-addr %s (tried again every %s): %v", n.cfg.MetricsAddr, metricsRetry, n.metricsFault)}
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
