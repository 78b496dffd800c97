package images

import (
	"context"
	"sync"
)

// flights lets concurrent callers share one piece of work. It ends early only when its last caller gave up.
type flights struct {
	mu    sync.Mutex
	byKey map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{}
	result  string
	err     error
}

// do runs work once for all callers with the same key.
func (f *flights) do(ctx context.Context, key string, work func(context.Context) (string, error)) (string, error) {
	f.mu.Lock()
	shared := f.byKey[key]
	if shared == nil {
		shared = f.launch(ctx, key, work)
	}
	shared.waiting++
	f.mu.Unlock()
	select {
	case <-shared.done:
		return shared.result, shared.err
	case <-ctx.Done():
		f.leave(key, shared)
		return "", ctx.Err()
	}
}

// launch starts the work; the lock is held.
func (f *flights) launch(ctx context.Context, key string, work func(context.Context) (string, error)) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	shared := &flight{cancel: cancel, done: make(chan struct{})}
	f.byKey[key] = shared
	go func() {
		defer cancel()
		shared.result, shared.err = work(ctx)
		f.mu.Lock()
		if f.byKey[key] == shared {
			delete(f.byKey, key)
		}
		f.mu.Unlock()
		close(shared.done)
	}()
	return shared
}

// leave cancels the work when nobody waits for it any more.
func (f *flights) leave(key string, shared *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	shared.waiting--
	if shared.waiting > 0 {
		return
	}
	shared.cancel()
	if f.byKey[key] == shared {
		delete(f.byKey, key)
	}
}
