package api

import (
	"container/heap"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/containerd/errdefs"
)

const (
	// logSourcesMax bounds how many containers' logs one request reads at a time.
	logSourcesMax = 256
	// logAhead is how many lines are read ahead of each container.
	logAhead = 4
	// logRetryMin and logRetryMax bound the pause before a broken follow is taken up again.
	logRetryMin = time.Second
	logRetryMax = 10 * time.Second
)

// gathering writes the logs of several tasks of one service to one client.
type gathering struct {
	api     *API
	out     *lineWriter
	options LogOptions
	warned  map[string]bool // nodes that were named as unreachable
	mu      sync.Mutex      // guards warned
}

// logSource is one task's log and how far it was read.
type logSource struct {
	row  *raftstore.Task
	node *raftstore.Node // nil when its row is gone
	// last is the time of the last line that was read, and same how many lines had that very time.
	last time.Time
	same int
}

func (s *logSource) origin() logOrigin {
	return logOrigin{node: s.row.NodeID, service: s.row.ServiceID, task: s.row.ID}
}

// fresh says whether a line was not read before, and remembers it.
func (s *logSource) fresh(line LogLine, skip *int) bool {
	switch {
	case line.Time.Before(s.last):
		return false
	case line.Time.Equal(s.last):
		if *skip > 0 {
			*skip--
			return false
		}
		s.same++
	default:
		s.last, s.same = line.Time, 1
	}
	return true
}

func (a *API) serviceLogs(w http.ResponseWriter, r *request) error {
	o, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	row, err := findService(state, r.vars["id"])
	if err != nil {
		return err
	}
	s := state.Spec(row.ID, row.SpecVersion)
	tty := s != nil && s.TaskTemplate.ContainerSpec != nil && s.TaskTemplate.ContainerSpec.TTY
	g := &gathering{api: a, out: newLineWriter(w, o, tty), options: o.LogOptions, warned: map[string]bool{}}
	var tasks []*raftstore.Task
	for t := range state.TasksOf(row.ID) {
		tasks = append(tasks, t)
	}
	if o.Follow {
		return g.follow(r.Context(), state, tasks, row.ID)
	}
	return g.history(r.Context(), g.sources(state, tasks))
}

func (a *API) taskLogs(w http.ResponseWriter, r *request) error {
	o, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	row, err := findTask(state, r.vars["id"])
	if err != nil {
		return err
	}
	g := &gathering{api: a, out: newLineWriter(w, o, hasTerminal(state, row)), options: o.LogOptions, warned: map[string]bool{}}
	if o.Follow {
		return g.follow(r.Context(), state, []*raftstore.Task{row}, "")
	}
	return g.history(r.Context(), g.sources(state, []*raftstore.Task{row}))
}

// sources are the tasks that have a log: those that got a container. When there are more than can be read at once, the newest are kept.
func (g *gathering) sources(state *raftstore.State, tasks []*raftstore.Task) []*logSource {
	var sources []*logSource
	for _, row := range tasks {
		if row.Status.ContainerID == "" || row.NodeID == "" {
			continue
		}
		node, _ := state.Nodes.Get(row.NodeID)
		sources = append(sources, &logSource{row: row, node: node})
	}
	if extra := len(sources) - logSourcesMax; extra > 0 {
		newestFirst(sources)
		g.warn(sources[logSourcesMax], fmt.Sprintf("the logs of %d older tasks are left out; ask for them by task id", extra))
		sources = sources[:logSourcesMax]
	}
	return sources
}

// address is where a source's node is asked; empty for this node.
func (g *gathering) address(s *logSource) (string, error) {
	if s.row.NodeID == g.api.cfg.Node.Status().NodeID {
		return "", nil
	}
	if s.node == nil {
		return "", fmt.Errorf("node %s is not part of the cluster any more: %w", s.row.NodeID, errdefs.ErrUnavailable)
	}
	if s.node.Address == "" {
		return "", fmt.Errorf("no address of node %s is known: %w", s.row.NodeID, errdefs.ErrUnavailable)
	}
	return s.node.Address, nil
}

// warn puts a line of ours among the lines of the log, so that what is missing is seen where it is missed.
func (g *gathering) warn(s *logSource, text string) {
	_ = g.out.write(LogLine{Stream: "stderr", Time: time.Now(), Text: []byte("swarm: " + text + "\n")}, s.origin())
}

// warnUnread names a node whose part of the log is missing, once per node. A task without a log is no reason to warn.
func (g *gathering) warnUnread(s *logSource, err error) {
	if err == nil || errdefs.IsNotFound(err) {
		return
	}
	g.mu.Lock()
	known := g.warned[s.row.NodeID]
	g.warned[s.row.NodeID] = true
	g.mu.Unlock()
	if known {
		return
	}
	name := s.row.NodeID
	if s.node != nil {
		name = nodeName(s.node) + " (" + s.node.Address + ")"
	}
	g.warn(s, "lines of node "+name+" are missing: "+messageOf(err))
}

// read reads on from where a source stands.
func (g *gathering) read(ctx context.Context, s *logSource, o LogOptions, emit func(LogLine) error) error {
	address, err := g.address(s)
	if err != nil {
		return err
	}
	skip := 0
	if !s.last.IsZero() {
		o.Since, o.Tail, skip = s.last, -1, s.same
	}
	return g.api.readLog(ctx, address, s.row.Status.ContainerID, o, func(line LogLine) error {
		if !s.fresh(line, &skip) {
			return nil
		}
		return emit(line)
	})
}

// history writes what the sources have now, merged by time. It holds a few lines per source.
func (g *gathering) history(ctx context.Context, sources []*logSource) error {
	ctx, cancel := context.WithCancel(ctx)
	o := g.options
	o.Follow = false
	var readers sync.WaitGroup
	defer func() { cancel(); readers.Wait() }()
	merge := &mergeHeap{}
	streams := make([]*mergeStream, len(sources))
	for i, s := range sources {
		streams[i] = &mergeStream{source: s, lines: make(chan LogLine, logAhead)}
		readers.Go(func() { streams[i].fill(ctx, g, o) })
	}
	for _, s := range streams {
		if s.advance() {
			heap.Push(merge, s)
		}
	}
	for merge.Len() > 0 {
		s := (*merge)[0]
		if err := g.out.write(s.head, s.source.origin()); err != nil {
			return nil // the client has gone
		}
		if s.advance() {
			heap.Fix(merge, 0)
		} else {
			heap.Pop(merge)
		}
	}
	for _, s := range streams {
		g.warnUnread(s.source, s.err)
	}
	return g.out.flush()
}

// mergeStream is one source's lines in order; err is set once lines is closed.
type mergeStream struct {
	source *logSource
	lines  chan LogLine
	err    error
	head   LogLine
}

func (s *mergeStream) fill(ctx context.Context, g *gathering, o LogOptions) {
	defer close(s.lines)
	s.err = g.read(ctx, s.source, o, func(line LogLine) error {
		select {
		case s.lines <- line:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (s *mergeStream) advance() (ok bool) {
	s.head, ok = <-s.lines
	return ok
}

// mergeHeap has the stream with the oldest head first.
type mergeHeap []*mergeStream

func (h mergeHeap) Len() int           { return len(h) }
func (h mergeHeap) Less(i, j int) bool { return h[i].head.Time.Before(h[j].head.Time) }
func (h mergeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(x any)        { *h = append(*h, x.(*mergeStream)) }
func (h *mergeHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

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

func newestFirst(sources []*logSource) {
	slices.SortStableFunc(sources, func(x, y *logSource) int { return y.row.CreatedAt.Compare(x.row.CreatedAt) })
}
