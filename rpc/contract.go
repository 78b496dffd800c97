// Package rpc is how nodes talk: one port with mutual TLS whose ALPN chooses gRPC, raft streams or node-local HTTP.
// agent starts it; raftstore, gossip, service/dispatcher and agent/images use its dialer and messages.
package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"

	"google.golang.org/grpc"
)

// Role is what a caller may be, proven by its certificate.
type Role string

const (
	Anonymous Role = "anonymous" // no certificate: a machine about to join
	Worker    Role = "worker"
	Manager   Role = "manager"
)

// Peer is the other end of a connection.
type Peer struct {
	NodeID    string // certificate CN
	ClusterID string // certificate O
	Role      Role   // certificate OU
	Address   string // remote address
}

// PeerFrom is the caller of an RPC or node-local HTTP request.
func PeerFrom(ctx context.Context) Peer { panic("contract") }

// Network is the seam between the real kernel and a simulated one.
type Network interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Kernel is the real Network.
type Kernel struct{}

func (Kernel) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	panic("contract")
}
func (Kernel) Dial(ctx context.Context, network, address string) (net.Conn, error) { panic("contract") }

// Identity is this node's own certificate and the roots it trusts; both may change while connections are open. Implemented by secrets/pki.
type Identity interface {
	Certificate() *tls.Certificate
	Roots() *x509.CertPool
	ClusterID() string
}

// Authorizer knows what certificates cannot: who was removed or demoted since. Implemented by agent from the roster.
type Authorizer interface {
	// Authorize returns why a peer with a valid certificate is refused, or nil.
	Authorize(p Peer) error
}

// ServerConfig is what a node's port needs.
type ServerConfig struct {
	Listener   net.Listener
	Identity   Identity
	Authorizer Authorizer
	// NodeAPI serves swarm-node requests that the role table lets through.
	NodeAPI http.Handler
}

// Server is a node's one port.
type Server struct{}

func NewServer(cfg ServerConfig) *Server { panic("contract") }

// RegisterService adds a gRPC service before Run. Its methods must be in the role table.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) { panic("contract") }

// Raft accepts raft streams from managers.
func (s *Server) Raft() net.Listener { panic("contract") }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { panic("contract") }

// Cut closes every live connection of a node.
func (s *Server) Cut(nodeID string) { panic("contract") }

// Dialer opens authenticated connections to other nodes' ports.
type Dialer struct {
	Network  Network
	Identity Identity
}

// GRPC returns a client connection that is dialed lazily; the caller closes it.
func (d *Dialer) GRPC(address string) (*grpc.ClientConn, error) { panic("contract") }

// Raft opens a raft stream to a manager.
func (d *Dialer) Raft(ctx context.Context, address string) (net.Conn, error) { panic("contract") }

// NodeAPI is the RoundTripper for swarm-node requests: the URL's host is the node's host:port. Hijacked (upgraded) streams work.
func (d *Dialer) NodeAPI() http.RoundTripper { panic("contract") }

// Join dials a manager without a certificate. With a nil root pool the server's chain is not verified (only for RootCertificate, whose answer is checked against the token's digest).
func Join(network Network, address string, roots *x509.CertPool) (*grpc.ClientConn, error) {
	panic("contract")
}
