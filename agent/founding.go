package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/secrets/pki"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

const (
	gossipKeyBytes = 32
	// defaultDataPathPort is VXLAN's registered port.
	defaultDataPathPort = 4789
	// defaultSubnetSize is the mask length of the networks cut from the address pool.
	defaultSubnetSize = 24
)

// founding is the first content of a new cluster: its row and that of its first manager.
type founding struct {
	cluster         raftstore.Cluster
	node            raftstore.Node
	certPEM, keyPEM []byte
}

// newFounding makes the root CA, the join tokens, the gossip key and the first node's certificate.
func newFounding(r swarm.InitRequest, rec record) (*founding, error) {
	rootPEM, rootKeyPEM, err := pki.NewRoot(rec.ClusterID)
	if err != nil {
		return nil, fmt.Errorf("make the root certificate: %w", err)
	}
	keyPEM, csrPEM, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	certPEM, err := pki.Sign(rootPEM, rootKeyPEM, csrPEM, rpc.Peer{NodeID: rec.NodeID, Role: rpc.Manager, ClusterID: rec.ClusterID}, nodeCertificateLife(r.Spec))
	if err != nil {
		return nil, fmt.Errorf("sign this node's certificate: %w", err)
	}
	tokens := swarm.JoinTokens{}
	if tokens.Worker, err = pki.NewJoinToken(rootPEM); err != nil {
		return nil, err
	}
	if tokens.Manager, err = pki.NewJoinToken(rootPEM); err != nil {
		return nil, err
	}
	gossipKey := make([]byte, gossipKeyBytes)
	if _, err := rand.Read(gossipKey); err != nil {
		return nil, err
	}
	now := time.Now()
	f := &founding{certPEM: certPEM, keyPEM: keyPEM}
	f.cluster = raftstore.Cluster{
		Meta:         raftstore.Meta{ID: rec.ClusterID, CreatedAt: now, UpdatedAt: now},
		Spec:         withDefaults(r.Spec),
		RootPEM:      rootPEM,
		RootKeyPEM:   rootKeyPEM,
		JoinTokens:   tokens,
		GossipKey:    gossipKey,
		DataPathPort: r.DataPathPort,
		SubnetSize:   r.SubnetSize,
	}
	if f.cluster.DataPathPort == 0 {
		f.cluster.DataPathPort = defaultDataPathPort
	}
	if f.cluster.SubnetSize == 0 {
		f.cluster.SubnetSize = defaultSubnetSize
	}
	for _, p := range r.DefaultAddrPool {
		f.cluster.DefaultAddrPool = append(f.cluster.DefaultAddrPool, p.String())
	}
	f.node = newNode(rec.NodeID, swarm.NodeRoleManager, r.Availability, now)
	f.node.Address = rec.AdvertiseAddr
	return f, nil
}

// withDefaults fills in the settings that clients show, so that what is in force can be seen.
func withDefaults(s swarm.Spec) swarm.Spec {
	if s.Orchestration.TaskHistoryRetentionLimit == nil {
		s.Orchestration.TaskHistoryRetentionLimit = new(int64(spec.TaskHistoryDefault))
	}
	s.Dispatcher.HeartbeatPeriod = spec.HeartbeatPeriod(s)
	s.CAConfig.NodeCertExpiry = nodeCertificateLife(s)
	return s
}

// newNode is the row of a node that was just given its first certificate.
func newNode(id string, role swarm.NodeRole, availability swarm.NodeAvailability, now time.Time) raftstore.Node {
	return raftstore.Node{
		Meta:   raftstore.Meta{ID: id, CreatedAt: now, UpdatedAt: now},
		Spec:   swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{}}, Role: role, Availability: availability},
		Role:   role,
		Status: swarm.NodeStatus{State: swarm.NodeStateUnknown, Message: "not seen yet"},
	}
}

func nodeCertificateLife(s swarm.Spec) time.Duration {
	if s.CAConfig.NodeCertExpiry > 0 {
		return s.CAConfig.NodeCertExpiry
	}
	return pki.DefaultValidity
}

// found writes the first rows; the raft log of a cluster of one is this node's alone, so it waits only for its own election.
func (f *founding) found(ctx context.Context, store *raftstore.Store) error {
	err := store.Update(ctx, func(tx *raftstore.Tx) error {
		if tx.Cluster() != nil {
			return nil // an earlier try got this far
		}
		tx.PutCluster(f.cluster)
		tx.PutNode(f.node)
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the new cluster's first state: %w", err)
	}
	return nil
}
