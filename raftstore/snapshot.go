package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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
	w.bytes(5, &r.body)
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
	out := &recordWriter{to: bufio.NewWriter(to)}
	// Commits of an older format have put nothing into the state that a version which reads that format does not know.
	out.put(record{kind: recordHeader, format: m.state.format(), index: m.state.index})
	for _, t := range tableIDs() {
		m.state.table(t).scan(func(r row) bool {
			body, err := marshal(r.wire)
			out.fail(err)
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
}

func (w *recordWriter) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *recordWriter) put(r record) {
	if w.err != nil {
		return
	}
	raw, err := marshal(r.wire)
	w.fail(err)
	_, err = w.to.Write(binary.AppendUvarint(nil, uint64(len(raw))))
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

func readImage(from io.Reader) (*State, recentCommits, error) {
	in := bufio.NewReader(from)
	state, recent := newState(), recentCommits{}
	for count := uint64(0); ; count++ {
		r, err := readRecord(in)
		if err != nil {
			return nil, recent, err
		}
		if (count == 0) != (r.kind == recordHeader) {
			return nil, recent, fmt.Errorf("record %d of kind %d is out of place", count, r.kind)
		}
		switch r.kind {
		case recordHeader:
			if !readable(r.format) {
				return nil, recent, newerFormat{"snapshot", r.format}
			}
			state.index = r.index
		case recordRow:
			err = restoreRow(state, r)
		case recordCommit:
			if len(r.body) != commitSize {
				return nil, recent, errors.New("commit id of wrong length")
			}
			recent.add(doneCommit{id: commitID(r.body), index: r.index, refused: r.refused})
		case recordEnd:
			if r.count != count {
				return nil, recent, fmt.Errorf("snapshot has %d records instead of %d", count, r.count)
			}
			return state, recent, nil
		default:
			err = newerFormat{"snapshot record", r.kind}
		}
		if err != nil {
			return nil, recent, err
		}
	}
}

func restoreRow(state *State, r record) error {
	blank := newRow(r.table)
	if blank == nil {
		return fmt.Errorf("unknown table %d", r.table)
	}
	if err := unmarshal(r.body, blank.wire); err != nil {
		return fmt.Errorf("row of table %d: %w", r.table, err)
	}
	if blank.meta().ID == "" {
		return fmt.Errorf("row of table %d without id", r.table)
	}
	state.share(blank)
	if state.table(r.table).put(blank) != nil {
		return fmt.Errorf("row %s of table %d comes twice", blank.meta().ID, r.table)
	}
	return nil
}

func readRecord(in *bufio.Reader) (r record, err error) {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return r, fmt.Errorf("snapshot is cut short: %w", err)
	}
	if size > recordSizeBytesMax {
		return r, fmt.Errorf("snapshot record of %d bytes is too large", size)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(in, raw); err != nil {
		return r, fmt.Errorf("snapshot is cut short: %w", err)
	}
	return r, unmarshal(raw, r.wire)
}
