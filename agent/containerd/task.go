package containerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
)

const (
	waitRetryMin = 20 * time.Millisecond // first pause while containerd is away
	waitRetryMax = time.Second
	// killEvery repeats SIGKILL for a process that does not go.
	killEvery = 5 * time.Second
)

// Start runs a created container and returns its pid. NotFound/InvalidArgument when the command cannot be executed.
func (r *Runtime) Start(ctx context.Context, id string) (pid int, err error) {
	err = outlast(ctx, func() (err error) {
		pid, err = r.start(ctx, id)
		return err
	})
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsUnknown(err) {
		// It is not going to run: its log is over. Should it be started again, the log is opened again.
		r.forget(id)
		err = errors.Join(err, r.closeLog(ctx, id))
	}
	return pid, err
}

func (r *Runtime) start(ctx context.Context, id string) (int, error) {
	if s, err := r.readState(id); err != nil || s.Exit != nil {
		return s.PID, err // it ran and ended already: Wait says how
	}
	p, err := r.preparedFor(ctx, id)
	if err != nil {
		return 0, err
	}
	pid, err := r.createTask(ctx, id, p)
	if errdefs.IsAlreadyExists(err) {
		return r.startExisting(ctx, id)
	}
	if err != nil {
		return 0, startError(err)
	}
	r.forget(id)
	return r.startTask(ctx, id, pid)
}

func (r *Runtime) createTask(ctx context.Context, id string, p prepared) (int, error) {
	request := &tasks.CreateTaskRequest{ContainerID: id, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Terminal: p.tty}
	if p.tty {
		request.Stderr = "" // a terminal has one output
	}
	for _, m := range p.rootfs {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	response, err := r.client.TaskService().Create(ctx, request)
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	return int(response.Pid), nil
}

// startExisting goes on where an earlier call was interrupted.
func (r *Runtime) startExisting(ctx context.Context, id string) (int, error) {
	t, err := r.task(ctx, id)
	if err != nil {
		return 0, err
	}
	if t.Status == taskapi.Status_CREATED {
		return r.startTask(ctx, id, int(t.Pid))
	}
	return int(t.Pid), nil
}

// startTask writes the pid down before the process runs, so that a container that ran is always known as one.
func (r *Runtime) startTask(ctx context.Context, id string, pid int) (int, error) {
	born, err := birth(pid)
	if err != nil {
		r.log.Warn("process of a container is gone before it starts", "container", id, "pid", pid, "err", err)
	}
	if err := r.writeState(id, state{PID: pid, Born: born, StartedAt: time.Now().UTC()}); err != nil {
		return 0, err
	}
	if _, err := r.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
		if s, stateErr := r.readState(id); stateErr == nil && s.Exit != nil {
			// It ended at once, and whoever saw that first had its task deleted before the answer came.
			return pid, nil
		}
		err = startError(errgrpc.ToNative(err))
		if errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsCanceled(err) {
			return 0, err // it may run: who starts it again finds out
		}
		return 0, errors.Join(err, r.writeState(id, state{}), r.discardTask(context.WithoutCancel(ctx), id))
	}
	return pid, nil
}

// task is containerd's view of a container's process. NotFound when there is none.
func (r *Runtime) task(ctx context.Context, id string) (*taskapi.Process, error) {
	response, err := r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return nil, fmt.Errorf("task of container %s: %w", id, errgrpc.ToNative(err))
	}
	return response.Process, nil
}

// startError turns runc's text into what the user has to know, with a kind that says whose fault it is.
func startError(err error) error {
	text := err.Error()
	for _, prefix := range []string{"OCI runtime create failed: ", "OCI runtime start failed: ", "runc create failed: ", "runc start failed: ", "unable to start container process: "} {
		if _, after, ok := strings.Cut(text, prefix); ok {
			text = after
		}
	}
	text = strings.TrimSuffix(text, ": unknown")
	if text == err.Error() {
		return fmt.Errorf("start: %w", err)
	}
	switch {
	case strings.Contains(text, "executable file not found in $PATH"),
		strings.HasPrefix(text, "exec:") && strings.Contains(text, "no such file or directory"):
		return errdefs.ErrNotFound.WithMessage(text)
	case strings.HasPrefix(text, "exec:"), strings.Contains(text, "permission denied"), strings.Contains(text, "not a directory"),
		strings.Contains(text, "invalid argument"), strings.Contains(text, "sysctl"), strings.Contains(text, "chdir to cwd"):
		return errdefs.ErrInvalidArgument.WithMessage(text)
	}
	return errdefs.ErrUnknown.WithMessage(text)
}

// Wait returns when the process has ended, also one that was started by an earlier agent. It lasts through restarts of containerd.
func (r *Runtime) Wait(ctx context.Context, id string) (worker.Exit, error) {
	for retry := waitRetryMin; ; retry = min(2*retry, waitRetryMax) {
		if s, err := r.readState(id); err != nil {
			return worker.Exit{}, err
		} else if s.Exit != nil {
			r.settleLater(id, s)
			return *s.Exit, nil
		}
		response, err := r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id})
		if err == nil {
			return r.ended(id, int(response.ExitStatus), response.ExitedAt.AsTime())
		}
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			if exit, err := r.vanished(ctx, id); err != nil {
				return worker.Exit{}, err
			} else if exit != nil {
				return *exit, nil
			}
		}
		// Who waits for a process must not lose it to an outage of containerd or to a shim that answers late.
		if !pause(ctx, retry) {
			return worker.Exit{}, ctx.Err()
		}
	}
}

// ended records an exit and has it settled.
func (r *Runtime) ended(id string, code int, at time.Time) (worker.Exit, error) {
	exit, err := r.recordExit(id, code, at)
	if err == nil {
		r.settleLater(id, state{})
	}
	return exit, err
}

// vanished tells how a container ended that containerd knows no task of; nil while its process lives.
func (r *Runtime) vanished(ctx context.Context, id string) (*worker.Exit, error) {
	s, err := r.readState(id)
	if err != nil {
		return nil, err
	}
	if s.PID != 0 || s.Exit != nil {
		return r.over(ctx, id, s)
	}
	if _, err := r.containers().Get(ctx, id); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return nil, fmt.Errorf("container %s was not started: %w", id, errdefs.ErrFailedPrecondition)
}

// Stop sends signal (empty: the image's or SIGTERM), waits for grace, then kills; it returns when the process is gone.
func (r *Runtime) Stop(ctx context.Context, id, sig string, grace time.Duration) error {
	if err := checkID(id); err != nil {
		return err
	}
	return outlast(ctx, func() error { return r.stop(ctx, id, sig, grace) })
}

func (r *Runtime) stop(ctx context.Context, id, sig string, grace time.Duration) error {
	t, err := r.task(ctx, id)
	switch {
	case errdefs.IsNotFound(err): // what outlived its shim nobody can ask to end
		return killCgroup(ctx, r.cgroupPath(id))
	case err != nil:
		return err
	case t.Status == taskapi.Status_STOPPED:
		return nil
	case t.Status == taskapi.Status_CREATED:
		return r.discardTask(ctx, id)
	}
	number, err := r.stopSignal(ctx, id, sig)
	if err != nil {
		return err
	}
	if grace > 0 && number != unix.SIGKILL {
		if gone, err := r.signalAndWait(ctx, id, number, grace); gone || err != nil {
			return err
		}
	}
	for {
		if gone, err := r.signalAndWait(ctx, id, unix.SIGKILL, killEvery); gone || err != nil {
			return err
		}
		r.log.Warn("container does not die", "container", id)
	}
}

// signalAndWait reports whether the process was gone within patience.
func (r *Runtime) signalAndWait(ctx context.Context, id string, number unix.Signal, patience time.Duration) (gone bool, err error) {
	request := &tasks.KillRequest{ContainerID: id, Signal: uint32(number)}
	if _, err := r.client.TaskService().Kill(ctx, request); err != nil {
		// A process that ended meanwhile is what Wait is going to say; an outage of containerd it outlasts.
		if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
			return false, fmt.Errorf("send %s to container %s: %w", number, id, err)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := r.Wait(waiting, id); err != nil {
		if waiting.Err() != nil {
			return false, ctx.Err()
		}
		return false, err
	}
	return true, nil
}

// stopSignal is the one asked for, else the spec's, else the image's, else SIGTERM.
func (r *Runtime) stopSignal(ctx context.Context, id, asked string) (unix.Signal, error) {
	for _, name := range []string{asked, r.configuredSignal(ctx, id), "SIGTERM"} {
		if name == "" {
			continue
		}
		number, err := signal.ParseSignal(name)
		if err != nil {
			return 0, invalid("%s", err)
		}
		return number, nil
	}
	return unix.SIGTERM, nil
}

func (r *Runtime) configuredSignal(ctx context.Context, id string) string {
	info, err := r.containers().Get(ctx, id)
	if err != nil {
		return ""
	}
	c, err := decodeRecord(info)
	if err != nil {
		return ""
	}
	if c.Spec.StopSignal != "" {
		return c.Spec.StopSignal
	}
	image, err := r.image(ctx, c.ImageDigest)
	if err != nil {
		return ""
	}
	return image.config.StopSignal
}
