package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"swarm/api"
	"swarm/raftstore"
	"swarm/secrets"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// leaderAwaitMax is how long there must have been no leader before a cluster counts as one that has none: longer than an election.
	leaderAwaitMax  = 4 * time.Second
	leaderAwaitPoll = 100 * time.Millisecond
	// pauseMax bounds the end of everything that a membership runs.
	pauseMax = 30 * time.Second
)

// pausedWork is done while a membership does not run and its replica is closed.
type pausedWork struct {
	do   func() error
	done chan error
}

// runUntilPaused runs m until ctx ends or there is work to be done without it, which is returned.
func (m *membership) runUntilPaused(ctx context.Context) (work *pausedWork, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		select {
		case work = <-m.pauses:
			stop()
		case <-ctx.Done():
		}
	}()
	err = m.run(ctx)
	stop()
	<-waiting
	return work, err
}

// whilePaused ends m's run, does work, and has m run again.
func (m *membership) whilePaused(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, pauseMax)
	defer cancel()
	work := &pausedWork{do, make(chan error, 1)}
	select {
	case m.pauses <- work:
	case <-m.ended:
		return errdefs.ErrUnavailable.WithMessage("This node is leaving the swarm")
	case <-ctx.Done():
		return ctx.Err()
	}
	// What has begun is waited for: it may not be half done when the caller goes on.
	return <-work.done
}

// PreviewRecovery says what init with ForceNewCluster would do, and changes nothing.
func (n *node) PreviewRecovery(ctx context.Context) (api.Recovery, error) {
	m, store, err := n.recoverable(ctx)
	if err != nil {
		return api.Recovery{}, err
	}
	found, err := store.PreviewRecovery()
	if err != nil {
		return api.Recovery{}, err
	}
	r := api.Recovery{
		NodeID:          found.NodeID,
		Address:         m.currentRecord().AdvertiseAddr,
		Services:        found.Services,
		Tasks:           found.Tasks,
		LastChange:      found.LastChange,
		LeaderlessSince: found.LastContact,
		Unconfirmed:     found.Unconfirmed,
	}
	for _, member := range found.Removed {
		r.Removed = append(r.Removed, swarm.Peer{NodeID: member.NodeID, Addr: member.Address})
		if member.Reachable {
			r.Reachable = append(r.Reachable, member.NodeID)
		}
	}
	return r, nil
}

// recoverable is the membership and replica of a manager whose cluster has no leader, or why this node's cannot be recovered.
func (n *node) recoverable(ctx context.Context) (*membership, *raftstore.Store, error) {
	m := n.current()
	switch {
	case m == nil && n.Status().State == swarm.LocalNodeStateInactive:
		return nil, nil, errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm: there is nothing to recover. Make a new one with \"swarm init\"")
	case m == nil:
		return nil, nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("This node cannot read what it knows of its swarm: %s", n.Status().Error))
	case m.identity.Role() != swarm.NodeRoleManager:
		return nil, nil, errdefs.ErrUnavailable.WithMessage("This node is not a swarm manager, so it has no copy of the swarm's state to recover. Run this on a manager")
	}
	mg := m.manager.Load()
	if mg == nil {
		return nil, nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("This manager's copy of the swarm's state is not open: %s", n.Status().Error))
	}
	if mg.store.Local().Cluster() == nil {
		return nil, nil, errdefs.ErrUnavailable.WithMessage("This manager has no copy of the swarm's state yet: run this on another manager")
	}
	return m, mg.store, mg.leaderless(ctx)
}

// leaderless returns nil once there has been no leader for longer than an election takes, and a conflict when there is one that
// most managers follow: one that has just lost them does not know it yet.
func (mg *manager) leaderless(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinWaitMax)
	defer cancel()
	for ; ctx.Err() == nil; pauseFor(ctx, leaderAwaitPoll) {
		if since := mg.store.LeaderlessSince(); !since.IsZero() && time.Since(since) >= leaderAwaitMax {
			return nil
		}
		id, address := mg.store.Leader()
		if id == "" {
			continue
		}
		if _, err := mg.store.View(ctx); err == nil {
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("The swarm has a leader (node %s at %s), so nothing is lost: demote or remove the managers that are gone (\"swarm node demote\") instead of forcing a new cluster", id, address))
		}
	}
	return errdefs.ErrUnavailable.WithMessage("Leaders of the swarm come and go: try again in a moment")
}

// forceNewCluster makes this manager the only one of its cluster. The others become workers: those that return give up
// their copies of the state, and never form a second cluster with this node.
func (n *node) forceNewCluster(ctx context.Context, r swarm.InitRequest) (string, error) {
	m, _, err := n.recoverable(ctx)
	if err != nil {
		return "", err
	}
	rec := m.currentRecord()
	if r.ListenAddr != "" && r.ListenAddr != defaultListenAddr && r.ListenAddr != rec.ListenAddr {
		return "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("This node listens on %s: start its agent with --listen-addr to change that, and leave it out here", rec.ListenAddr))
	}
	if r.AdvertiseAddr != "" {
		if rec.AdvertiseAddr, err = resolveAdvertise(r.AdvertiseAddr, rec.ListenAddr); err != nil {
			return "", err
		}
		rec.Asked = &askedAddresses{Listen: rec.ListenAddr, Advertise: r.AdvertiseAddr, ListenFlag: n.cfg.ListenAddr, AdvertiseFlag: n.cfg.AdvertiseAddr}
	}
	rec.Managers = []string{rec.AdvertiseAddr}
	if err := m.whilePaused(context.WithoutCancel(ctx), func() error { return m.recover(rec) }); err != nil {
		return "", err
	}
	return rec.NodeID, m.untilLeader(ctx)
}

// recover rewrites the replica. The record goes first: a new address has to be known to who reads the replica.
func (m *membership) recover(rec record) error {
	before := m.currentRecord()
	if err := m.setRecord(rec); err != nil {
		return err
	}
	config, err := m.storeConfig()
	if err == nil {
		var done raftstore.Recovery
		if done, err = raftstore.Recover(config); err == nil {
			m.log.Warn("this manager is the only one of its cluster now", "removed", len(done.Removed), "unconfirmed", done.Unconfirmed)
			m.roster.forget()
			return nil
		}
	}
	return errors.Join(err, m.setRecord(before))
}

func (m *membership) setRecord(rec record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := writeRecord(m.node.recordPath(), rec); err != nil {
		return err
	}
	m.record = rec
	return nil
}

// storeConfig is what the replica is opened with, but for its listener.
func (m *membership) storeConfig() (raftstore.Config, error) {
	rec := m.currentRecord()
	sealer, err := secrets.OpenSealer(m.node.raftDir())
	if err != nil {
		return raftstore.Config{}, err
	}
	config := m.node.edges.Store
	config.NodeID = rec.NodeID
	config.Address = rec.AdvertiseAddr
	config.Dir = m.node.raftDir()
	config.Sealer = sealer
	config.Log = m.node.rootLog
	return config, nil
}

// untilLeader waits, bounded, until this node leads.
func (m *membership) untilLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinWaitMax)
	defer cancel()
	for ctx.Err() == nil {
		if mg := m.manager.Load(); mg != nil && mg.serving() {
			return nil
		}
		pauseFor(ctx, leaderAwaitPoll)
	}
	return errdefs.ErrUnavailable.WithMessage("This manager is the only one of its cluster now, but it does not lead yet: \"swarm info\" says why")
}
