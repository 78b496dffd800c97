package agent

import (
	"context"
	"errors"
	"fmt"

	"swarm/secrets/pki"
)

// resume takes up the membership that the data directory records, if any. What cannot be read keeps the agent from its swarm but
// not from running: the containers run on, the API says what is wrong, and nothing on the disk is changed.
func (n *node) resume(ctx context.Context) {
	n.started = make(chan *membership, 1)
	m, err := n.remembered(ctx)
	switch {
	case err != nil:
		n.log.Error("this node cannot take part in its swarm", "err", err)
		n.mu.Lock()
		n.broken = fmt.Errorf("%w; then start the agent again", err)
		n.mu.Unlock()
	case m != nil:
		n.begin(m)
	}
}

// remembered is the membership of the data directory, nil in no cluster.
func (n *node) remembered(ctx context.Context) (*membership, error) {
	r, err := readRecord(n.recordPath())
	if err != nil || r == nil {
		return nil, err
	}
	identity, err := pki.Load(n.certificatesDir())
	if errors.Is(err, pki.ErrExpired) {
		// A manager renews it from its own replica; anyone else is told by Status what to do.
		n.log.Warn("this node's certificate has expired", "err", err)
	} else if err != nil {
		return nil, fmt.Errorf("read this node's certificate: %w", err)
	}
	if identity.ClusterID() != r.ClusterID || identity.NodeID() != r.NodeID {
		return nil, fmt.Errorf("the data directory %s mixes two clusters: node.json is of node %s in cluster %s, the certificate of node %s in cluster %s; restore both from one backup, or remove the directory and join again",
			n.cfg.DataDir, r.NodeID, r.ClusterID, identity.NodeID(), identity.ClusterID())
	}
	return newMembership(n, n.readdress(ctx, *r), identity, nil), nil
}

// readdress follows a machine whose addresses changed, or flags that did, since the record was written. The cluster learns of it
// by the next session.
func (n *node) readdress(ctx context.Context, r record) record {
	now, err := n.addressesNow(r)
	if err != nil {
		n.log.Warn("the node keeps its addresses", "listen", r.ListenAddr, "advertise", r.AdvertiseAddr, "err", err)
		return r
	}
	if now.ListenAddr == r.ListenAddr && now.AdvertiseAddr == r.AdvertiseAddr {
		return r
	}
	n.log.Info("the node's addresses changed", "listen", now.ListenAddr, "advertise", now.AdvertiseAddr, "listened", r.ListenAddr, "advertised", r.AdvertiseAddr)
	if now.ListenAddr != r.ListenAddr {
		if err := n.edges.Sockets.Release(ctx, "tcp", r.ListenAddr); err != nil {
			n.log.Warn("the former node port stays open", "address", r.ListenAddr, "err", err)
		}
	}
	if err := writeRecord(n.recordPath(), now); err != nil {
		n.log.Warn("new addresses not written, the next start finds them again", "err", err)
	}
	return now
}

// addressesNow decides the addresses anew, from what was asked for when the node became a member, or from flags that say
// something else since.
func (n *node) addressesNow(r record) (record, error) {
	if r.Asked == nil {
		return r, nil // written by an earlier version: what was asked for is not known
	}
	asked := *r.Asked
	if n.cfg.ListenAddr != asked.ListenFlag && n.cfg.ListenAddr != "" {
		asked.Listen = n.cfg.ListenAddr
	}
	if n.cfg.AdvertiseAddr != asked.AdvertiseFlag && n.cfg.AdvertiseAddr != "" {
		asked.Advertise = n.cfg.AdvertiseAddr
	}
	asked.ListenFlag, asked.AdvertiseFlag = n.cfg.ListenAddr, n.cfg.AdvertiseAddr
	listen, err := resolveListen(asked.Listen)
	if err != nil {
		return r, err
	}
	advertise, err := resolveAdvertise(asked.Advertise, listen)
	if err != nil {
		return r, err
	}
	r.ListenAddr, r.AdvertiseAddr, r.Asked = listen, advertise, &asked
	return r, nil
}
