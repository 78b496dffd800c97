package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/secrets/pki"
	"swarm/service"
	"swarm/service/dispatcher"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

// manager is what runs only while this node's certificate says manager.
type manager struct {
	nodeID     string
	store      *raftstore.Store
	dispatcher *dispatcher.Dispatcher
	// orchestrator runs while this manager leads.
	orchestrator *service.Orchestrator
	tenure       tenure
}

// usable says whether the replica is one of the cluster's: a new manager's is empty until the leader has
// reached it, and one that raft's configuration is without hears nothing new any more.
func (mg *manager) usable() bool {
	return mg.store.Local().Cluster() != nil && mg.store.IsMember(mg.nodeID)
}

// manage takes part in the replicated state until ctx ends or the certificate's role is another.
func (m *membership) manage(ctx context.Context, server *rpc.Server) error {
	rec := m.currentRecord()
	config, err := m.storeConfig()
	if err != nil {
		return err
	}
	if err := m.renewExpired(config); err != nil {
		m.log.Warn("expired certificate not renewed from this replica", "err", err)
	}
	peers := newRaftPeers(m.dialer)
	defer peers.Close()
	config.Peers = peers
	config.Listener = server.Raft()
	config.Dial = m.dialRaft
	config.Bootstrap = m.founding != nil
	store, err := raftstore.Open(config)
	if err != nil {
		return err
	}
	if replica := m.node.edges.Replica; replica != nil {
		defer replica(store)()
	}
	if c := store.Local().Cluster(); c != nil && c.ID != rec.ClusterID {
		return errors.Join(closeStore(store), fmt.Errorf("the raft state in %s belongs to cluster %s, this node to %s: restore the data directory from one backup, or leave and join again", m.node.raftDir(), c.ID, rec.ClusterID))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mg := &manager{nodeID: rec.NodeID, store: store, orchestrator: service.New(store, m.node.rootLog)}
	mg.dispatcher = dispatcher.New(dispatcher.Config{
		NodeID: rec.NodeID,
		Store:  store,
		Log:    m.node.rootLog.With("component", "dispatcher"),
		Probe:  m.dialer.Accepts,
	})
	m.manager.Store(mg)
	defer m.manager.Store(nil)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return store.Run(ctx) })
	g.Go(func() error { return mg.dispatcher.Run(ctx) })
	g.Go(func() error {
		return store.WhileLeader(ctx, func(ctx context.Context) error { return mg.lead(ctx, m) })
	})
	if m.founding != nil {
		g.Go(func() error {
			if err := m.founding.found(ctx, store); err != nil {
				return err
			}
			return writeRecord(m.node.recordPath(), m.currentRecord())
		})
	}
	g.Go(func() error { return m.untilUsable(ctx, mg) })
	g.Go(func() error { return mg.followTenure(ctx) })
	g.Go(func() error { return mg.runBalance(ctx) })
	g.Go(func() error { return m.untilRoleEnds(ctx, cancel) })
	err = g.Wait()
	if m.identity.Role() != swarm.NodeRoleManager {
		return nil
	}
	return err
}

// closeStore ends a replica that was never run.
func closeStore(store *raftstore.Store) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return store.Run(ctx)
}

// renewExpired gives this manager a certificate from its own replica when its last one ended while it was
// switched off: nobody would accept it any more, not even to renew it, yet it holds the root key itself. It comes before the replica is
// opened, because managers whose certificates all ended could not even elect a leader.
func (m *membership) renewExpired(config raftstore.Config) error {
	if time.Now().Before(m.identity.Certificate().Leaf.NotAfter) {
		return nil
	}
	state, err := raftstore.Peek(config)
	if err != nil {
		return err
	}
	cluster := state.Cluster()
	row, ok := state.Nodes.Get(m.identity.NodeID())
	if cluster == nil || !ok || row.Spec.Role != swarm.NodeRoleManager {
		return errdefs.ErrFailedPrecondition.WithMessage("this replica does not name the node as a manager")
	}
	keyPEM, csrPEM, err := pki.NewKey()
	if err != nil {
		return err
	}
	cert, err := sign(state, csrPEM, row.ID, row.Role)
	if err != nil {
		return err
	}
	m.log.Info("expired certificate renewed from this replica")
	return m.identity.Replace(cluster.RootPEM, cert, keyPEM)
}

// lead runs the loops that only the leader may run.
func (mg *manager) lead(ctx context.Context, m *membership) error {
	m.log.Info("leadership won")
	defer m.log.Info("leadership over")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return mg.orchestrator.Run(ctx) })
	g.Go(func() error { return mg.dispatcher.RunLiveness(ctx) })
	g.Go(func() error { return mg.store.RunMembership(ctx) })
	return g.Wait()
}

// untilUsable announces that this replica holds the cluster.
func (m *membership) untilUsable(ctx context.Context, mg *manager) error {
	watch := mg.store.Watch()
	defer watch.Close()
	for !mg.usable() {
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Changed():
			watch.Take()
		}
	}
	m.replicated.open()
	return nil
}

// untilRoleEnds ends the manager's part once the renewed certificate says worker.
func (m *membership) untilRoleEnds(ctx context.Context, end context.CancelFunc) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.roleChanged:
			if m.identity.Role() != swarm.NodeRoleManager {
				end()
				return nil
			}
		}
	}
}

// dropRaftState removes this node's copy of the replicated state and the key that sealed it.
func (n *node) dropRaftState() error {
	if disk := n.edges.Store.Disk; disk != nil {
		disk.Erase()
	}
	if err := os.RemoveAll(n.raftDir()); err != nil {
		return fmt.Errorf("remove this node's copy of the cluster's state: %w", err)
	}
	return nil
}

// Authorize says why a peer with a valid certificate is refused: managers know from the state, workers from the roster.
func (m *membership) Authorize(p rpc.Peer) error {
	mg := m.manager.Load()
	if mg == nil || mg.store.Local().Cluster() == nil {
		return m.roster.authorize(p)
	}
	state := mg.store.Local()
	row, ok := state.Nodes.Get(p.NodeID)
	switch {
	case p.Issued > state.Index():
		// This replica lags behind the one that admitted the peer. It must not refuse a manager that it has not heard of: the
		// leader that would bring it up to date may be that one.
		return m.roster.refuseRemoved(p)
	case !ok && p.Issued > 0:
		return removedNode(p)
	case ok && p.Role == rpc.Manager && row.Role != swarm.NodeRoleManager:
		return outdatedRole(p)
	case !ok || !mg.store.IsMember(mg.nodeID):
		// A replica that raft's configuration is without hears nothing new.
		return m.roster.authorize(p)
	}
	return nil
}

// leaveWarning says what leaving costs, in the words that scripts know.
func leaveWarning(mg *manager) string {
	text := "You are attempting to leave the swarm on a node that is participating as a manager. "
	voters := 0
	for _, member := range mg.store.Members() {
		if member.Voter {
			voters++
		}
	}
	if voters <= 1 {
		return text + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message"
	}
	return text + fmt.Sprintf("Removing this node leaves %d managers out of %d. Demote it first (swarm node demote), or use `--force` to have it resign by itself", voters-1, voters)
}
