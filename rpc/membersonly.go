package rpc

import (
	"crypto/tls"
	"fmt"

	"github.com/containerd/errdefs"
)

// MembersOnly is the TLS of a port beside the node port that serves HTTP/1.1 to nodes of this cluster, whatever their role, and to nobody else.
// current is asked at each handshake, because a node changes its certificate, and its cluster.
func MembersOnly(current func() (Identity, Authorizer, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			identity, authorizer, err := current()
			if err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{*identity.Certificate()},
				NextProtos:             []string{"http/1.1"},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              identity.Roots(),
				SessionTicketsDisabled: true,
				VerifyConnection: func(state tls.ConnectionState) error {
					return verifyMember(state, identity.ClusterID(), authorizer)
				},
			}, nil
		},
	}
}

// verifyMember refuses certificates of another cluster under the same root, and nodes that were removed.
func verifyMember(state tls.ConnectionState, clusterID string, authorizer Authorizer) error {
	peer, err := peerOfState(state)
	switch {
	case err != nil:
		return err
	case peer.Role == Anonymous:
		return fmt.Errorf("a node certificate is needed: %w", errdefs.ErrUnauthenticated)
	case peer.ClusterID != clusterID:
		return fmt.Errorf("node %s is of cluster %s, not of %s: %w", peer.NodeID, peer.ClusterID, clusterID, errdefs.ErrUnauthenticated)
	}
	if err := authorizer.Authorize(peer); err != nil {
		return refused(peer, err)
	}
	return nil
}
