package rpc

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Attempts to reach a manager come at these intervals, growing from the first to the second.
const (
	redialFirst = 100 * time.Millisecond
	redialMax   = 2 * time.Second
)

func newClient(c *caller, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(c.address); err != nil {
		return nil, fmt.Errorf("address %q is not host:port: %w", c.address, errdefs.ErrInvalidArgument)
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(clientCredentials{c}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.connect(ctx) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithAuthority(c.address),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithReadBufferSize(bufferBytes),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPingEvery, Timeout: clientPingWait}),
		grpc.WithMaxHeaderListSize(headerBytesMax),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MessageBytesMax), grpc.MaxCallSendMsgSize(MessageBytesMax)),
	}, more...)
	// The interceptors that translate errors are the innermost, so that others see kinds.
	options = append(options, grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream))
	conn, err := grpc.NewClient("passthrough:///"+c.address, options...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w: %w", c.address, err, errdefs.ErrInvalidArgument)
	}
	return conn, nil
}

func (c *caller) unary(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	return c.translate(invoke(ctx, method, request, answer, conn, options...))
}

func (c *caller) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, options...)
	if err != nil {
		return nil, c.translate(err)
	}
	return &clientStream{ClientStream: stream, caller: c}, nil
}

// translate says why there is no connection, in words and kind of our own, instead of gRPC's account of it.
func (c *caller) translate(err error) error {
	failure := c.lastFailure()
	switch code := status.Code(err); {
	case err == nil:
		return nil
	case code == codes.Unavailable && failure != nil:
		return failure
	case code == codes.DeadlineExceeded && failure != nil:
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, failure)
	}
	return fromWire(err)
}

// clientStream is a stream whose errors have kinds.
type clientStream struct {
	grpc.ClientStream
	caller *caller
}

func (s *clientStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return s.caller.streamError(err)
	}
	return nil
}

func (s *clientStream) SendMsg(m any) error {
	if err := s.ClientStream.SendMsg(m); err != nil {
		return s.caller.streamError(err)
	}
	return nil
}

// streamError leaves io.EOF alone, which has a meaning on streams.
func (c *caller) streamError(err error) error {
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return c.translate(err)
}

// clientCredentials shake hands for gRPC.
type clientCredentials struct{ caller *caller }

func (c clientCredentials) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, peer, err := c.caller.handshake(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	return conn, authInfo{peer: peer}, nil
}

func (clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("not for servers: %w", errdefs.ErrInternal)
}

func (clientCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "swarm"}
}
func (c clientCredentials) Clone() credentials.TransportCredentials { return c }
func (clientCredentials) OverrideServerName(string) error           { return nil }
