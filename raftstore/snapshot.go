package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// A snapshot is a sequence of records, each with its length before it: a header, every row of every table in the
// order of their ids, the remembered commit ids with the oldest first, and an end that says how many records there are.
const (
	// recordSizeBytesMax is above every commit, hence every row.
	recordSizeBytesMax = 1 << 22
)

const (
	recordHeader uint32 = 1
	recordRow    uint32 = 2
	recordCommit uint32 = 3
	recordEnd    uint32 = 4
)

// record is one message of a snapshot; which fields count depends on its kind.
type record struct {
	kind   uint32
	format uint32  // header: as of commits
	index  uint64  // header: of the state; commit: where it was done
	table  tableID // row
	body   []byte  // row; commit: its id
	count  uint64  // end: records before it
	// refused is of a commit that was not done.
	refused bool
}

func (r *record) wire(w *wire) {
	w.uint32(1, &r.kind)
	w.uint32(2, &r.format)
	w.uint(3, &r.index)
	w.uint32(4, &r.table)
	// The body is not copied: whoever decodes it copies what it keeps.
	body, present := w.raw(5, r.body, len(r.body) > 0)
	set(w, &r.body, body, present)
	w.uint(6, &r.count)
	w.bool(7, &r.refused)
}

// image is what a snapshot holds; it does not change while it is written.
type image struct {
	state  *State
	recent []doneCommit
}

// Snapshot captures the state in a moment; raft then has it written while further entries are applied.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.stopped != nil {
		return nil, f.stopped
	}
	return &image{state: f.published.Load(), recent: f.recent.oldestFirst()}, nil
}

// Persist writes the snapshot to raft's sink, which seals it.
func (m *image) Persist(sink raft.SnapshotSink) error {
	if err := m.write(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release has nothing to free.
func (m *image) Release() {}

func (m *image) write(to io.Writer) error {
	out := &recordWriter{to: bufio.NewWriterSize(to, snapshotChunkBytes)}
	// Commits of an older format have put nothing into the state that a version which reads that format does not know.
	out.put(record{kind: recordHeader, format: m.state.format(), index: m.state.index})
	for _, t := range tableIDs() {
		m.state.table(t).scan(func(r row) bool {
			body := out.encode(&out.body, r.wire)
			out.put(record{kind: recordRow, table: t, body: body})
			return out.err == nil
		})
	}
	for _, c := range m.recent {
		out.put(record{kind: recordCommit, index: c.index, body: c.id[:], refused: c.refused})
	}
	out.put(record{kind: recordEnd, count: out.count})
	out.fail(out.to.Flush())
	return out.err
}

type recordWriter struct {
	to    *bufio.Writer
	count uint64
	err   error
	// body, whole and size are reused from record to record: a million rows should not cost a million buffers.
	body, whole, size []byte
}

func (w *recordWriter) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// encode returns a message in a buffer that is its own until the next one.
func (w *recordWriter) encode(buffer *[]byte, fields func(*wire)) []byte {
	out := wire{encode: true, format: FormatVersion, buf: (*buffer)[:0]}
	fields(&out)
	w.fail(out.err)
	*buffer = out.buf
	return out.buf
}

func (w *recordWriter) put(r record) {
	if w.err != nil {
		return
	}
	raw := w.encode(&w.whole, r.wire)
	w.size = binary.AppendUvarint(w.size[:0], uint64(len(raw)))
	_, err := w.to.Write(w.size)
	w.fail(err)
	_, err = w.to.Write(raw)
	w.fail(err)
	w.count++
}

// Restore replaces the state by a snapshot, or leaves it alone and returns an error.
func (f *fsm) Restore(from io.ReadCloser) error {
	defer from.Close()
	state, recent, err := readImage(from)
	if err != nil {
		err = fmt.Errorf("restore snapshot: %w", err)
		if errors.As(err, new(newerFormat)) {
			f.fail(err)
		}
		return err
	}
	f.work, f.recent = state, recent
	f.sums.reset(state)
	f.publish(&Dirty{All: true})
	return nil
}

// trailingMin is how many entries stay in the log however large they are: what is on its way to a follower.
const trailingMin = requestsInFlightMax * appendEntriesMax

// snapshotRetry is how long to wait after a snapshot that could not be taken.
const snapshotRetry = 30 * time.Second

// followLog takes a snapshot whenever the log has grown enough.
func (s *Store) followLog() {
	wait := s.cfg.SnapshotInterval
	for {
		// Managers that grow alike should not all write at the same time.
		select {
		case <-time.After(wait + rand.N(wait)):
		case <-s.closing:
			return
		}
		wait = s.cfg.SnapshotInterval
		last := s.disk.snapshots.stats()
		entries := s.raft.AppliedIndex() - min(last.Index, s.raft.AppliedIndex())
		if !s.cfg.snapshotDue(entries, s.disk.snapshots.logSince(), last.SizeBytes) {
			continue
		}
		if err := s.keepTrailing(s.cfg.trailing(entries, s.disk.snapshots.logSince(), last.SizeBytes)); err != nil {
			s.log.Warn("how much of the log is kept stays as it was", "error", err)
		}
		if _, err := s.await(s.committing, func() raft.Future { return s.raft.Snapshot() }); err != nil && !s.stopping() {
			s.log.Warn("snapshot not taken", "error", err)
			wait = snapshotRetry
		}
	}
}

// snapshotDue weighs what a snapshot costs, which is its size, against what it saves, which is the log since the last one.
func (c Config) snapshotDue(entries uint64, logBytes, snapshotBytes int64) bool {
	return logBytes >= max(c.SnapshotBytes, snapshotBytes) || entries >= c.SnapshotEntries && logBytes >= snapshotBytes/4
}

// trailing is how many entries stay in the log before a snapshot. What it takes to send them to a follower that is behind
// should be less than the snapshot, or SnapshotBytes where that is small; how large they are is told by those since the last one.
func (c Config) trailing(entries uint64, logBytes, snapshotBytes int64) uint64 {
	if entries == 0 || logBytes <= 0 {
		return c.TrailingEntries
	}
	entryBytes := max(uint64(logBytes)/entries, 1)
	return min(c.TrailingEntries, max(trailingMin, uint64(max(c.SnapshotBytes, snapshotBytes))/entryBytes))
}

// keepTrailing has raft keep that many entries from the next snapshot on.
func (s *Store) keepTrailing(entries uint64) error {
	now := s.raft.ReloadableConfig()
	if now.TrailingLogs == entries {
		return nil
	}
	now.TrailingLogs = entries
	return s.raft.ReloadConfig(now)
}
