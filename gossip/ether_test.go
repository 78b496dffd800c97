package gossip

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// ether is a Network in memory. It drops packets that a receiver has no room for and all that concerns a host that is cut off.
type ether struct {
	mu      sync.Mutex
	packets map[string]*etherPackets
	streams map[string]*etherListener
	cut     map[string]bool // by host
	sniff   func(packet []byte)
}

func newEther() *ether {
	return &ether{packets: map[string]*etherPackets{}, streams: map[string]*etherListener{}, cut: map[string]bool{}}
}

// setCut separates a host from all others, or joins it again.
func (e *ether) setCut(host string, cut bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cut[host] = cut
}

// host is the ether as one machine sees it.
func (e *ether) host(ip string) Network { return etherHost{e, ip} }

type etherHost struct {
	*ether
	ip string
}

const etherQueue = 256

func (h etherHost) ListenPacket(_ context.Context, _, address string) (net.PacketConn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &etherPackets{ether: h.ether, address: udp(address), incoming: make(chan etherPacket, etherQueue), closed: make(chan struct{})}
	if h.packets[address] != nil {
		return nil, syscall.EADDRINUSE
	}
	h.packets[address] = p
	return p, nil
}

func (h etherHost) Listen(_ context.Context, _, address string) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[address] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &etherListener{ether: h.ether, address: udp(address), incoming: make(chan net.Conn), closed: make(chan struct{})}
	h.streams[address] = l
	return l, nil
}

func (h etherHost) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	h.mu.Lock()
	l, cut := h.streams[address], h.cut[h.ip] || h.cut[hostOf(address)]
	h.mu.Unlock()
	if cut {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	here, there := net.Pipe()
	select {
	case l.incoming <- there:
		return here, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func udp(address string) *net.UDPAddr {
	a, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		panic(err)
	}
	return a
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

func (p *etherPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sniff != nil {
		p.sniff(b)
	}
	receiver := p.packets[to.String()]
	if receiver == nil || p.cut[p.address.IP.String()] || p.cut[hostOf(to.String())] {
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

type etherListener struct {
	*ether
	address  net.Addr
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *etherListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *etherListener) Addr() net.Addr { return l.address }

func (l *etherListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.streams, l.address.String())
	})
	return nil
}
