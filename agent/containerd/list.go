package containerd

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// Details is a container with all that is known of it.
type Details struct {
	worker.Observed
	Container worker.Container
	CreatedAt time.Time
}

// List reports every container of this agent's.
func (r *Runtime) List(ctx context.Context) ([]worker.Observed, error) {
	all, err := r.Details(ctx)
	if err != nil {
		return nil, err
	}
	observed := make([]worker.Observed, 0, len(all))
	for _, d := range all {
		observed = append(observed, d.Observed)
	}
	return observed, nil
}

// Details reports every container of this agent's, with what it was made from.
func (r *Runtime) Details(ctx context.Context) (all []Details, err error) {
	err = outlast(ctx, func() (err error) {
		all, err = r.details(ctx)
		return err
	})
	return all, err
}

func (r *Runtime) details(ctx context.Context) ([]Details, error) {
	// Tasks first: one that ends in between still has its container.
	response, err := r.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	running := make(map[string]*taskapi.Process, len(response.Tasks))
	for _, t := range response.Tasks {
		running[t.ID] = t
	}
	infos, err := r.containers().List(ctx, `labels."`+ownerLabel+`"==`+strconv.Quote(r.cfg.DataDir))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	result := make([]Details, 0, len(infos))
	for _, info := range infos {
		d, err := r.describe(ctx, info, running[info.ID])
		if err != nil {
			return nil, err
		}
		result = append(result, d)
	}
	return result, nil
}

// Container reports one container. NotFound when there is none.
func (r *Runtime) Container(ctx context.Context, id string) (d Details, err error) {
	err = outlast(ctx, func() (err error) {
		d, err = r.container(ctx, id)
		return err
	})
	return d, err
}

func (r *Runtime) container(ctx context.Context, id string) (Details, error) {
	info, err := r.containers().Get(ctx, id)
	if err != nil {
		return Details{}, fmt.Errorf("container %s: %w", id, err)
	}
	t, err := r.task(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return Details{}, err
	}
	return r.describe(ctx, info, t)
}

// describe joins containerd's records with our own; t is nil when containerd knows of no task. What is
// not proved to be over runs, so that a worker stops it before it has it removed.
func (r *Runtime) describe(ctx context.Context, info containers.Container, t *taskapi.Process) (Details, error) {
	c, err := decodeRecord(info)
	if err != nil {
		return Details{}, err
	}
	s, err := r.readState(info.ID)
	if err != nil {
		return Details{}, err
	}
	d := Details{Container: c, CreatedAt: info.CreatedAt}
	d.Observed = worker.Observed{ID: info.ID, Labels: c.Labels, PID: s.PID, StartedAt: s.StartedAt, Exit: s.Exit}
	if s.Exit != nil {
		r.settleLater(info.ID, s)
		return d, nil
	}
	switch {
	case t != nil && t.Status == taskapi.Status_CREATED:
	case t != nil && t.Status == taskapi.Status_STOPPED:
		exit, err := r.ended(info.ID, int(t.ExitStatus), t.ExitedAt.AsTime())
		if err != nil {
			return d, err
		}
		d.Exit = &exit
	case t != nil:
		d.Running = true
		if t.Pid != 0 { // containerd does not know it when the shim did not answer
			d.PID = int(t.Pid)
		}
	case s.PID != 0:
		d.Exit, err = r.over(ctx, info.ID, s)
		d.Running = d.Exit == nil
	}
	return d, err
}
