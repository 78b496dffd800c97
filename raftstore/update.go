package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// conflictRunsMax is how often Update runs a closure before it gives up; the first conflictRunsFree follow each other at once,
	// then random pauses up to conflictPause let the others finish.
	conflictRunsMax  = 64
	conflictRunsFree = 8
	conflictPause    = 50 * time.Millisecond
	// proposeWait bounds how long one commit is proposed again after lost leadership or broken connections.
	proposeWait = 15 * time.Second
	// proposePause is between two tries, forwardTimeout bounds one try at another manager.
	proposePause   = 50 * time.Millisecond
	forwardTimeout = 5 * time.Second
	// enqueueTimeout bounds how long a commit waits in raft's queue.
	enqueueTimeout = 5 * time.Second
	// applyWait bounds how long to wait until this replica has what the leader committed.
	applyWait = 30 * time.Second
)

// Update runs change on a snapshot and commits what it wrote; change runs again after a conflict, a bounded
// number of times, and must have no effects of its own. An error from change is returned as it is and nothing is written; it is
// found on a state that is known to be fresh, or else Unavailable comes. A change that finds nothing to write is not checked like that.
// With a context of WhileLeader it is Unavailable once leadership is lost.
// When Update returns nil, this replica has the commit. When ctx ends first, the commit may still happen.
func (s *Store) Update(ctx context.Context, change func(*Tx) error) error {
	var last *refusal
	for run := range conflictRunsMax {
		if run >= conflictRunsFree {
			if err := pause(ctx, rand.N(conflictPause)); err != nil {
				return err
			}
		}
		c, encoded, err := s.prepare(ctx, change)
		if err != nil || c == nil {
			return err
		}
		answer, err := s.commit(ctx, c, encoded)
		if err != nil {
			return err
		}
		if err := s.waitApplied(ctx, answer.index); err != nil {
			return err
		}
		if answer.refusal == nil {
			return nil
		}
		if answer.refusal.reason == termOver {
			return errTermOver
		}
		last = answer.refusal
	}
	return fmt.Errorf("update out of sequence: %s, %d times in a row: try again: %w", last, conflictRunsMax, errdefs.ErrConflict)
}

// prepare runs the closure and encodes what it wrote, nil for nothing.
func (s *Store) prepare(ctx context.Context, change func(*Tx) error) (*commit, rawCommit, error) {
	tx, err := s.run(change)
	if err != nil {
		// A replica that is behind may miss what another manager already acknowledged, also a leader that is cut off: an error
		// counts only on a state that is known to be fresh.
		now, stale := s.View(ctx)
		if stale != nil {
			return nil, nil, stale
		}
		if now.index > tx.base.index {
			tx, err = s.run(change)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	c := tx.commit(time.Now())
	if c == nil {
		return nil, nil, nil
	}
	c.term = termOf(ctx)
	encoded, err := encodeCommit(c)
	return c, encoded, err
}

func (s *Store) run(change func(*Tx) error) (*Tx, error) {
	tx := s.fsm.begin()
	err := change(tx)
	if err == nil {
		err = tx.err
	}
	return tx, err
}

// commit has the leader, whoever it is, decide on a commit. The commit's id makes it safe to ask again: the state
// machine answers a commit that it has done already.
func (s *Store) commit(ctx context.Context, c *commit, encoded rawCommit) (verdict, error) {
	began := time.Now()
	s.counters.pendingCommits.Add(1)
	defer s.counters.pendingCommits.Add(-1)
	doubt := "" // set once a try ended without an answer
	p := newProposal(c, encoded)
	for {
		moved := s.leaderMoves()
		answer, err := s.submit(ctx, p)
		if err == nil && doubt != "" && answer.refusal != nil && answer.refusal.reason == tooOld {
			return answer, errOutcomeUnknown
		}
		if err == nil {
			s.counters.commitLatency.Observe(time.Since(began))
			return answer, nil
		}
		if errdefs.IsInvalidArgument(err) || errors.Is(err, errTermOver) || doubt == "" && errors.As(err, new(busy)) {
			return answer, err
		}
		if s.stopping() {
			return answer, errStopped()
		}
		if fault := s.disk.log.faultSince(began); fault != nil && len(s.servers()) <= 1 {
			// Alone there is nobody who could take over from this manager's disk.
			return answer, s.explain(fault)
		}
		if !errors.As(err, new(unsent)) {
			doubt = mayStillHappen
		}
		leaderless := s.leaderlessFor()
		switch {
		case leaderless >= s.cfg.electionWait() || leaderless > 0 && ctx.Err() == context.DeadlineExceeded:
			return answer, fmt.Errorf("%w%s%w", s.noLeader(), doubt, silent{ctx.Err()})
		case ctx.Err() != nil:
			return answer, fmt.Errorf("%w, last: %w.%s", ctx.Err(), err, doubt)
		case time.Since(began) > proposeWait:
			return answer, fmt.Errorf("not committed within %s: %w.%s", proposeWait, err, doubt)
		}
		_ = s.untilLeader(ctx, moved)
	}
}

// mayStillHappen ends errors about a commit that is in some manager's log without being committed.
const mayStillHappen = " The change may still take effect when there is a leader."

// errOutcomeUnknown is the answer to a commit that was proposed again so late that nobody can tell whether it had been done.
var errOutcomeUnknown = fmt.Errorf("the manager that was asked first went away, and so much was committed since that it cannot be told whether the change was made. Look before you try again%w",
	silent{errdefs.ErrUnavailable})

// errTermOver is what a leader's work gets after its term.
var errTermOver = fmt.Errorf("leadership was lost: %w", errdefs.ErrUnavailable)

var errNoLeader = fmt.Errorf("no leader is known: %w", errdefs.ErrUnavailable)

// waitApplied waits until this replica has applied an index.
func (s *Store) waitApplied(ctx context.Context, index uint64) error {
	if s.Local().index >= index {
		return nil
	}
	reached, forget := s.fsm.reached(index)
	defer forget()
	timer := time.NewTimer(applyWait)
	defer timer.Stop()
	select {
	case <-reached:
		return nil
	case <-timer.C:
		return fmt.Errorf("the cluster is at index %d, but this manager did not get there within %s; ask another manager: %w", index, applyWait, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("the cluster is at index %d, which this manager has not reached: %w", index, ctx.Err())
	case <-s.closing:
		return errStopped()
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
