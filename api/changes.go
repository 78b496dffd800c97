package api

import (
	"context"
	"strconv"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
)

// storeWait is how often a node that is no manager looks whether it has become one.
const storeWait = time.Second

// watchCluster turns changes of the cluster into events until ctx ends, while this node is a manager.
func (a *API) watchCluster(ctx context.Context) error {
	for {
		if store := a.cfg.Node.Store(); store != nil {
			a.watchStore(ctx, store)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(storeWait):
		}
	}
}

// watchStore publishes what changes in one store, until this node has another or none.
func (a *API) watchStore(ctx context.Context, store *raftstore.Store) {
	watch := store.Watch()
	defer watch.Close()
	tick := time.NewTicker(storeWait)
	defer tick.Stop()
	last, _ := watch.Take()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if a.cfg.Node.Store() != store {
				return
			}
		case <-watch.Changed():
			state, dirty := watch.Take()
			for _, m := range changes(last, state, dirty, time.Now()) {
				a.events.publish(m)
			}
			last = state
		}
	}
}

// changes are the events between two states.
func changes(old, now *raftstore.State, dirty raftstore.Dirty, at time.Time) []events.Message {
	if dirty.All {
		dirty.Services, dirty.Nodes = map[string]struct{}{}, map[string]struct{}{}
		for _, s := range []*raftstore.State{old, now} {
			for row := range s.Services.All() {
				dirty.Services[row.ID] = struct{}{}
			}
			for row := range s.Nodes.All() {
				dirty.Nodes[row.ID] = struct{}{}
			}
		}
	}
	var list []events.Message
	for id := range dirty.Services {
		list = appendEvent(list, serviceChange(old, now, id), at)
	}
	for id := range dirty.Nodes {
		list = appendEvent(list, nodeChange(old, now, id), at)
	}
	return list
}

func appendEvent(list []events.Message, m *events.Message, at time.Time) []events.Message {
	if m == nil {
		return list
	}
	m.Scope = scopeSwarm
	m.Time, m.TimeNano = at.Unix(), at.UnixNano()
	return append(list, *m)
}

func serviceChange(old, now *raftstore.State, id string) *events.Message {
	before, had := old.Services.Get(id)
	after, has := now.Services.Get(id)
	had, has = had && !before.Removing, has && !after.Removing
	message := func(action events.Action, state *raftstore.State, row *raftstore.Service) *events.Message {
		attributes := map[string]string{}
		if s := state.Spec(id, row.SpecVersion); s != nil {
			attributes["name"] = s.Name
		}
		return &events.Message{Type: events.ServiceEventType, Action: action, Actor: events.Actor{ID: id, Attributes: attributes}}
	}
	switch {
	case !had && has:
		return message(events.ActionCreate, now, after)
	case had && !has:
		return message(events.ActionRemove, old, before)
	case had && has && before.Index != after.Index:
		m := message(events.ActionUpdate, now, after)
		describeServiceChange(m.Actor.Attributes, old.Spec(id, before.SpecVersion), now.Spec(id, after.SpecVersion))
		if updateState(before) != updateState(after) {
			m.Actor.Attributes["updatestate.old"], m.Actor.Attributes["updatestate.new"] = updateState(before), updateState(after)
		}
		return m
	}
	return nil
}

func updateState(row *raftstore.Service) string {
	if row.UpdateStatus == nil {
		return ""
	}
	return string(row.UpdateStatus.State)
}

// describeServiceChange adds what is most asked about a change of spec: replicas and image.
func describeServiceChange(attributes map[string]string, before, after *swarm.ServiceSpec) {
	if before == nil || after == nil {
		return
	}
	note := func(key, old, now string) {
		if old != now {
			attributes[key+".old"], attributes[key+".new"] = old, now
		}
	}
	replicas := func(s *swarm.ServiceSpec) string {
		if s.Mode.Replicated == nil || s.Mode.Replicated.Replicas == nil {
			return ""
		}
		return strconv.FormatUint(*s.Mode.Replicated.Replicas, 10)
	}
	image := func(s *swarm.ServiceSpec) string {
		if s.TaskTemplate.ContainerSpec == nil {
			return ""
		}
		return s.TaskTemplate.ContainerSpec.Image
	}
	note("replicas", replicas(before), replicas(after))
	note("image", image(before), image(after))
}

func nodeChange(old, now *raftstore.State, id string) *events.Message {
	before, had := old.Nodes.Get(id)
	after, has := now.Nodes.Get(id)
	message := func(action events.Action, row *raftstore.Node) *events.Message {
		return &events.Message{Type: events.NodeEventType, Action: action, Actor: events.Actor{ID: id, Attributes: map[string]string{"name": nodeName(row)}}}
	}
	switch {
	case !had && has:
		return message(events.ActionCreate, after)
	case had && !has:
		return message(events.ActionRemove, before)
	case !had || before.Index == after.Index:
		return nil
	}
	m := message(events.ActionUpdate, after)
	note := func(key, old, now string) {
		if old != now {
			m.Actor.Attributes[key+".old"], m.Actor.Attributes[key+".new"] = old, now
		}
	}
	note("state", string(before.Status.State), string(after.Status.State))
	note("availability", string(before.Spec.Availability), string(after.Spec.Availability))
	note("desired_role", string(before.Spec.Role), string(after.Spec.Role))
	note("role", string(before.Role), string(after.Role))
	if len(m.Actor.Attributes) == 1 && before.Version == after.Version {
		return nil // beats and addresses are not news
	}
	return m
}
