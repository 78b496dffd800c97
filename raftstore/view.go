package raftstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
)

// viewTimeout bounds one linearizable read for all who share it.
const viewTimeout = 10 * time.Second

// Local returns the state of this replica, which may be behind.
func (s *Store) Local() *State { return s.fsm.published.Load() }

// Watch subscribes to changes; the first Take is Dirty.All.
func (s *Store) Watch() *Watch { return s.fsm.watch() }

// View returns a linearizable State: one that has every commit acknowledged anywhere before the call.
// It waits a second for a leader, counted from when the last one was lost, and is then Unavailable; that error also
// comes when ctx ends while there is none.
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

// readIndex asks the leader, whoever it is.
func (s *Store) readIndex() (uint64, error) {
	ctx, cancel := context.WithTimeout(s.committing, viewTimeout)
	defer cancel()
	for {
		moved := s.leaderMoves()
		index, err := s.readIndexOnce(ctx, moved)
		switch {
		case err == nil:
			return index, nil
		case s.stopping():
			return 0, errStopped()
		case s.leaderlessFor() >= staleAfter:
			return 0, s.noLeader()
		}
		if s.untilLeader(ctx, moved) != nil {
			return 0, fmt.Errorf("no linearizable read within %s: %w", viewTimeout, err)
		}
	}
}

func (s *Store) readIndexOnce(ctx context.Context, moved <-chan struct{}) (uint64, error) {
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
	// Before the barrier of its term a new leader does not know what earlier leaders committed.
	if err := s.untilReady(ctx); err != nil {
		return 0, err
	}
	return s.verify.do(ctx, s.confirm)
}

// untilReady waits for the barrier of a term that this node has just won.
func (s *Store) untilReady(ctx context.Context) error {
	for {
		lead, changed := s.leadership()
		switch {
		case lead != nil:
			return nil
		case s.raft.State() != raft.Leader:
			return s.notLeading()
		}
		select {
		case <-changed:
		case <-s.leaderMoves():
		case <-time.After(proposePause):
		case <-s.closing:
			return errStopped()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Store) confirm() (uint64, error) {
	if lead, _ := s.leadership(); lead == nil {
		return 0, s.notLeading()
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
