package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service/task"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Bounds of one commit of reports.
const (
	statusesPerCommit = 500
	imagesPerCommit   = 500
	writeRetryMin     = 50 * time.Millisecond
	writeRetryMax     = 2 * time.Second
)

// writer commits what agents report: the latest status of each task, and the images that each node holds. Reports of all
// sessions share commits; what comes while one is under way goes into the next.
type writer struct {
	store *raftstore.Store
	log   *slog.Logger

	mu      sync.Mutex
	waiting map[*session]struct{}
	wakeUp  chan struct{}

	// written counts the statuses of commits that were made.
	written atomic.Uint64
}

// report is what of a session waits to be written. Guarded by writer.mu.
type report struct {
	statuses map[string]*rpc.TaskStatus
	// sequences are acknowledged once no status waits.
	sequences []uint64
	// images is the latest full set, nil when it is written.
	images map[string]*raftstore.Image
}

func newWriter(store *raftstore.Store, log *slog.Logger) *writer {
	return &writer{store: store, log: log, waiting: map[*session]struct{}{}, wakeUp: make(chan struct{}, 1)}
}

// takeStatuses queues statuses; newer ones replace older ones of the same task.
func (w *writer) takeStatuses(s *session, m *rpc.TaskStatuses) error {
	for _, st := range m.Statuses {
		if _, ok := task.FromNumber(st.State); !ok || st.TaskId == "" {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("status of task %q has the unknown state %d: upgrade swarm on the managers first", st.TaskId, st.State))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &s.report
	if r.statuses == nil {
		r.statuses = map[string]*rpc.TaskStatus{}
	}
	for _, st := range m.Statuses {
		r.statuses[st.TaskId] = st
	}
	if len(r.statuses) > statusesMax || len(r.sequences) > statusesMax {
		return errdefs.ErrResourceExhausted.WithMessage(fmt.Sprintf("more than %d statuses wait to be written: begin a new session", statusesMax))
	}
	r.sequences = append(r.sequences, m.Sequence)
	w.waiting[s] = struct{}{}
	signal(w.wakeUp)
	return nil
}

// takeImages queues the images of a node; only the latest set counts.
func (w *writer) takeImages(s *session, m *rpc.HeldImages) error {
	if len(m.Images) > imagesMax {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%d held images are reported, at most %d are taken: remove images from the node", len(m.Images), imagesMax))
	}
	images := make(map[string]*raftstore.Image, len(m.Images))
	for _, i := range m.Images {
		if i.Name == "" || !strings.Contains(i.Digest, ":") ||
			len(i.Name)+len(i.Digest)+len(i.MediaType) > imageTextBytesMax || len(i.Platforms) > platformsMax {
			// The node keeps its session: its other images and its tasks are sound.
			w.log.Warn("held image not recorded", "node", s.nodeID, "image", fmt.Sprintf("%.80q", i.Name), "digest", fmt.Sprintf("%.80q", i.Digest))
			continue
		}
		row := &raftstore.Image{Name: i.Name, Digest: i.Digest, MediaType: i.MediaType, SizeBytes: i.SizeBytes}
		row.ID = raftstore.ImageID(i.Name, i.Digest)
		for _, p := range i.Platforms {
			row.Platforms = append(row.Platforms, swarm.Platform{OS: p.Os, Architecture: p.Architecture})
		}
		images[row.ID] = row
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.report.images = images
	w.waiting[s] = struct{}{}
	signal(w.wakeUp)
	return nil
}

// drop forgets what a session had not acknowledged: its agent sends it again in the next one.
func (w *writer) drop(s *session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, s)
}

func (w *writer) run(ctx context.Context) error {
	retry := writeRetryMin
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wakeUp:
		}
		for ctx.Err() == nil {
			b := w.take()
			if b == nil {
				break
			}
			more, err := w.commit(ctx, b)
			if err == nil {
				w.written.Add(countStatuses(b))
				retry = writeRetryMin
				w.done(b, more)
				continue
			}
			w.giveBack(b)
			if ctx.Err() == nil {
				w.log.Warn("reports of agents not written, will retry", "err", err, "after", retry)
				pause(ctx, retry)
				retry = min(2*retry, writeRetryMax)
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// parcel is what one commit takes from one session.
type parcel struct {
	s        *session
	statuses map[string]*rpc.TaskStatus
	images   map[string]*raftstore.Image
	// sequences may be acknowledged after the commit.
	sequences []uint64
}

func countStatuses(all []*parcel) (n uint64) {
	for _, p := range all {
		n += uint64(len(p.statuses))
	}
	return n
}

// take collects as much as one commit holds; nil when nothing waits.
func (w *writer) take() []*parcel {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*parcel
	room := statusesPerCommit
	for s := range w.waiting {
		if room <= 0 {
			break
		}
		r := &s.report
		p := &parcel{s: s, statuses: map[string]*rpc.TaskStatus{}, images: r.images}
		r.images = nil
		for id, st := range r.statuses {
			if room <= 0 {
				break
			}
			p.statuses[id] = st
			delete(r.statuses, id)
			room--
		}
		if len(r.statuses) == 0 {
			p.sequences, r.sequences = r.sequences, nil
			delete(w.waiting, s)
		}
		all = append(all, p)
	}
	return all
}

// giveBack queues parcels again, without replacing what is newer.
func (w *writer) giveBack(all []*parcel) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range all {
		r := &p.s.report
		for id, st := range p.statuses {
			if _, newer := r.statuses[id]; !newer {
				r.statuses[id] = st
			}
		}
		r.sequences = append(p.sequences, r.sequences...)
		if r.images == nil {
			r.images = p.images
		}
		if p.s.ctx.Err() == nil {
			w.waiting[p.s] = struct{}{}
		}
	}
}

// done acknowledges what was written, and queues image sets again that did not fit into one commit.
func (w *writer) done(all []*parcel, more bool) {
	for _, p := range all {
		if len(p.sequences) > 0 {
			p.s.acknowledge(p.sequences)
		}
	}
	if !more {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range all {
		if p.images != nil && p.s.report.images == nil && p.s.ctx.Err() == nil {
			p.s.report.images = p.images
			w.waiting[p.s] = struct{}{}
		}
	}
}

// commit writes parcels in one Update. more says that images are left over.
func (w *writer) commit(ctx context.Context, all []*parcel) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var moved []raftstore.Task
	err = w.store.Update(ctx, func(tx *raftstore.Tx) error {
		moved = moved[:0]
		sets := map[string]map[string]*raftstore.Image{}
		for _, p := range all {
			for _, st := range p.statuses {
				if t, changed := writeStatus(tx, p.s.nodeID, st); changed {
					moved = append(moved, t)
				}
			}
			if p.images != nil {
				sets[p.s.nodeID] = p.images
			}
		}
		more = writeImages(tx, sets)
		return nil
	})
	if err != nil {
		return false, err
	}
	slices.SortFunc(moved, func(a, b raftstore.Task) int { return strings.Compare(a.ID, b.ID) })
	for _, t := range moved {
		log := w.log.With("task", t.ID, "service", t.ServiceID, "node", t.NodeID, "state", t.Status.State)
		if t.Status.Err != "" {
			log = log.With("err", t.Status.Err)
		}
		log.Info("task state")
	}
	return more, nil
}

// writeStatus takes one status if it is of a task of that node and goes forward. changed says that the state is another.
func writeStatus(tx *raftstore.Tx, nodeID string, st *rpc.TaskStatus) (written raftstore.Task, changed bool) {
	row, ok := tx.Tasks.Get(st.TaskId)
	state, known := task.FromNumber(st.State)
	if !ok || !known || row.NodeID != nodeID || !task.Legal(row.Status.State, state, task.Agent) {
		return raftstore.Task{}, false
	}
	status := raftstore.TaskStatus{
		State: state, Timestamp: time.Unix(0, st.TimestampNs).UTC(),
		Message: bounded(st.Message), Err: bounded(st.Err),
		ContainerID: bounded(st.ContainerId), PID: int(st.Pid), ExitCode: int(st.ExitCode),
	}
	if status == row.Status {
		return raftstore.Task{}, false
	}
	t := *row
	t.Status = status
	tx.PutObservedTask(t)
	return t, state != row.Status.State
}

// bounded cuts a text of an agent to what a row takes.
func bounded(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= statusTextBytesMax {
		return s
	}
	cut := statusTextBytesMax
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}

// writeImages makes the images table say what nodes hold, given per node as full sets. more says that the commit was full.
func writeImages(tx *raftstore.Tx, sets map[string]map[string]*raftstore.Image) (more bool) {
	if len(sets) == 0 {
		return false
	}
	room := imagesPerCommit
	known := map[string]bool{}
	for row := range tx.Images.All() {
		known[row.ID] = true
		holders := row.Holders
		for nodeID, set := range sets {
			holders = hold(holders, nodeID, set[row.ID] != nil)
		}
		if slices.Equal(holders, row.Holders) {
			continue
		}
		if room--; room < 0 {
			return true
		}
		putHolders(tx, *row, holders)
	}
	added := map[string]raftstore.Image{}
	for nodeID, set := range sets {
		for id, image := range set {
			if known[id] {
				continue
			}
			row, ok := added[id]
			if !ok {
				row = *image
			}
			row.Holders = hold(row.Holders, nodeID, true)
			added[id] = row
		}
	}
	for _, id := range slices.Sorted(maps.Keys(added)) {
		if room--; room < 0 {
			return true
		}
		tx.PutImage(added[id])
	}
	return false
}

// putHolders writes a row's holders; a row that nobody holds is deleted.
func putHolders(tx *raftstore.Tx, row raftstore.Image, holders []string) {
	if len(holders) == 0 {
		tx.DeleteImage(row.ID)
		return
	}
	row.Holders = holders
	tx.PutImage(row)
}

// hold returns holders with or without a node, in order; the slice given stays as it is.
func hold(holders []string, nodeID string, holds bool) []string {
	at, has := slices.BinarySearch(holders, nodeID)
	switch {
	case has == holds:
		return holders
	case holds:
		return slices.Insert(slices.Clone(holders), at, nodeID)
	}
	return slices.Delete(slices.Clone(holders), at, at+1)
}
