package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sync/errgroup"
)

// testSealer is a Sealer whose key is made from a name.
type testSealer string

func (s testSealer) Seal(plain, context []byte) ([]byte, error) {
	key := sha256.Sum256([]byte(s))
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	fillRandom(nonce)
	return aead.Seal(nonce, nonce, plain, context), nil
}

func (s testSealer) Open(sealed, context []byte) ([]byte, error) {
	key := sha256.Sum256([]byte(s))
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, errors.New("too short")
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], context)
}

// cluster is managers n1, n2, … on a network of pipes.
type cluster struct {
	t   *testing.T
	dir string
	// adjust may change a manager's Config before it is opened.
	adjust func(*Config)
	// disks holds each manager's disk; nil for files below dir.
	disks map[string]*MemoryDisk

	mu       sync.Mutex // guards:
	managers map[string]*manager
	cut      map[[2]string]bool
	conns    map[net.Conn][2]string
}

// manager is one running replica.
type manager struct {
	*Store
	id       string
	address  string
	cluster  *cluster
	listener *pipeListener
	stop     context.CancelFunc
	work     errgroup.Group
	ctx      context.Context
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, dir: t.TempDir(), managers: map[string]*manager{}, cut: map[[2]string]bool{}, conns: map[net.Conn][2]string{}}
	t.Cleanup(func() {
		for _, m := range c.managers {
			m.stop()
			if err := m.work.Wait(); err != nil && !t.Failed() {
				t.Errorf("%s: %v", m.id, err)
			}
		}
	})
	return c
}

func (c *cluster) config(id string) Config {
	l := &pipeListener{conns: make(chan net.Conn, 16), closed: make(chan struct{})}
	cfg := Config{
		NodeID: id, Address: id + ":2377", Dir: filepath.Join(c.dir, id), Sealer: testSealer(id), noSync: true, CheckRows: true,
		Listener: l, Peers: peers{c, id},
		Dial: func(ctx context.Context, address string) (net.Conn, error) { return c.dial(ctx, id, address) },
	}
	if c.disks != nil {
		cfg.Disk = c.disk(id)
	}
	if os.Getenv("RAFTSTORE_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("manager", id)
	}
	if c.adjust != nil {
		c.adjust(&cfg)
	}
	return cfg
}

// disk is the disk of a manager, which outlives it.
func (c *cluster) disk(id string) *MemoryDisk {
	if c.disks[id] == nil {
		c.disks[id] = NewMemoryDisk()
	}
	return c.disks[id]
}

// start opens a manager and runs it; bootstrap makes it a cluster of its own.
func (c *cluster) start(id string, bootstrap bool) *manager {
	c.t.Helper()
	cfg := c.config(id)
	cfg.Bootstrap = bootstrap
	m := &manager{id: id, address: cfg.Address, cluster: c, listener: cfg.Listener.(*pipeListener)}
	c.mu.Lock()
	c.managers[id] = m
	c.mu.Unlock()
	store, err := Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	m.Store = store
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.work.Go(func() error { return store.Run(m.ctx) })
	m.work.Go(func() error { return store.WhileLeader(m.ctx, store.RunMembership) })
	return m
}

// form starts n managers as one cluster of voters.
func (c *cluster) form(n int) []*manager {
	c.t.Helper()
	all := []*manager{c.start("n1", true)}
	for i := 2; i <= n; i++ {
		all = append(all, c.start(fmt.Sprintf("n%d", i), false))
	}
	c.update(all[0], func(tx *Tx) error {
		tx.PutCluster(Cluster{Meta: Meta{ID: "cluster"}})
		for _, m := range all {
			tx.PutNode(managerNode(m.id))
		}
		return nil
	})
	c.eventually("all know each other as voters", func() bool { return c.agree(all) })
	return all
}

func (c *cluster) agree(all []*manager) bool {
	for _, m := range all {
		if id, _ := m.Leader(); id == "" || c.voters(m) != len(all) {
			return false
		}
	}
	return true
}

func managerNode(id string) Node {
	return Node{
		Meta: Meta{ID: id}, Role: swarm.NodeRoleManager, Address: id + ":2377",
		Spec: swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: swarm.NodeAvailabilityActive},
	}
}

func (c *cluster) voters(m *manager) (n int) {
	for _, member := range m.Members() {
		if member.Voter {
			n++
		}
	}
	return n
}

// eventually is for use in bubbles, where waiting costs nothing.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for range 1200 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, m := range c.managers {
		id, address := m.Leader()
		c.t.Logf("%s: leader %q %q, state %s, members %v", m.id, id, address, m.raft, m.Members())
	}
	c.t.Fatalf("not within a minute: %s", what)
}

// leader waits until exactly one of the managers given is the leader, and the others know it.
func (c *cluster) leader(of ...*manager) *manager {
	c.t.Helper()
	var leader *manager
	c.eventually("one leader", func() bool {
		leader = nil
		for _, m := range of {
			if lead, _ := m.leadership(); lead != nil {
				leader = m
			}
		}
		for _, m := range of {
			if id, _ := m.Leader(); leader == nil || id != leader.id {
				return false
			}
		}
		return true
	})
	return leader
}

func (c *cluster) update(m *manager, change func(*Tx) error) {
	c.t.Helper()
	if err := m.Update(context.Background(), change); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends a manager without ceremony: its connections break first, and what it had not synced is lost.
func (c *cluster) kill(m *manager) {
	c.t.Helper()
	c.isolate(m.id)
	if c.disks != nil {
		c.disks[m.id].Crash(false)
	}
	m.stop()
	if err := m.work.Wait(); err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	delete(c.managers, m.id)
	c.mu.Unlock()
	c.heal()
}

func (c *cluster) dial(ctx context.Context, from, address string) (net.Conn, error) {
	to, _, _ := net.SplitHostPort(address)
	c.mu.Lock()
	m, cut := c.managers[to], c.cut[[2]string{from, to}]
	c.mu.Unlock()
	if cut {
		<-ctx.Done() // a dead link answers nothing
		return nil, ctx.Err()
	}
	if m == nil || m.address != address {
		return nil, fmt.Errorf("%s refuses connections", address)
	}
	here, there := net.Pipe()
	c.mu.Lock()
	c.conns[here], c.conns[there] = [2]string{from, to}, [2]string{from, to}
	c.mu.Unlock()
	if err := m.listener.offer(there); err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return here, nil
}

// isolate cuts a manager's links to all others.
func (c *cluster) isolate(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.managers {
		c.cut[[2]string{id, other}], c.cut[[2]string{other, id}] = true, true
	}
	for conn, ends := range c.conns {
		if slices.Contains(ends[:], id) {
			conn.Close()
			delete(c.conns, conn)
		}
	}
}

func (c *cluster) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
}

// peers reaches managers by calling them.
type peers struct {
	cluster *cluster
	from    string
}

func (p peers) at(ctx context.Context, address string) (*manager, error) {
	to, _, _ := net.SplitHostPort(address)
	p.cluster.mu.Lock()
	m, cut := p.cluster.managers[to], p.cluster.cut[[2]string{p.from, to}]
	p.cluster.mu.Unlock()
	if cut {
		<-ctx.Done() // a dead link answers nothing
		return nil, ctx.Err()
	}
	if m == nil || m.Store == nil || m.address != address {
		return nil, fmt.Errorf("dial %s: %w", address, errdefs.ErrUnavailable)
	}
	return m, nil
}

func (p peers) Propose(ctx context.Context, address string, commits [][]byte) ([]Answer, error) {
	m, err := p.at(ctx, address)
	if err != nil {
		return nil, err
	}
	if m.cfg.reads == 1 {
		commits = commits[len(commits)-1:] // of several, it sees the last one
	}
	return m.ProposeLocal(ctx, commits)
}

func (p peers) ReadIndex(ctx context.Context, address string) (uint64, error) {
	m, err := p.at(ctx, address)
	if err != nil {
		return 0, err
	}
	return m.ReadIndexLocal(ctx)
}

// pipeListener has a short queue. Once it is closed, who waits in it is hung up on and nobody else is let in.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	// accepted may wrap what is accepted.
	accepted func(net.Conn) net.Conn

	mu   sync.Mutex // guards:
	over bool
}

func (l *pipeListener) offer(conn net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errors.New("refuses connections")
	}
	select {
	case l.conns <- conn:
		return nil
	default:
		return errors.New("has too many connections waiting")
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.conns:
		if l.accepted != nil {
			conn = l.accepted(conn)
		}
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return nil
	}
	l.over = true
	close(l.closed)
	for {
		select {
		case conn := <-l.conns:
			conn.Close()
		default:
			return nil
		}
	}
}

func (l *pipeListener) Addr() net.Addr { return streamAddr("pipe") }

// bubble runs a story about a cluster with disks in memory, in virtual time.
func bubble(t *testing.T, story func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.disks = map[string]*MemoryDisk{}
		story(t, c)
	})
}
