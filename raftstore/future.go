package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// futures counts raft's answers that are waited for. Raft forgets to answer what its state machine has not
// taken up when it is shut down, so the store lets what is under way end before that.
type futures struct {
	mu      sync.Mutex // guards:
	waiting int
	// closed refuses new ones; quiet is closed once it is set and nothing is waited for.
	closed bool
	quiet  chan struct{}
}

func newFutures() *futures { return &futures{quiet: make(chan struct{})} }

func (f *futures) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.waiting++
	return true
}

func (f *futures) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting--
	if f.closed && f.waiting == 0 {
		close(f.quiet)
	}
}

// close refuses what is still to come and waits, bounded, for what is under way: a leader without a quorum
// gives it up when its lease is over.
func (f *futures) close(limit time.Duration) {
	f.mu.Lock()
	if !f.closed {
		f.closed = true
		if f.waiting == 0 {
			close(f.quiet)
		}
	}
	f.mu.Unlock()
	select {
	case <-f.quiet:
	case <-time.After(limit):
	}
}

// await makes a request of raft and waits for its answer, until ctx ends.
func (s *Store) await(ctx context.Context, request func() raft.Future) (raft.Future, error) {
	if !s.futures.begin() {
		return nil, raft.ErrRaftShutdown
	}
	future := request()
	done := make(chan error, 1)
	go func() {
		defer s.futures.end()
		done <- future.Error()
	}()
	select {
	case err := <-done:
		return future, err
	case <-ctx.Done():
		return future, ctx.Err()
	}
}
