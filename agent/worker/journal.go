package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// journal is what changed since the file was written. One goroutine writes it, everything that waits at
// a time: tasks that start together share the disk's syncs. Guarded by the worker's mu.
type journal struct {
	tasks   map[string]bool
	specs   map[specKey][]byte
	holders bool
	waiting []chan error
	wake    chan struct{}
}

func newJournal() journal {
	return journal{tasks: map[string]bool{}, specs: map[specKey][]byte{}, wake: make(chan struct{}, 1)}
}

func (j *journal) task(id string) {
	j.note(id)
	j.wakeUp()
}

// note has a task written with whatever is written next: all that would be lost is done again at no harm.
func (j *journal) note(id string) { j.tasks[id] = true }

func (j *journal) wakeUp() { signal(j.wake) }

// runJournal writes until stop, then once more, and closes the file.
func (w *Worker) runJournal(stop <-chan struct{}) error {
	var retry <-chan time.Time
	for {
		select {
		case <-w.journal.wake:
		case <-retry:
		case <-stop:
			return errors.Join(w.writeJournal(), w.file.close())
		}
		retry = nil
		if err := w.writeJournal(); err != nil {
			w.log.Error("assigned tasks cannot be saved; trying again", "error", err)
			retry = time.After(journalWait)
		}
	}
}

func (w *Worker) writeJournal() error {
	w.mu.Lock()
	select {
	case <-w.journal.wake: // what it asks for is written now
	default:
	}
	waiting := w.journal.waiting
	w.journal.waiting = nil
	c := changes{tasks: map[string]*record{}, specs: w.journal.specs}
	for id := range w.journal.tasks {
		c.tasks[id] = nil
		if t, ok := w.tasks[id]; ok && !t.stray() {
			r := t.record
			c.tasks[id] = &r
		}
	}
	if w.journal.holders {
		c.holders = maps.Clone(w.holders)
	}
	w.journal.tasks, w.journal.specs, w.journal.holders = map[string]bool{}, map[specKey][]byte{}, false
	w.mu.Unlock()

	err := error(nil)
	if len(c.tasks) > 0 || len(c.specs) > 0 || c.holders != nil {
		err = w.file.write(c)
	}
	if err != nil {
		err = fmt.Errorf("write %s: %w", w.file.path, err)
		w.restoreJournal(c)
	}
	for _, c := range waiting {
		c <- err
	}
	return err
}

// restoreJournal makes changes that could not be written pending again, unless newer ones are.
func (w *Worker) restoreJournal(c changes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range c.tasks {
		w.journal.tasks[id] = true
	}
	for key, text := range c.specs {
		if _, newer := w.journal.specs[key]; !newer {
			w.journal.specs[key] = text
		}
	}
	w.journal.holders = w.journal.holders || c.holders != nil
}

// flush returns when everything up to now is on the disk, or could not be written.
func (w *Worker) flush(ctx context.Context) error {
	done := make(chan error, 1)
	w.mu.Lock()
	w.journal.waiting = append(w.journal.waiting, done)
	w.journal.wakeUp()
	w.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
