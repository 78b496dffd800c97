// Package service is the orchestrator: one loop that reconciles, places, restarts and reaps tasks by pure decisions.
// agent runs it on the leader.
package service

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"swarm/raftstore"
)

// Bounds of the loop. A plan may exceed them by one step.
const (
	// changesMax bounds one commit, stepsMax what is planned for one service at a time: a big change goes in several commits,
	// and other work comes in between.
	changesMax = 500
	stepsMax   = 500

	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// Orchestrator keeps the cluster's services true.
type Orchestrator struct {
	store *raftstore.Store
	log   *slog.Logger

	delay, decide raftstore.Histogram
	rounds        atomic.Uint64
	// waiting are the services of which tasks wait for a node; nil while this manager does not lead.
	waiting atomic.Pointer[[]string]
}

// New makes an orchestrator; it does nothing until Run.
func New(store *raftstore.Store, log *slog.Logger) *Orchestrator {
	return &Orchestrator{store: store, log: log}
}

// Run decides and commits until ctx ends. Leader only: run it inside WhileLeader.
func (o *Orchestrator) Run(ctx context.Context) error {
	watch := o.store.Watch()
	defer watch.Close()
	defer o.waiting.Store(nil)
	l := newLoop(o.log)
	l.placed = o.delay.Observe
	retry := retryMin
	for ctx.Err() == nil {
		state, dirty := watch.Take()
		l.notice(state, dirty)
		if state.Index() < l.committed {
			// The view lags behind this loop's own last commit: deciding on it would do things twice.
			wait(ctx, watch.Changed(), retryMax)
			continue
		}
		now, began := wallClock(), time.Now()
		work := l.decide(now)
		o.decide.Observe(time.Since(began))
		o.note(l)
		if len(work) == 0 {
			if len(l.todo) == 0 {
				wait(ctx, watch.Changed(), l.deadlines.next(now))
			}
			continue
		}
		if err := l.commit(ctx, o.store, work); err != nil {
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
