package sim

import (
	"container/heap"
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// packetConn receives datagrams in the order of their arrival.
type packetConn struct {
	process  *Process
	key      string
	address  *net.UDPAddr
	queue    packetQueue
	changed  chan struct{}
	closed   bool
	deadline time.Time
}

type packet struct {
	at   time.Time
	from net.Addr
	data []byte
}

// packetQueue is a heap: jitter lets packets overtake each other.
type packetQueue []packet

func (q packetQueue) Len() int           { return len(q) }
func (q packetQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q packetQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *packetQueue) Push(x any)        { *q = append(*q, x.(packet)) }
func (q *packetQueue) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = packet{}
	*q = (*q)[:len(*q)-1]
	return last
}

// ListenPacket opens a port for datagrams that ends with the process.
func (p *Process) ListenPacket(_ context.Context, network, address string) (net.PacketConn, error) {
	n := p.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.dead || !p.host.on {
		return nil, errDead("listen")
	}
	key, err := socketKey(network, address)
	if err != nil {
		return nil, err
	}
	if p.host.packets[key] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: syscall.EADDRINUSE}
	}
	tcp := p.host.addressOf("tcp", address).(*net.TCPAddr)
	c := &packetConn{process: p, key: key, address: &net.UDPAddr{IP: tcp.IP, Port: tcp.Port}, changed: make(chan struct{})}
	p.host.packets[key] = c
	p.packets[c] = struct{}{}
	return c, nil
}

func (c *packetConn) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n := c.process.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		var until time.Time
		switch {
		case c.closed:
			return 0, nil, &net.OpError{Op: "read", Net: "udp", Addr: c.address, Err: net.ErrClosed}
		case c.process.frozen:
		case len(c.queue) > 0 && !c.queue[0].at.After(time.Now()):
			p := heap.Pop(&c.queue).(packet)
			return copy(b, p.data), p.from, nil
		case passed(c.deadline):
			return 0, nil, &net.OpError{Op: "read", Net: "udp", Addr: c.address, Err: os.ErrDeadlineExceeded}
		default:
			until = c.deadline
			if len(c.queue) > 0 {
				until = earlier(c.queue[0].at, until)
			}
		}
		one, other := c.changed, c.process.changed
		n.mu.Unlock()
		waitFor(until, one, other)
		n.mu.Lock()
	}
}

// WriteTo sends; that a packet is lost is never told.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n := c.process.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: c.address, Err: net.ErrClosed}
	}
	n.sent++
	if !c.sendLocked(b, to) {
		n.dropped++
	}
	return len(b), nil
}

func (c *packetConn) sendLocked(b []byte, to net.Addr) (arrives bool) {
	n, from := c.process.host.network, c.process.host
	at, err := netip.ParseAddrPort(to.String())
	if err != nil {
		return false
	}
	host := n.hosts[at.Addr()]
	if host == nil || c.process.frozen || !n.open(from, host) {
		return false
	}
	key, _ := socketKey("udp", to.String())
	target := host.packets[key]
	arrival, lost := n.arrival(from, host, len(b))
	if target == nil || lost || len(target.queue) >= packetsMax {
		return false
	}
	first := len(target.queue) == 0 || arrival.Before(target.queue[0].at)
	heap.Push(&target.queue, packet{at: arrival, from: c.address, data: append([]byte(nil), b...)})
	if first {
		target.wake()
	}
	return true
}

func (c *packetConn) Close() error {
	c.process.host.network.mu.Lock()
	defer c.process.host.network.mu.Unlock()
	c.closeLocked()
	return nil
}

func (c *packetConn) closeLocked() {
	if c.closed {
		return
	}
	c.closed = true
	delete(c.process.packets, c)
	if c.process.host.packets[c.key] == c {
		delete(c.process.host.packets, c.key)
	}
	c.wake()
}

func (c *packetConn) LocalAddr() net.Addr { return c.address }

func (c *packetConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.process.host.network.mu.Lock()
	defer c.process.host.network.mu.Unlock()
	c.deadline = t
	c.wake()
	return nil
}

// SetWriteDeadline does nothing: a packet never waits.
func (c *packetConn) SetWriteDeadline(time.Time) error { return nil }
