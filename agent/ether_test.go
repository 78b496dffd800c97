package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// ether is a network in memory: streams and packets between hosts, which can be cut off or switched off.
type ether struct {
	mu      sync.Mutex
	sockets map[string]*etherSocket
	packets map[string]*etherPackets
	cut     map[string]bool // by host: all that is sent to or from it is lost
	conns   map[*etherConn]bool
}

func newEther() *ether {
	return &ether{sockets: map[string]*etherSocket{}, packets: map[string]*etherPackets{}, cut: map[string]bool{}, conns: map[*etherConn]bool{}}
}

// setCut makes a host silent for all others, or joins it again.
func (e *ether) setCut(host string, cut bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cut[host] = cut
	if !cut {
		return
	}
	// What is lost on a stream stays lost, so a stream that was cut never goes on.
	for c := range e.conns {
		if c.of(host) {
			c.lost = true
		}
	}
}

// host is the ether as one machine sees it.
func (e *ether) host(ip string) etherHost { return etherHost{e, ip} }

type etherHost struct {
	*ether
	ip string
}

const etherQueue = 256

// Listen makes a socket, or takes over the one that is held.
func (h etherHost) Listen(_ context.Context, network, address string) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if network == "unix" {
		address = h.ip + ":" + address
	}
	s := h.sockets[address]
	if s == nil {
		s = &etherSocket{address: etherAddress(address), waiting: make(chan net.Conn, etherQueue)}
		h.sockets[address] = s
	}
	return &etherListener{socket: s, closed: make(chan struct{})}, nil
}

// Release ends a socket.
func (h etherHost) Release(_ context.Context, _, address string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sockets, address)
	return nil
}

func (h etherHost) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "unix" {
		address = h.ip + ":" + address
	}
	h.mu.Lock()
	s := h.sockets[address]
	host, _, _ := net.SplitHostPort(address)
	cut := network != "unix" && (h.cut[h.ip] || h.cut[host])
	h.mu.Unlock()
	if cut {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s == nil {
		return nil, syscall.ECONNREFUSED
	}
	up, down := newHalf(), newHalf()
	local := etherAddress(h.ip + ":40000")
	here := &etherConn{ether: h.ether, in: down, out: up, local: local, remote: s.address}
	there := &etherConn{ether: h.ether, in: up, out: down, local: s.address, remote: local}
	select {
	case s.waiting <- there:
	default:
		return nil, syscall.ECONNREFUSED
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[here], h.conns[there] = true, true
	return here, nil
}

type etherAddress string

func (etherAddress) Network() string  { return "tcp" }
func (a etherAddress) String() string { return string(a) }

// etherSocket outlives the listeners on it, as one that the keeper holds.
type etherSocket struct {
	address etherAddress
	waiting chan net.Conn
}

type etherListener struct {
	socket *etherSocket
	closed chan struct{}
	once   sync.Once
}

func (l *etherListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.socket.waiting:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *etherListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *etherListener) Addr() net.Addr { return l.socket.address }

// etherConn has a buffer, as sockets have.
type etherConn struct {
	ether         *ether
	in, out       *half
	local, remote etherAddress
	lost          bool // guarded by the ether
}

// of says whether a host is at one of the ends.
func (c *etherConn) of(host string) bool {
	l, _, _ := net.SplitHostPort(string(c.local))
	r, _, _ := net.SplitHostPort(string(c.remote))
	return l != r && (l == host || r == host)
}

func (c *etherConn) isLost() bool {
	c.ether.mu.Lock()
	defer c.ether.mu.Unlock()
	return c.lost
}

func (c *etherConn) Write(b []byte) (int, error) {
	if c.isLost() {
		return len(b), nil
	}
	return c.out.write(b)
}

func (c *etherConn) Read(b []byte) (int, error) { return c.in.read(b) }

func (c *etherConn) Close() error {
	c.in.end(net.ErrClosed)
	if !c.isLost() {
		c.out.end(io.EOF)
	}
	c.ether.mu.Lock()
	defer c.ether.mu.Unlock()
	delete(c.ether.conns, c)
	return nil
}

func (c *etherConn) SetReadDeadline(t time.Time) error { c.in.until(t); return nil }
func (c *etherConn) SetWriteDeadline(time.Time) error  { return nil }
func (c *etherConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *etherConn) LocalAddr() net.Addr               { return c.local }
func (c *etherConn) RemoteAddr() net.Addr              { return c.remote }

// half is one direction of a stream.
type half struct {
	mu       sync.Mutex
	changed  *sync.Cond
	data     []byte
	ended    error
	deadline time.Time
	timer    *time.Timer
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
	if h.timer != nil {
		h.timer.Stop()
	}
	h.changed.Broadcast()
}

func (h *half) until(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	h.changed.Broadcast()
	if h.timer != nil {
		h.timer.Stop()
	}
	if !t.IsZero() {
		h.timer = time.AfterFunc(time.Until(t), h.changed.Broadcast)
	}
}

func (h etherHost) ListenPacket(_ context.Context, _, address string) (net.PacketConn, error) {
	a, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.packets[address] != nil {
		return nil, syscall.EADDRINUSE
	}
	p := &etherPackets{ether: h.ether, address: a, incoming: make(chan etherPacket, etherQueue), closed: make(chan struct{})}
	h.packets[address] = p
	return p, nil
}

type etherPacket struct {
	content []byte
	from    net.Addr
}

type etherPackets struct {
	*ether
	address  *net.UDPAddr
	incoming chan etherPacket
	closed   chan struct{}
	once     sync.Once
}

func (p *etherPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case packet := <-p.incoming:
		return copy(b, packet.content), packet.from, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo drops what the receiver has no room for.
func (p *etherPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host, _, _ := net.SplitHostPort(to.String())
	receiver := p.packets[to.String()]
	if receiver == nil || p.cut[p.address.IP.String()] || p.cut[host] {
		return len(b), nil
	}
	select {
	case receiver.incoming <- etherPacket{append([]byte(nil), b...), p.address}:
	default:
	}
	return len(b), nil
}

func (p *etherPackets) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.packets, p.address.String())
	})
	return nil
}

func (p *etherPackets) LocalAddr() net.Addr              { return p.address }
func (p *etherPackets) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (p *etherPackets) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (p *etherPackets) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
