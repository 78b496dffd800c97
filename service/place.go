package service

import (
	"maps"
	"slices"
	"time"

	"swarm/raftstore"
	"swarm/service/scheduler"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// place gives nodes to the tasks that a plan creates and to those that wait for one, and tells the rest why they wait.
// Tasks of one version go together. It adds changes of waiting tasks up to changesMax in the plan; whole is false when more of them
// could be placed. That only the reason changed is not told to all of very many tasks.
// It counts tasks in the load of nodes, also those that were too many: touched are the nodes whose load is to be read again.
func place(s *scene, p *plan, nodes *scheduler.Nodes) (touched []string, whole bool) {
	changed, touched := leavers(s, p, nodes)
	waiting := waitingTasks(s, changed)
	groups := map[uint64][]*change{}
	for i := range p.steps {
		for j := range p.steps[i].changes {
			if c := &p.steps[i].changes[j]; c.op == opCreate {
				groups[c.task.SpecVersion] = append(groups[c.task.SpecVersion], c)
			}
		}
	}
	for i := range waiting {
		v := waiting[i].task.SpecVersion
		groups[v] = append(groups[v], &waiting[i])
	}
	for _, v := range slices.Sorted(maps.Keys(groups)) {
		if !placeGroup(s.group(v), groups[v], nodes, s.now) {
			p.waiting = true
		}
	}
	room := changesMax - countChanges(p.steps)
	whole = true
	for _, c := range waiting {
		switch {
		case c.status.State != swarm.TaskStateAssigned && c.status.Err == c.task.Status.Err:
		case room <= 0:
			whole = whole && c.status.State != swarm.TaskStateAssigned
		default:
			p.add("placement", c)
			room--
		}
	}
	for _, group := range groups {
		for _, c := range group {
			touched = append(touched, c.placedOn())
		}
	}
	return touched, whole
}

// leavers takes tasks that the plan stops off the count of their nodes: a successor may go where its predecessor leaves.
// It returns all tasks that the plan changes, and the nodes.
func leavers(s *scene, p *plan, nodes *scheduler.Nodes) (changed map[string]bool, touched []string) {
	changed = map[string]bool{}
	for _, st := range p.steps {
		for _, c := range st.changes {
			if c.task == nil {
				continue
			}
			changed[c.task.ID] = true
			if c.op == opDesire && live(c.task) && task.Before(swarm.TaskStateRunning, c.desired) {
				nodes.Leave(c.task.NodeID, s.service.ID)
				touched = append(touched, c.task.NodeID)
			}
		}
	}
	return changed, touched
}

// placedOn is the node that settle chose; empty for a task that waits.
func (c *change) placedOn() string {
	if c.op == opCreate {
		return c.task.NodeID
	}
	return c.nodeID
}

// waitingTasks are the live tasks without a node that the plan does not touch.
func waitingTasks(s *scene, changed map[string]bool) (changes []change) {
	for _, t := range s.tasks {
		if live(t) && task.Before(t.Status.State, swarm.TaskStateAssigned) && !changed[t.ID] {
			changes = append(changes, change{op: opObserve, task: t, nodeID: t.NodeID})
		}
	}
	return changes
}

// placeGroup says whether every task found a node.
func placeGroup(g *scheduler.Group, tasks []*change, nodes *scheduler.Nodes, now time.Time) bool {
	var free []*change
	all := true
	for _, c := range tasks {
		if c.task.NodeID == "" {
			free = append(free, c)
			continue
		}
		reason := nodes.PlaceOn(g, c.task.NodeID)
		settle(c, c.task.NodeID, reason, now)
		all = all && reason == ""
	}
	ids, reason := nodes.Place(g, len(free), now)
	for i, c := range free {
		if i < len(ids) {
			settle(c, ids[i], "", now)
		} else {
			settle(c, "", reason, now)
			all = false
		}
	}
	return all
}

// settle writes where a task goes, or why it waits, into the change that creates or assigns it.
func settle(c *change, nodeID, reason string, now time.Time) {
	status := raftstore.TaskStatus{State: swarm.TaskStateAssigned, Timestamp: now, Message: messageAssigned}
	if reason != "" {
		status = raftstore.TaskStatus{State: swarm.TaskStatePending, Timestamp: now, Message: messagePending, Err: reason}
	}
	if c.op == opCreate {
		c.task.NodeID, c.task.Status = nodeID, status
		return
	}
	c.nodeID, c.status = nodeID, status
}
