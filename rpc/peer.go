package rpc

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/peer"
)

// Role is what a caller may be, proven by its certificate.
type Role string

const (
	Anonymous Role = "anonymous" // no certificate: a machine about to join
	Worker    Role = "worker"
	Manager   Role = "manager"
)

// Peer is the other end of a connection.
type Peer struct {
	NodeID    string // certificate CN
	ClusterID string // certificate O
	Role      Role   // certificate OU
	Address   string // remote address
	// Issued is the index of the cluster's state that the certificate was issued from, its subject's serial number: a replica
	// that has not come as far cannot tell that the role is over. 0 is for one older than any state.
	Issued uint64
}

// PeerFrom is the caller of an RPC or node-local HTTP request; Anonymous when ctx is of neither.
func PeerFrom(ctx context.Context) Peer {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c.peer
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.peer
		}
	}
	return Peer{Role: Anonymous}
}

// PeerOf reads who a node certificate speaks for. It says nothing about whether the certificate is to be believed.
func PeerOf(cert *x509.Certificate) (Peer, error) {
	subject := cert.Subject
	if len(subject.Organization) != 1 || len(subject.OrganizationalUnit) != 1 {
		return Peer{}, notNode(subject)
	}
	p := Peer{NodeID: subject.CommonName, ClusterID: subject.Organization[0], Role: Role(subject.OrganizationalUnit[0])}
	if p.NodeID == "" || p.ClusterID == "" || (p.Role != Worker && p.Role != Manager) {
		return Peer{}, notNode(subject)
	}
	if subject.SerialNumber != "" {
		issued, err := strconv.ParseUint(subject.SerialNumber, 10, 64)
		if err != nil {
			return Peer{}, notNode(subject)
		}
		p.Issued = issued
	}
	return p, nil
}

func notNode(subject pkix.Name) error {
	return fmt.Errorf("certificate of %q is not a node's certificate: %w", subject.String(), errdefs.ErrUnauthenticated)
}

// Subject is the inverse of PeerOf.
func (p Peer) Subject() pkix.Name {
	name := pkix.Name{
		CommonName:         p.NodeID,
		Organization:       []string{p.ClusterID},
		OrganizationalUnit: []string{string(p.Role)},
	}
	if p.Issued > 0 {
		name.SerialNumber = strconv.FormatUint(p.Issued, 10)
	}
	return name
}

// authInfo carries the peer through gRPC.
type authInfo struct{ peer Peer }

func (authInfo) AuthType() string { return "swarm" }
