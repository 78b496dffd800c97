package pki

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"

	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// manager issues certificates as an agent does.
type manager struct {
	rpc.UnimplementedCertificateAuthorityServer
	cluster cluster
	tokens  swarm.JoinTokens
}

func (m manager) RootCertificate(context.Context, *rpc.RootCertificateRequest) (*rpc.RootCertificateResponse, error) {
	return &rpc.RootCertificateResponse{RootPem: m.cluster.root}, nil
}

func (m manager) IssueCertificate(_ context.Context, r *rpc.IssueCertificateRequest) (*rpc.IssueCertificateResponse, error) {
	role, ok := TokenRole(r.Token, m.tokens)
	if !ok {
		return nil, errdefs.ErrPermissionDenied
	}
	cert, err := Sign(m.cluster.root, m.cluster.rootKey, r.CsrPem, rpc.Peer{NodeID: "n2", Role: rpc.Role(role), ClusterID: "c1"}, 0)
	return &rpc.IssueCertificateResponse{CertificatePem: cert, RootPem: m.cluster.root}, err
}

// startManager runs a manager's port on loopback until the test ends.
func startManager(t *testing.T) (address string, tokens swarm.JoinTokens) {
	t.Helper()
	c := newCluster(t)
	for _, token := range []*string{&tokens.Worker, &tokens.Manager} {
		made, err := NewJoinToken(c.root)
		check(t, err)
		*token = made
	}
	cert, key := c.node(t, "n1", swarm.NodeRoleManager, 0)
	identity, err := Save(t.TempDir(), c.root, cert, key)
	check(t, err)
	listener, err := rpc.Kernel{}.Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	server := rpc.NewServer(rpc.ServerConfig{Listener: listener, Identity: identity, NodeAPI: http.NotFoundHandler()})
	server.RegisterService(&rpc.CertificateAuthority_ServiceDesc, manager{cluster: c, tokens: tokens})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
	return listener.Addr().String(), tokens
}

func TestMachineJoinsWithAToken(t *testing.T) {
	address, tokens := startManager(t)

	conn, err := rpc.Join(rpc.Kernel{}, address, nil)
	check(t, err)
	root, err := rpc.NewCertificateAuthorityClient(conn).RootCertificate(t.Context(), &rpc.RootCertificateRequest{})
	check(t, err)
	check(t, conn.Close())
	check(t, CheckToken(tokens.Worker, root.RootPem))

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root.RootPem)
	conn, err = rpc.Join(rpc.Kernel{}, address, roots)
	check(t, err)
	defer conn.Close()
	key, csr, err := NewKey()
	check(t, err)
	authority := rpc.NewCertificateAuthorityClient(conn)
	_, err = authority.IssueCertificate(t.Context(), &rpc.IssueCertificateRequest{CsrPem: csr, Token: "guess"})
	says(t, err, errdefs.ErrPermissionDenied, "permission denied")
	issued, err := authority.IssueCertificate(t.Context(), &rpc.IssueCertificateRequest{CsrPem: csr, Token: tokens.Worker})
	check(t, err)

	identity, err := Save(t.TempDir(), issued.RootPem, issued.CertificatePem, key)
	check(t, err)
	member, err := (&rpc.Dialer{Network: rpc.Kernel{}, Identity: identity}).GRPC(address)
	check(t, err)
	defer member.Close()
	_, err = rpc.NewCertificateAuthorityClient(member).RootCertificate(t.Context(), &rpc.RootCertificateRequest{})
	check(t, err)
	if identity.Role() != swarm.NodeRoleWorker {
		t.Errorf("the machine joined as %s", identity.Role())
	}
}
