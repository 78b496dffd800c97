package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"swarm/rpc"

	"github.com/hashicorp/memberlist"
)

// Network is the seam between the real kernel and a simulated one.
type Network interface {
	rpc.Network
	ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error)
}

// Kernel is the real Network.
type Kernel struct{ rpc.Kernel }

func (Kernel) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, network, address)
	if udp, ok := conn.(*net.UDPConn); ok {
		// Less is granted where the system's limit is lower; that is no reason to stop.
		_ = udp.SetReadBuffer(receiveBufferBytes)
	}
	return conn, err
}

const (
	receiveBufferBytes = 2 << 20
	packetBytesMax     = 64 << 10
	// streamsMax bounds the incoming streams in progress: exchanges of full state, and pings.
	streamsMax   = 128
	failurePause = 100 * time.Millisecond
)

// transport carries the library's packets and streams. It ends its streams when the context that Run was given ends.
type transport struct {
	ctx       context.Context
	network   Network
	advertise net.IP
	packets   net.PacketConn
	streams   net.Listener

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn
	slots    chan struct{} // one per incoming stream
	closed   chan struct{}
	once     sync.Once
	loops    sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// openTransport binds address for packets and streams.
func openTransport(ctx context.Context, network Network, advertise net.IP, address string) (*transport, error) {
	streams, err := network.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("gossip cannot listen on tcp %s; free it or choose another --gossip-port: %w", address, err)
	}
	packets, err := network.ListenPacket(ctx, "udp", address)
	if err != nil {
		_ = streams.Close()
		return nil, fmt.Errorf("gossip cannot listen on udp %s; free it or choose another --gossip-port: %w", address, err)
	}
	t := &transport{
		ctx: ctx, network: network, advertise: advertise, packets: packets, streams: streams,
		packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn),
		slots: make(chan struct{}, streamsMax), closed: make(chan struct{}),
	}
	t.loops.Go(t.readPackets)
	t.loops.Go(t.acceptStreams)
	return t, nil
}

func (t *transport) readPackets() {
	buffer := make([]byte, packetBytesMax)
	for {
		n, from, err := t.packets.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		packet := &memberlist.Packet{Buf: append([]byte(nil), buffer[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packetCh <- packet:
		case <-t.closed:
			return
		}
	}
}

func (t *transport) acceptStreams() {
	for {
		conn, err := t.streams.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		t.handStream(conn)
	}
}

// pause keeps a failure that lasts, such as too many open files, from taking all of a processor.
func (t *transport) pause() {
	select {
	case <-time.After(failurePause):
	case <-t.closed:
	}
}

func (t *transport) handStream(conn net.Conn) {
	select {
	case t.slots <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	stream := &stream{Conn: conn, release: func() { <-t.slots }}
	select {
	case t.streamCh <- stream:
	case <-t.closed:
		_ = stream.Close()
	}
}

// stream gives its slot back when it is closed.
type stream struct {
	net.Conn
	release func()
	once    sync.Once
}

func (s *stream) Close() error {
	s.once.Do(s.release)
	return s.Conn.Close()
}

func (t *transport) FinalAdvertiseAddr(_ string, port int) (net.IP, int, error) {
	return t.advertise, port, nil
}

func (t *transport) WriteTo(b []byte, address string) (time.Time, error) {
	to, err := packetAddress(address)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.packets.WriteTo(b, to)
	return time.Now(), err
}

// packetAddress takes IP addresses alone: nothing here may wait for a name server.
func packetAddress(address string) (net.Addr, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("%s is not an IP address", host)
	}
	return net.ResolveUDPAddr("udp", net.JoinHostPort(host, port))
}

func (t *transport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.network.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// Whoever waits on this stream when Run is to end must not hold it up.
	stop := context.AfterFunc(t.ctx, func() { _ = conn.Close() })
	return &stream{Conn: conn, release: func() { stop() }}, nil
}

func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, to.Addr)
}

func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(to.Addr, timeout)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streamCh }

// Shutdown closes both sockets and waits for who reads them.
func (t *transport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		_ = t.packets.Close()
		_ = t.streams.Close()
	})
	t.loops.Wait()
	return nil
}
