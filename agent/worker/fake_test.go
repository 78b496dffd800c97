package worker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// fakeRuntime "runs" programs that are named by their image, until they end or are stopped. It outlives workers.
//
//	sleep     runs until it is told to stop
//	stubborn  runs until it is killed
//	exit N    runs a second, then exits with N
//	oom       runs a second, then is killed for its memory
//	nope      cannot be started
type fakeRuntime struct {
	mu         sync.Mutex
	containers map[string]*fakeContainer
	lastPID    int
	calls      []string
	// down makes every call fail for now.
	down bool
	// busy counts calls of Create that are under way, busyMax their greatest number.
	busy, busyMax int
	createTakes   time.Duration
}

type fakeContainer struct {
	Container
	pid   int
	exit  *Exit
	ended chan struct{}
	stop  chan string
}

func newFakeRuntime() *fakeRuntime { return &fakeRuntime{containers: map[string]*fakeContainer{}} }

func (r *fakeRuntime) get(call, id string) (*fakeContainer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return nil, fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	}
	c, ok := r.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %.12s: %w", id, errdefs.ErrNotFound)
	}
	r.calls = append(r.calls, call+" "+c.Name)
	return c, nil
}

func (r *fakeRuntime) Create(ctx context.Context, c Container) error {
	r.mu.Lock()
	if r.down {
		r.mu.Unlock()
		return fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	}
	if len(c.Spec.Mounts) > 0 {
		r.mu.Unlock()
		return fmt.Errorf("invalid mount config for type \"bind\": bind source path does not exist: %s: %w", c.Spec.Mounts[0].Source, errdefs.ErrInvalidArgument)
	}
	r.busy++
	r.busyMax = max(r.busyMax, r.busy)
	r.mu.Unlock()
	time.Sleep(r.createTakes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy--
	r.calls = append(r.calls, "create "+c.Name)
	if _, ok := r.containers[c.ID]; !ok {
		r.containers[c.ID] = &fakeContainer{Container: c, stop: make(chan string, 10), ended: make(chan struct{})}
	}
	return nil
}

func (r *fakeRuntime) Start(ctx context.Context, id string) (int, error) {
	c, err := r.get("start", id)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.ImageRef == "nope" {
		return 0, fmt.Errorf(`exec: "nope": executable file not found in $PATH: %w`, errdefs.ErrNotFound)
	}
	r.lastPID++
	c.pid = r.lastPID
	go r.run(c)
	return c.pid, nil
}

func (r *fakeRuntime) run(c *fakeContainer) {
	exit := Exit{Code: 0}
	switch program, argument, _ := strings.Cut(c.ImageRef, " "); program {
	case "sleep":
		<-c.stop
		exit.Code = 143
	case "stubborn":
		for <-c.stop != "KILL" {
		}
		exit.Code = 137
	case "exit":
		time.Sleep(time.Second)
		fmt.Sscan(argument, &exit.Code)
	case "oom":
		time.Sleep(time.Second)
		exit = Exit{Code: 137, OOMKilled: true}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	exit.At = time.Now()
	c.exit = &exit
	close(c.ended)
}

func (r *fakeRuntime) Wait(ctx context.Context, id string) (Exit, error) {
	c, err := r.get("wait", id)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-c.ended:
		return *c.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (r *fakeRuntime) Stop(ctx context.Context, id, signal string, grace time.Duration) error {
	c, err := r.get(fmt.Sprintf("stop[%s %s]", signal, grace), id)
	if err != nil {
		return err
	}
	c.stop <- signal
	select {
	case <-c.ended:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(grace):
		c.stop <- "KILL"
		<-c.ended
	}
	return nil
}

func (r *fakeRuntime) Remove(ctx context.Context, id string) error {
	if _, err := r.get("remove", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
	return nil
}

func (r *fakeRuntime) List(ctx context.Context) ([]Observed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return nil, fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
	}
	var all []Observed
	for _, c := range r.containers {
		all = append(all, Observed{ID: c.ID, Labels: c.Labels, Running: c.pid != 0 && c.exit == nil, PID: c.pid, Exit: c.exit})
	}
	return all, nil
}

func (r *fakeRuntime) setDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// killAll ends every container, so that the bubble can end.
func (r *fakeRuntime) killAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		select {
		case c.stop <- "KILL":
		default:
		}
	}
}

// String lists containers by name, with pids of those that run.
func (r *fakeRuntime) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, c := range slices.Collect(maps.Values(r.containers)) {
		state := "created"
		switch {
		case c.exit != nil:
			state = fmt.Sprintf("exited %d", c.exit.Code)
		case c.pid != 0:
			state = fmt.Sprintf("running %d", c.pid)
		}
		lines = append(lines, c.Name+" "+state)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// fakeImages has every image but "missing …"; "far …" is only at holders, "flaky …" comes at the third try, "slow …" never.
type fakeImages struct {
	mu    sync.Mutex
	tries map[string]int
}

func (i *fakeImages) Ensure(ctx context.Context, ref string, holders []string, auth string) (string, error) {
	if strings.HasPrefix(ref, "slow") {
		<-ctx.Done()
		return "", ctx.Err()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.tries == nil {
		i.tries = map[string]int{}
	}
	i.tries[ref]++
	switch {
	case strings.HasPrefix(ref, "missing"):
		return "", fmt.Errorf("asked 2 nodes and the registry: %w", errdefs.ErrNotFound)
	case strings.HasPrefix(ref, "flaky") && i.tries[ref] < 3:
		return "", fmt.Errorf("registry: connection reset: %w", errdefs.ErrUnavailable)
	case strings.HasPrefix(ref, "dead"):
		return "", fmt.Errorf("registry: connection refused: %w", errdefs.ErrUnavailable)
	case strings.HasPrefix(ref, "far") && len(holders) == 0:
		return "", fmt.Errorf("nobody has it: %w", errdefs.ErrNotFound)
	}
	return "sha256:1", nil
}
