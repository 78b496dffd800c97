package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"swarm/api"
	"swarm/gossip"
	"swarm/raftstore"
	"swarm/rpc"
	"swarm/secrets/pki"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

const (
	// renewRetry and renewRetryMax bound the pause after a certificate renewal that no manager granted.
	renewRetry    = time.Second
	renewRetryMax = 30 * time.Second
	// renewMax is how long one manager may take to renew a certificate before another one is asked.
	renewMax = 3 * time.Second
	// roleCheck bounds how long a change of role can go unnoticed if its wake-up was lost.
	roleCheck = 5 * time.Second
)

// membership is this node's life in one cluster: its port, its session with a manager, its gossip,
// and, as long as its certificate says manager, its part in the replicated state.
type membership struct {
	node     *node
	log      *slog.Logger
	identity *pki.Identity
	founding *founding // of a cluster that is being made
	dialer   *rpc.Dialer
	nodeAPI  http.RoundTripper
	roster   *roster

	server  atomic.Pointer[rpc.Server]
	manager atomic.Pointer[manager]
	gossip  atomic.Pointer[gossip.Gossip]

	// inSession says that some manager hears this node.
	inSession atomic.Bool
	// resigned says that some manager heard that this node leaves.
	resigned atomic.Bool

	roleChanged poke // the certificate has another role now
	renewNow    poke // the cluster wants this node to have another role
	rosterMoved poke // gossip has other seeds
	// doubted is the address of a manager that does not take this node for one.
	doubted chan string

	assigned   *latch     // opens with the first assignments
	replicated *latch     // opens when this manager's replica holds the cluster
	ready      *latch     // opens when the node takes part for the first time
	failed     chan error // why run ended before that

	leaving context.Context
	leave   context.CancelFunc
	ended   chan struct{}
	resigns chan chan bool   // a farewell that the session shall say; the answer is whether it was heard
	pauses  chan *pausedWork // what shall be done while nothing of the membership runs

	mu        sync.Mutex // guards the fields below
	record    record
	order     *rpc.NodeOrder
	gossipKey []byte
}

func newMembership(n *node, r record, identity *pki.Identity, f *founding) *membership {
	roster := newRoster()
	dialer := &rpc.Dialer{Network: n.edges.Network, Identity: identity, Authorizer: reached{roster}}
	leaving, leave := context.WithCancel(context.Background())
	m := &membership{
		node:        n,
		log:         n.log.With("node", r.NodeID),
		identity:    identity,
		founding:    f,
		dialer:      dialer,
		nodeAPI:     dialer.NodeAPI(),
		roster:      roster,
		roleChanged: newPoke(),
		renewNow:    newPoke(),
		rosterMoved: newPoke(),
		doubted:     make(chan string, 1),
		assigned:    newLatch(),
		replicated:  newLatch(),
		ready:       newLatch(),
		failed:      make(chan error, 1),
		leaving:     leaving,
		leave:       leave,
		ended:       make(chan struct{}),
		resigns:     make(chan chan bool),
		pauses:      make(chan *pausedWork),
		record:      r,
	}
	return m
}

// run lives until ctx ends or something that the node cannot be without breaks.
func (m *membership) run(ctx context.Context) error {
	rec := m.currentRecord()
	listener, err := m.node.edges.Sockets.Listen(ctx, "tcp", rec.ListenAddr)
	if err != nil {
		return fmt.Errorf("open the node port %s: %w", rec.ListenAddr, err)
	}
	server := rpc.NewServer(rpc.ServerConfig{
		Listener:   listener,
		Identity:   m.identity,
		Authorizer: m,
		NodeAPI:    m.nodeLocalAPI(),
		Log:        m.node.rootLog,
	})
	m.registerServices(server)
	m.server.Store(server)
	g, ctx := errgroup.WithContext(ctx)
	// The end comes in an order: the agent says good-bye, perhaps to the manager in this process; then that one hands
	// over; and the port, over which both speak, closes last. Each step has its own bound.
	managing, endManaging := context.WithCancel(context.WithoutCancel(ctx))
	open, closePort := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { defer endManaging(); return m.runSessions(ctx) })
	g.Go(func() error { defer closePort(); return m.runManagerRole(managing, server) })
	g.Go(func() error { return server.Run(open) })
	g.Go(func() error { return m.runRenewals(ctx) })
	g.Go(func() error { return m.runGossip(ctx) })
	g.Go(func() error { return m.becomeReady(ctx) })
	return g.Wait()
}

// becomeReady opens the way for init and join: a worker takes part with its first assignments, a
// manager once its own replica serves as well.
func (m *membership) becomeReady(ctx context.Context) error {
	conditions := []*latch{m.assigned}
	if m.identity.Role() == swarm.NodeRoleManager {
		conditions = append(conditions, m.replicated)
	}
	for _, c := range conditions {
		select {
		case <-ctx.Done():
			return nil
		case <-c.done():
		}
	}
	m.ready.open()
	return nil
}

// nodeLocalAPI is what other nodes may ask of this one; rpc's role table has let the caller through.
func (m *membership) nodeLocalAPI() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/images/blobs/", m.node.images)
	mux.Handle("/", m.node.api.NodeLocal())
	return mux
}

// fail tells a waiting init or join that the membership could not start; later failures go to Status alone.
func (m *membership) fail(err error) {
	select {
	case <-m.ready.done():
	default:
		select {
		case m.failed <- err:
		default:
		}
	}
}

func (m *membership) currentRecord() record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record
}

// store is this manager's replica while it is usable, else nil.
func (m *membership) store() *raftstore.Store {
	if mg := m.manager.Load(); mg != nil && mg.usable() {
		return mg.store
	}
	return nil
}

// status is the membership's part of GET /info.
func (m *membership) status() api.Status {
	rec := m.currentRecord()
	host, _, _ := net.SplitHostPort(rec.AdvertiseAddr)
	s := api.Status{
		NodeID:    rec.NodeID,
		ClusterID: rec.ClusterID,
		Address:   host,
		State:     swarm.LocalNodeStatePending,
		Managers:  m.roster.managers(),
		Suspects:  m.Suspects(),
		Heard:     m.inSession.Load(),
	}
	select {
	case <-m.ready.done():
		s.State = swarm.LocalNodeStateActive
	default:
	}
	if m.removed() {
		s.State = swarm.LocalNodeStateError
		s.Error = "this node was removed from the swarm: run \"swarm leave --force\", then join again"
	}
	if end := m.identity.Certificate().Leaf.NotAfter; time.Now().After(end) {
		s.State = swarm.LocalNodeStateError
		s.Error = fmt.Sprintf("this node's certificate expired at %s: run \"swarm leave --force\", then join again", end.Format(time.RFC3339))
	}
	if s.Store = m.store(); s.Store == nil {
		if mg := m.manager.Load(); mg != nil && mg.store.DiskFault() != "" {
			s.Error = mg.store.DiskFault()
		}
	}
	if g := m.gossip.Load(); g != nil {
		for _, member := range g.Members() {
			s.Gossip = append(s.Gossip, api.GossipMember{NodeID: member.NodeID, Address: member.Address, State: member.State})
		}
	}
	return s
}

// managerAddresses lists where a session may be had, the best first: this node's own replica, then the
// managers of the roster, then those the record remembers, each in random order, so that agents spread.
func (m *membership) managerAddresses() []string {
	rec := m.currentRecord()
	var addresses []string
	if mg := m.manager.Load(); mg != nil && mg.serving() {
		addresses = append(addresses, rec.AdvertiseAddr)
	}
	for _, a := range slices.Concat(shuffled(m.roster.managerAddresses()), m.movedManagers(), shuffled(rec.Managers)) {
		addresses = withAddress(addresses, a)
	}
	return addresses
}

func withAddress(addresses []string, a string) []string {
	if slices.Contains(addresses, a) {
		return addresses
	}
	return append(addresses, a)
}

// othersMax is how many nodes that are not known to be managers are asked in one round.
const othersMax = 3

// others are some nodes that gossip sees, or those that the record remembers, as gossip has no key before a manager answers: while this
// node heard of no change, all the managers that it knew may have been replaced. One that is no manager says so at once.
func (m *membership) others() (addresses []string) {
	rec := m.currentRecord()
	if g := m.gossip.Load(); g != nil {
		_, port, _ := net.SplitHostPort(rec.AdvertiseAddr)
		for _, member := range g.Members() {
			if host, _, err := net.SplitHostPort(member.Address); err == nil && member.State == gossip.Alive && member.NodeID != rec.NodeID {
				addresses = append(addresses, cmp.Or(m.roster.address(member.NodeID), net.JoinHostPort(host, port)))
			}
		}
	}
	if len(addresses) == 0 {
		addresses = rec.Others
	}
	addresses = shuffled(addresses)
	return addresses[:min(len(addresses), othersMax)]
}

// movedManagers are managers that gossip sees at another address than the roster says: they tell the managers of it, but
// the only manager of a cluster has nobody else to tell.
func (m *membership) movedManagers() (addresses []string) {
	g := m.gossip.Load()
	if g == nil {
		return nil
	}
	seen := map[string]string{}
	for _, member := range g.Members() {
		if member.State == gossip.Alive {
			seen[member.NodeID], _, _ = net.SplitHostPort(member.Address)
		}
	}
	for _, peer := range m.roster.managers() {
		host, port, err := net.SplitHostPort(peer.Addr)
		if now := seen[peer.NodeID]; err == nil && now != "" && now != host {
			addresses = append(addresses, net.JoinHostPort(now, port))
		}
	}
	return addresses
}

func shuffled(addresses []string) []string {
	addresses = slices.Clone(addresses)
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses
}

// othersKeptMax is how many nodes that are no managers are remembered for the next start.
const othersKeptMax = 32

// someOthers are those of kept that still are workers, and further ones up to the limit.
func someOthers(kept, workers []string) []string {
	left := map[string]bool{}
	for _, a := range workers {
		left[a] = true
	}
	kept = slices.DeleteFunc(slices.Clone(kept), func(a string) bool { return !left[a] })
	if len(kept) == min(othersKeptMax, len(left)) {
		return kept
	}
	for _, a := range shuffled(workers) {
		if len(kept) < othersKeptMax && !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// rememberManagers keeps the managers' addresses for the next start, when the roster is not known yet.
func (m *membership) rememberManagers() {
	addresses := m.roster.managerAddresses()
	workers := m.roster.workerAddresses(m.identity.NodeID())
	slices.Sort(addresses)
	m.mu.Lock()
	defer m.mu.Unlock()
	others := someOthers(m.record.Others, workers)
	if len(addresses) == 0 || slices.Equal(addresses, m.record.Managers) && slices.Equal(others, m.record.Others) {
		return
	}
	m.record.Managers, m.record.Others = addresses, others
	if err := writeRecord(m.node.recordPath(), m.record); err != nil {
		m.log.Warn("managers not remembered for the next start", "err", err)
	}
}

// runManagerRole takes part in the replicated state while the certificate says manager.
func (m *membership) runManagerRole(ctx context.Context, server *rpc.Server) error {
	for {
		if m.identity.Role() == swarm.NodeRoleManager {
			switch err := m.manage(ctx, server); {
			case raftstore.IsSuperseded(err):
				m.log.Warn("this manager's replica is outdated", "err", err)
				m.untilWorker(ctx)
			case err != nil && ctx.Err() == nil:
				return err
			}
			if ctx.Err() == nil {
				// Whoever waits for this node to take part must not wait for a replica any more.
				m.replicated.open()
				m.log.Info("manager role ended")
			}
		}
		if ctx.Err() == nil && m.identity.Role() != swarm.NodeRoleManager {
			// Demoted, now or before the agent stopped: a later promotion starts from what the managers have then.
			if err := m.node.dropRaftState(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.roleChanged:
		case <-time.After(roleCheck):
		}
	}
}

// untilWorker has a manager ask for its new role whose cluster was recovered from another one: it is a worker there.
func (m *membership) untilWorker(ctx context.Context) {
	for ctx.Err() == nil && m.identity.Role() == swarm.NodeRoleManager {
		m.renewNow.send()
		pauseFor(ctx, renewRetry)
	}
}

// runRenewals renews the certificate when half of its life or more is over, or at once when the cluster wants another role.
func (m *membership) runRenewals(ctx context.Context) error {
	for {
		due := time.NewTimer(time.Until(m.identity.RenewAt()))
		select {
		case <-ctx.Done():
			due.Stop()
			return nil
		case <-due.C:
		case <-m.renewNow:
			due.Stop()
		case address := <-m.doubted:
			due.Stop()
			m.settleDoubt(ctx, address)
			continue
		}
		for retry := renewRetry; ctx.Err() == nil; retry = min(2*retry, renewRetryMax) {
			err := m.renew(ctx)
			if err == nil && m.hasOrderedRole() {
				break
			}
			if err == nil {
				err = errors.New("it does not say the role that the cluster wants")
			}
			m.log.Warn("certificate not renewed", "err", err, "retry", retry)
			select {
			case <-ctx.Done():
			case <-m.renewNow:
			case <-time.After(retry):
			}
		}
	}
}

// dialRaft opens a raft stream, and takes note of a manager that refuses one because this node is no manager to it.
func (m *membership) dialRaft(ctx context.Context, address string) (net.Conn, error) {
	conn, err := m.dialer.Raft(ctx, address)
	if errdefs.IsPermissionDenied(err) {
		select {
		case m.doubted <- address:
		default:
		}
	}
	return conn, err
}

// settleDoubt asks a manager that refused this node's raft streams what this node is to it. Managers that come back after their
// cluster was forced to go on without them may well have a majority among themselves, and hear of it in no other way.
func (m *membership) settleDoubt(ctx context.Context, address string) {
	keyPEM, csrPEM, err := pki.NewKey()
	if err != nil {
		return
	}
	// An answer comes only from a manager with a leader, and says what is so now.
	answer, err := m.requestRenewal(ctx, address, csrPEM)
	if err != nil || answer.Role == string(m.identity.Role()) {
		pauseFor(ctx, renewRetry)
		return
	}
	if err := m.identity.Replace(m.identity.RootPEM(), answer.CertificatePem, keyPEM); err != nil {
		m.log.Warn("certificate not replaced", "err", err)
		return
	}
	m.log.Warn("the cluster goes on without this manager", "as", address, "role", m.identity.Role())
	m.roleChanged.send()
}

// removed says whether the cluster has told this node that it is no member any more.
func (m *membership) removed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order != nil && m.order.Removed
}

// hasOrderedRole compares the certificate with the latest order.
func (m *membership) hasOrderedRole() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order == nil || m.order.Removed || m.order.Role == "" || m.order.Role == string(m.identity.Role())
}

// renew asks the known managers in turn for a certificate for a fresh key.
func (m *membership) renew(ctx context.Context) error {
	keyPEM, csrPEM, err := pki.NewKey()
	if err != nil {
		return err
	}
	var last error = fmt.Errorf("no manager is known")
	for _, address := range m.othersFirst() {
		var answer *rpc.IssueCertificateResponse
		answer, last = m.requestRenewal(ctx, address, csrPEM)
		if last != nil {
			continue
		}
		before := m.identity.Role()
		if err := m.identity.Replace(m.identity.RootPEM(), answer.CertificatePem, keyPEM); err != nil {
			return err
		}
		m.log.Info("certificate renewed", "role", m.identity.Role(), "before", before)
		m.roleChanged.send()
		return nil
	}
	return last
}

// othersFirst lists the managers with those that may not answer behind, and this node last: its own replica does not learn of its demotion.
func (m *membership) othersFirst() []string {
	last := map[string]int{m.currentRecord().AdvertiseAddr: 2}
	for id := range m.roster.suspects() {
		last[m.roster.address(id)] = 1
	}
	addresses := m.managerAddresses()
	for _, a := range m.others() {
		addresses = withAddress(addresses, a)
	}
	slices.SortStableFunc(addresses, func(a, b string) int { return cmp.Compare(last[a], last[b]) })
	return addresses
}

func (m *membership) requestRenewal(ctx context.Context, address string, csrPEM []byte) (*rpc.IssueCertificateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, renewMax)
	defer cancel()
	conn, err := m.dialer.GRPC(address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return rpc.NewCertificateAuthorityClient(conn).IssueCertificate(ctx, &rpc.IssueCertificateRequest{CsrPem: csrPEM, ReadsFormat: raftstore.FormatVersion})
}

// takeGossipKey hands the key of the welcome to gossip, which may be waiting for its first one.
func (m *membership) takeGossipKey(key []byte) {
	m.mu.Lock()
	m.gossipKey = key
	m.mu.Unlock()
	if g := m.gossip.Load(); g != nil {
		if err := g.SetKey(key); err != nil {
			m.log.Warn("gossip key not changed", "err", err)
		}
	}
	m.rosterMoved.send()
}

// runGossip runs as soon as a manager handed out the key.
func (m *membership) runGossip(ctx context.Context) error {
	var key []byte
	for key == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-m.rosterMoved:
		}
		m.mu.Lock()
		key = m.gossipKey
		m.mu.Unlock()
	}
	rec := m.currentRecord()
	bind, _, _ := net.SplitHostPort(rec.ListenAddr)
	advertise, _, _ := net.SplitHostPort(rec.AdvertiseAddr)
	g, err := gossip.New(gossip.Config{
		NodeID:        rec.NodeID,
		ClusterID:     rec.ClusterID,
		BindAddr:      bind,
		AdvertiseAddr: advertise,
		Port:          m.node.cfg.GossipPort,
		Key:           key,
		Network:       m.node.edges.Network,
		Log:           m.node.rootLog,
	})
	if err != nil {
		return fmt.Errorf("open the gossip port %d: %w", m.node.cfg.GossipPort, err)
	}
	m.gossip.Store(g)
	defer m.gossip.Store(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Run(ctx) })
	group.Go(func() error {
		for {
			g.SetSeeds(m.roster.gossipSeeds(rec.NodeID, m.node.cfg.GossipPort))
			select {
			case <-ctx.Done():
				return nil
			case <-m.rosterMoved:
			}
		}
	})
	return group.Wait()
}
