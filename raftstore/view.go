package raftstore

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// viewTimeout bounds one linearizable read for all who share it.
	viewTimeout = 10 * time.Second
	// staleAfter is how long reads wait for a leader before they are answered from the replica.
	staleAfter = time.Second
	// probeTimeout bounds how long another manager may take to accept a stream to count as reachable.
	probeTimeout = 300 * time.Millisecond
)

// noLeaderText is what docker's clients know.
const noLeaderText = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."

// Local returns the state of this replica, which may be behind.
func (s *Store) Local() *State { return s.fsm.published.Load() }

// Watch subscribes to changes; the first Take is Dirty.All.
func (s *Store) Watch() *Watch { return s.fsm.watch() }

// View returns a linearizable State: one that has every commit acknowledged anywhere before the call.
// Unavailable when there is no leader; that error also comes when ctx ends while there is none.
func (s *Store) View(ctx context.Context) (*State, error) {
	index, err := s.view.do(ctx, s.readIndex)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded && !s.LeaderlessSince().IsZero() {
			return nil, fmt.Errorf("%w%w", s.noLeader(), silent{ctx.Err()})
		}
		return nil, err
	}
	if err := s.waitApplied(ctx, index); err != nil {
		return nil, err
	}
	return s.Local(), nil
}

// ViewOrStale is View, or, when there has been no leader for staleAfter, this replica's state; leaderless then says for how long.
// It waits for a leader no longer than that.
func (s *Store) ViewOrStale(ctx context.Context) (state *State, leaderless time.Duration, err error) {
	if leaderless = s.leaderlessFor(); leaderless >= staleAfter {
		return s.Local(), leaderless, nil
	}
	attempt, cancel := context.WithTimeout(ctx, viewTimeout)
	defer cancel()
	state, err = s.View(attempt)
	if leaderless = s.leaderlessFor(); err != nil && ctx.Err() == nil && leaderless >= staleAfter {
		return s.Local(), leaderless, nil
	}
	return state, 0, err
}

// readIndex asks the leader, whoever it is.
func (s *Store) readIndex() (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), viewTimeout)
	defer cancel()
	for {
		index, err := s.readIndexOnce(ctx)
		if err == nil {
			return index, nil
		}
		if since := s.LeaderlessSince(); !since.IsZero() && time.Since(since) > leaderWait {
			return 0, s.noLeader()
		}
		if s.stopping() {
			return 0, errStopped()
		}
		if pause(ctx, proposePause) != nil {
			return 0, fmt.Errorf("no linearizable read within %s: %w", viewTimeout, err)
		}
	}
}

func (s *Store) readIndexOnce(ctx context.Context) (uint64, error) {
	moved := s.leaderMoves()
	id, address := s.Leader()
	switch {
	case id == "":
		return 0, errNoLeader
	case id == s.cfg.NodeID:
		return s.ReadIndexLocal(ctx)
	}
	ctx, cancel := s.askLeader(ctx, moved)
	defer cancel()
	index, err := s.cfg.Peers.ReadIndex(ctx, address)
	if err != nil {
		return 0, fmt.Errorf("read index of leader %s at %s: %w", id, address, err)
	}
	return index, nil
}

// ReadIndexLocal confirms leadership and returns the index a linearizable read waits for.
// Unavailable when this node does not lead.
func (s *Store) ReadIndexLocal(ctx context.Context) (uint64, error) {
	return s.verify.do(ctx, s.confirm)
}

func (s *Store) confirm() (uint64, error) {
	// Before the barrier of its term a new leader does not know what earlier leaders committed.
	if lead, _ := s.leadership(); lead == nil {
		return 0, fmt.Errorf("manager %s does not lead: %w", s.cfg.NodeID, errdefs.ErrUnavailable)
	}
	// The FSM sees only commands: waiting for the index of another kind of entry would never end.
	index := s.disk.log.lastCommand(s.raft.CommitIndex())
	if err := s.raft.VerifyLeader().Error(); err != nil {
		return 0, fmt.Errorf("confirm leadership: %w%w", err, silent{errdefs.ErrUnavailable})
	}
	return index, nil
}

// DiskFault is a sentence that says why this manager could not write its log the last time it tried, and what to do;
// empty once it can again.
func (s *Store) DiskFault() string {
	fault := s.disk.log.standingFault()
	if fault == nil {
		return ""
	}
	return fmt.Sprintf("This manager cannot %v: free space on its disk.", fault)
}

// noLeader is the error of calls that need a leader; it counts who could take part in an election.
func (s *Store) noLeader() error {
	voters := 0
	for _, m := range s.Members() {
		if m.Voter {
			voters++
		}
	}
	text := fmt.Sprintf("%s (%d of %d managers can be reached from here, this one included.)", noLeaderText, len(s.Reach()), voters)
	if fault := s.DiskFault(); fault != "" {
		text += " " + fault
	}
	return fmt.Errorf("%s%w", text, silent{errdefs.ErrUnavailable})
}

// NoLeader is the error of calls that need a leader while there is none: how many managers can be reached, and what to do.
// It takes probeTimeout at most.
func (s *Store) NoLeader() error { return s.noLeader() }

// Reach says which voters can be reached from here, this one included. It takes probeTimeout at most; many may wait for the same answer.
func (s *Store) Reach() map[string]bool {
	_, _ = s.reachable.do(context.Background(), func() (uint64, error) {
		reached := s.probe()
		s.reached.Store(&reached)
		return uint64(len(reached)), nil
	})
	return maps.Clone(*s.reached.Load())
}

// probe opens a stream to each voter.
func (s *Store) probe() map[string]bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	var (
		probes sync.WaitGroup
		mu     sync.Mutex
	)
	reached := map[string]bool{}
	for _, m := range s.Members() {
		if !m.Voter {
			continue
		}
		probes.Go(func() {
			if m.NodeID != s.cfg.NodeID {
				conn, err := s.cfg.Dial(ctx, m.Address)
				if err != nil {
					return
				}
				_ = conn.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			reached[m.NodeID] = true
		})
	}
	probes.Wait()
	return reached
}

// coalescer runs one call at a time; who comes while it runs shares the next one, which begins after he came.
type coalescer struct {
	mu sync.Mutex // guards:
	// next is the call that has not begun yet.
	next    *sharedCall
	running bool
}

type sharedCall struct {
	done  chan struct{}
	value uint64
	err   error
}

// do returns what a call that begins after this one returns. call must end by itself.
func (c *coalescer) do(ctx context.Context, call func() (uint64, error)) (uint64, error) {
	c.mu.Lock()
	if c.next == nil {
		c.next = &sharedCall{done: make(chan struct{})}
	}
	mine := c.next
	if !c.running {
		c.running = true
		go c.run(call)
	}
	c.mu.Unlock()
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *coalescer) run(call func() (uint64, error)) {
	for {
		c.mu.Lock()
		current := c.next
		c.next = nil
		if current == nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		current.value, current.err = call()
		close(current.done)
	}
}
