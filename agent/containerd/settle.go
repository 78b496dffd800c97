package containerd

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// settleTriesMax bounds what is tried at once for one container; it is tried again when somebody looks at it.
	settleTriesMax = 6
	// settleMax bounds all of that: a shim that hangs must not keep the logs of others open.
	settleMax = 30 * time.Second
)

// settleLater has a process that ended settled, unless it is already or waits for it.
func (r *Runtime) settleLater(id string, s state) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Settled || r.settling[id] {
		return
	}
	select {
	case r.settles <- id:
		r.settling[id] = true
	default:
	}
}

// settleEnded settles ended processes until ctx ends. What it misses is done by Remove.
func (r *Runtime) settleEnded(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-r.settles:
			err := r.trySettle(ctx, id)
			if err != nil && ctx.Err() == nil {
				r.log.Warn("what is left of an ended process stays until its container is looked at or removed", "container", id, "err", err)
			}
			r.mu.Lock()
			delete(r.settling, id)
			r.mu.Unlock()
		}
	}
}

func (r *Runtime) trySettle(ctx context.Context, id string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	retry := waitRetryMin
	for range settleTriesMax {
		if err = outlast(ctx, func() error { return r.settle(ctx, id) }); err == nil || !pause(ctx, retry) {
			return err
		}
		retry *= 2
	}
	return err
}

// settle deletes the task of an ended process, whose shim costs memory, and then ends the log: when the shim is
// gone it has passed on all that the process wrote, and who follows the log comes to its end.
func (r *Runtime) settle(ctx context.Context, id string) error {
	if err := r.deleteTask(ctx, id); err != nil {
		return err
	}
	if err := r.closeLog(ctx, id); err != nil {
		return err
	}
	return r.recordSettled(id)
}

// closeLog reads what is left of a container's output and ends its log. It may be repeated.
func (r *Runtime) closeLog(ctx context.Context, id string) error {
	if r.cfg.Logs == nil {
		return nil
	}
	if err := r.cfg.Logs.CloseLog(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("close the log of container %s: %w", id, err)
	}
	return nil
}
