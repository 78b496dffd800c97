package raftstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// FormatVersion is the newest format of log entries, commits, rows and snapshots that this version writes and reads; it reads
	// every older one. An entry of a newer one stops the replica: skipping it would make this replica differ from the others.
	// What a cluster writes is bounded by its row's MinVersion.
	//
	//	1  whole rows
	//	2  patches, a commit's since, remembered refusals, Session.Presence
	FormatVersion = 2
	// CommitSizeBytesMax bounds an encoded commit, CommitChangesMax the rows that one Update may write: split larger work.
	CommitSizeBytesMax = 3 << 19 // 1.5 MiB
	CommitChangesMax   = 2000
)

// An entry of the raft log is a list of commits, each of which is done or refused on its own:
//
//	message Entry  { uint32 format = 1; repeated Commit commits = 2; }
//	message Commit { uint32 format = 1; bytes id = 2; sint64 time_ns = 3; repeated Change changes = 4;
//	                 repeated Assert asserts = 5; repeated Guard guards = 6; uint64 term = 7; uint64 since = 8; }
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
	if !w.encode && w.err == nil && !readable(e.format) {
		w.fail(newerFormat{"log entry", e.format, FormatVersion})
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

func readable(format uint32) bool { return format >= 1 && format <= FormatVersion }

// newerFormat is an error about data of a format that this version does not read.
type newerFormat struct {
	what          string
	format, reads uint32
}

func (e newerFormat) Error() string {
	return fmt.Sprintf("%s has format %d, this version of swarm reads up to %d: upgrade swarm on this node", e.what, e.format, e.reads)
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
	// since is one more than the index that the proposer's replica had when it first sent the commit: whatever was done by a
	// copy of this commit was done after that. 0 in format 1. It is the last field, so that it can be added to an encoded commit.
	since uint64
}

// sinceField is where a commit has since.
const sinceField = 8

// addSince completes an encoded commit when it is sent for the first time.
func addSince(commit rawCommit, index uint64) rawCommit {
	w := wire{encode: true, buf: commit}
	since := index + 1
	w.uint(sinceField, &since)
	return w.buf
}

// op is what a change does to its row.
type op uint32

const (
	// opPut writes a spec, which moves Version; opObserve writes what was observed.
	opPut     op = 1
	opObserve op = 2
	opDelete  op = 3
	// opPatchPut and opPatchObserve are the first two with a patch instead of the row.
	opPatchPut     op = 4
	opPatchObserve op = 5
)

func (o op) patches() bool  { return o == opPatchPut || o == opPatchObserve }
func (o op) observes() bool { return o == opObserve || o == opPatchObserve }

type change struct {
	table tableID
	op    op
	id    string
	// expected is the Index of the row that is replaced or deleted, 0 for a row that must not exist.
	expected uint64
	// row is what is written; its Version, Index and times count for nothing. nil for a deletion and for a patch that was read.
	row row
	// base is the row that is replaced, if only the difference to it is to be written.
	base row
	// patch is the difference that was read.
	patch []byte
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
	if !w.encode && w.err == nil && !readable(c.format) {
		w.fail(newerFormat{"commit", c.format, FormatVersion})
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
	w.uint(sinceField, &c.since)
}

func (c *change) wire(w *wire) {
	op, body := c.op, c.patch
	if w.encode {
		var err error
		if op, body, err = c.encodeRow(w.format); err != nil {
			w.fail(err)
		}
	}
	w.uint32(1, &c.table)
	w.uint32(2, (*uint32)(&op))
	w.string(3, &c.id)
	w.uint(4, &c.expected)
	body, present := w.raw(5, body, body != nil)
	if !w.encode && w.err == nil {
		c.op = op
		w.err = c.decodeRow(body, present)
	}
}

// encodeRow returns the row without what the FSM sets, or the patch where that says the same.
func (c *change) encodeRow(format uint32) (op, []byte, error) {
	if c.row == nil {
		return c.op, c.patch, nil
	}
	if c.base != nil && format >= 2 {
		patch, ok, err := patchBetween(c.base, c.row, format)
		switch {
		case err != nil:
			return c.op, nil, err
		case ok && c.op == opPut:
			return opPatchPut, patch, nil
		case ok:
			return opPatchObserve, patch, nil
		}
	}
	w := &wire{encode: true, format: format, meta: metaIDOnly}
	c.row.wire(w)
	return c.op, w.buf, w.err
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
	case c.op < opPut || c.op > opPatchObserve || c.op == opDelete || !present:
		return fmt.Errorf("unknown operation %d", c.op)
	case c.op.patches():
		return c.decodePatch(blank, raw)
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

// decodePatch makes sure that the patch can be applied, whatever the row is by then.
func (c *change) decodePatch(blank row, raw []byte) error {
	if c.expected == 0 {
		return fmt.Errorf("patch of row %s of table %d, which is to be new", c.id, c.table)
	}
	if _, err := patched(blank, raw); err != nil {
		return fmt.Errorf("patch of row %s of table %d: %w", c.id, c.table, err)
	}
	c.patch = raw
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
	raw, err := marshalAs(c.format, c.wire)
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

// encodeEntry takes commits of a format or older ones.
func encodeEntry(format uint32, commits ...rawCommit) ([]byte, error) {
	e := entry{format: format, commits: commits}
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
	// decidedBefore: an earlier copy of the commit was refused.
	decidedBefore reason = 5
	// tooOld: so much was committed since the commit was first sent that an earlier copy of it might be forgotten.
	tooOld reason = 6
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
	case decidedBefore:
		return "other changes came first"
	case tooOld:
		return "too much was committed meanwhile"
	}
	return fmt.Sprintf("check %d failed: %s", r.reason, r.what)
}
