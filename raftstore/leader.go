package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
)

const (
	// leadRetry is how long WhileLeader waits before it runs again what ended by a passing error.
	leadRetry = 500 * time.Millisecond
	// barrierWait bounds how long a new leader's barrier may wait in raft's queue.
	barrierWait = 10 * time.Second
)

// leadership is one term of this node as leader, from its barrier on: all that was committed before is applied.
type leadership struct {
	ctx  context.Context
	end  context.CancelFunc
	term uint64
}

// followLeadership turns raft's news into leaderships.
func (s *Store) followLeadership(notify <-chan bool) {
	for {
		select {
		case leads := <-notify:
			s.endLeadership()
			if leads {
				s.beginLeadership()
			}
		case <-s.closing:
			s.endLeadership()
			return
		}
	}
}

// beginLeadership waits for a barrier, after which this replica has everything that earlier leaders committed.
func (s *Store) beginLeadership() {
	term := s.raft.CurrentTerm()
	barrier := func() raft.Future { return s.raft.Barrier(barrierWait) }
	if _, err := s.await(context.Background(), barrier); err != nil {
		s.log.Warn("leadership not taken up", "node", s.cfg.NodeID, "term", term, "error", err)
		return
	}
	ctx, end := context.WithCancel(context.Background())
	s.log.Info("leadership won", "node", s.cfg.NodeID, "term", term)
	s.setLeadership(&leadership{ctx: ctx, end: end, term: term})
}

func (s *Store) endLeadership() {
	lead, _ := s.leadership()
	if lead == nil {
		return
	}
	s.setLeadership(nil)
	lead.end()
	s.log.Info("leadership lost", "node", s.cfg.NodeID, "term", lead.term)
}

func (s *Store) setLeadership(lead *leadership) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lead = lead
	close(s.leadChanged)
	s.leadChanged = make(chan struct{})
}

// leadership is nil while this node does not lead; changed is closed at the next change.
func (s *Store) leadership() (lead *leadership, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lead, s.leadChanged
}

// followLeader keeps since when there is no leader.
func (s *Store) followLeader(observations <-chan raft.Observation) {
	for {
		select {
		case o := <-observations:
			seen := o.Data.(raft.LeaderObservation)
			s.log.Info("leader changed", "leader", string(seen.LeaderID), "address", string(seen.LeaderAddr))
			s.addresses.claimed(seen.LeaderID, seen.LeaderAddr)
			s.noteLeader(string(seen.LeaderID))
		case <-s.closing:
			return
		}
	}
}

func (s *Store) noteLeader(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != s.leaderSeen {
		s.leaderSeen = id
		close(s.leaderMoved)
		s.leaderMoved = make(chan struct{})
		if id != "" {
			s.counters.leaderChanges.Add(1)
		}
	}
	if id != "" {
		s.leaderless = time.Time{}
	} else if s.leaderless.IsZero() {
		s.leaderless = time.Now()
	}
}

// LeaderlessSince is when the last leader was lost, or the replica opened; zero while a leader is known.
func (s *Store) LeaderlessSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaderless
}

// askLeader is the context of one question to the manager that leads now. It ends with that manager's leadership, because one that
// died never answers while its port is still held open.
func (s *Store) askLeader(ctx context.Context, moved <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	go func() {
		select {
		case <-moved:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// leaderMoves is closed when another node leads, or none. Take it before asking who leads.
func (s *Store) leaderMoves() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaderMoved
}

// Leader is the leader's node id and address as known here; empty without one.
func (s *Store) Leader() (id, address string) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a)
}

// termKey finds the term in the context of a leader's work.
type termKey struct{}

// termOf is the term whose leader alone may do the work of ctx, 0 for work that any manager may do.
func termOf(ctx context.Context) uint64 {
	term, _ := ctx.Value(termKey{}).(uint64)
	return term
}

// WhileLeader runs lead each time this node wins leadership, with a context that ends when it is lost, and waits for it.
// What lead writes with that context counts only within its term: an old leader that has not noticed yet can do no harm.
// An Unavailable or Conflict error of lead runs it again after half a second; another one, while leadership lasts, ends
// WhileLeader. It returns nil when ctx ends or the store stops.
func (s *Store) WhileLeader(ctx context.Context, lead func(ctx context.Context) error) error {
	for {
		term, changed := s.leadership()
		if term == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
			case <-s.closing:
			}
			return nil
		}
		err := runLead(ctx, term, lead)
		switch {
		case ctx.Err() != nil:
			return nil
		case term.ctx.Err() != nil:
			continue
		case err == nil:
			wait(ctx, term.ctx, nil)
		case errdefs.IsUnavailable(err) || errdefs.IsConflict(err):
			s.log.Warn("leader's work ended; it starts again", "error", err)
			wait(ctx, term.ctx, time.After(leadRetry))
		default:
			return err
		}
	}
}

func runLead(ctx context.Context, term *leadership, lead func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(context.WithValue(ctx, termKey{}, term.term))
	defer cancel()
	stop := context.AfterFunc(term.ctx, cancel)
	defer stop()
	return lead(ctx)
}

func wait(ctx, leads context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-leads.Done():
	case <-timer:
	}
}

// TransferLeadership hands leadership to another voter, if there is one; alone it does nothing.
// Unavailable when this node does not lead or the other did not take over in time.
func (s *Store) TransferLeadership() error {
	others := 0
	for _, m := range s.Members() {
		if m.Voter && m.NodeID != s.cfg.NodeID {
			others++
		}
	}
	if others == 0 {
		return nil
	}
	err := s.raft.LeadershipTransfer().Error()
	if errors.Is(err, raft.ErrNotLeader) {
		return fmt.Errorf("hand over leadership: this node does not lead: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("hand over leadership: %w%w", err, silent{errdefs.ErrUnavailable})
	}
	return nil
}

// Members is raft's configuration.
func (s *Store) Members() []Member {
	leader, _ := s.Leader()
	var members []Member
	for _, server := range s.servers() {
		m := Member{
			NodeID: string(server.ID), Address: string(server.Address),
			Voter: server.Suffrage == raft.Voter, Leader: string(server.ID) == leader, Reachable: true,
		}
		if leader == s.cfg.NodeID && m.NodeID != leader {
			m.ReachableUntil = s.answersUntil(server.ID)
			m.Reachable = time.Now().Before(m.ReachableUntil)
		}
		members = append(members, m)
	}
	return members
}

// IsMember says whether a node is a manager in raft's configuration.
func (s *Store) IsMember(nodeID string) bool {
	return slices.ContainsFunc(s.servers(), func(server raft.Server) bool { return string(server.ID) == nodeID })
}

// Member is a manager in raft's configuration.
type Member struct {
	NodeID  string
	Address string
	Voter   bool
	Leader  bool
	// Reachable is the leader's view when this node leads; otherwise true.
	Reachable bool
	// ReachableUntil is when a leader counts it as unreachable unless it answers before; zero where this node does not lead,
	// and for itself.
	ReachableUntil time.Time
}

// servers is raft's latest configuration, committed or not.
func (s *Store) servers() []raft.Server {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return nil
	}
	return future.Configuration().Servers
}

// follows says whether this node leads in a term and has a follower at an address.
func (s *Store) follows(id raft.ServerID, address raft.ServerAddress, term uint64) bool {
	return s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term &&
		slices.ContainsFunc(s.servers(), func(server raft.Server) bool { return server.ID == id && server.Address == address })
}

// answers says whether a follower answered this leader within two heartbeat timeouts.
func (s *Store) answers(id raft.ServerID) bool {
	return string(id) == s.cfg.NodeID || time.Now().Before(s.answersUntil(id))
}

func (s *Store) answersUntil(id raft.ServerID) time.Time {
	return s.transport.from(id).at.Add(2 * s.cfg.HeartbeatTimeout)
}
