package service

import (
	"cmp"
	"net"
	"slices"

	"swarm/raftstore"
	"swarm/service/scheduler"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// cluster is what the loop remembers of nodes between decisions, so that a decision looks only at what changed.
// All of it follows from the state; a new leader builds it anew.
type cluster struct {
	nodes    *scheduler.Nodes
	machines map[string]*machine
	// ordered is machines in order of ids; nil when it has to be sorted again.
	ordered []*machine
	// reservations are those of the versions that were looked up.
	reservations map[scheduler.Version]reservation
	// services is the memory of the last load that was summed up.
	services map[string]int
}

func newCluster() *cluster {
	return &cluster{nodes: scheduler.NewNodes(), machines: map[string]*machine{}, reservations: map[scheduler.Version]reservation{}, services: map[string]int{}}
}

// reservation is what a task of a version reserves.
type reservation struct{ nanoCPUs, memoryBytes int64 }

// reservationsMax bounds the versions that are remembered.
const reservationsMax = 100_000

// reserved looks a version up once: specs never change.
func (c *cluster) reserved(state *raftstore.State, version scheduler.Version) reservation {
	if r, ok := c.reservations[version]; ok {
		return r
	}
	v := state.Spec(version.ServiceID, version.SpecVersion)
	if v == nil {
		return reservation{}
	}
	var r reservation
	r.nanoCPUs, r.memoryBytes = spec.Reserved(v.TaskTemplate)
	if len(c.reservations) >= reservationsMax {
		clear(c.reservations)
	}
	c.reservations[version] = r
	return r
}

// refresh reads one node and its tasks from the state. moved says that tasks may not belong there any more, or new ones may
// (readiness, availability, labels, size); room says that something may fit that did not fit before.
func (c *cluster) refresh(state *raftstore.State, nodeID string) (moved, room bool) {
	row, ok := state.Nodes.Get(nodeID)
	if !ok {
		_, known := c.machines[nodeID]
		delete(c.machines, nodeID)
		c.nodes.Remove(nodeID)
		c.ordered = nil
		return known, false
	}
	change := c.nodes.Put(scheduler.Node{
		Facts: factsOf(row), Open: open(row), Silent: unheard(row),
		NanoCPUs: row.Description.Resources.NanoCPUs, MemoryBytes: row.Description.Resources.MemoryBytes,
		Load: c.loadOf(state, nodeID),
	})
	m := machine{
		facts: &c.nodes.Get(nodeID).Facts, open: open(row),
		down:    row.Session.Presence == raftstore.PresenceDown,
		since:   row.Session.Since,
		drained: row.Spec.Availability == swarm.NodeAvailabilityDrain,
		paused:  row.Spec.Availability == swarm.NodeAvailabilityPause,
	}
	old := c.machines[nodeID]
	if old == nil {
		c.machines[nodeID], c.ordered = &m, nil
		return true, change.Room
	}
	moved = change.Facts || old.down != m.down || old.drained != m.drained || old.paused != m.paused
	*old = m
	return moved, change.Room
}

// sorted is every machine in order of ids.
func (c *cluster) sorted() []*machine {
	if c.ordered == nil {
		c.ordered = make([]*machine, 0, len(c.machines))
		for _, m := range c.machines {
			c.ordered = append(c.ordered, m)
		}
		slices.SortFunc(c.ordered, func(a, b *machine) int { return cmp.Compare(a.facts.ID, b.facts.ID) })
	}
	return c.ordered
}

// open says whether a node takes new tasks.
func open(n *raftstore.Node) bool {
	return n.Session.Presence != raftstore.PresenceDown && !unheard(n) && n.Spec.Availability == swarm.NodeAvailabilityActive
}

// unheard says that nobody hears a node that is not down yet. One that announced that it restarts will be back in a moment.
func unheard(n *raftstore.Node) bool {
	switch n.Session.Presence {
	case raftstore.PresenceHeard, raftstore.PresenceAnnounced, raftstore.PresenceDown:
		return false
	}
	return true
}

func factsOf(n *raftstore.Node) spec.Facts {
	ip := n.Status.Addr
	if ip == "" {
		ip, _, _ = net.SplitHostPort(n.Address)
	}
	return spec.Facts{
		ID: n.ID, Hostname: n.Description.Hostname, IP: ip, Role: n.Role, Platform: n.Description.Platform,
		Labels: n.Spec.Labels, EngineLabels: n.Description.Engine.Labels,
	}
}

// loadOf sums up the tasks of a node. Its Services are good until the next call.
func (c *cluster) loadOf(state *raftstore.State, nodeID string) scheduler.Load {
	clear(c.services)
	load := scheduler.Load{Services: c.services}
	for t := range state.TasksOn(nodeID) {
		if !assigned(t) {
			continue
		}
		if task.Ended(t.Status.State) {
			if endedByItself(t) && t.Status.State != swarm.TaskStateComplete {
				load.Fail(scheduler.Version{ServiceID: t.ServiceID, SpecVersion: t.SpecVersion}, t.Status.Timestamp)
			}
			continue
		}
		r := c.reserved(state, scheduler.Version{ServiceID: t.ServiceID, SpecVersion: t.SpecVersion})
		load.Add(t.ServiceID, r.nanoCPUs, r.memoryBytes, live(t))
	}
	return load
}
