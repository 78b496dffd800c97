package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"swarm/agent/worker"
	"swarm/api"
	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// joinWaitMax is how long init and join wait for the node to take part before they answer that it goes on by itself.
	joinWaitMax = 20 * time.Second
	// membershipRetry is the pause before a membership that broke (port taken, damaged log) is tried again.
	membershipRetry = 5 * time.Second
	// farewellMax bounds the good-bye and the hand-over of the manager role when leaving.
	farewellMax = 8 * time.Second
)

// node is this machine: at most one membership at a time, and what lives as long as the agent.
type node struct {
	cfg          Config
	edges        Edges
	log, rootLog *slog.Logger
	images       Images
	worker       *worker.Worker
	api          *api.API

	// change is held by init, join and leave: one at a time.
	change sync.Mutex

	// mu guards the fields below.
	mu         sync.Mutex
	membership *membership // nil: in no cluster
	broken     error       // why the membership does not run, or could not be read
	started    chan *membership
	// metricsFault is why the port for metrics is not served.
	metricsFault error
}

func (n *node) current() *membership {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.membership
}

// id is this node's id in its cluster, empty outside of one.
func (n *node) id() string {
	if m := n.current(); m != nil {
		return m.identity.NodeID()
	}
	return ""
}

// Status says where this node stands.
func (n *node) Status() api.Status {
	s := n.standing()
	s.Warnings = n.warnings()
	return s
}

func (n *node) standing() api.Status {
	n.mu.Lock()
	m, broken := n.membership, n.broken
	n.mu.Unlock()
	if m == nil && broken != nil {
		return api.Status{State: swarm.LocalNodeStateError, Error: broken.Error()}
	}
	if m == nil {
		return api.Status{State: swarm.LocalNodeStateInactive}
	}
	s := m.status()
	if broken != nil {
		s.State, s.Error = swarm.LocalNodeStateError, broken.Error()
	}
	return s
}

// Store is the replica of this node while it is a manager whose replica is usable.
func (n *node) Store() *raftstore.Store {
	if m := n.current(); m != nil {
		return m.store()
	}
	return nil
}

// begin makes m the node's membership and has runMemberships run it.
func (n *node) begin(m *membership) {
	n.mu.Lock()
	n.membership, n.broken = m, nil
	n.mu.Unlock()
	n.started <- m
}

// runMemberships runs one membership after the other until ctx ends. One that breaks is tried again,
// because what broke it (a port taken, a full disk) may pass; meanwhile the containers run on.
func (n *node) runMemberships(ctx context.Context) error {
	for {
		var m *membership
		select {
		case <-ctx.Done():
			return nil
		case m = <-n.started:
		}
		n.keepRunning(ctx, m)
		close(m.ended)
	}
}

func (n *node) keepRunning(ctx context.Context, m *membership) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(m.leaving, cancel)
	defer stop()
	for ctx.Err() == nil {
		work, err := m.runUntilPaused(ctx)
		if work != nil {
			work.done <- work.do()
			continue
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		n.log.Error("membership broke", "cluster", m.identity.ClusterID(), "err", err, "retry", membershipRetry)
		n.setBroken(m, err)
		m.fail(err)
		pauseFor(ctx, membershipRetry)
		n.setBroken(m, nil)
	}
}

func (n *node) setBroken(m *membership, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.membership == m {
		n.broken = err
	}
}

// Leave takes this node out of its cluster and stops everything that ran here for it.
func (n *node) Leave(ctx context.Context, force bool) error {
	n.change.Lock()
	defer n.change.Unlock()
	m := n.current()
	if m == nil {
		return n.giveUp(ctx, force)
	}
	if mg := m.manager.Load(); mg != nil && mg.usable() && !force {
		return errdefs.ErrUnavailable.WithMessage(leaveWarning(mg))
	}
	farewell, cancel := context.WithTimeout(ctx, farewellMax)
	m.resign(farewell)
	cancel()
	return n.abandon(ctx, m, "left the cluster")
}

// abandon ends m and removes its traces; images and volumes stay.
func (n *node) abandon(ctx context.Context, m *membership, why string) error {
	m.leave()
	select {
	case <-m.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := errors.Join(
		n.worker.Clear(ctx),
		n.edges.Sockets.Release(ctx, "tcp", m.record.ListenAddr),
		n.forget(),
	)
	n.mu.Lock()
	if n.membership == m {
		n.membership, n.broken = nil, nil
	}
	n.mu.Unlock()
	n.log.Info("membership ended", "cluster", m.identity.ClusterID(), "node", m.identity.NodeID(), "reason", why)
	return err
}

// giveUp is Leave on a node without a membership: nothing to do, or one to forget that cannot be read.
func (n *node) giveUp(ctx context.Context, force bool) error {
	n.mu.Lock()
	broken := n.broken
	n.mu.Unlock()
	if broken == nil {
		return errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm")
	}
	if !force {
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("This node cannot read what it knows of its swarm: %v. Use `--force` to give it up: its copy of the swarm's state and its containers are removed", broken))
	}
	if err := errors.Join(n.worker.Clear(ctx), n.forget()); err != nil {
		return err
	}
	n.mu.Lock()
	n.broken = nil
	n.mu.Unlock()
	n.log.Info("membership given up")
	return nil
}

// forget removes the record first: without it nothing else of the membership counts.
func (n *node) forget() error {
	if err := os.Remove(n.recordPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(n.certificatesDir()), n.dropRaftState())
}

// refuseSecondMembership is the error of init and join on a node that is in a cluster.
func (n *node) refuseSecondMembership() error {
	if n.Status().State == swarm.LocalNodeStateInactive {
		return nil
	}
	return errdefs.ErrUnavailable.WithMessage("This node is already part of a swarm. Use \"swarm leave\" to leave this swarm and join another one")
}

// clusterTransport sends requests to other nodes' node-local API, with the certificate of the day.
type clusterTransport struct{ n *node }

func (t clusterTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	m := t.n.current()
	if m == nil {
		return nil, errdefs.ErrUnavailable.WithMessage("this node is in no swarm")
	}
	return m.nodeAPI.RoundTrip(r)
}
