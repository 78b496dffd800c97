package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
)

// logSourcesMax bounds how many containers' logs one request reads at a time.
const logSourcesMax = 256

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

func newestFirst(sources []*logSource) {
	slices.SortStableFunc(sources, func(x, y *logSource) int { return y.row.CreatedAt.Compare(x.row.CreatedAt) })
}
