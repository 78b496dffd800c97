package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fsnotify/fsnotify"
)

// ReadOptions choose lines of a log.
type ReadOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time
	Tail           int // lines from the end; -1: all
	Follow         bool
}

// Line is one line (or partial line, without newline) of a container's output.
type Line struct {
	Stream string // stdout or stderr
	Time   time.Time
	Text   []byte // with its newline
}

const (
	// openRetriesMax bounds how often a reader begins again because the log was rotated under its hands.
	openRetriesMax = 100
	// followPoll is how often a follower looks by itself, should notifications fail.
	followPoll = time.Second
)

// ReadLog calls emit for each chosen line; with Follow until ctx ends or the log is closed. The kind is NotFound when this node has no such log.
func ReadLog(ctx context.Context, logDir, containerID string, o ReadOptions, emit func(Line) error) error {
	if err := checkID(containerID); err != nil {
		return err
	}
	r := &logReader{logDir: logDir, id: containerID, path: logPath(logDir, containerID), options: o, emit: emit}
	if _, err := os.Stat(filepath.Dir(r.path)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("this node has no log of container %s: %w", containerID, errdefs.ErrNotFound)
		}
		return fmt.Errorf("read log of %s: %w", containerID, err)
	}
	defer r.close()
	err := r.run(ctx)
	if errors.Is(err, errUntil) {
		return nil
	}
	return err
}

// errUntil ends reading: all later lines are too late.
var errUntil = errors.New("until is reached")

type logReader struct {
	logDir, id, path string
	options          ReadOptions
	emit             func(Line) error
	files            []*os.File // oldest first; the last one is the current one
	end              int64      // of the current file when it was opened: without Follow nothing later counts
	watcher          *fsnotify.Watcher
}

func (r *logReader) close() {
	closeAll(r.files)
	if r.watcher != nil {
		r.watcher.Close()
	}
}

func (r *logReader) run(ctx context.Context) error {
	if r.options.Follow {
		r.watch()
	}
	if err := r.open(ctx); err != nil {
		return fmt.Errorf("read log of %s: %w", r.id, err)
	}
	if err := r.seekTail(); err != nil {
		return fmt.Errorf("read log of %s: %w", r.id, err)
	}
	for len(r.files) > 0 {
		if err := r.readFirst(ctx); err != nil {
			return err
		}
		r.files[0].Close()
		r.files = r.files[1:]
	}
	return nil
}

// watch is begun before the files are opened, so that nothing is missed. Without it (a user may have few watchers) the follower looks now and then.
func (r *logReader) watch() {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return
	}
	if watcher.Add(filepath.Dir(r.path)) != nil {
		watcher.Close()
		return
	}
	r.watcher = watcher
}

// open opens the current and all rotated files of one moment. A follower waits for the first one.
func (r *logReader) open(ctx context.Context) error {
	files, err := openSet(r.path)
	for err == nil && len(files) == 0 && r.options.Follow && !r.closed() {
		if err = r.wait(ctx); err == nil {
			files, err = openSet(r.path)
		}
	}
	if err != nil || len(files) == 0 {
		return err
	}
	r.files = files
	info, err := files[len(files)-1].Stat()
	if err != nil {
		return err
	}
	r.end = info.Size()
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openSet opens all files of a log and returns them oldest first. A rotation renames one file after the
// other: what was opened counts only if every file still has its number afterwards, and there is no other.
func openSet(path string) ([]*os.File, error) {
	for range openRetriesMax {
		numbers, err := fileNumbers(path)
		if err != nil {
			return nil, err
		}
		files, err := openNumbers(path, numbers)
		if err != nil {
			return nil, err
		}
		if unmoved(path, numbers, files) {
			slices.Reverse(files)
			return files, nil
		}
		closeAll(files)
	}
	return nil, fmt.Errorf("it is rotated faster than it can be opened: %w", errdefs.ErrUnavailable)
}

// openNumbers opens files; one that is not there any more is nil.
func openNumbers(path string, numbers []int) (files []*os.File, err error) {
	for _, n := range numbers {
		f, err := os.OpenFile(numbered(path, n), os.O_RDONLY|syscallNoFollow, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func unmoved(path string, numbers []int, files []*os.File) bool {
	now, err := fileNumbers(path)
	if err != nil || !slices.Equal(now, numbers) {
		return false
	}
	for i, f := range files {
		if f == nil || !isAt(f, numbered(path, numbers[i])) {
			return false
		}
	}
	return true
}

// fileNumbers lists the numbers of a log's files in growing order: from the current one, 0, to the oldest.
func fileNumbers(path string) ([]int, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if e.Name() == filepath.Base(path) {
			numbers = append(numbers, 0)
			continue
		}
		suffix, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if n, err := strconv.Atoi(suffix); ok && err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// isAt says whether path still names the open file f.
func isAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(open, named)
}

// seekTail leaves out the files before the wanted tail, and moves to its beginning in the first that is left.
func (r *logReader) seekTail() error {
	if r.options.Tail < 0 && r.options.Since.IsZero() {
		return nil
	}
	want := r.options.Tail
	if want < 0 {
		want = int(^uint(0) >> 1)
	}
	for i := len(r.files) - 1; i >= 0; i-- {
		size := r.end
		if i < len(r.files)-1 {
			info, err := r.files[i].Stat()
			if err != nil {
				return err
			}
			size = info.Size()
		}
		offset, found, stopped, err := tailOffset(r.files[i], size, want, r.countsForTail)
		if err != nil {
			return err
		}
		want -= found
		if stopped {
			closeAll(r.files[:i])
			r.files = r.files[i:]
			_, err = r.files[0].Seek(offset, io.SeekStart)
			return err
		}
	}
	return nil
}

// countsForTail counts the ends of lines, not the parts of long ones; what is before Since ends the search.
func (r *logReader) countsForTail(l Line) (counts, stop bool) {
	if !r.wants(l.Stream) || !r.options.Until.IsZero() && l.Time.After(r.options.Until) {
		return false, false
	}
	if l.Time.Before(r.options.Since) {
		return false, true
	}
	return len(l.Text) > 0 && l.Text[len(l.Text)-1] == '\n', false
}

func (r *logReader) wants(stream string) bool {
	return stream == "stdout" && r.options.Stdout || stream == "stderr" && r.options.Stderr
}

// readFirst emits the rest of the oldest file; of the current one up to where it ended, or with Follow also
// what is added to it and to its successors.
func (r *logReader) readFirst(ctx context.Context) error {
	switch {
	case len(r.files) > 1:
		return r.emitAll(ctx, newRecordReader(r.files[0]))
	case !r.options.Follow:
		at, err := r.files[0].Seek(0, io.SeekCurrent)
		if err != nil {
			return fmt.Errorf("read log of %s: %w", r.id, err)
		}
		return r.emitAll(ctx, newRecordReader(io.LimitReader(r.files[0], r.end-at)))
	}
	for {
		next, err := r.followFile(ctx, r.files[0])
		if next == nil || err != nil {
			return err
		}
		r.files[0].Close()
		r.files[0] = next
	}
}

// followFile emits what is in f and what is added to it, and returns its successor once it was rotated; nil at the end of the log.
func (r *logReader) followFile(ctx context.Context, f *os.File) (next *os.File, err error) {
	records := newRecordReader(f)
	for {
		// Looked at before reading: what was written before is then read for sure. And first whether
		// the log is closed: nothing is rotated after that.
		closed := r.closed()
		rotated := !isAt(f, r.path)
		if err := r.emitAll(ctx, records); err != nil {
			return nil, err
		}
		switch {
		case rotated:
			next, err := r.successor(f)
			if next != nil || err != nil {
				return next, err
			}
			if closed {
				return nil, nil
			}
		case closed:
			return nil, nil
		}
		if truncated(f) {
			if _, err := f.Seek(0, io.SeekEnd); err != nil {
				return nil, err
			}
			records = newRecordReader(f)
		}
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
	}
}

func (r *logReader) emitAll(ctx context.Context, records *recordReader) error {
	for {
		line, err := records.next()
		if errors.Is(err, io.EOF) {
			return ctx.Err()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if !r.wants(line.Stream) || line.Time.Before(r.options.Since) {
			continue
		}
		if !r.options.Until.IsZero() && line.Time.After(r.options.Until) {
			return errUntil
		}
		if err := r.emit(line); err != nil {
			return err
		}
	}
}

// closed says whether nothing will be added: the log was closed or removed.
func (r *logReader) closed() bool {
	if _, err := os.Stat(closedPath(r.logDir, r.id)); err == nil {
		return true
	}
	_, err := os.Stat(filepath.Dir(r.path))
	return errors.Is(err, os.ErrNotExist)
}

// successor opens the file that was begun when f was rotated away; nil when there is none yet. When f
// itself is gone already, it is the oldest that is left.
func (r *logReader) successor(f *os.File) (*os.File, error) {
	files, err := openSet(r.path)
	if errors.Is(err, os.ErrNotExist) || errdefs.IsUnavailable(err) {
		return nil, nil // removed, or to be looked at again in a moment
	}
	if err != nil {
		return nil, err
	}
	chosen := 0
	for i := range files {
		if sameFile(files[i], f) {
			chosen = i + 1
		}
	}
	var next *os.File
	for i, file := range files {
		if i == chosen {
			next = file
		} else {
			file.Close()
		}
	}
	return next, nil
}

func sameFile(a, b *os.File) bool {
	ai, errA := a.Stat()
	bi, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(ai, bi)
}

// truncated says whether f became shorter than what was read of it: somebody emptied it.
func truncated(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	return err == nil && at > info.Size()
}

// wait returns when the log may have changed.
func (r *logReader) wait(ctx context.Context) error {
	timer := time.NewTimer(followPoll)
	defer timer.Stop()
	var events chan fsnotify.Event
	var failures chan error
	if r.watcher != nil {
		events, failures = r.watcher.Events, r.watcher.Errors
	}
	if !r.options.Until.IsZero() && time.Now().After(r.options.Until) {
		return errUntil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-events:
	case <-failures:
	case <-timer.C:
	}
	return nil
}
