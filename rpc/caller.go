package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// caller connects to one address for one protocol and knows why that does not work.
type caller struct {
	network  Network
	address  string
	protocol string
	// manager demands a manager at the other end: a worker that took over a manager's address must not give orders.
	manager    bool
	identity   Identity // nil: without a certificate
	roots      func() *x509.CertPool
	authorizer Authorizer // may be nil
	calls      *calls     // may be nil

	mu      sync.Mutex
	failure error // of the latest attempt; nil once the other end has spoken
}

// lastFailure is why the latest attempt failed, nil when it did not.
func (c *caller) lastFailure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

func (c *caller) note(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
	return err
}

// dial connects and shakes hands.
func (c *caller) dial(ctx context.Context) (net.Conn, error) {
	raw, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, _, err := c.handshake(ctx, raw)
	return conn, err
}

func (c *caller) connect(ctx context.Context) (net.Conn, error) {
	raw, err := c.network.Dial(ctx, "tcp", c.address)
	if err != nil {
		// The address is in our words already.
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err
		}
		return nil, c.note(fmt.Errorf("%s cannot be reached: %w: %w", c.address, err, errdefs.ErrUnavailable))
	}
	return raw, nil
}

// handshake takes over raw; it is closed when the handshake fails.
func (c *caller) handshake(ctx context.Context, raw net.Conn) (net.Conn, Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Client(raw, c.tlsConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, Peer{}, c.note(c.explain(ctx, err))
	}
	peer, err := peerOfState(conn.ConnectionState())
	if err != nil {
		_ = raw.Close()
		return nil, Peer{}, c.note(err)
	}
	peer.Address = c.address
	if c.authorizer != nil {
		if err := c.authorizer.Authorize(peer); err != nil {
			_ = raw.Close()
			return nil, Peer{}, c.note(err)
		}
	}
	opened := &called{Conn: conn, caller: c, peer: peer}
	c.calls.add(opened)
	return opened, peer, nil
}

func (c *caller) tlsConfig() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{c.protocol},
		// Nodes are verified by cluster and role instead of by the name they were dialed with.
		InsecureSkipVerify: true,
		VerifyConnection:   c.verifyServer,
	}
	if c.identity != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.identity.Certificate(), nil
		}
	}
	return config
}

// distrust is a verdict of ours about the server, in words of ours; other handshake errors are the library's.
type distrust struct{ error }

func (d distrust) Unwrap() error { return d.error }

func (c *caller) verifyServer(state tls.ConnectionState) error {
	if state.NegotiatedProtocol != c.protocol {
		return distrust{c.notNode()}
	}
	peer, err := PeerOf(state.PeerCertificates[0])
	if err != nil {
		return distrust{c.notNode()}
	}
	if err := c.verifyChain(state.PeerCertificates); err != nil {
		return distrust{err}
	}
	if c.identity != nil && peer.ClusterID != c.identity.ClusterID() {
		return distrust{fmt.Errorf("%s belongs to another swarm (%s): %w", c.address, peer.ClusterID, errdefs.ErrUnauthenticated)}
	}
	if c.manager && peer.Role != Manager {
		return distrust{c.notManager()}
	}
	return nil
}

func (c *caller) verifyChain(chain []*x509.Certificate) error {
	roots := c.roots()
	if roots == nil {
		return nil
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if invalid := new(x509.CertificateInvalidError); errors.As(err, invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("certificate of the node at %s is not valid now; compare the clocks of both machines, else it must leave and join again: %w: %w", c.address, err, errdefs.ErrUnauthenticated)
	}
	if err != nil {
		return fmt.Errorf("%s belongs to another swarm: %w: %w", c.address, err, errdefs.ErrUnauthenticated)
	}
	return nil
}

// explain puts a failed handshake into words.
func (c *caller) explain(ctx context.Context, err error) error {
	var verdict distrust
	var remote *net.OpError
	switch {
	case errors.As(err, &verdict):
		return verdict.error
	case ctx.Err() != nil:
		return fmt.Errorf("%s does not answer a handshake: %w: %w", c.address, ctx.Err(), errdefs.ErrUnavailable)
	case errors.As(err, new(tls.RecordHeaderError)):
		return c.notNode()
	case errors.As(err, &remote) && remote.Op == remoteAlert:
		return fmt.Errorf("%w (%w)", c.notNode(), remote.Err)
	}
	return fmt.Errorf("%s ended the handshake, it may be busy or no port of a swarm node: %w: %w", c.address, err, errdefs.ErrUnavailable)
}

func (c *caller) notNode() error {
	return fmt.Errorf("%s is not the port of a swarm node; give the address that `swarm join-token` prints: %w", c.address, errdefs.ErrFailedPrecondition)
}

func (c *caller) notManager() error {
	return fmt.Errorf("%s is not a manager of a swarm; give the address of a manager: %w", c.address, errdefs.ErrFailedPrecondition)
}

// remoteAlert is how crypto/tls marks what the other side complained about.
const remoteAlert = "remote error"

// called is the dialing end of a connection. In TLS 1.3 the server looks at our certificate only after our
// handshake is done, so its refusal arrives with the first read.
type called struct {
	*tls.Conn
	caller *caller
	peer   Peer
	heard  atomic.Bool // the other end has said something
}

func (c *called) Close() error {
	c.caller.calls.forget(c)
	return c.Conn.Close()
}

func (c *called) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.heard.Swap(true) {
		_ = c.caller.note(nil)
	}
	if refusal := c.refusal(err); refusal != nil {
		err = refusal
	}
	return n, err
}

// refusalWait is how long a refusal may be behind the end of the connection that it explains.
const refusalWait = 100 * time.Millisecond

// Write looks for the server's refusal when it finds the connection closed before anything was heard.
func (c *called) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil || c.heard.Load() {
		return n, err
	}
	if c.SetReadDeadline(time.Now().Add(refusalWait)) == nil {
		_, readErr := c.Conn.Read(make([]byte, 1))
		if refusal := c.refusal(readErr); refusal != nil {
			err = refusal
		}
	}
	return n, err
}

// refusal puts an alert of the other side into words; nil when err is none.
func (c *called) refusal(err error) error {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != remoteAlert {
		return nil
	}
	return c.caller.note(fmt.Errorf("node at %s refused this node's certificate; it is of another swarm, expired, or its clock differs: %w: %w",
		c.caller.address, remote.Err, errdefs.ErrUnauthenticated))
}
