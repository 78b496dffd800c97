// Package rpc is how nodes talk: one port with mutual TLS whose ALPN chooses gRPC, raft streams or node-local HTTP.
// agent starts it; raftstore, gossip, service/dispatcher and agent/images use its dialer and messages.
package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"time"
)

// The protocols of the port, as chosen by ALPN.
const (
	protocolGRPC = "h2"
	protocolRaft = "swarm-raft"
	protocolNode = "swarm-node"
)

// Bounds of the port. Whoever sends more, or takes longer, is cut off.
const (
	// MessageBytesMax bounds one gRPC message in either direction; senders split what is larger.
	MessageBytesMax = 4 << 20

	// headerBytesMax bounds the headers of an RPC or of a swarm-node request.
	headerBytesMax = 16 << 10
	// bufferBytes is what a gRPC connection reads and writes at a time. A manager has one for every agent, and most are idle.
	bufferBytes = 4 << 10
	// streamsMax bounds the RPCs in progress on one connection.
	streamsMax = 128
	// connectionsMax bounds all connections together, handshakes included.
	connectionsMax = 8192
	// strangersMax bounds connections from one address that are not (or not yet) a member's, strangersTotalMax those from all.
	strangersMax      = 64
	strangersTotalMax = 1024
	// strangerLifetime and strangerBytesMax are enough to join and not for much else.
	strangerLifetime = 30 * time.Second
	strangerBytesMax = 256 << 10
	// raftBacklog bounds raft streams that the store has not accepted yet.
	raftBacklog = 16

	handshakeTimeout = 10 * time.Second
	dialTimeout      = 5 * time.Second
	headerTimeout    = 10 * time.Second
	idleTimeout      = time.Minute

	// pingEvery and pingTimeout find a dead peer of a gRPC connection within 8 s. gRPC clients do not ping more often
	// than every 10 s; their side is covered by the kernel's timeouts, see watchPeer.
	pingEvery       = 4 * time.Second
	pingTimeout     = 4 * time.Second
	clientPingEvery = 10 * time.Second
	clientPingWait  = 3 * time.Second
)

// Identity is this node's own certificate and the roots it trusts; both may change while connections are open. Implemented by secrets/pki.
type Identity interface {
	Certificate() *tls.Certificate
	Roots() *x509.CertPool
	ClusterID() string
}

// Authorizer knows what certificates cannot: who was removed or demoted since. Implemented by agent from the roster.
type Authorizer interface {
	// Authorize returns why a peer with a valid certificate is refused, or nil. It is asked when a connection
	// begins and for every RPC and request, so it must be quick. A refusal of kind FailedPrecondition says that only the
	// certificate is out of date, as after a demotion: the node may still renew it, and nothing else.
	Authorize(p Peer) error
}
