// Package worker runs this node's assigned tasks; it declares the Runtime and Images that it needs.
// agent feeds it assignments and carries its statuses to the managers.
package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// The bounds of a worker.
const (
	preparingMax = 4 // tasks that pull an image or create a container at a time
	startingMax  = 8 // tasks whose container is started at a time
	removingMax  = 8 // containers that are removed at a time

	// retriesMax is how often a task is prepared or started again after an error that may pass; then it
	// has failed, and another node may have more luck. Stopping and removing are never given up.
	retriesMax      = 8
	backoffMin      = 200 * time.Millisecond
	backoffMax      = 10 * time.Second
	watchBackoffMax = time.Second
	journalWait     = time.Second // until the file of assigned tasks is written again after an error

	// specsMax bounds the specs that are kept although no task uses them (any more).
	specsMax = 4096
	// holdersMax bounds the images whose holders are remembered.
	holdersMax = 4096

	statusesMax = 1000 // told at a time

	stopGraceDefault = 10 * time.Second
	// exitWait is how long the exit code of a container that was just stopped is waited for.
	exitWait = 5 * time.Second
)

// Config is what a worker needs.
type Config struct {
	NodeID   func() string // known once the node joined
	Hostname string
	// Dir holds the small file of assigned tasks and their progress.
	Dir string
	// NoSync leaves writing that file to the disk to the kernel.
	NoSync  bool
	Runtime Runtime
	Images  Images
	// RemoveLog deletes the log of a container whose task is gone.
	RemoveLog func(ctx context.Context, containerID string) error
	Log       *slog.Logger
}

// Worker keeps the assigned tasks true.
type Worker struct {
	cfg       Config
	log       *slog.Logger
	file      *file
	changed   chan struct{} // a status is due
	spawn     chan struct{} // a task has no goroutine yet
	preparing slots
	starting  slots
	removing  slots

	mu      sync.Mutex // guards everything below; never held across a call of Runtime, Images or the disk
	tasks   map[string]*work
	specs   map[specKey]*swarm.ServiceSpec
	holders map[string][]string // by image digest
	// strays are containers of ours that no known task owns. They are removed once the whole set of
	// assigned tasks is known: until then a manager may still name them.
	strays   map[string]Observed
	adopted  bool // the runtime was asked for its containers
	complete bool // a full set of assignments arrived
	journal  journal
	gone     chan struct{} // closed and replaced when a task is forgotten
}

type specKey struct {
	serviceID string
	version   uint64
}

// slots bound how much is done at a time.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slots) give() { <-s }

// Open reads the assigned tasks and their progress from cfg.Dir. A file that is damaged or was written
// by a newer version is an error that names it.
func Open(cfg Config) (*Worker, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open worker: %w", err)
	}
	f, saved, err := openFile(filepath.Join(cfg.Dir, "tasks.db"), cfg.NoSync)
	if err != nil {
		return nil, fmt.Errorf("open worker: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		cfg: cfg, log: cfg.Log, file: f,
		changed:   make(chan struct{}, 1),
		spawn:     make(chan struct{}, 1),
		preparing: make(slots, preparingMax),
		starting:  make(slots, startingMax),
		removing:  make(slots, removingMax),
		tasks:     map[string]*work{},
		specs:     saved.specs,
		holders:   saved.holders,
		strays:    map[string]Observed{},
		journal:   newJournal(),
		gone:      make(chan struct{}),
	}
	for id, r := range saved.tasks {
		t := newWork(id, r)
		t.due = r.Status.State != ""
		w.tasks[id] = t
	}
	if len(w.tasks) > 0 {
		signal(w.changed)
	}
	return w, nil
}

// Run lives until ctx ends. Containers keep running when it returns; the worker's file is closed then.
func (w *Worker) Run(ctx context.Context) error {
	stopJournal := make(chan struct{})
	written := make(chan error, 1)
	go func() { written <- w.runJournal(stopJournal) }()

	var running sync.WaitGroup
	if w.adopt(ctx) == nil {
		for alive := true; alive; {
			for _, t := range w.unborn() {
				running.Go(func() { w.live(ctx, t) })
			}
			select {
			case <-w.spawn:
			case <-ctx.Done():
				alive = false
			}
		}
	}
	running.Wait()
	close(stopJournal)
	if err := <-written; err != nil {
		return fmt.Errorf("close worker: %w", err)
	}
	return nil
}

// unborn are the tasks that have no goroutine yet.
func (w *Worker) unborn() []*work {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*work
	for _, t := range w.tasks {
		if !t.born {
			t.born = true
			all = append(all, t)
		}
	}
	return all
}

// adopt learns what runs here already. It asks until the runtime answers.
func (w *Worker) adopt(ctx context.Context) error {
	var observed []Observed
	for attempt := 0; ; attempt++ {
		var err error
		if observed, err = w.cfg.Runtime.List(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.log.Warn("containers cannot be listed; trying again", "error", err)
		if err := sleep(ctx, backoff(attempt)); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]*work{}
	for _, t := range w.tasks {
		known[t.containerID] = t
	}
	for _, o := range observed {
		if t, ok := known[o.ID]; ok {
			t.see(o)
			w.log.Info("container adopted", "task", t.id, "container", o.ID, "running", o.Running, "pid", o.PID)
		} else {
			w.strays[o.ID] = o
		}
	}
	w.adopted = true
	w.condemnStrays()
	return nil
}

// condemnStrays makes the containers that nobody wants tasks that are not assigned, whose end is known. Called with mu held.
func (w *Worker) condemnStrays() {
	if !w.adopted || !w.complete {
		return
	}
	for id, o := range w.strays {
		w.log.Info("container without a task is removed", "container", id)
		t := newWork("stray-"+id, record{})
		t.containerID = id
		t.see(o)
		w.tasks[t.id] = t
	}
	clear(w.strays)
	signal(w.spawn)
}

// Clear stops and removes every task and returns when they are gone: the node left its cluster. Run must be running.
func (w *Worker) Clear(ctx context.Context) error {
	w.mu.Lock()
	for _, t := range w.tasks {
		w.want(t, task.Unassigned)
	}
	w.complete = true
	w.condemnStrays()
	clear(w.holders)
	w.pruneSpecs(0)
	w.journal.holders = true
	w.mu.Unlock()
	for {
		w.mu.Lock()
		left, gone := len(w.tasks), w.gone
		ready := w.adopted
		w.mu.Unlock()
		if left == 0 && ready {
			return w.flush(ctx)
		}
		select {
		case <-gone:
		case <-time.After(backoffMax):
		case <-ctx.Done():
			return fmt.Errorf("%d tasks are not removed yet: %w", left, ctx.Err())
		}
	}
}

// Tasks is what has a container here, for the node-local API.
func (w *Worker) Tasks() []Running {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Running
	for _, t := range w.tasks {
		spec := w.specOf(t)
		if spec == nil || t.phase == task.NoContainer {
			continue
		}
		c := w.container(t, spec)
		all = append(all, Running{
			TaskID: t.id, ServiceID: t.record.ServiceID, ContainerID: t.containerID, Name: c.Name,
			State: t.record.Status.State, Container: c,
		})
	}
	return all
}

// Running is one task of this node.
type Running struct {
	TaskID, ServiceID, ContainerID, Name string
	State                                swarm.TaskState
	Container                            Container
}

// ContainerID is the id of a task's container: 64 hex digits, the same each time it is asked.
func ContainerID(taskID string) string {
	sum := sha256.Sum256([]byte("task " + taskID))
	return hex.EncodeToString(sum[:])
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// backoff is how long to wait after attempt (from 0) failed.
func backoff(attempt int) time.Duration {
	return min(backoffMin<<min(attempt, 10), backoffMax)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
