// Package service is the orchestrator: one loop that reconciles, places, restarts and reaps tasks by pure decisions.
// agent runs it on the leader.
package service

import (
	"context"
	"log/slog"
	"time"

	"swarm/raftstore"
)

// Bounds of the loop. A plan may exceed them by one step.
const (
	// changesMax bounds one commit, stepsMax what is planned for one service at a time: a big change goes in several commits,
	// and other work comes in between.
	changesMax = 200
	stepsMax   = 200

	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// Run keeps the cluster's services true until ctx ends. Leader only: run it inside WhileLeader.
func Run(ctx context.Context, store *raftstore.Store, log *slog.Logger) error {
	watch := store.Watch()
	defer watch.Close()
	l := newLoop(log)
	retry := retryMin
	for ctx.Err() == nil {
		state, dirty := watch.Take()
		l.notice(state, dirty)
		if state.Index() < l.committed {
			// The view lags behind this loop's own last commit: deciding on it would do things twice.
			wait(ctx, watch.Changed(), retryMax)
			continue
		}
		now := wallClock()
		work := l.decide(now)
		if len(work) == 0 {
			wait(ctx, watch.Changed(), l.deadlines.next(now))
			continue
		}
		if err := l.commit(ctx, store, work); err != nil {
			if ctx.Err() != nil {
				break
			}
			l.log.Warn("commit failed, will retry", "err", err, "after", retry)
			wait(ctx, nil, retry)
			retry = min(2*retry, retryMax)
			continue
		}
		retry = retryMin
	}
	return nil
}

// wallClock is the time as rows keep it.
func wallClock() time.Time { return time.Now().UTC().Round(0) }

// wait returns after a change, after at most d (0: no limit), or when ctx ends.
func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-over:
	}
}
