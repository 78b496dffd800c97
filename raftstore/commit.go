package raftstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// entryFormat is the newest format of log entries and commits that this version writes and reads. An entry of a newer
	// one stops the replica: skipping it would make this replica differ from the others.
	entryFormat = 1
	// CommitSizeBytesMax bounds an encoded commit, CommitChangesMax the rows that one Update may write: split larger work.
	CommitSizeBytesMax = 3 << 19 // 1.5 MiB
	CommitChangesMax   = 2000
)

// An entry of the raft log is a list of commits, each of which is done or refused on its own:
//
//	message Entry  { uint32 format = 1; repeated Commit commits = 2; }
//	message Commit { uint32 format = 1; bytes id = 2; sint64 time_ns = 3; repeated Change changes = 4;
//	                 repeated Assert asserts = 5; repeated Guard guards = 6; uint64 term = 7; }
//	message Change { uint32 table = 1; uint32 op = 2; string id = 3; uint64 expected = 4; bytes row = 5; }
//	message Assert { uint32 table = 1; string id = 2; uint64 index = 3; }
//	message Guard  { string name = 1; uint64 index = 2; }
type entry struct {
	format uint32
	// commits are encoded.
	commits []rawCommit
}

type rawCommit []byte

func (e *entry) wire(w *wire) {
	w.uint32(1, &e.format)
	if !w.encode && w.err == nil && e.format != entryFormat {
		w.fail(newerFormat{"log entry", e.format})
		return
	}
	if w.encode {
		for _, c := range e.commits {
			w.raw(2, c, true)
		}
		return
	}
	for {
		raw, present := w.raw(2, nil, false)
		if !present {
			return
		}
		e.commits = append(e.commits, raw)
	}
}

// newerFormat is an error about data of a format that this version does not read.
type newerFormat struct {
	what   string
	format uint32
}

func (e newerFormat) Error() string {
	return fmt.Sprintf("%s has format %d, this version of swarm reads format %d: upgrade swarm on this node", e.what, e.format, entryFormat)
}

// commit is what one Update wants: everything of it happens, or nothing.
type commit struct {
	format uint32
	id     commitID
	// time is the proposer's, because applying a commit must not look at a clock.
	time    time.Time
	changes []change
	asserts []assertion
	guards  []guard
	// term is set for work that only the leader of that term may do; in the log of a later one the commit is refused.
	term uint64
}

// op is what a change does to its row.
type op = uint32

const (
	// opPut writes a spec, which moves Version; opObserve writes what was observed.
	opPut     op = 1
	opObserve op = 2
	opDelete  op = 3
)

type change struct {
	table tableID
	op    op
	id    string
	// expected is the Index of the row that is replaced or deleted, 0 for a row that must not exist.
	expected uint64
	// row is what is written; its Version, Index and times count for nothing.
	row row
}

// assertion says that a row still has an Index; 0: that it does not exist.
type assertion struct {
	table tableID
	id    string
	index uint64
}

// guard says that no commit since index named it.
type guard struct {
	name  string
	index uint64
}

func (c *commit) wire(w *wire) {
	w.uint32(1, &c.format)
	if !w.encode && w.err == nil && c.format != entryFormat {
		w.fail(newerFormat{"commit", c.format})
		return
	}
	if raw, _ := w.raw(2, c.id[:], true); !w.encode {
		if len(raw) != commitSize {
			w.fail(errors.New("commit without id"))
			return
		}
		c.id = commitID(raw)
	}
	w.time(3, &c.time)
	messages(w, 4, &c.changes, func(w *wire, c *change) { c.wire(w) })
	messages(w, 5, &c.asserts, func(w *wire, a *assertion) { a.wire(w) })
	messages(w, 6, &c.guards, func(w *wire, g *guard) { g.wire(w) })
	w.uint(7, &c.term)
}

func (c *change) wire(w *wire) {
	w.uint32(1, &c.table)
	w.uint32(2, &c.op)
	w.string(3, &c.id)
	w.uint(4, &c.expected)
	if w.encode {
		if c.row != nil {
			raw, err := c.encodeRow()
			if err != nil {
				w.fail(err)
			}
			w.raw(5, raw, true)
		}
		return
	}
	raw, present := w.raw(5, nil, false)
	if w.err == nil {
		w.err = c.decodeRow(raw, present)
	}
}

// encodeRow leaves out of Meta what the FSM sets.
func (c *change) encodeRow() ([]byte, error) {
	m := c.row.meta()
	defer func(whole Meta) { *m = whole }(*m)
	*m = Meta{ID: m.ID}
	return marshal(c.row.wire)
}

func (c *change) decodeRow(raw []byte, present bool) error {
	blank := newRow(c.table)
	switch {
	case blank == nil || c.table == tableGuards:
		return fmt.Errorf("unknown table %d", c.table)
	case c.id == "":
		return errors.New("change without row id")
	case c.op == opDelete && !present:
		return nil
	case c.op != opPut && c.op != opObserve || !present:
		return fmt.Errorf("unknown operation %d", c.op)
	}
	if err := unmarshal(raw, blank.wire); err != nil {
		return fmt.Errorf("row %s of table %d: %w", c.id, c.table, err)
	}
	if blank.meta().ID != c.id {
		return fmt.Errorf("row %s of table %d names itself %q", c.id, c.table, blank.meta().ID)
	}
	c.row = blank
	return nil
}

func (a *assertion) wire(w *wire) {
	w.uint32(1, &a.table)
	w.string(2, &a.id)
	w.uint(3, &a.index)
	if !w.encode && w.err == nil && newRow(a.table) == nil {
		w.fail(fmt.Errorf("unknown table %d", a.table))
	}
}

func (g *guard) wire(w *wire) {
	w.string(1, &g.name)
	w.uint(2, &g.index)
}

// encodeCommit refuses what is too large.
func encodeCommit(c *commit) ([]byte, error) {
	if len(c.changes) > CommitChangesMax {
		return nil, fmt.Errorf("a commit of %d rows is too large (at most %d): split it: %w", len(c.changes), CommitChangesMax, errdefs.ErrInvalidArgument)
	}
	raw, err := marshal(c.wire)
	if err != nil {
		return nil, fmt.Errorf("encode commit: %v: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(raw) > CommitSizeBytesMax {
		return nil, fmt.Errorf("a commit of %d bytes is too large (at most %d): split it: %w", len(raw), CommitSizeBytesMax, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

func decodeCommit(raw []byte) (*commit, error) {
	if len(raw) > CommitSizeBytesMax {
		return nil, fmt.Errorf("commit of %d bytes is too large", len(raw))
	}
	c := new(commit)
	if err := unmarshal(raw, c.wire); err != nil {
		return nil, err
	}
	return c, nil
}

func encodeEntry(commits ...rawCommit) ([]byte, error) {
	e := entry{format: entryFormat, commits: commits}
	return marshal(e.wire)
}

func decodeEntry(raw []byte) ([]*commit, error) {
	var e entry
	if err := unmarshal(raw, e.wire); err != nil {
		return nil, err
	}
	if len(e.commits) == 0 {
		return nil, errors.New("log entry without commits")
	}
	commits := make([]*commit, len(e.commits))
	for i, raw := range e.commits {
		c, err := decodeCommit(raw)
		if err != nil {
			return nil, fmt.Errorf("commit %d: %w", i, err)
		}
		commits[i] = c
	}
	return commits, nil
}

// verdict is the FSM's answer to one commit.
type verdict struct {
	// index is where the commit was done, or the state that refused it.
	index uint64
	// refusal is nil when it was done.
	refusal *refusal
}

// reason says which check refused a commit.
type reason = uint32

const (
	rowChanged reason = 1
	nameTaken  reason = 2
	guardMoved reason = 3
	termOver   reason = 4
)

// refusal is sent back to the manager that proposed the commit, which runs its closure again.
type refusal struct {
	reason reason
	index  uint64
	// what names the row, name or guard.
	what string
}

func (r *refusal) wire(w *wire) {
	w.uint32(1, &r.reason)
	w.uint(2, &r.index)
	w.string(3, &r.what)
}

func (r *refusal) String() string {
	switch r.reason {
	case rowChanged:
		return r.what + " changed meanwhile"
	case nameTaken:
		return r.what + " already exists"
	case guardMoved:
		return r.what + " were changed meanwhile"
	case termOver:
		return "leadership was lost"
	}
	return fmt.Sprintf("check %d failed: %s", r.reason, r.what)
}
