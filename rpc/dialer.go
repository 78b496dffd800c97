package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

// Dialer opens authenticated connections to other nodes' ports.
type Dialer struct {
	Network  Network
	Identity Identity
	// Authorizer may refuse a node that was reached, by what its certificate cannot say; it may be nil.
	Authorizer Authorizer

	calls calls
}

// Cut closes every live connection that was opened to a node; those that it opened are the Server's matter.
func (d *Dialer) Cut(nodeID string) {
	for _, c := range d.calls.of(nodeID) {
		// Without a word to the peer, which may not read.
		_ = c.NetConn().Close()
	}
}

// GRPC returns a client connection to a manager that is dialed lazily; the caller closes it. Its RPCs fail at once
// while the manager cannot be reached, with a text that says why, and connections are retried in the background. A connection
// keeps the certificate it began with: after a renewal that changed the role, close it and ask for a new one.
func (d *Dialer) GRPC(address string) (*grpc.ClientConn, error) {
	return newClient(d.caller(address, protocolGRPC, true))
}

// Raft opens a raft stream to a manager.
func (d *Dialer) Raft(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.caller(address, protocolRaft, true).dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	err = readGreeting(conn)
	if !stop() || err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open raft stream to %s: %w", address, orContext(ctx, err))
	}
	return conn, nil
}

// orContext prefers the reason why a context ended to the error that followed from it.
func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Bounds of NodeAPI connections that are kept for reuse, and of those to one node.
const (
	nodeIdleMax        = 64
	nodeIdlePerNodeMax = 4
	nodePerNodeMax     = 256
	nodeIdleTimeout    = 30 * time.Second
)

// NodeAPI is the RoundTripper for swarm-node requests: the URL's host is the node's host:port. Hijacked (upgraded) streams work.
// Call it once and share the result, which keeps connections for reuse.
func (d *Dialer) NodeAPI() http.RoundTripper {
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		return d.caller(address, protocolNode, false).dial(ctx)
	}
	return &nodeTransport{identity: d.Identity, transport: &http.Transport{
		// Whichever scheme the URL has, the connection is the same.
		DialContext:            dial,
		DialTLSContext:         dial,
		DisableCompression:     true,
		MaxIdleConns:           nodeIdleMax,
		MaxIdleConnsPerHost:    nodeIdlePerNodeMax,
		MaxConnsPerHost:        nodePerNodeMax,
		IdleConnTimeout:        nodeIdleTimeout,
		MaxResponseHeaderBytes: headerBytesMax,
	}}
}

// nodeTransport drops kept connections when the certificate they were opened with is not the current one.
type nodeTransport struct {
	identity  Identity
	used      atomic.Pointer[tls.Certificate]
	transport *http.Transport
}

func (t *nodeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	current := t.identity.Certificate()
	if before := t.used.Swap(current); before != nil && before != current {
		t.transport.CloseIdleConnections()
	}
	return t.transport.RoundTrip(r)
}

func (t *nodeTransport) CloseIdleConnections() { t.transport.CloseIdleConnections() }

// Join dials a manager without a certificate. With a nil root pool the server's chain is not verified (only for RootCertificate, whose answer is checked against the token's digest).
// Its RPCs say in words when the address cannot be reached, is not a node's port, or not a manager's.
func Join(network Network, address string, roots *x509.CertPool) (*grpc.ClientConn, error) {
	c := &caller{network: network, address: address, protocol: protocolGRPC, manager: true,
		roots: func() *x509.CertPool { return roots }}
	return newClient(c, grpc.WithChainUnaryInterceptor(c.joining))
}

// joining says of a node that has no certificate authority what it is.
func (c *caller) joining(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, conn, options...)
	if errdefs.IsNotImplemented(err) {
		return c.notManager()
	}
	return err
}

func (d *Dialer) caller(address, protocol string, manager bool) *caller {
	return &caller{network: d.Network, address: address, protocol: protocol, manager: manager,
		identity: d.Identity, roots: d.Identity.Roots, authorizer: d.Authorizer, calls: &d.calls}
}

// Accepts says whether a node's port takes a connection, which is closed again without a word: nil when it does. It tells a
// machine whose agent is gone, where the port is still held open, from one of which nothing is left.
func (d *Dialer) Accepts(ctx context.Context, address string) error {
	conn, err := d.Network.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
