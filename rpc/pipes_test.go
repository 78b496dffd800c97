package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// pipes is a Network in memory.
type pipes struct {
	mu        sync.Mutex
	listening map[string]*pipeListener
	dialed    int
	frozen    atomic.Bool // all that is written is lost, as when the other machine is dead
}

func newPipes() *pipes { return &pipes{listening: map[string]*pipeListener{}} }

func (p *pipes) Listen(_ context.Context, _, address string) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &pipeListener{address: pipeAddress(address), incoming: make(chan net.Conn), closed: make(chan struct{})}
	p.listening[address] = l
	return l, nil
}

func (p *pipes) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	p.mu.Lock()
	l := p.listening[address]
	p.dialed++
	p.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	up, down := newHalf(), newHalf()
	select {
	case l.incoming <- &pipeConn{network: p, in: up, out: down, local: l.address, remote: "10.0.0.9:40000"}:
		return &pipeConn{network: p, in: down, out: up, local: "10.0.0.9:40000", remote: l.address}, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddress string

func (pipeAddress) Network() string  { return "tcp" }
func (a pipeAddress) String() string { return string(a) }

// pipeConn has a buffer, as sockets have: with none, two ends that write at once, such as a refusal
// and the rest of a handshake, would wait for each other.
type pipeConn struct {
	network       *pipes
	in, out       *half
	local, remote pipeAddress
}

func (c *pipeConn) Write(b []byte) (int, error) {
	if c.network.frozen.Load() {
		return len(b), nil
	}
	return c.out.write(b)
}

func (c *pipeConn) Read(b []byte) (int, error) { return c.in.read(b) }

func (c *pipeConn) Close() error {
	c.in.end(net.ErrClosed)
	if !c.network.frozen.Load() {
		c.out.end(io.EOF)
	}
	return nil
}

func (c *pipeConn) SetReadDeadline(t time.Time) error  { c.in.until(t); return nil }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return nil }
func (c *pipeConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }

// half is one direction.
type half struct {
	mu       sync.Mutex
	changed  *sync.Cond
	data     []byte
	ended    error
	deadline time.Time
}

func newHalf() *half {
	h := &half{}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.ended == net.ErrClosed:
			return 0, h.ended
		case len(h.data) > 0:
			n := copy(b, h.data)
			h.data = h.data[n:]
			return n, nil
		case h.ended != nil:
			return 0, h.ended
		case !h.deadline.IsZero() && !time.Now().Before(h.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		h.changed.Wait()
	}
}

func (h *half) write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != nil {
		return 0, io.ErrClosedPipe
	}
	h.data = append(h.data, b...)
	h.changed.Broadcast()
	return len(b), nil
}

func (h *half) end(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != net.ErrClosed {
		h.ended = reason
	}
	h.changed.Broadcast()
}

func (h *half) until(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	h.changed.Broadcast()
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), h.changed.Broadcast)
	}
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.local }
func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

type pipeListener struct {
	address  pipeAddress
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Addr() net.Addr { return l.address }
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// authority issues certificates for tests.
type authority struct {
	t       testing.TB
	cluster string
	root    *x509.Certificate
	key     *ecdsa.PrivateKey
	pool    *x509.CertPool
}

func newAuthority(t testing.TB, cluster string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(t, err)
	root, err := x509.ParseCertificate(der)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &authority{t: t, cluster: cluster, root: root, key: key, pool: pool}
}

// identity makes one that lives for 90 days.
func (a *authority) identity(node string, role Role) *testIdentity {
	i := &testIdentity{pool: a.pool, cluster: a.cluster}
	i.current.Store(a.certificate(Peer{NodeID: node, ClusterID: a.cluster, Role: role}, 90*24*time.Hour))
	return i
}

func (a *authority) certificate(p Peer, life time.Duration) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: p.Subject(),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	check(a.t, err)
	leaf, err := x509.ParseCertificate(der)
	check(a.t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

type testIdentity struct {
	current atomic.Pointer[tls.Certificate]
	pool    *x509.CertPool
	cluster string
}

func (i *testIdentity) Certificate() *tls.Certificate { return i.current.Load() }
func (i *testIdentity) Roots() *x509.CertPool         { return i.pool }
func (i *testIdentity) ClusterID() string             { return i.cluster }

// roster is an Authorizer that refuses the nodes in it.
type roster struct {
	mu      sync.Mutex
	refused map[string]error
}

func (r *roster) Authorize(p Peer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused[p.NodeID]
}

func (r *roster) refuse(node string, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = map[string]error{node: reason}
}

// port is a running Server whose handlers tell who called.
type port struct {
	*Server
	network *pipes
	roster  *roster
	ended   chan error
	cancel  context.CancelFunc
}

const managerAddress = "10.0.0.1:2377"

// serve runs a manager's port in a network of its own until the test ends.
func serve(t *testing.T, id Identity, register func(*Server)) *port {
	t.Helper()
	network := newPipes()
	return serveAt(t, network, managerAddress, id, register)
}

func serveAt(t *testing.T, network *pipes, address string, id Identity, register func(*Server)) *port {
	t.Helper()
	listener, err := network.Listen(t.Context(), "tcp", address)
	check(t, err)
	p := &port{network: network, roster: &roster{}, ended: make(chan error, 1)}
	p.Server = NewServer(ServerConfig{Listener: listener, Identity: id, Authorizer: p.roster, NodeAPI: http.HandlerFunc(whoAsks)})
	register(p.Server)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-p.ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return p
}

// asManager registers every service.
func asManager(s *Server) {
	RegisterCertificateAuthorityServer(s, &services{})
	RegisterRaftServer(s, &services{})
	RegisterDispatcherServer(s, &services{})
}

func asWorker(*Server) {}

func (p *port) dialer(id Identity) *Dialer { return &Dialer{Network: p.network, Identity: id} }

// RegisterService makes Server a grpc.ServiceRegistrar, so the generated functions work.
var _ grpc.ServiceRegistrar = (*Server)(nil)

// services answer with the caller's name and role.
type services struct {
	UnimplementedCertificateAuthorityServer
	UnimplementedRaftServer
	UnimplementedDispatcherServer
}

func (services) RootCertificate(ctx context.Context, _ *RootCertificateRequest) (*RootCertificateResponse, error) {
	return &RootCertificateResponse{RootPem: []byte(PeerFrom(ctx).Role)}, nil
}

func (services) IssueCertificate(ctx context.Context, _ *IssueCertificateRequest) (*IssueCertificateResponse, error) {
	p := PeerFrom(ctx)
	return &IssueCertificateResponse{NodeId: p.NodeID, ClusterId: p.ClusterID, Role: string(p.Role)}, nil
}

func (services) Propose(ctx context.Context, r *ProposeRequest) (*ProposeResponse, error) {
	return &ProposeResponse{Answers: []*CommitAnswer{{Index: uint64(len(r.Commits[0]))}}}, nil
}

func (services) ReadIndex(context.Context, *ReadIndexRequest) (*ReadIndexResponse, error) {
	return &ReadIndexResponse{Index: 7}, nil
}

func (services) Session(stream grpc.BidiStreamingServer[AgentMessage, ManagerMessage]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(&ManagerMessage{Kind: &ManagerMessage_Ack{Ack: &StatusAck{Sequence: 1}}}); err != nil {
			return err
		}
	}
}

func whoAsks(w http.ResponseWriter, r *http.Request) {
	p := PeerFrom(r.Context())
	_, _ = w.Write([]byte(string(p.Role) + " " + p.NodeID + " of " + p.ClusterID))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kindOf(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v (%T) is not of kind %v", err, err, kind)
	}
	if err == nil || !contains(err.Error(), text) {
		t.Errorf("error %q does not say %q", err, text)
	}
}
