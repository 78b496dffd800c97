package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"swarm/agent/worker"
	"swarm/api"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

const (
	// createTakes and startTakes are about what containerd and runc take; each is varied by a half.
	createTakes = 60 * time.Millisecond
	startTakes  = 40 * time.Millisecond
	// stopTakes is from the signal to the end of a program that obeys.
	stopTakes = 20 * time.Millisecond
)

// Runtime is one machine's containers: they run whether an agent does or not, until the machine loses its power. Their programs
// are those of the image hello (serve, sleep, count, eat, exit [CODE]) and
//
//	exit CODE AFTER   leave after a time
//	stubborn          end only when killed
//	hang              cannot even be killed for a minute
type Runtime struct {
	mu         sync.Mutex // guards the fields below; never held across a wait
	random     *rand.Rand
	containers map[string]*simContainer
	lastPID    int
	// starts counts, by task, how often a container was started.
	starts map[string]int
}

type simContainer struct {
	worker.Container
	created time.Time
	pid     int
	started time.Time
	exit    *worker.Exit
	ended   chan struct{}
	signals chan string
}

// NewRuntime without containers.
func NewRuntime(seed uint64) *Runtime {
	return &Runtime{random: rand.New(rand.NewPCG(seed, 0x72756e)), containers: map[string]*simContainer{}, starts: map[string]int{}}
}

func (r *Runtime) vary(d time.Duration) time.Duration {
	return d/2 + time.Duration(r.random.Int64N(int64(d)))
}

// PowerOff ends every container without a trace: what was created is still there, nothing runs.
func (r *Runtime) PowerOff() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.pid != 0 && c.exit == nil {
			r.end(c, worker.Exit{Code: 255, At: time.Now()})
		}
	}
}

// Running is the ids of the tasks whose containers run.
func (r *Runtime) Running() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	running := map[string]bool{}
	for _, c := range r.containers {
		if c.pid != 0 && c.exit == nil {
			running[taskOf(c)] = true
		}
	}
	return running
}

// Starts is how often containers were started here, by task.
func (r *Runtime) Starts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.starts)
}

// Restarted names the tasks that were started more than once: a task runs once.
func (r *Runtime) Restarted() []string {
	var twice []string
	for task, n := range r.Starts() {
		if n > 1 {
			twice = append(twice, task)
		}
	}
	slices.Sort(twice)
	return twice
}

func taskOf(c *simContainer) string { return c.Labels["com.docker.swarm.task.id"] }

// end needs mu.
func (r *Runtime) end(c *simContainer, exit worker.Exit) {
	if c.exit == nil {
		c.exit = &exit
		close(c.ended)
	}
}

// run is the container's program.
func (r *Runtime) run(c *simContainer) {
	code := 0
	var after <-chan time.Time
	args := append(slices.Clone(c.Spec.Args), "", "", "")
	switch args[0] {
	case "exit":
		code = 1
		if n, err := strconv.Atoi(args[1]); err == nil {
			code = n
		}
		wait, _ := time.ParseDuration(args[2])
		timer := time.NewTimer(wait)
		defer timer.Stop()
		after = timer.C
	}
	for {
		select {
		case <-c.ended:
			return
		case <-after:
		case signal := <-c.signals:
			pause := stopTakes
			switch {
			case args[0] == "hang":
				pause = time.Minute
			case args[0] == "stubborn" && signal != "KILL":
				continue
			}
			if signal == "KILL" {
				code = 137
			}
			select {
			case <-time.After(pause):
			case <-c.ended:
				return
			}
		}
		r.mu.Lock()
		r.end(c, worker.Exit{Code: code, At: time.Now()})
		r.mu.Unlock()
		return
	}
}

// runtimeOf is the runtime as one process sees it: a process that was killed does nothing any more.
type runtimeOf struct {
	*Runtime
	process context.Context // done once the process was killed
}

var (
	_ worker.Runtime = runtimeOf{}
	_ api.Containers = containersOf{}
)

// errKilled is what a call of a process meets that does not exist any more. Nobody hears it.
var errKilled = fmt.Errorf("the process was killed: %w", errdefs.ErrUnavailable)

// begin takes mu, and then the time that a call takes, and mu again, unless the process is gone or ctx ends.
func (r runtimeOf) begin(ctx context.Context, takes time.Duration) error {
	r.mu.Lock()
	if takes > 0 {
		wait := r.vary(takes)
		r.mu.Unlock()
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-r.process.Done():
			return errKilled
		}
		r.mu.Lock()
	}
	if r.process.Err() != nil {
		r.mu.Unlock()
		return errKilled
	}
	return nil
}

func (r runtimeOf) find(id string) (*simContainer, error) {
	c, ok := r.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %.12s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// Create prepares a container.
func (r runtimeOf) Create(ctx context.Context, c worker.Container) error {
	if err := r.begin(ctx, createTakes); err != nil {
		return err
	}
	defer r.mu.Unlock()
	if _, ok := r.containers[c.ID]; !ok {
		r.containers[c.ID] = &simContainer{Container: c, created: time.Now(), ended: make(chan struct{}), signals: make(chan string, 8)}
	}
	return nil
}

// Start runs it, once.
func (r runtimeOf) Start(ctx context.Context, id string) (int, error) {
	if err := r.begin(ctx, startTakes); err != nil {
		return 0, err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil || c.pid != 0 {
		return 0, err
	}
	r.lastPID++
	c.pid, c.started = r.lastPID, time.Now()
	r.starts[taskOf(c)]++
	go r.run(c)
	return c.pid, nil
}

// Wait for its end.
func (r runtimeOf) Wait(ctx context.Context, id string) (worker.Exit, error) {
	if err := r.begin(ctx, 0); err != nil {
		return worker.Exit{}, err
	}
	c, err := r.find(id)
	r.mu.Unlock()
	if err != nil {
		return worker.Exit{}, err
	}
	return r.await(ctx, c)
}

func (r runtimeOf) await(ctx context.Context, c *simContainer) (worker.Exit, error) {
	select {
	case <-c.ended:
		return *c.exit, nil
	case <-ctx.Done():
		return worker.Exit{}, ctx.Err()
	case <-r.process.Done():
		return worker.Exit{}, errKilled
	}
}

// Stop asks it to end, then kills it.
func (r runtimeOf) Stop(ctx context.Context, id, signal string, grace time.Duration) error {
	if err := r.begin(ctx, 0); err != nil {
		return err
	}
	c, err := r.find(id)
	r.mu.Unlock()
	if err != nil || c.pid == 0 {
		return err
	}
	if signal == "" {
		signal = "TERM"
	}
	patience, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	send(c, signal)
	if _, err := r.await(patience, c); err == nil || ctx.Err() != nil || r.process.Err() != nil {
		return err
	}
	send(c, "KILL")
	_, err = r.await(ctx, c)
	return err
}

func send(c *simContainer, signal string) {
	select {
	case c.signals <- signal:
	default: // it has been told often enough
	}
}

// Remove deletes a container that does not run.
func (r runtimeOf) Remove(ctx context.Context, id string) error {
	if err := r.begin(ctx, stopTakes); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if c.pid != 0 && c.exit == nil {
		return fmt.Errorf("container %.12s runs: %w", id, errdefs.ErrConflict)
	}
	delete(r.containers, id)
	return nil
}

// all containers in order of their ids; needs mu.
func (r *Runtime) all() []*simContainer {
	var all []*simContainer
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		all = append(all, r.containers[id])
	}
	return all
}

// List is what the worker adopts.
func (r runtimeOf) List(ctx context.Context) ([]worker.Observed, error) {
	if err := r.begin(ctx, 0); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	var list []worker.Observed
	for _, c := range r.all() {
		list = append(list, worker.Observed{ID: c.ID, Labels: c.Labels, Running: c.pid != 0 && c.exit == nil, PID: c.pid, StartedAt: c.started, Exit: c.exit})
	}
	return list, nil
}

// containersOf is the same for the API.
type containersOf struct{ runtimeOf }

// List shows containers as the API does.
func (r containersOf) List(ctx context.Context) ([]container.Summary, error) {
	if err := r.begin(ctx, 0); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	var list []container.Summary
	for _, c := range r.all() {
		s := container.Summary{ID: c.ID, Names: []string{"/" + c.Name}, Image: c.ImageRef, Labels: c.Labels, State: container.StateCreated}
		switch {
		case c.exit != nil:
			s.State = container.StateExited
		case c.pid != 0:
			s.State = container.StateRunning
		}
		list = append(list, s)
	}
	return list, nil
}

// Inspect shows what is known of one.
func (r containersOf) Inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	if err := r.begin(ctx, 0); err != nil {
		return container.InspectResponse{}, err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return container.InspectResponse{}, err
	}
	return container.InspectResponse{ID: c.ID, Name: "/" + c.Name}, nil
}

// Logs of simulated programs are empty.
func (r containersOf) Logs(context.Context, string, api.LogOptions, func(api.LogLine) error) error {
	return nil
}
