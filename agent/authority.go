package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/secrets/pki"
	"swarm/service/spec"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// services are the RPCs of this node's port. They are registered once and serve while this node is a
// manager with a usable replica; otherwise they say so.
type services struct {
	rpc.UnimplementedCertificateAuthorityServer
	rpc.UnimplementedRaftServer
	rpc.UnimplementedDispatcherServer
	m *membership
}

func (m *membership) registerServices(server *rpc.Server) {
	s := &services{m: m}
	server.RegisterService(&rpc.CertificateAuthority_ServiceDesc, s)
	server.RegisterService(&rpc.Raft_ServiceDesc, s)
	server.RegisterService(&rpc.Dispatcher_ServiceDesc, s)
}

// manager is this node's manager part, or the error for a caller who asked the wrong node.
func (s *services) manager() (*manager, error) {
	mg := s.m.manager.Load()
	if mg == nil {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s is not a manager of the swarm: use the address of a manager", s.m.currentRecord().AdvertiseAddr))
	}
	if !mg.usable() {
		return nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("manager %s has no state yet, it is starting: try again in a moment", s.m.currentRecord().AdvertiseAddr))
	}
	return mg, nil
}

// RootCertificate answers anyone: it is public, and the caller checks it against its token.
func (s *services) RootCertificate(context.Context, *rpc.RootCertificateRequest) (*rpc.RootCertificateResponse, error) {
	mg, err := s.manager()
	if err != nil {
		return nil, err
	}
	return &rpc.RootCertificateResponse{RootPem: mg.store.Local().Cluster().RootPEM}, nil
}

// IssueCertificate admits a new node by its token, or renews the caller's certificate.
func (s *services) IssueCertificate(ctx context.Context, r *rpc.IssueCertificateRequest) (*rpc.IssueCertificateResponse, error) {
	mg, err := s.servingManager()
	if err != nil {
		return nil, err
	}
	var row raftstore.Node
	if r.Token != "" {
		row, err = mg.admit(ctx, r)
	} else {
		row, err = mg.renewal(ctx, rpc.PeerFrom(ctx), r.ReadsFormat)
	}
	if err != nil {
		return nil, err
	}
	state := mg.store.Local()
	cluster := state.Cluster()
	cert, err := sign(state, r.CsrPem, row.ID, row.Role)
	if err != nil {
		return nil, err
	}
	s.m.log.Info("certificate issued", "for", row.ID, "role", row.Role, "renewal", r.Token == "")
	return &rpc.IssueCertificateResponse{
		NodeId:         row.ID,
		ClusterId:      cluster.ID,
		Role:           string(row.Role),
		CertificatePem: cert,
		RootPem:        cluster.RootPEM,
		Managers:       mg.members(),
	}, nil
}

// sign issues a certificate to a node whose role follows from state.
func sign(state *raftstore.State, csrPEM []byte, nodeID string, role swarm.NodeRole) ([]byte, error) {
	cluster := state.Cluster()
	node := rpc.Peer{NodeID: nodeID, ClusterID: cluster.ID, Role: rpc.Role(role), Issued: state.Index()}
	return pki.Sign(cluster.RootPEM, cluster.RootKeyPEM, csrPEM, node, nodeCertificateLife(cluster.Spec))
}

// admit makes the row of a new node whose token is one of the cluster's.
func (mg *manager) admit(ctx context.Context, r *rpc.IssueCertificateRequest) (raftstore.Node, error) {
	availability := swarm.NodeAvailability(r.Availability)
	if availability == "" {
		availability = swarm.NodeAvailabilityActive
	}
	var row raftstore.Node
	id, now := raftstore.NewID(), time.Now()
	err := mg.store.Update(ctx, func(tx *raftstore.Tx) error {
		role, ok := pki.TokenRole(r.Token, tx.Cluster().JoinTokens)
		if !ok {
			return errdefs.ErrPermissionDenied.WithMessage("A valid join token is necessary to join this cluster: this one was rotated or is not its own; \"swarm join-token worker\" on a manager prints the current one")
		}
		if role == swarm.NodeRoleManager {
			if err := tx.Admits(r.ReadsFormat); err != nil {
				return err
			}
		}
		row = newNode(id, role, availability, now)
		if err := spec.ValidateNode(row.Spec); err != nil {
			return err
		}
		tx.PutNode(row)
		return nil
	})
	return row, err
}

// renewal decides the role of a member's next certificate. A node is a worker again, and drops its replica, only once raft goes on
// without it: before that, its vote may still be needed.
func (mg *manager) renewal(ctx context.Context, p rpc.Peer, readsFormat uint32) (raftstore.Node, error) {
	if p.Role == rpc.Anonymous {
		return raftstore.Node{}, errdefs.ErrPermissionDenied.WithMessage("A valid join token is necessary to join this cluster")
	}
	// A manager that has just begun may not have the change of role yet that the caller asks for.
	if _, err := mg.store.View(ctx); err != nil {
		return raftstore.Node{}, err
	}
	var row raftstore.Node
	err := mg.store.Update(ctx, func(tx *raftstore.Tx) error {
		current, ok := tx.Nodes.Get(p.NodeID)
		if !ok {
			return removedNode(p)
		}
		row = *current
		role := row.Spec.Role
		if role == swarm.NodeRoleWorker && row.Role == swarm.NodeRoleManager && !mg.store.Released(row.ID) {
			role = swarm.NodeRoleManager
		}
		if row.Role != role {
			if role == swarm.NodeRoleManager {
				if err := tx.Admits(readsFormat); err != nil {
					return err
				}
			}
			row.Role = role
			tx.PutObservedNode(row)
		}
		return nil
	})
	return row, err
}

// members are the managers that a new node can turn to.
func (mg *manager) members() []*rpc.Member {
	var members []*rpc.Member
	for _, member := range mg.store.Members() {
		if member.Voter {
			members = append(members, &rpc.Member{NodeId: member.NodeID, Role: string(rpc.Manager), Address: member.Address, Voter: true})
		}
	}
	return members
}

// giveBack makes this manager one that shall be none; false for the last one, which has nobody to hand over to.
func (mg *manager) giveBack(ctx context.Context) (handsOver bool, err error) {
	if len(mg.members()) <= 1 {
		return false, nil
	}
	err = mg.store.Update(ctx, func(tx *raftstore.Tx) error {
		handsOver = true
		current, ok := tx.Nodes.Get(mg.nodeID)
		if !ok || current.Spec.Role == swarm.NodeRoleWorker {
			return nil
		}
		// Of two managers that leave at the same time, the second sees that it is the last one.
		tx.Guard(raftstore.GuardManagers)
		if handsOver = tx.AnotherManager(mg.nodeID); !handsOver {
			return nil
		}
		row := *current
		row.Spec.Role = swarm.NodeRoleWorker
		row.UpdatedAt = time.Now()
		tx.PutNode(row)
		return nil
	})
	return handsOver && err == nil, err
}

// stepDown gives the manager role back and waits until the others go on without this node: only they can tell, by a worker's certificate,
// because raft does not tell who was taken out when that is settled.
func (m *membership) stepDown(ctx context.Context, mg *manager) error {
	handsOver, err := mg.giveBack(ctx)
	if err != nil || !handsOver {
		return err
	}
	for m.manager.Load() != nil {
		if ctx.Err() != nil {
			return errors.New("the other managers did not take this node out in time")
		}
		if mg.demoted() {
			m.renewNow.send()
		}
		pauseFor(ctx, stepDownPoll)
	}
	return nil
}

// stepDownPoll is how often the others are asked.
const stepDownPoll = 100 * time.Millisecond
