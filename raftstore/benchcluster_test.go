package raftstore

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"swarm/rpc"
	"swarm/secrets"
	"swarm/secrets/pki"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// benchCluster is managers on loopback as they run for real: node ports with TLS 1.3 and certificates of one root, gRPC for
// what is forwarded, sealed logs on this machine's disk.
type benchCluster struct {
	b                   testing.TB
	dir                 string
	rootPEM, rootKeyPEM []byte
	// sealer makes a manager's Sealer from its directory.
	sealer func(dir string) (Sealer, error)
	all    []*Store
}

func realSealer(dir string) (Sealer, error) { return secrets.OpenSealer(dir) }

// noSealer leaves everything readable, for comparison.
type noSealer struct{}

func (noSealer) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (noSealer) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

// anyNode lets every node with a valid certificate in.
type anyNode struct{}

func (anyNode) Authorize(rpc.Peer) error { return nil }

// newBenchCluster starts n managers and waits until all are voters.
func newBenchCluster(b testing.TB, n int, sealer func(dir string) (Sealer, error)) *benchCluster {
	c := &benchCluster{b: b, dir: b.TempDir(), sealer: sealer}
	var err error
	c.rootPEM, c.rootKeyPEM, err = pki.NewRoot("cluster")
	c.check(err)
	for i := range n {
		c.start(fmt.Sprint("n", i+1), i == 0)
	}
	c.check(c.all[0].Update(b.Context(), func(tx *Tx) error {
		tx.PutCluster(Cluster{Meta: Meta{ID: "cluster"}})
		for _, s := range c.all {
			node := managerNode(s.cfg.NodeID)
			node.Address = s.cfg.Address
			tx.PutNode(node)
		}
		return nil
	}))
	for voters := 0; voters < n; time.Sleep(10 * time.Millisecond) {
		voters = 0
		for _, m := range c.all[n-1].Members() {
			if m.Voter {
				voters++
			}
		}
	}
	return c
}

func (c *benchCluster) check(err error) {
	c.b.Helper()
	if err != nil {
		c.b.Fatal(err)
	}
}

func (c *benchCluster) identity(id string) *pki.Identity {
	key, csr, err := pki.NewKey()
	c.check(err)
	cert, err := pki.Sign(c.rootPEM, c.rootKeyPEM, csr, rpc.Peer{NodeID: id, Role: rpc.Manager, ClusterID: "cluster"}, 0)
	c.check(err)
	identity, err := pki.Save(filepath.Join(c.dir, id, "pki"), c.rootPEM, cert, key)
	c.check(err)
	return identity
}

func (c *benchCluster) start(id string, bootstrap bool) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	c.check(err)
	identity := c.identity(id)
	server := rpc.NewServer(rpc.ServerConfig{Listener: listener, Identity: identity, Authorizer: anyNode{}})
	dialer := &rpc.Dialer{Network: rpc.Kernel{}, Identity: identity}
	sealer, err := c.sealer(filepath.Join(c.dir, id))
	c.check(err)
	peers := &rpcPeers{dialer: dialer, clients: map[string]rpc.RaftClient{}}
	store, err := Open(Config{
		NodeID: id, Address: listener.Addr().String(), Dir: filepath.Join(c.dir, id, "raft"), Sealer: sealer, Bootstrap: bootstrap,
		Listener: server.Raft(), Dial: dialer.Raft, Peers: peers,
	})
	c.check(err)
	server.RegisterService(&rpc.Raft_ServiceDesc, &raftService{store: store})
	ctx, stop := context.WithCancel(context.Background())
	var work errgroup.Group
	work.Go(func() error { return server.Run(ctx) })
	work.Go(func() error { return store.Run(ctx) })
	work.Go(func() error { return store.WhileLeader(ctx, store.RunMembership) })
	c.b.Cleanup(func() { stop(); _ = work.Wait() })
	c.all = append(c.all, store)
}

// leader is the manager that leads, follower another one; without another, the leader.
func (c *benchCluster) leader() *Store {
	for {
		for _, s := range c.all {
			if lead, _ := s.leadership(); lead != nil {
				return s
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *benchCluster) follower() *Store {
	leader := c.leader()
	for _, s := range c.all {
		if s != leader {
			return s
		}
	}
	return leader
}

// raftService answers other managers.
type raftService struct {
	rpc.UnimplementedRaftServer
	store *Store
}

func (s *raftService) Propose(ctx context.Context, r *rpc.ProposeRequest) (*rpc.ProposeResponse, error) {
	answers, err := s.store.ProposeLocal(ctx, r.Commits)
	if err != nil {
		return nil, err
	}
	response := new(rpc.ProposeResponse)
	for _, a := range answers {
		response.Answers = append(response.Answers, &rpc.CommitAnswer{Index: a.Index, Refusal: a.Refusal})
	}
	return response, nil
}

func (s *raftService) ReadIndex(ctx context.Context, _ *rpc.ReadIndexRequest) (*rpc.ReadIndexResponse, error) {
	index, err := s.store.ReadIndexLocal(ctx)
	return &rpc.ReadIndexResponse{Index: index}, err
}

// bareLoop is what the disk can do: 4 KB written in place and synced, one after the other.
type bareLoop struct {
	file  *os.File
	block [4096]byte
}

const bareBlocks = 256

func newBareLoop(b testing.TB, dir string) *bareLoop {
	l := new(bareLoop)
	var err error
	if l.file, err = os.Create(filepath.Join(dir, "bare")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.file.Close() })
	for i := range int64(bareBlocks) {
		if _, err := l.file.WriteAt(l.block[:], i*int64(len(l.block))); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.file.Sync(); err != nil {
		b.Fatal(err)
	}
	return l
}

func (l *bareLoop) perSecond(b testing.TB, limit time.Duration) float64 {
	began, n := time.Now(), int64(0)
	for ; time.Since(began) < limit; n++ {
		if _, err := l.file.WriteAt(l.block[:], n%bareBlocks*int64(len(l.block))); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(began).Seconds()
}
