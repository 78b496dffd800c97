package worker

import (
	"context"
	"fmt"
	"strings"
	"time"

	"swarm/service/task"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// work is one task and the goroutine that lives for it. Guarded by the worker's mu, but for what never changes.
type work struct {
	id          string
	containerID string
	wake        chan struct{} // its desired state changed

	record record
	due    bool // its status is not acknowledged
	born   bool
	phase  task.Phase
	exit   *Exit
	// cancelStep interrupts the step that is being taken, if that can be interrupted.
	cancelStep context.CancelFunc
	// attempts counts the errors in a row, only used by its own goroutine.
	attempts int
}

func newWork(id string, r record) *work {
	return &work{
		id: id, containerID: ContainerID(id), wake: make(chan struct{}, 1),
		record: r, phase: task.NoContainer,
	}
}

// stray says whether t only stands for a container that nobody knows.
func (t *work) stray() bool { return strings.HasPrefix(t.id, "stray-") }

// see takes note of what the runtime says about the task's container.
func (t *work) see(o Observed) {
	switch {
	case o.Running:
		t.phase, t.record.Status.PID = task.Running, o.PID
	case o.Exit != nil:
		t.phase, t.exit = task.Exited, o.Exit
	default:
		t.phase = task.Created
	}
}

// live takes step after step until the task is forgotten or ctx ends.
func (w *Worker) live(ctx context.Context, t *work) {
	for ctx.Err() == nil {
		step, stepCtx, cancel := w.next(ctx, t)
		if step == task.Idle {
			select {
			case <-t.wake:
			case <-ctx.Done():
			}
			cancel()
			continue
		}
		err := w.take(ctx, stepCtx, t, step)
		switch {
		case err == nil && step == task.Forget && w.forgotten(t):
			cancel()
			return
		case err == nil:
			t.attempts = 0
		case stepCtx.Err() == nil:
			w.log.Warn("step of a task failed; trying again", "task", t.id, "step", step, "attempt", t.attempts, "error", err)
			_ = sleep(stepCtx, pause(step, t.attempts))
			t.attempts++
			if !errdefs.IsUnavailable(err) { // then there is nobody to ask
				w.look(ctx, t)
			}
		}
		cancel()
	}
}

// pause is how long to wait after a step failed. Watching goes on soon: ends must not be noticed late.
func pause(step task.Step, attempts int) time.Duration {
	if step == task.Watch {
		return min(backoff(attempts), watchBackoffMax)
	}
	return backoff(attempts)
}

// next is the step to take, and the context in which it can be interrupted by a change of mind.
func (w *Worker) next(ctx context.Context, t *work) (task.Step, context.Context, context.CancelFunc) {
	stepCtx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	t.cancelStep = cancel
	select {
	case <-t.wake: // what it tells is taken into account now
	default:
	}
	return task.Next(t.record.Desired, task.Progress{State: t.record.Status.State, Image: t.record.Digest != "", Container: t.phase}), stepCtx, cancel
}

func (w *Worker) take(ctx, stepCtx context.Context, t *work, step task.Step) error {
	switch step {
	case task.Accept:
		return w.accept(t)
	case task.PullImage:
		return w.pullImage(stepCtx, t)
	case task.Create:
		return w.create(ctx, stepCtx, t)
	case task.Start:
		return w.start(ctx, stepCtx, t)
	case task.Watch:
		return w.watch(stepCtx, t)
	case task.Finish:
		return w.finish(t)
	case task.Lose:
		return w.lose(t)
	case task.Stop:
		return w.stop(ctx, t)
	case task.ReportShutdown:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.report(t, status{State: swarm.TaskStateShutdown, Message: "shutdown"})
		return nil
	case task.RemoveContainer:
		return w.removeContainer(ctx, t)
	case task.Forget:
		return w.removeLog(ctx, t)
	}
	panic("worker: unknown step " + step)
}

// lose reports a container that is not there although its task ran.
func (w *Worker) lose(t *work) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.record.Stopping {
		w.report(t, status{State: swarm.TaskStateShutdown, Message: "shutdown"})
		return nil
	}
	w.report(t, status{
		State: swarm.TaskStateFailed, Message: t.record.Status.Message,
		Err: "the container is gone: it was removed from outside, or the runtime lost it",
	})
	return nil
}

func (w *Worker) removeLog(ctx context.Context, t *work) error {
	if w.cfg.RemoveLog == nil {
		return nil
	}
	return w.cfg.RemoveLog(ctx, t.containerID)
}

// forgotten drops a task that is still unwanted.
func (w *Worker) forgotten(t *work) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.record.Desired != task.Unassigned {
		return false
	}
	delete(w.tasks, t.id)
	w.journal.task(t.id)
	close(w.gone)
	w.gone = make(chan struct{})
	return true
}

// look asks the runtime what became of a task's container after an error. When it cannot tell, what was known counts.
func (w *Worker) look(ctx context.Context, t *work) {
	observed, err := w.cfg.Runtime.List(ctx)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase = task.NoContainer
	for _, o := range observed {
		if o.ID == t.containerID {
			t.see(o)
		}
	}
}

func (w *Worker) accept(t *work) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.specOf(t)
	switch {
	case s == nil:
		w.report(t, status{State: swarm.TaskStateRejected, Message: "accepted", Err: fmt.Sprintf("version %d of the service's spec did not reach this node", t.record.SpecVersion)})
	case s.TaskTemplate.ContainerSpec == nil:
		w.report(t, status{State: swarm.TaskStateRejected, Message: "accepted", Err: "the service's spec has no container"})
	default:
		w.report(t, status{State: swarm.TaskStateAccepted, Message: "accepted"})
	}
	return nil
}

func (w *Worker) pullImage(ctx context.Context, t *work) error {
	w.enter(t, swarm.TaskStatePreparing, "preparing")
	if err := w.preparing.take(ctx); err != nil {
		return err
	}
	defer w.preparing.give()
	w.mu.Lock()
	ref := imageRef(w.specOf(t))
	holders := w.holdersOf(ref)
	w.mu.Unlock()
	digest, err := w.cfg.Images.Ensure(ctx, ref, holders, "")
	if err != nil {
		return w.failed(ctx, t, swarm.TaskStateRejected, explainImage(ref, err), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.record.Digest = digest
	w.journal.note(t.id)
	return nil
}

func explainImage(ref string, err error) string {
	text := plain(err)
	if !errdefs.IsNotFound(err) || strings.Contains(text, "No such image") {
		return text
	}
	return "No such image: " + ref + " (" + text + ")"
}

// plain is the text of an error without the word for its kind, which says nothing to a person.
func plain(err error) string {
	text := err.Error()
	for _, kind := range []error{
		errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrUnavailable, errdefs.ErrFailedPrecondition,
		errdefs.ErrPermissionDenied, errdefs.ErrNotImplemented, errdefs.ErrInternal, errdefs.ErrUnknown, errdefs.ErrConflict,
	} {
		if short, cut := strings.CutSuffix(text, ": "+kind.Error()); cut {
			return short
		}
	}
	return text
}

func (w *Worker) create(ctx, stepCtx context.Context, t *work) error {
	w.enter(t, swarm.TaskStatePreparing, "preparing")
	if err := w.preparing.take(stepCtx); err != nil {
		return err
	}
	defer w.preparing.give()
	w.mu.Lock()
	s := w.specOf(t)
	if s == nil {
		w.report(t, status{State: swarm.TaskStateRejected, Message: "preparing", Err: fmt.Sprintf("version %d of the service's spec is not on this node any more", t.record.SpecVersion)})
		w.mu.Unlock()
		return nil
	}
	c := w.container(t, s)
	w.mu.Unlock()
	if err := w.cfg.Runtime.Create(ctx, c); err != nil && !errdefs.IsAlreadyExists(err) {
		return w.failed(ctx, t, swarm.TaskStateRejected, plain(err), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase = task.Created
	w.report(t, status{State: swarm.TaskStateReady, Message: "prepared"})
	return nil
}

// start writes STARTING to the disk first: a task that may have run is never run again.
func (w *Worker) start(ctx, stepCtx context.Context, t *work) error {
	w.enter(t, swarm.TaskStateStarting, "starting")
	if err := w.flush(stepCtx); err != nil {
		return err
	}
	if err := w.starting.take(stepCtx); err != nil {
		return err
	}
	defer w.starting.give()
	pid, err := w.cfg.Runtime.Start(ctx, t.containerID)
	if err != nil {
		const prefix = "starting container failed: "
		return w.failed(ctx, t, swarm.TaskStateFailed, prefix+strings.TrimPrefix(plain(err), prefix), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase = task.Running
	w.report(t, status{State: swarm.TaskStateRunning, Message: "started", PID: pid})
	return nil
}

// watch waits for the end of a container, whoever started it.
func (w *Worker) watch(ctx context.Context, t *work) error {
	w.enter(t, swarm.TaskStateRunning, "started")
	exit, err := w.cfg.Runtime.Wait(ctx, t.containerID)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase, t.exit = task.Exited, &exit
	return nil
}

// enter reports a state unless the task is beyond it, such as one that was adopted.
func (w *Worker) enter(t *work, s swarm.TaskState, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if task.Before(t.record.Status.State, s) {
		w.report(t, status{State: s, Message: message})
	}
}

// failed decides what an error means: an end, or a reason to try again, which it returns.
func (w *Worker) failed(ctx context.Context, t *work, s swarm.TaskState, text string, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if transient(err) && t.attempts < retriesMax {
		w.mu.Lock()
		now := t.record.Status
		w.report(t, status{State: now.State, Message: now.Message, Err: text + " (trying again)"})
		w.mu.Unlock()
		return err
	}
	w.end(t, s, text)
	return nil
}

// transient says whether trying again may help: the runtime or the network is not there at the moment.
func transient(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsAborted(err)
}

// end reports an end with its reason; the message stays that of the last state, which tells how far it came.
func (w *Worker) end(t *work, s swarm.TaskState, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.report(t, status{State: s, Message: t.record.Status.Message, Err: text})
}

// finish reports the end of a container, by itself or because it was stopped before this worker began.
func (w *Worker) finish(t *work) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	code := t.exit.Code
	switch {
	case t.record.Stopping:
		w.report(t, status{State: swarm.TaskStateShutdown, Message: "shutdown", ExitCode: code})
	case code == 0:
		w.report(t, status{State: swarm.TaskStateComplete, Message: "finished"})
	default:
		text := fmt.Sprintf("task: non-zero exit (%d)", code)
		if t.exit.OOMKilled {
			text += ": OOM killed: the container used more memory than its limit"
		}
		w.report(t, status{State: swarm.TaskStateFailed, Message: "started", Err: text, ExitCode: code})
	}
	return nil
}

func (w *Worker) stop(ctx context.Context, t *work) error {
	w.mu.Lock()
	signal, grace := stopping(w.specOf(t))
	stoppedBefore := t.record.Stopping
	t.record.Stopping = true
	w.journal.task(t.id)
	w.mu.Unlock()
	began := time.Now()
	if err := w.cfg.Runtime.Stop(ctx, t.containerID, signal, grace); err != nil {
		return err // not found, too: it is looked for before the next step
	}
	exit := w.exitOf(ctx, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase, t.exit = task.Exited, &exit
	if !stoppedBefore && !exit.At.IsZero() && exit.At.Before(began) {
		t.record.Stopping = false // it ended by itself just before
	}
	return nil
}

// exitOf is how a stopped container ended; unknown when the runtime does not tell in time.
func (w *Worker) exitOf(ctx context.Context, t *work) Exit {
	ctx, cancel := context.WithTimeout(ctx, exitWait)
	defer cancel()
	exit, err := w.cfg.Runtime.Wait(ctx, t.containerID)
	if err != nil {
		w.log.Warn("exit code of a stopped container is unknown", "task", t.id, "error", err)
		return Exit{Code: 137}
	}
	return exit
}

func (w *Worker) removeContainer(ctx context.Context, t *work) error {
	// Its end goes to the disk before its last trace does. A full disk must not keep the container, though.
	if err := w.flush(ctx); err != nil {
		w.log.Warn("container is removed before its end is saved", "task", t.id, "error", err)
	}
	if err := w.removing.take(ctx); err != nil {
		return err
	}
	defer w.removing.give()
	if err := w.cfg.Runtime.Remove(ctx, t.containerID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.phase = task.NoContainer
	return nil
}
