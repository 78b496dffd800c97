package rpc

import (
	"context"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

func (s *Server) newGRPC() *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(handedOver{}),
		grpc.MaxRecvMsgSize(MessageBytesMax),
		grpc.MaxSendMsgSize(MessageBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(s.unknown),
		// Run returns only when no handler is left.
		grpc.WaitForHandlers(true),
	)
}

func (s *Server) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := s.mayCallMethod(ctx, info.FullMethod); err != nil {
		return nil, toWire(err)
	}
	answer, err := handle(ctx, request)
	return answer, toWire(err)
}

func (s *Server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := s.mayCallMethod(stream.Context(), info.FullMethod); err != nil {
		return toWire(err)
	}
	return toWire(handle(service, stream))
}

func (s *Server) mayCallMethod(ctx context.Context, method string) error {
	roles, listed := s.methods[method]
	if !listed {
		return fmt.Errorf("node does not know the method %s, it may run another version: %w", method, errdefs.ErrNotImplemented)
	}
	return s.mayCall(PeerFrom(ctx), roles, method)
}

// unknown answers calls of services that are not registered here. All of them are a manager's.
func (s *Server) unknown(any, grpc.ServerStream) error {
	return fmt.Errorf("node is not a manager: %w", errdefs.ErrNotImplemented)
}

// handedOver are the credentials of connections whose handshake is done before gRPC sees them.
type handedOver struct{}

func (handedOver) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := conn.(*connection)
	if !ok {
		return nil, nil, fmt.Errorf("connection without handshake: %w", errdefs.ErrInternal)
	}
	return c, authInfo{peer: c.peer}, nil
}

func (handedOver) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("not for clients: %w", errdefs.ErrInternal)
}

func (handedOver) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "swarm"}
}
func (handedOver) Clone() credentials.TransportCredentials { return handedOver{} }
func (handedOver) OverrideServerName(string) error         { return nil }
