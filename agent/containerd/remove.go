package containerd

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// discardMax bounds the killing of a task that must not run.
const discardMax = 30 * time.Second

// Remove deletes a container that does not run, its snapshot and FIFOs. The record goes last, so that a
// removal that was interrupted can be repeated.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return outlast(ctx, func() error { return r.remove(ctx, id) })
}

func (r *Runtime) remove(ctx context.Context, id string) error {
	r.forget(id)
	if err := r.removeTask(ctx, id); err != nil {
		return err
	}
	if err := killCgroup(ctx, r.cgroupPath(id)); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := r.closeLog(ctx, id); err != nil {
		return err
	}
	if err := r.snapshots().Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the root file system of container %s: %w", id, err)
	}
	if err := r.removeDir(id); err != nil {
		return err
	}
	if err := removeCgroups(r.cgroupPath(id)); err != nil {
		return err
	}
	if err := r.containers().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// removeDir deletes a container's directory, in which nobody changes the state meanwhile.
func (r *Runtime) removeDir(id string) error {
	r.statesMu.Lock()
	defer r.statesMu.Unlock()
	if err := os.RemoveAll(r.containerDir(id)); err != nil {
		return fmt.Errorf("remove the directory of container %s: %w", id, err)
	}
	return nil
}

// removeTask deletes an ended task, and one that was created and never ran. FailedPrecondition while it runs,
// which List tells, too; a container that was told to have ended is removed whatever is left of it.
func (r *Runtime) removeTask(ctx context.Context, id string) error {
	t, err := r.task(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	switch t.Status {
	case taskapi.Status_CREATED:
		return r.discardTask(ctx, id)
	case taskapi.Status_STOPPED:
		return r.deleteTask(ctx, id)
	}
	s, err := r.readState(id)
	if err != nil {
		return err
	}
	if s.Exit != nil {
		r.log.Warn("container that ended still runs and is killed", "container", id, "pid", t.Pid)
		return r.discardTask(ctx, id)
	}
	return fmt.Errorf("container %s is running: stop it first: %w", id, errdefs.ErrFailedPrecondition)
}

// discardTask kills and deletes a task whose process must not run: it never ran the container's command, or is told to be over.
func (r *Runtime) discardTask(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, discardMax)
	defer cancel()
	request := &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL)}
	if _, err := r.client.TaskService().Kill(ctx, request); err == nil {
		if _, err := r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			return fmt.Errorf("discard container %s: %w", id, errgrpc.ToNative(err))
		}
	}
	return r.deleteTask(ctx, id)
}

// deleteTask ends the shim of an ended process. Concurrent calls share one.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	_, err, _ := r.deletes.Do(id, func() (any, error) {
		_, err := r.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		return nil, errgrpc.ToNative(err)
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete the task of container %s: %w", id, err)
	}
	return nil
}
