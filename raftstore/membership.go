package raftstore

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// membershipPause is how often progress of non-voters, which is no change of state, is looked at.
	membershipPause = 200 * time.Millisecond
	// membershipTimeout bounds how long a change of the configuration may wait in raft's queue.
	membershipTimeout = 10 * time.Second
	// membershipPatience is how long something may stand in the way before it is worth a warning.
	membershipPatience = 5 * time.Second
	// promoteLagMax is how many entries a non-voter may be behind to become a voter.
	promoteLagMax = 64
)

// memberStep is one change of raft's configuration. At most one is made at a time, each from a fresh look.
type memberStep struct {
	verb memberVerb
	id   raft.ServerID
	// address is set for steps that need one.
	address raft.ServerAddress
}

type memberVerb string

const (
	addNonvoter memberVerb = "add as non-voter"
	setAddress  memberVerb = "change address"
	promote     memberVerb = "promote to voter"
	remove      memberVerb = "remove"
	handOver    memberVerb = "hand over leadership"
)

// membership is what the next step is decided from.
type membership struct {
	self    raft.ServerID
	servers []raft.Server
	nodes   Table[*Node]
	// answers says which followers answered lately; caughtUp, which of them have nearly the whole log.
	answers  func(raft.ServerID) bool
	caughtUp func(raft.ServerID) bool
	// moved are members that are used at another address already, which they told.
	moved map[raft.ServerID]raft.ServerAddress
}

// RunMembership makes raft's configuration follow the node rows while this node leads: a node whose certificate
// role is manager and whose Spec.Role is manager becomes a non-voter and, once it caught up, a voter; one whose Spec.Role
// is worker (or whose row is gone) is removed, never so that quorum is lost. Run it inside WhileLeader.
func (s *Store) RunMembership(ctx context.Context) error {
	watch := s.Watch()
	defer watch.Close()
	obstacle, since, told := "", time.Now(), false
	for ctx.Err() == nil {
		done, blocked := s.stepMembership()
		if !done && blocked == "" {
			blocked = s.raiseFormat(ctx)
		}
		if blocked != obstacle {
			obstacle, since, told = blocked, time.Now(), false
		}
		if blocked != "" && !told && time.Since(since) >= membershipPatience {
			s.log.Warn("managers are not as wanted", "reason", blocked)
			told = true
		}
		if done {
			continue // there may be more to do
		}
		timer := time.NewTimer(membershipPause)
		select {
		case <-watch.Changed():
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// stepMembership makes one change, or says what stands in the way of the next one.
func (s *Store) stepMembership() (done bool, blocked string) {
	step, blocked := membership{
		self: raft.ServerID(s.cfg.NodeID), servers: s.servers(), nodes: s.Local().Nodes,
		answers: s.answers, caughtUp: s.caughtUp, moved: s.addresses.all(),
	}.next()
	if step == nil {
		return false, blocked
	}
	if err := s.take(*step); err != nil {
		return false, fmt.Sprintf("%s %s: %v", step.verb, step.id, err)
	}
	s.log.Info("managers changed", "change", string(step.verb), "node", string(step.id), "address", string(step.address))
	return true, ""
}

// raiseFormat has the cluster write the newest format that all members read, or says who does not read the newest yet. Who joins
// later and reads less is refused.
func (s *Store) raiseFormat(ctx context.Context) (blocked string) {
	cluster := s.Local().Cluster()
	if cluster == nil || s.Local().format() >= s.cfg.reads {
		return ""
	}
	format := s.cfg.reads
	for _, server := range s.servers() {
		if server.ID == raft.ServerID(s.cfg.NodeID) {
			continue
		}
		reads := s.addresses.readsAt(server.ID)
		if reads == 0 || !s.answers(server.ID) {
			return fmt.Sprintf("the log stays at format %d until manager %s answers and tells what it reads", s.Local().format(), server.ID)
		}
		if reads < format {
			format, blocked = reads, fmt.Sprintf("manager %s reads formats up to %d of %d: upgrade swarm there", server.ID, reads, s.cfg.reads)
		}
	}
	if format <= s.Local().format() {
		return blocked
	}
	err := s.Update(ctx, func(tx *Tx) error {
		row := *tx.Cluster()
		if row.MinVersion < format {
			row.MinVersion = format
			// It is nothing that an operator declared, so the version of the row stays.
			tx.put(tableClusters, opObserve, &row)
		}
		return nil
	})
	if err != nil {
		return fmt.Sprintf("raise the log's format to %d: %v", format, err)
	}
	s.log.Info("format of the log raised", "format", format)
	return blocked
}

// take makes a change and waits until it is committed. Only the leader's RunMembership changes the configuration, so it is
// still the one that the step was decided on.
func (s *Store) take(step memberStep) error {
	switch step.verb {
	case addNonvoter, setAddress: // for a voter, AddNonvoter changes nothing but the address
		// What it answered at another address says nothing about this one.
		defer s.transport.forget(step.id)
		return s.raft.AddNonvoter(step.id, step.address, 0, membershipTimeout).Error()
	case promote:
		return s.raft.AddVoter(step.id, step.address, 0, membershipTimeout).Error()
	case remove:
		return s.raft.RemoveServer(step.id, 0, membershipTimeout).Error()
	default:
		return s.TransferLeadership()
	}
}

// caughtUp says whether a non-voter answered lately and has nearly the whole log.
func (s *Store) caughtUp(id raft.ServerID) bool {
	return s.answers(id) && s.transport.from(id).lastLog+promoteLagMax >= s.raft.LastIndex()
}

// next is the first step that is possible now, nil for none; blocked says why a wanted one is not.
// Who is to come is handled before who is to go, so that a cluster never gets smaller than it has to.
func (m membership) next() (step *memberStep, blocked string) {
	for _, server := range m.servers {
		row, ok := m.nodes.Get(string(server.ID))
		if !ok || row.Address == "" || row.Address == string(server.Address) || m.inUse(row.Address) {
			continue
		}
		if why := m.whyNotMove(server, raft.ServerAddress(row.Address)); why != "" {
			blocked = why
			continue
		}
		return &memberStep{setAddress, server.ID, raft.ServerAddress(row.Address)}, ""
	}
	for _, server := range m.servers {
		if server.Suffrage == raft.Voter || !m.wanted(server.ID) {
			continue
		}
		if why := m.whyNotPromote(server.ID); why != "" {
			blocked = why
			continue
		}
		return &memberStep{promote, server.ID, server.Address}, ""
	}
	for row := range m.nodes.All() {
		id := raft.ServerID(row.ID)
		if !m.wanted(id) || row.Role != swarm.NodeRoleManager || row.Address == "" || m.has(id) {
			continue
		}
		if m.inUse(row.Address) {
			blocked = fmt.Sprintf("manager %s has the address %s of another manager", id, row.Address)
			continue
		}
		return &memberStep{addNonvoter, id, raft.ServerAddress(row.Address)}, ""
	}
	for _, server := range m.servers {
		if m.wanted(server.ID) {
			continue
		}
		if why := m.whyNotRemove(server); why != "" {
			blocked = why
			continue
		}
		if server.ID == m.self {
			return &memberStep{verb: handOver, id: server.ID}, ""
		}
		return &memberStep{verb: remove, id: server.ID}, ""
	}
	return nil, blocked
}

// wanted says whether the operator wants a node to be a manager.
func (m membership) wanted(id raft.ServerID) bool {
	row, ok := m.nodes.Get(string(id))
	return ok && row.Spec.Role == swarm.NodeRoleManager
}

func (m membership) has(id raft.ServerID) bool { return hasServer(m.servers, id) }

func (m membership) inUse(address string) bool {
	for _, server := range m.servers {
		if string(server.Address) == address {
			return true
		}
	}
	return false
}

// voters counts the voters other than one, and those of them that answer.
func (m membership) voters(except raft.ServerID) (all, answering int) {
	for _, server := range m.servers {
		if server.Suffrage != raft.Voter || server.ID == except {
			continue
		}
		all++
		if server.ID == m.self || m.answers(server.ID) {
			answering++
		}
	}
	return all, answering
}

// whyNotMove keeps a quorum for the case that nobody answers at a member's new address.
func (m membership) whyNotMove(server raft.Server, to raft.ServerAddress) string {
	if server.Suffrage != raft.Voter || server.ID == m.self || !m.answers(server.ID) || m.moved[server.ID] == to {
		return ""
	}
	all, answering := m.voters(server.ID)
	if all++; answering < all/2+1 {
		return fmt.Sprintf("manager %s still answers at %s, and without it only %d of %d managers would", server.ID, server.Address, answering, all)
	}
	return ""
}

func (m membership) whyNotPromote(id raft.ServerID) string {
	if !m.caughtUp(id) {
		return fmt.Sprintf("manager %s is not up to date yet or does not answer", id)
	}
	all, answering := m.voters(id)
	if all, answering = all+1, answering+1; answering < all/2+1 {
		return fmt.Sprintf("with %s as a voter, only %d of %d managers would answer", id, answering, all)
	}
	return ""
}

func (m membership) whyNotRemove(server raft.Server) string {
	if server.Suffrage != raft.Voter {
		return ""
	}
	all, answering := m.voters(server.ID)
	if all == 0 {
		return fmt.Sprintf("manager %s is the last one", server.ID)
	}
	if answering < all/2+1 {
		return fmt.Sprintf("without %s, only %d of %d managers would answer", server.ID, answering, all)
	}
	return ""
}
