package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/secrets/pki"
	"swarm/service/spec"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
)

// Init makes a cluster of this one node.
func (n *node) Init(ctx context.Context, r swarm.InitRequest) (string, error) {
	n.change.Lock()
	defer n.change.Unlock()
	if r.ForceNewCluster {
		return n.forceNewCluster(ctx, r)
	}
	if err := n.checkInit(&r); err != nil {
		return "", err
	}
	rec, err := n.addresses(r.ListenAddr, r.AdvertiseAddr)
	if err != nil {
		return "", err
	}
	rec.ClusterID, rec.NodeID = raftstore.NewID(), raftstore.NewID()
	rec.Managers = []string{rec.AdvertiseAddr}
	founding, err := newFounding(r, rec)
	if err != nil {
		return "", err
	}
	// The record is written once the first state is committed: a crash before that leaves a node in no cluster.
	identity, err := n.saveIdentity(founding.cluster.RootPEM, founding.certPEM, founding.keyPEM)
	if err != nil {
		return "", err
	}
	m := newMembership(n, rec, identity, founding)
	return rec.NodeID, n.enter(ctx, m)
}

func (n *node) checkInit(r *swarm.InitRequest) error {
	switch {
	case r.AutoLockManagers || r.Spec.EncryptionConfig.AutoLockManagers:
		return errdefs.ErrNotImplemented.WithMessage("autolock is not available yet: create the swarm without it")
	case r.DataPathAddr != "":
		return errdefs.ErrNotImplemented.WithMessage("a data path address has no effect until overlay networks are available: leave it out")
	}
	if r.Spec.Name == "" {
		r.Spec.Name = "default"
	}
	if r.Availability == "" {
		r.Availability = swarm.NodeAvailabilityActive
	}
	if err := n.refuseSecondMembership(); err != nil {
		return err
	}
	if err := spec.ValidateCluster(r.Spec); err != nil {
		return err
	}
	return spec.ValidateNode(swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: r.Availability})
}

// Join makes this node a member of the cluster whose token it is given.
func (n *node) Join(ctx context.Context, r swarm.JoinRequest) error {
	n.change.Lock()
	defer n.change.Unlock()
	if err := n.refuseSecondMembership(); err != nil {
		return err
	}
	if r.DataPathAddr != "" {
		return errdefs.ErrNotImplemented.WithMessage("a data path address has no effect until overlay networks are available: leave it out")
	}
	if len(r.RemoteAddrs) == 0 {
		return errdefs.ErrInvalidArgument.WithMessage("at least one manager address is required to join: swarm join --token TOKEN HOST:2377")
	}
	if err := pki.ParseToken(r.JoinToken); err != nil {
		return err
	}
	rec, err := n.addresses(r.ListenAddr, r.AdvertiseAddr)
	if err != nil {
		return err
	}
	admission, err := requestAdmission(ctx, n.edges.Network, r)
	if err != nil {
		return err
	}
	rec.ClusterID, rec.NodeID = admission.ClusterId, admission.NodeId
	for _, m := range admission.Managers {
		rec.Managers = append(rec.Managers, m.Address)
	}
	identity, err := n.saveIdentity(admission.RootPem, admission.CertificatePem, admission.keyPEM)
	if err != nil {
		return err
	}
	if err := writeRecord(n.recordPath(), rec); err != nil {
		return err
	}
	return n.enter(ctx, newMembership(n, rec, identity, nil))
}

// enter runs m and waits, bounded, until it takes part. A membership that cannot even start is undone.
func (n *node) enter(ctx context.Context, m *membership) error {
	n.begin(m)
	timeout := time.NewTimer(joinWaitMax)
	defer timeout.Stop()
	select {
	case <-m.ready.done():
		n.log.Info("joined", "cluster", m.identity.ClusterID(), "node", m.identity.NodeID(), "role", m.identity.Role())
		return nil
	case err := <-m.failed:
		return errors.Join(err, n.abandon(context.WithoutCancel(ctx), m, "it never started"))
	case <-timeout.C:
		return errdefs.ErrUnavailable.WithMessage("Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"swarm info\" command to see the current swarm status of your node")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// addresses decides where this node listens and how others reach it; a request's addresses win over the agent's flags.
func (n *node) addresses(listen, advertise string) (record, error) {
	if listen == "" || listen == defaultListenAddr && n.cfg.ListenAddr != "" {
		listen = n.cfg.ListenAddr
	}
	if advertise == "" {
		advertise = n.cfg.AdvertiseAddr
	}
	asked := askedAddresses{Listen: listen, Advertise: advertise, ListenFlag: n.cfg.ListenAddr, AdvertiseFlag: n.cfg.AdvertiseAddr}
	listen, err := resolveListen(listen)
	if err != nil {
		return record{}, err
	}
	advertise, err = resolveAdvertise(advertise, listen)
	if err != nil {
		return record{}, err
	}
	return record{ListenAddr: listen, AdvertiseAddr: advertise, Asked: &asked}, nil
}

// saveIdentity writes the certificate of a node that is about to become a member; the record, written
// after it, makes it one. Raft state that an interrupted leave left behind would be of another cluster, so it goes.
func (n *node) saveIdentity(rootPEM, certPEM, keyPEM []byte) (*pki.Identity, error) {
	if err := n.dropRaftState(); err != nil {
		return nil, err
	}
	return pki.Save(n.certificatesDir(), rootPEM, certPEM, keyPEM)
}

// admission is a manager's answer to a joining node, with the key that never left this machine.
type admission struct {
	*rpc.IssueCertificateResponse
	keyPEM []byte
}

// requestAdmission asks the given managers in turn. A refusal of the token is final; an address that
// does not answer only counts if no other does.
func requestAdmission(ctx context.Context, network rpc.Network, r swarm.JoinRequest) (admission, error) {
	var failures error
	for _, address := range r.RemoteAddrs {
		host, port := splitPort(address)
		a, err := requestAdmissionFrom(ctx, network, net.JoinHostPort(host, port), r)
		if err == nil {
			return a, nil
		}
		failures = errors.Join(failures, err)
		if errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) {
			break
		}
	}
	return admission{}, failures
}

func requestAdmissionFrom(ctx context.Context, network rpc.Network, address string, r swarm.JoinRequest) (admission, error) {
	ctx, cancel := context.WithTimeout(ctx, joinWaitMax)
	defer cancel()
	rootPEM, err := fetchRoot(ctx, network, address)
	if err != nil {
		return admission{}, fmt.Errorf("join at %s: %w", address, err)
	}
	if err := pki.CheckToken(r.JoinToken, rootPEM); err != nil {
		return admission{}, fmt.Errorf("join at %s: %w", address, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	conn, err := rpc.Join(network, address, roots)
	if err != nil {
		return admission{}, err
	}
	defer conn.Close()
	keyPEM, csrPEM, err := pki.NewKey()
	if err != nil {
		return admission{}, err
	}
	answer, err := rpc.NewCertificateAuthorityClient(conn).IssueCertificate(ctx, &rpc.IssueCertificateRequest{
		CsrPem:       csrPEM,
		Token:        r.JoinToken,
		Availability: string(r.Availability),
		ReadsFormat:  raftstore.FormatVersion,
	})
	if err != nil {
		return admission{}, fmt.Errorf("join at %s: %w", address, err)
	}
	// The root is the one whose digest the token carries, whatever the answer says.
	answer.RootPem = rootPEM
	return admission{answer, keyPEM}, nil
}

func fetchRoot(ctx context.Context, network rpc.Network, address string) ([]byte, error) {
	conn, err := rpc.Join(network, address, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := rpc.NewCertificateAuthorityClient(conn).RootCertificate(ctx, &rpc.RootCertificateRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return nil, err
	}
	return answer.RootPem, nil
}
