package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// settleMax is how long a cluster in which everything works again may take until it is in order.
const settleMax = 4 * time.Minute

// settle mends everything and waits until the cluster is in order.
func settle(p *player, _ context.Context, _ []string) error {
	if p.load != nil {
		p.load.stop()
	}
	p.Network.Heal()
	for _, m := range p.machines {
		m.disk.SetFull(false)
		m.disk.SetFailing(false)
		m.disk.SetDelay(0)
		m.Thaw()
		m.Start()
	}
	// Each look has a limit of its own: one that waits for a leader must not use up the time of all.
	var last error
	for began := time.Now(); time.Since(began) < settleMax; time.Sleep(max(againAfter, time.Since(began)/20)) {
		ctx, cancel := context.WithTimeout(context.Background(), askMax)
		last = p.inOrder(ctx)
		cancel()
		if last == nil {
			return p.finalReads()
		}
		if err := p.checks.Err(); err != nil {
			return err
		}
	}
	return fmt.Errorf("not in order %s after everything was mended: %w", settleMax, last)
}

// inOrder says what is not (yet) as it must be in a cluster that has been left alone.
func (p *player) inOrder(ctx context.Context) error {
	nodes, err := p.nodes(ctx)
	if err != nil {
		return err
	}
	byID := map[string]swarm.Node{}
	for _, n := range nodes {
		byID[n.ID] = n
	}
	members := map[string]*Machine{}
	for _, m := range p.machines {
		id, err := p.member(ctx, m, byID)
		if err != nil {
			return err
		}
		if id != "" {
			members[id] = m
		}
	}
	if err := p.managersAgree(ctx, members, byID); err != nil {
		return err
	}
	services, err := p.services(ctx)
	if err != nil {
		return err
	}
	// Containers and rows are compared at one moment: in between nothing moves.
	tasks, err := p.tasks(ctx)
	if err != nil {
		return err
	}
	synctest.Wait()
	return errors.Join(
		p.wantedExists(services),
		p.tasksFit(services, tasks, byID, members),
		containersFit(tasks, members),
		p.checks.replicasEqual(),
	)
}

// member is the node id of a machine that belongs to the cluster, after it was seen to be in order; "" for one that does not.
func (p *player) member(ctx context.Context, m *Machine, nodes map[string]swarm.Node) (string, error) {
	info, err := m.info(ctx)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", m.Name, err)
	}
	id := info.Swarm.NodeID
	n, known := nodes[id]
	switch {
	case info.Swarm.LocalNodeState == swarm.LocalNodeStateInactive:
		return "", m.isEmpty()
	case !known && strings.Contains(info.Swarm.Error, "removed"):
		return "", m.Leave(ctx, true)
	case !known:
		return "", fmt.Errorf("%s is node %s, which the cluster does not know (%s %s)", m.Name, id, info.Swarm.LocalNodeState, info.Swarm.Error)
	case n.Status.State != swarm.NodeStateReady:
		return "", fmt.Errorf("node %s of %s is %s (%s)", id, m.Name, n.Status.State, n.Status.Message)
	case info.Swarm.LocalNodeState != swarm.LocalNodeStateActive:
		return "", fmt.Errorf("%s says that it is %s: %s", m.Name, info.Swarm.LocalNodeState, info.Swarm.Error)
	case info.Swarm.ControlAvailable != (n.Spec.Role == swarm.NodeRoleManager):
		return "", fmt.Errorf("%s shall be %s, but control is %v", m.Name, n.Spec.Role, info.Swarm.ControlAvailable)
	case (n.ManagerStatus != nil) != (n.Spec.Role == swarm.NodeRoleManager):
		return "", fmt.Errorf("%s shall be %s, but its manager status is %v", m.Name, n.Spec.Role, n.ManagerStatus)
	case n.ManagerStatus != nil && n.ManagerStatus.Reachability != swarm.ReachabilityReachable:
		return "", fmt.Errorf("manager %s is %s", m.Name, n.ManagerStatus.Reachability)
	}
	return id, nil
}

// isEmpty: a machine that is in no cluster runs nothing.
func (m *Machine) isEmpty() error {
	if running := m.runtime.Running(); len(running) > 0 {
		return fmt.Errorf("%s is in no cluster, and %d containers run there", m.Name, len(running))
	}
	return nil
}

// managersAgree: every manager answers, and says the same of who leads.
func (p *player) managersAgree(ctx context.Context, members map[string]*Machine, nodes map[string]swarm.Node) error {
	leader := ""
	for id, m := range members {
		if nodes[id].Spec.Role != swarm.NodeRoleManager {
			continue
		}
		list, err := ask[[]swarm.Node](ctx, m, "/nodes")
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.ManagerStatus == nil || !n.ManagerStatus.Leader {
				continue
			}
			if leader != "" && leader != n.ID {
				return fmt.Errorf("%s says that %s leads, another manager says %s", m.Name, n.ID, leader)
			}
			leader = n.ID
		}
	}
	if leader == "" {
		return errors.New("nobody leads")
	}
	return nil
}

// wantedExists: what was acknowledged is still there, and nothing that was removed.
func (p *player) wantedExists(services []swarm.Service) error {
	for name, replicas := range p.wanted {
		if p.doubtful[name] {
			continue
		}
		at := slices.IndexFunc(services, func(s swarm.Service) bool { return s.Spec.Name == name })
		if at < 0 {
			return fmt.Errorf("service %s was acknowledged and is lost", name)
		}
		if s := services[at].Spec; s.Mode.Replicated != nil && int(*s.Mode.Replicated.Replicas) != replicas {
			return fmt.Errorf("service %s has %d replicas, %d were acknowledged", name, *s.Mode.Replicated.Replicas, replicas)
		}
	}
	for _, s := range services {
		if _, wanted := p.wanted[s.Spec.Name]; !wanted && !p.doubtful[s.Spec.Name] && !isLoad(s.Spec.Name) {
			return fmt.Errorf("service %s is there although its removal was acknowledged", s.Spec.Name)
		}
	}
	return nil
}

// lasting says whether a service's programs run until they are stopped.
func lasting(s swarm.Service) bool {
	args := s.Spec.TaskTemplate.ContainerSpec.Args
	return len(args) > 0 && args[0] != "exit"
}

// tasksFit: each slot of each service has one running task, and no other task runs.
func (p *player) tasksFit(services []swarm.Service, tasks []swarm.Task, nodes map[string]swarm.Node, members map[string]*Machine) error {
	eligible, paused := 0, 0
	for id := range members {
		switch nodes[id].Spec.Availability {
		case swarm.NodeAvailabilityActive:
			eligible++
		case swarm.NodeAvailabilityPause:
			paused++ // it takes no new tasks and keeps those that it has
		}
	}
	slots, count := map[string]string{}, map[string]int{}
	for _, t := range tasks {
		if !runs(t) {
			continue
		}
		slot := fmt.Sprintf("%s.%d", t.ServiceID, t.Slot)
		if t.Slot == 0 {
			slot += " on " + t.NodeID
		}
		if other := slots[slot]; other != "" {
			return fmt.Errorf("tasks %s and %s both run as %s", other, t.ID, slot)
		}
		slots[slot] = t.ID
		count[t.ServiceID]++
	}
	for _, s := range services {
		least, most := eligible, eligible+paused
		if s.Spec.Mode.Replicated != nil {
			most = int(*s.Spec.Mode.Replicated.Replicas)
			if least = most; eligible == 0 {
				least = 0
			}
		}
		if got := count[s.ID]; lasting(s) && (got < least || got > most) {
			return fmt.Errorf("service %s has %d running tasks, want %d to %d", s.Spec.Name, got, least, most)
		}
		if s.Spec.TaskTemplate.ForceUpdate > 0 && s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStateUpdating {
			return fmt.Errorf("service %s is still being updated", s.Spec.Name)
		}
		delete(count, s.ID)
	}
	for id, n := range count {
		return fmt.Errorf("%d tasks run of service %s, which is gone", n, id)
	}
	return nil
}

// containersFit: the containers that run are exactly those of the tasks that run, each where its task is.
func containersFit(tasks []swarm.Task, members map[string]*Machine) error {
	expected := map[*Machine]map[string]bool{}
	for _, t := range tasks {
		m := members[t.NodeID]
		if m == nil || t.Status.State != swarm.TaskStateRunning {
			continue
		}
		if expected[m] == nil {
			expected[m] = map[string]bool{}
		}
		expected[m][t.ID] = true
	}
	for _, m := range members {
		running := m.runtime.Running()
		for id := range expected[m] {
			if !running[id] {
				return fmt.Errorf("task %s runs on %s, but has no container that runs there", id, m.Name)
			}
		}
		for id := range running {
			if !expected[m][id] {
				return fmt.Errorf("a container of task %s runs on %s, but the task does not", id, m.Name)
			}
		}
		if twice := m.runtime.Restarted(); len(twice) > 0 {
			return fmt.Errorf("tasks %v were started more than once on %s", twice, m.Name)
		}
	}
	return nil
}

// open is a machine's replica; nil if it has none.
func (c *checks) open(machine string) *raftstore.Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.replicas[machine]
}

// replicasEqual: every open replica is at one index, with one content.
func (c *checks) replicasEqual() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first *raftstore.State
	name, lineage := "", uint64(0)
	for machine, s := range c.replicas {
		state := s.Local()
		if first == nil {
			first, name, lineage = state, machine, s.Lineage()
			continue
		}
		if s.Lineage() != lineage {
			return fmt.Errorf("replicas of %s and %s are of different recoveries of the cluster", name, machine)
		}
		if state.Index() != first.Index() {
			return fmt.Errorf("replicas are behind: %s at index %d, %s at %d", name, first.Index(), machine, state.Index())
		}
		a, errA := first.Digest()
		b, errB := state.Digest()
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if a != b {
			c.wrongLocked("replicas of %s and %s differ at index %d", name, machine, first.Index())
		}
	}
	return nil
}
