package raftstore

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
)

const (
	// staleAfter is how long reads wait for a leader before they are answered from the replica; electionWait is how long
	// writes do, or four heartbeat timeouts if that is more. Both count from when the last leader was lost.
	staleAfter   = time.Second
	electionWait = 2 * time.Second
	// confirmWait is how long a read waits for a leader that is known but does not answer.
	confirmWait = 3 * time.Second
	// probeTimeout bounds how long another manager may take to accept a stream to count as reachable.
	probeTimeout = 300 * time.Millisecond
	// probePause is between two looks at who can be reached while there is no leader, so that a refusal costs nothing.
	probePause = time.Second
)

// noLeaderText is what docker's clients know.
const noLeaderText = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."

// electionWait is how long a write waits for an election that is under way.
func (c Config) electionWait() time.Duration { return max(electionWait, 4*c.HeartbeatTimeout) }

// leaderlessFor is how long there has been no leader, 0 while there is one.
func (s *Store) leaderlessFor() time.Duration {
	since := s.LeaderlessSince()
	if since.IsZero() {
		return 0
	}
	return max(time.Since(since), 1)
}

// ViewOrStale is View, or, when there has been no leader for a second or the leader does not answer, this replica's state;
// stale then says for how long. It waits no longer than that.
func (s *Store) ViewOrStale(ctx context.Context) (state *State, stale time.Duration, err error) {
	if stale = s.leaderlessFor(); stale >= staleAfter {
		return s.Local(), stale, nil
	}
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, confirmWait)
	defer cancel()
	state, err = s.View(attempt)
	switch stale = s.leaderlessFor(); {
	case err == nil:
		return state, 0, nil
	case ctx.Err() != nil || s.stopping():
		return nil, 0, err
	case stale >= staleAfter:
		return s.Local(), stale, nil
	case attempt.Err() != nil:
		return s.Local(), time.Since(began), nil
	}
	return nil, 0, err
}

// reach is which managers could be reached at one time.
type reach struct {
	voters int
	// answering are the ids of those that did, this node included.
	answering map[string]bool
	// missing are the voters that did not answer, in words.
	missing []string
}

// followReach keeps s.reach up to date while there is no leader.
func (s *Store) followReach() {
	for {
		moved := s.leaderMoves()
		wait := time.After(probePause)
		if s.leaderlessFor() > 0 {
			s.setReach(s.probe())
		} else {
			s.setReach(nil)
			wait = nil
		}
		select {
		case <-moved:
		case <-wait:
		case <-s.closing:
			return
		}
	}
}

func (s *Store) setReach(r *reach) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reach = r
}

// currentReach is what was found last; the first look without a leader may still be under way.
func (s *Store) currentReach() *reach {
	s.mu.Lock()
	r := s.reach
	s.mu.Unlock()
	if r == nil {
		r = s.probe()
	}
	return r
}

// probe opens a stream to each voter, which takes probeTimeout at most.
func (s *Store) probe() *reach {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	var (
		probes sync.WaitGroup
		mu     sync.Mutex
		found  = reach{answering: map[string]bool{}}
	)
	for _, m := range s.Members() {
		if !m.Voter {
			continue
		}
		found.voters++
		if address, err := s.addresses.ServerAddr(raft.ServerID(m.NodeID)); err == nil {
			m.Address = string(address)
		}
		probes.Go(func() {
			answers := m.NodeID == s.cfg.NodeID || s.answersStream(ctx, m.Address)
			mu.Lock()
			defer mu.Unlock()
			if answers {
				found.answering[m.NodeID] = true
			} else {
				found.missing = append(found.missing, s.nameOf(m))
			}
		})
	}
	probes.Wait()
	slices.Sort(found.missing)
	return &found
}

func (s *Store) answersStream(ctx context.Context, address string) bool {
	conn, err := s.cfg.Dial(ctx, address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Reach says which voters can be reached from here, this one included. Without a leader that is known already; otherwise it
// takes probeTimeout at most.
func (s *Store) Reach() map[string]bool { return maps.Clone(s.currentReach().answering) }

// NoLeader is the error of calls that need a leader while there is none: how many managers can be reached, and what to do.
func (s *Store) NoLeader() error { return s.noLeader() }

// nameOf is a manager as its operator knows it.
func (s *Store) nameOf(m Member) string {
	host, _, err := net.SplitHostPort(m.Address)
	if err != nil {
		host = m.Address
	}
	if row, ok := s.Local().Nodes.Get(m.NodeID); ok && row.Description.Hostname != "" {
		return fmt.Sprintf("%s (%s)", row.Description.Hostname, host)
	}
	return fmt.Sprintf("%s (%s)", m.NodeID, host)
}

// noLeader is the error of calls that need a leader: who could take part in an election, and what to do.
func (s *Store) noLeader() error {
	r := s.currentReach()
	reachable := len(r.answering)
	text := fmt.Sprintf("%s (%d of %d managers can be reached from here, this one included.)", noLeaderText, reachable, r.voters)
	if len(r.missing) > 0 {
		text += " Not reachable: " + strings.Join(r.missing, ", ") + "."
	}
	if fault := s.DiskFault(); fault != "" {
		text += " " + fault
	}
	if r.voters > 1 && reachable < r.voters/2+1 {
		text += " Start them or mend the network; if they are lost for good, `swarm init --force-new-cluster` makes this manager a cluster of its own with what it knows."
	}
	return fmt.Errorf("%s%w", text, silent{errdefs.ErrUnavailable})
}

// untilLeader waits until something about the leader may have changed: another one is known, or a short time has passed.
func (s *Store) untilLeader(ctx context.Context, moved <-chan struct{}) error {
	timer := time.NewTimer(proposePause)
	defer timer.Stop()
	select {
	case <-moved:
	case <-timer.C:
	case <-s.closing:
	case <-ctx.Done():
	}
	return ctx.Err()
}
