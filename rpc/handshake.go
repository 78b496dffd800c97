package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"
)

// begin takes a raw connection through its handshake to who serves its protocol.
func (s *Server) begin(ctx context.Context, raw net.Conn) {
	c, err := s.handshake(ctx, raw)
	if err != nil {
		s.dismiss(hostOf(raw))
		s.log.Debug("handshake failed", "address", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
		return
	}
	// Added before the Authorizer is asked: a Cut in between finds it.
	s.add(c)
	s.bound(c, s.authorize(c.peer))
	if ctx.Err() != nil {
		c.cut()
		return
	}
	switch c.ConnectionState().NegotiatedProtocol {
	case protocolGRPC:
		s.grpcQueue.hand(ctx, c)
	case protocolNode:
		s.httpQueue.hand(ctx, c)
	case protocolRaft:
		s.beginRaft(c)
	default:
		c.cut()
	}
}

func (s *Server) handshake(ctx context.Context, raw net.Conn) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(raw, s.tlsConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	peer, err := peerOfState(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	peer.Address = raw.RemoteAddr().String()
	c := &connection{Conn: conn, raw: raw, server: s, peer: peer, stranger: true}
	c.unread.Store(strangerBytesMax)
	return c, nil
}

// bound decides how long and how much of a connection there may be: a member's ends with its certificate.
func (s *Server) bound(c *connection, refusal error) {
	lifetime := strangerLifetime
	if refusal == nil && c.peer.Role != Anonymous {
		lifetime = time.Until(c.ConnectionState().PeerCertificates[0].NotAfter)
		s.welcome(c)
	}
	s.expire(c, lifetime)
}

// authorize asks the Authorizer about a member; a nil error for Anonymous says nothing about what it may call.
func (s *Server) authorize(p Peer) error {
	if p.Role == Anonymous || s.cfg.Authorizer == nil {
		return nil
	}
	return s.cfg.Authorizer.Authorize(p)
}

// tlsConfig takes roots and certificate anew for each handshake, since both may change.
func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				Certificates: []tls.Certificate{*s.cfg.Identity.Certificate()},
				NextProtos:   []string{protocolGRPC, protocolRaft, protocolNode},
				// A certificate that is given but not ours ends the handshake; none makes the caller Anonymous.
				ClientAuth: tls.VerifyClientCertIfGiven,
				ClientCAs:  s.cfg.Identity.Roots(),
				// A resumed session would outlive a change of roots or role.
				SessionTicketsDisabled: true,
				VerifyConnection:       s.verifyClient,
			}, nil
		},
	}
}

func (s *Server) verifyClient(state tls.ConnectionState) error {
	if state.NegotiatedProtocol == "" {
		return fmt.Errorf("client names no protocol: %w", errdefs.ErrInvalidArgument)
	}
	peer, err := peerOfState(state)
	if err != nil {
		return err
	}
	if peer.Role == Anonymous {
		if state.NegotiatedProtocol != protocolGRPC {
			return fmt.Errorf("%s needs a node certificate: %w", state.NegotiatedProtocol, errdefs.ErrUnauthenticated)
		}
		return nil
	}
	if own := s.cfg.Identity.ClusterID(); peer.ClusterID != own {
		return fmt.Errorf("node %s is of cluster %s, not of %s: %w", peer.NodeID, peer.ClusterID, own, errdefs.ErrUnauthenticated)
	}
	return nil
}

// peerOfState is who the certificate of a handshake speaks for; Anonymous without one.
func peerOfState(state tls.ConnectionState) (Peer, error) {
	if len(state.PeerCertificates) == 0 {
		return Peer{Role: Anonymous}, nil
	}
	return PeerOf(state.PeerCertificates[0])
}

// mayCall decides about one RPC or request of a peer; what names it in the text.
func (s *Server) mayCall(p Peer, roles roleSet, what string) error {
	renewal := what == CertificateAuthority_IssueCertificate_FullMethodName
	if err := s.authorize(p); err != nil && !(renewal && mayRenew(err)) {
		return refused(p, err)
	}
	switch {
	case roles.allows(p.Role):
		return nil
	case p.Role == Anonymous:
		return fmt.Errorf("%s needs a node certificate; join the swarm first: %w", what, errdefs.ErrUnauthenticated)
	}
	return fmt.Errorf("a %s may not call %s: %w", p.Role, what, errdefs.ErrPermissionDenied)
}

// refused keeps the Authorizer's reason as text. To the caller it is a matter of permission, or of kind
// Unauthenticated when another certificate would help.
func refused(p Peer, reason error) error {
	switch {
	case errors.Is(reason, errdefs.ErrPermissionDenied):
		return fmt.Errorf("node %s is refused: %w", p.NodeID, reason)
	case mayRenew(reason):
		return fmt.Errorf("node %s is refused: %v: %w", p.NodeID, reason, errdefs.ErrUnauthenticated)
	}
	return fmt.Errorf("node %s is refused: %v: %w", p.NodeID, reason, errdefs.ErrPermissionDenied)
}

// mayRenew tells a node whose certificate is merely out of date from one that was removed: the former would
// otherwise never get a certificate that is not refused.
func mayRenew(refusal error) bool {
	return errors.Is(errdefs.Resolve(refusal), errdefs.ErrFailedPrecondition)
}
