package rpc

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// connectionKey finds the connection of a swarm-node request in its context.
type connectionKey struct{}

// connection is one accepted connection after its handshake. Whoever serves it closes it; Cut may do so at any time.
type connection struct {
	*tls.Conn
	raw    net.Conn
	server *Server
	peer   Peer

	// stranger marks one that proved no membership: Anonymous, or refused by the Authorizer. It may send
	// only so much, and lives only so long. Settled before the connection is served.
	stranger bool
	unread   atomic.Int64 // what a stranger may still send, in bytes

	expiry *time.Timer // guarded by the registry
}

func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.stranger && c.unread.Add(-int64(n)) < 0 {
		c.cut()
		return 0, fmt.Errorf("%s sent more than %d bytes without being a member: %w", c.peer.Address, strangerBytesMax, errdefs.ErrResourceExhausted)
	}
	return n, err
}

// Close says good-bye to the peer.
func (c *connection) Close() error {
	c.server.forget(c)
	return c.Conn.Close()
}

// cut does not wait for a peer that may not read.
func (c *connection) cut() {
	c.server.forget(c)
	_ = c.raw.Close()
}

// registry knows the live connections and bounds them.
type registry struct {
	mu             sync.Mutex
	total          int
	strangers      map[string]int // by remote host: handshakes and strangers
	strangersTotal int
	live           map[string]map[*connection]struct{} // by node id
}

func newRegistry() *registry {
	return &registry{strangers: map[string]int{}, live: map[string]map[*connection]struct{}{}}
}

// admit counts a new connection from host as a stranger's; false means there are too many.
func (r *registry) admit(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.total >= connectionsMax || r.strangersTotal >= strangersTotalMax || r.strangers[host] >= strangersMax {
		return false
	}
	r.total++
	r.strangersTotal++
	r.strangers[host]++
	return true
}

// dismiss undoes admit for a connection that never came to be.
func (r *registry) dismiss(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	r.notStranger(host)
}

// welcome takes a member's connection out of the count of strangers.
func (r *registry) welcome(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.has(c) {
		c.stranger = false
		r.notStranger(hostOf(c.raw))
	}
}

// expire cuts the connection after lifetime.
func (r *registry) expire(c *connection, lifetime time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.has(c) {
		c.expiry = time.AfterFunc(lifetime, c.cut)
	}
}

func (r *registry) has(c *connection) bool {
	_, ok := r.live[c.peer.NodeID][c]
	return ok
}

func (r *registry) notStranger(host string) {
	r.strangersTotal--
	if r.strangers[host]--; r.strangers[host] <= 0 {
		delete(r.strangers, host)
	}
}

func (r *registry) add(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[c.peer.NodeID] == nil {
		r.live[c.peer.NodeID] = map[*connection]struct{}{}
	}
	r.live[c.peer.NodeID][c] = struct{}{}
}

// forget is called whenever a connection is closed, the first time counts.
func (r *registry) forget(c *connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.has(c) {
		return
	}
	if c.expiry != nil {
		c.expiry.Stop()
	}
	delete(r.live[c.peer.NodeID], c)
	if len(r.live[c.peer.NodeID]) == 0 {
		delete(r.live, c.peer.NodeID)
	}
	r.total--
	if c.stranger {
		r.notStranger(hostOf(c.raw))
	}
}

// of lists the live connections of a node; all, those of every node.
func (r *registry) of(nodeID string) []*connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []*connection
	for c := range r.live[nodeID] {
		found = append(found, c)
	}
	return found
}

func (r *registry) all() []*connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []*connection
	for _, of := range r.live {
		for c := range of {
			found = append(found, c)
		}
	}
	return found
}

func hostOf(conn net.Conn) string {
	address := conn.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
