package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"swarm/gossip"
)

// Process is what one run of a program holds of its host's network: everything of it ends when the process is killed,
// except the sockets that the keeper holds. It is an agent's network and sockets.
type Process struct {
	host *Host

	// Guarded by network.mu:

	dead   bool
	frozen bool
	// changed is closed and replaced when the process is frozen, thawed or killed.
	changed   chan struct{}
	ends      map[*end]struct{}
	listeners map[*listener]struct{}
	packets   map[*packetConn]struct{}
}

var _ gossip.Network = (*Process)(nil)

// NewProcess starts a program, as far as the network is concerned.
func (h *Host) NewProcess() *Process {
	return &Process{host: h, changed: make(chan struct{}), ends: map[*end]struct{}{}, listeners: map[*listener]struct{}{}, packets: map[*packetConn]struct{}{}}
}

func (p *Process) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Freeze stops the process at the next thing it wants of the network: what SIGSTOP does, seen from outside.
// The kernel goes on: it acknowledges, and takes what fits into its buffers.
func (p *Process) Freeze() { p.setFrozen(true) }

// Thaw undoes Freeze.
func (p *Process) Thaw() { p.setFrozen(false) }

func (p *Process) setFrozen(frozen bool) {
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	p.frozen = frozen
	for e := range p.ends {
		if f := e.out(); f.stalled && f.flows() {
			at, _ := p.host.network.arrival(f.from, f.to, f.bytes)
			f.resendAt(at)
		}
	}
	p.wake()
}

// Kill closes everything that the process holds, as the kernel does after SIGKILL: peers read the end, or a reset.
func (p *Process) Kill() {
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	wasFrozen := p.frozen
	p.dead, p.frozen = true, false
	for e := range p.ends {
		if wasFrozen {
			e.out().unwrite()
		}
		e.closeLocked()
	}
	for l := range p.listeners {
		l.closeLocked()
	}
	for c := range p.packets {
		c.closeLocked()
	}
	p.wake()
}

// socket listens. One that the keeper holds stays when its process goes; connections wait in its backlog.
type socket struct {
	host    *Host
	key     string
	address net.Addr
	held    bool
	backlog []*pair
	closed  bool
	changed chan struct{}
}

func (s *socket) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// close refuses from now on; who waits in the backlog is reset.
func (s *socket) close() {
	if s.closed {
		return
	}
	s.closed = true
	delete(s.host.sockets, s.key)
	for _, p := range s.backlog {
		p.ends[1].closeLocked()
		p.resetPeer(p.ends[1])
	}
	s.backlog = nil
	s.wake()
}

// listener is a process's view of a socket.
type listener struct {
	*socket
	process *Process
	closed  bool
}

func (l *listener) Addr() net.Addr { return l.address }

func (l *listener) Accept() (net.Conn, error) {
	n := l.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if l.closed || l.socket.closed || l.process.dead {
			return nil, &net.OpError{Op: "accept", Net: l.address.Network(), Addr: l.address, Err: net.ErrClosed}
		}
		if len(l.backlog) > 0 && !l.process.frozen {
			p := l.backlog[0]
			l.backlog = l.backlog[1:]
			l.process.own(p.ends[1])
			return p.ends[1], nil
		}
		one, other := l.socket.changed, l.process.changed
		n.mu.Unlock()
		waitFor(time.Time{}, one, other)
		n.mu.Lock()
	}
}

func (p *Process) own(e *end) {
	e.process = p
	p.ends[e] = struct{}{}
}

func (l *listener) Close() error {
	l.host.network.mu.Lock()
	defer l.host.network.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	delete(l.process.listeners, l)
	if !l.held {
		l.socket.close()
	}
	l.socket.wake()
}

func errDead(op string) error { return &net.OpError{Op: op, Net: "tcp", Err: net.ErrClosed} }

// Listen opens a socket that ends with the process.
func (p *Process) Listen(_ context.Context, network, address string) (net.Listener, error) {
	return p.listen(network, address, false)
}

func (p *Process) listen(network, address string, held bool) (net.Listener, error) {
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
	s := p.host.sockets[key]
	switch {
	case s != nil && !(held && s.held):
		return nil, &net.OpError{Op: "listen", Net: network, Err: syscall.EADDRINUSE}
	case s == nil:
		s = &socket{host: p.host, key: key, held: held, address: p.host.addressOf(network, address), changed: make(chan struct{})}
		p.host.sockets[key] = s
	}
	l := &listener{socket: s, process: p}
	p.listeners[l] = struct{}{}
	return l, nil
}

func socketKey(network, address string) (string, error) {
	if network == "unix" {
		return "unix:" + address, nil
	}
	_, port, err := net.SplitHostPort(address)
	return network + ":" + port, err
}

func (h *Host) addressOf(network, address string) net.Addr {
	if network == "unix" {
		return &net.UnixAddr{Net: "unix", Name: address}
	}
	_, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 16)
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.address, uint16(number)))
}

// Keeper is a process's sockets that stay open without it, in the hands of the keeper.
type Keeper struct{ *Process }

// Listen opens a socket, or takes over the one that the keeper holds.
func (k Keeper) Listen(_ context.Context, network, address string) (net.Listener, error) {
	return k.listen(network, address, true)
}

// Release closes a held socket for good.
func (k Keeper) Release(_ context.Context, network, address string) error {
	k.host.network.mu.Lock()
	defer k.host.network.mu.Unlock()
	key, err := socketKey(network, address)
	if s := k.host.sockets[key]; s != nil && s.held && !k.dead {
		s.close()
	}
	return err
}

// errSilence is a dial that nobody answers.
var errSilence error = syscall.ETIMEDOUT

// Dial opens a stream. It is refused by a host without such a socket, and hangs where nobody is.
func (p *Process) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, dialMax, errSilence)
	defer cancel()
	fault := func(err error) error {
		return &net.OpError{Op: "dial", Net: network, Addr: p.host.addressOf(network, address), Err: err}
	}
	target, key, err := p.target(network, address)
	if err != nil {
		return nil, fault(err)
	}
	const synRetry = time.Second
	for {
		wait, e, err := p.knock(target, key)
		if err != nil {
			return nil, fault(err)
		}
		if e != nil {
			return e, nil
		}
		if wait == 0 {
			wait = synRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if cause := context.Cause(ctx); errors.Is(cause, errSilence) {
				return nil, fault(cause)
			}
			return nil, fault(ctx.Err())
		}
		if wait == synRetry {
			continue
		}
		if e, err := p.connect(target, key, network, address); err != nil {
			return nil, fault(err)
		} else if e != nil {
			return e, nil
		}
	}
}

func (p *Process) target(network, address string) (*Host, string, error) {
	key, err := socketKey(network, address)
	if err != nil || network == "unix" {
		return p.host, key, err
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, "", fmt.Errorf("%s is no IP address with a port: %w", address, err)
	}
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	if at.Addr().IsLoopback() {
		return p.host, key, nil
	}
	return p.host.network.hosts[at.Addr()], key, nil
}

// knock says how long the handshake will take; 0 when the SYN is lost.
func (p *Process) knock(target *Host, key string) (time.Duration, net.Conn, error) {
	n := p.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.dead {
		return 0, nil, net.ErrClosed
	}
	if target == nil || p.frozen || !n.open(p.host, target) || !n.open(target, p.host) {
		return 0, nil, nil
	}
	there, lost := n.arrival(p.host, target, 0)
	back, lostBack := n.arrival(target, p.host, 0)
	if lost || lostBack {
		return 0, nil, nil
	}
	if target == p.host {
		e, err := p.connectLocked(target, key)
		if e == nil {
			return 0, nil, err
		}
		return 0, e, err
	}
	return time.Until(there) + time.Until(back) + 1, nil, nil
}

// connect is the moment of the handshake's end.
func (p *Process) connect(target *Host, key, network, address string) (net.Conn, error) {
	n := p.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.open(p.host, target) || !n.open(target, p.host) {
		return nil, nil
	}
	e, err := p.connectLocked(target, key)
	if e == nil {
		return nil, err
	}
	return e, err
}

func (p *Process) connectLocked(target *Host, key string) (*end, error) {
	n := p.host.network
	if p.dead {
		return nil, net.ErrClosed
	}
	s := target.sockets[key]
	if s == nil {
		return nil, syscall.ECONNREFUSED
	}
	if len(s.backlog) >= backlogMax {
		return nil, nil
	}
	if n.nextPort++; n.nextPort < 32768 {
		n.nextPort = 32768
	}
	var local net.Addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.host.address, n.nextPort))
	if s.address.Network() == "unix" {
		local = &net.UnixAddr{Net: "unix", Name: "@"}
	}
	pair := n.newPair(p.host, target, local, s.address)
	p.own(pair.ends[0])
	s.backlog = append(s.backlog, pair)
	s.wake()
	return pair.ends[0], nil
}
