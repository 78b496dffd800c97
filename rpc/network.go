package rpc

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Network is the seam between the real kernel and a simulated one.
type Network interface {
	Listen(ctx context.Context, network, address string) (net.Listener, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Kernel is the real Network.
type Kernel struct{}

func (Kernel) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive()}
	return config.Listen(ctx, network, address)
}

// Dial gives up after 5 s.
func (Kernel) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive()}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	watchPeer(conn)
	return conn, nil
}

// keepAlive finds a silent dead peer in 10 s.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 2 * time.Second, Count: 3}
}

// unackedMax is how long sent data may stay unacknowledged before the kernel gives the connection up; without it,
// a dead peer that is written to is found after a quarter of an hour.
const unackedMax = 10 * time.Second

// watchPeer lets the kernel end a connection whose peer is dead within 10 s. Connections that are not TCP need nothing.
func watchPeer(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	// Errors mean that the connection is gone already, which the next read tells.
	_ = tcp.SetKeepAliveConfig(keepAlive())
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedMax.Milliseconds()))
	})
}
