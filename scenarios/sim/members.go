package sim

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"swarm/api"
	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// retireMax is how long a demoted manager may take to become a worker before its operator gives up.
const retireMax = 15 * time.Second

// retire takes a machine out of the cluster in order.
func retire(p *player, ctx context.Context, m *Machine) error {
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	id, err := p.nodeID(ctx, m)
	if err != nil {
		return err
	}
	if err := changeNode(ctx, seat, id, func(s *swarm.NodeSpec) { s.Role = swarm.NodeRoleWorker }); err != nil {
		return err
	}
	worker := func() error {
		info, err := m.info(ctx)
		if err == nil && info.Swarm.ControlAvailable {
			err = fmt.Errorf("%s is still a manager", m.Name)
		}
		return err
	}
	if err := p.again(ctx, retireMax, worker); err != nil {
		return err
	}
	if err := m.Leave(ctx, false); err != nil {
		return err
	}
	if seat, err = p.seat(ctx); err != nil {
		return err
	}
	return p.again(ctx, retireMax, func() error {
		return seat.call(ctx, http.MethodDelete, "/nodes/"+id, nil, nil, nil)
	})
}

// forceNew makes a manager the only one of its cluster. What it had is kept; of what others may have acknowledged since it
// last heard of a leader nothing is certain.
func forceNew(p *player, ctx context.Context, m *Machine) error {
	preview, err := ask[api.Recovery](ctx, m, "/swarm/recovery")
	if err != nil {
		return err
	}
	store := p.checks.open(m.Name)
	if store == nil {
		return fmt.Errorf("%s has no replica", m.Name)
	}
	before := store.Local()
	for name, at := range p.changed {
		if !at.Before(preview.LeaderlessSince) {
			p.doubtful[name] = true
		}
	}
	request := swarm.InitRequest{ForceNewCluster: true, ListenAddr: "0.0.0.0:" + nodePort}
	if err := m.call(ctx, http.MethodPost, "/swarm/init", nil, request, nil); err != nil {
		return err
	}
	after := p.checks.open(m.Name)
	if after == nil {
		return fmt.Errorf("%s has no replica any more", m.Name)
	}
	for _, lost := range lostBy(before, after.Local(), preview.Unconfirmed > 0) {
		p.checks.wrong("the recovery from %s lost %s", m.Name, lost)
	}
	if after.Lineage() <= store.Lineage() {
		p.checks.wrong("the recovery from %s went on with the old lineage", m.Name)
	}
	return nil
}

// lostBy is what of a replica's committed state is not in the recovered one: entries that were not known to be committed are kept,
// too, and may have changed or removed it.
func lostBy(before, after *raftstore.State, unconfirmed bool) (lost []string) {
	for s := range before.Services.All() {
		now, ok := after.Services.Get(s.ID)
		switch {
		case !ok && !unconfirmed:
			lost = append(lost, "service "+s.Name)
		case ok && now.Version < s.Version:
			lost = append(lost, fmt.Sprintf("version %d of service %s, which has %d", s.Version, s.Name, now.Version))
		}
	}
	for n := range before.Nodes.All() {
		if _, ok := after.Nodes.Get(n.ID); !ok && !unconfirmed {
			lost = append(lost, "node "+n.ID)
		}
	}
	return lost
}
