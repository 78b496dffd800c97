package api

import (
	"context"
	"sync"
	"time"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/containerd/errdefs"
)

// logRetryMin and logRetryMax bound the pause before a broken follow is taken up again.
const (
	logRetryMin = time.Second
	logRetryMax = 10 * time.Second
)

// follow writes the history, then every new line, of these tasks and of all that the service gets later (no service: of these alone).
func (g *gathering) follow(ctx context.Context, state *raftstore.State, tasks []*raftstore.Task, serviceID string) error {
	store, err := g.api.manager()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.out.begin()
	sources := g.sources(state, tasks)
	if g.options.Tail != 0 {
		if err := g.history(ctx, sources); err != nil {
			return err
		}
	}
	watch := store.Watch()
	defer watch.Close()
	f := follower{gathering: g, store: store, active: map[string]bool{}, ended: make(chan string)}
	defer f.running.Wait()
	defer cancel()
	for _, s := range sources {
		f.start(ctx, s, g.options.Tail)
	}
	for {
		state, dirty := watch.Take()
		_, changed := dirty.Services[serviceID]
		if serviceID != "" {
			if changed || dirty.All {
				f.startNew(ctx, state, serviceID)
			}
		} else if f.live == 0 {
			if !f.awaitContainer(ctx, state, tasks[0].ID) {
				return nil
			}
		}
		if serviceID != "" && f.live == 0 && serviceGone(state, serviceID) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Changed():
		case id := <-f.ended:
			f.live--
			f.active[id] = false
		}
	}
}

func serviceGone(state *raftstore.State, id string) bool {
	row, ok := state.Services.Get(id)
	return !ok || row.Removing
}

// follower runs one reader per task.
type follower struct {
	*gathering
	store *raftstore.Store
	// active has every task that is or was followed; false once its log ended. live counts the readers.
	active  map[string]bool
	live    int
	ended   chan string
	running sync.WaitGroup
}

func (f *follower) start(ctx context.Context, s *logSource, tail int) {
	f.active[s.row.ID] = true
	f.live++
	o := f.options
	o.Tail = tail
	if tail != 0 {
		o.Tail = -1
	}
	f.running.Go(func() {
		f.followOne(ctx, s, o)
		select {
		case f.ended <- s.row.ID:
		case <-ctx.Done():
		}
	})
}

// startNew follows tasks that got their container since the last look, and forgets those that are gone.
func (f *follower) startNew(ctx context.Context, state *raftstore.State, serviceID string) {
	for id, on := range f.active {
		if _, ok := state.Tasks.Get(id); !ok && !on {
			delete(f.active, id)
		}
	}
	for row := range state.TasksOf(serviceID) {
		if _, known := f.active[row.ID]; known || row.Status.ContainerID == "" || row.NodeID == "" {
			continue
		}
		node, _ := state.Nodes.Get(row.NodeID)
		s := &logSource{row: row, node: node}
		if f.live >= logSourcesMax {
			f.active[row.ID] = false
			f.warn(s, "this task's log is not followed: too many tasks at once; ask for it by task id")
			continue
		}
		f.start(ctx, s, -1)
	}
}

// awaitContainer keeps a follow of one task waiting until it has a container; done once its log ended or it never will have one.
func (f *follower) awaitContainer(ctx context.Context, state *raftstore.State, taskID string) (waiting bool) {
	row, ok := state.Tasks.Get(taskID)
	if _, known := f.active[taskID]; known || !ok {
		return false
	}
	if row.Status.ContainerID != "" && row.NodeID != "" {
		node, _ := state.Nodes.Get(row.NodeID)
		f.start(ctx, &logSource{row: row, node: node}, -1)
		return true
	}
	return !task.Ended(row.Status.State)
}

// followOne follows one task's log to its end, over broken connections and restarts of the node's agent.
func (f *follower) followOne(ctx context.Context, s *logSource, o LogOptions) {
	pause := logRetryMin
	for {
		before := s.last
		err := f.read(ctx, s, o, func(line LogLine) error { return f.out.write(line, s.origin()) })
		if err == nil || errdefs.IsNotFound(err) || ctx.Err() != nil {
			return
		}
		f.warnUnread(s, err)
		if s.last.After(before) {
			pause = logRetryMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, logRetryMax)
		if !f.refresh(s) {
			return
		}
	}
}

// refresh looks up where a source's task and node are now; false once the task is gone.
func (f *follower) refresh(s *logSource) bool {
	state := f.store.Local()
	row, ok := state.Tasks.Get(s.row.ID)
	if !ok {
		return false
	}
	s.row = row
	s.node, _ = state.Nodes.Get(row.NodeID)
	return true
}
