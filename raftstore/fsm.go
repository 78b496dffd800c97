package raftstore

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// commitIDsMax is how many of the last commits are remembered by id, so that one proposed again after lost
// leadership is answered instead of applied twice.
const commitIDsMax = 4096

// fsm is the replicated state machine. raft calls Apply, Snapshot and Restore from one goroutine; everybody else reads
// what was published last. Applying depends on nothing but the log: no clock, no randomness, no iteration over maps.
type fsm struct {
	// work is written by Apply alone.
	work   *State
	recent recentCommits
	sums   *rowSums
	// stopped is set after an entry that cannot be applied; nothing is applied after it.
	stopped error
	// fail ends the replica.
	fail    func(error)
	settled settled
	// onApplied is told what became of an entry, by its data, once that can be read; nil tells nobody.
	onApplied func(entry []byte, done applied)

	published atomic.Pointer[State]

	mu sync.Mutex // guards:
	// waiters wait for the published state to reach an index, the lowest first.
	waiters []*waiter
	watches map[*Watch]struct{}
}

// waiter is all who wait for one index.
type waiter struct {
	index   uint64
	reached chan struct{}
	count   int
}

func newFSM(fail func(error)) *fsm {
	f := &fsm{work: newState(), fail: fail, watches: map[*Watch]struct{}{}}
	f.published.Store(f.work.publish(&State{}))
	return f
}

// applied is the answer to an entry: a verdict per commit.
type applied struct {
	at       position
	verdicts []verdict
}

// Apply returns an applied, or an error when the replica stopped.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch applies entries and publishes what they made once; each answer is that of Apply, nil for what is not a command.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	dirty, index := newDirty(), f.work.index
	for i, log := range logs {
		switch log.Type {
		case raft.LogCommand:
			answers[i] = f.applyEntry(log, dirty)
		case raft.LogConfiguration:
			// A committed change of the members is no change of the state, but who watches wants to know.
			dirty.Members = true
			f.settled.note(log.Index, raft.DecodeConfiguration(log.Data))
		}
	}
	if f.work.index != index || dirty.Members {
		f.publish(dirty)
	}
	if f.onApplied != nil {
		for i, answer := range answers {
			if done, ok := answer.(applied); ok {
				f.onApplied(logs[i].Data, done)
			}
		}
	}
	return answers
}

func (f *fsm) applyEntry(log *raft.Log, dirty *Dirty) any {
	if f.stopped != nil {
		return f.stopped
	}
	commits, err := decodeEntry(log.Data)
	if err != nil {
		f.stopped = fmt.Errorf("apply log entry %d: %w", log.Index, err)
		f.fail(f.stopped)
		return f.stopped
	}
	f.sums.verify()
	verdicts := make([]verdict, len(commits))
	for i, c := range commits {
		verdicts[i] = f.applyCommit(log, c, dirty)
	}
	f.work.index = log.Index
	return applied{position{log.Index, log.Term}, verdicts}
}

func (f *fsm) applyCommit(log *raft.Log, c *commit, dirty *Dirty) verdict {
	index := log.Index
	if done, ok := f.recent.find(c.id); ok {
		return done.verdict()
	}
	if c.since != 0 && f.recent.mayHaveForgotten(c.since-1) {
		return verdict{index: index, refusal: &refusal{reason: tooOld, index: index}}
	}
	r := f.check(log.Term, c)
	if r == nil || c.format >= 2 {
		// What was refused once stays refused: a copy that arrives late must not succeed after its proposer went on without it.
		f.recent.add(doneCommit{id: c.id, index: index, refused: r != nil})
	}
	if r != nil {
		r.index = index
		return verdict{index: index, refusal: r}
	}
	for i := range c.changes {
		if err := f.applyChange(index, c, &c.changes[i], dirty); err != nil {
			panic(err) // decodePatch has tried it
		}
	}
	for _, g := range c.guards {
		f.work.guards.put(&guardRow{Meta{ID: g.name, Index: index}})
	}
	return verdict{index: index}
}

// check returns why a commit cannot be done, nil when it can.
func (f *fsm) check(term uint64, c *commit) *refusal {
	if c.term != 0 && c.term != term {
		return &refusal{reason: termOver}
	}
	for i := range c.changes {
		change := &c.changes[i]
		if f.work.rowIndex(change.table, change.id) != change.expected {
			return &refusal{reason: rowChanged, what: f.work.table(change.table).kind() + " " + change.id}
		}
	}
	for _, a := range c.asserts {
		if f.work.rowIndex(a.table, a.id) != a.index {
			return &refusal{reason: rowChanged, what: f.work.table(a.table).kind() + " " + a.id}
		}
	}
	for _, g := range c.guards {
		if f.work.rowIndex(tableGuards, g.name) != g.index {
			return &refusal{reason: guardMoved, what: g.name}
		}
	}
	return f.checkNames(c)
}

// checkNames refuses a commit after which two services would have one name.
func (f *fsm) checkNames(c *commit) *refusal {
	var written map[string]bool // ids of the services that the commit writes or deletes
	for i := range c.changes {
		if c.changes[i].table == tableServices {
			if written == nil {
				written = map[string]bool{}
			}
			written[c.changes[i].id] = true
		}
	}
	if written == nil {
		return nil
	}
	owner := map[string]string{}
	for i := range c.changes {
		s, ok := c.changes[i].row.(*Service)
		if !ok {
			continue
		}
		taken := owner[s.Name] != "" && owner[s.Name] != s.ID
		for other := range f.work.Services.with(servicesByName, s.Name) {
			taken = taken || !written[other.ID]
		}
		if taken {
			return &refusal{reason: nameTaken, what: "service " + s.Name}
		}
		owner[s.Name] = s.ID
	}
	return nil
}

func (f *fsm) applyChange(index uint64, c *commit, ch *change, dirty *Dirty) error {
	t := f.work.table(ch.table)
	if ch.op == opDelete {
		old := t.remove(ch.id)
		f.sums.replace(old, nil)
		dirty.add(old)
		return nil
	}
	old := t.get(ch.id)
	now, err := ch.result(old)
	if err != nil {
		return err
	}
	m := now.meta()
	*m = Meta{ID: m.ID, Version: index, Index: index, CreatedAt: c.time, UpdatedAt: c.time}
	if old != nil {
		was := old.meta()
		m.CreatedAt = was.CreatedAt
		if ch.op.observes() {
			m.Version, m.UpdatedAt = was.Version, was.UpdatedAt
		}
	}
	f.work.share(now)
	t.put(now)
	f.sums.replace(old, now)
	dirty.add(old)
	dirty.add(now)
	return nil
}

// result is the row after a change; old is nil where there is none.
func (ch *change) result(old row) (row, error) {
	if !ch.op.patches() {
		return ch.row, nil
	}
	if old == nil {
		// Only a commit that deletes the row first gets here; whatever becomes of it must be the same everywhere.
		old = newRow(ch.table)
		old.meta().ID = ch.id
	}
	return patched(old, ch.patch)
}

// publish shows the new state to readers, watches and those who wait for its index.
func (f *fsm) publish(dirty *Dirty) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := f.work.publish(f.published.Load())
	f.published.Store(state)
	for w := range f.watches {
		w.merge(dirty)
	}
	n := 0
	for ; n < len(f.waiters) && f.waiters[n].index <= state.index; n++ {
		close(f.waiters[n].reached)
	}
	f.waiters = slices.Delete(f.waiters, 0, n)
}

// reached returns a channel that is closed once the published state has an index, and what to call when waiting ends.
func (f *fsm) reached(index uint64) (<-chan struct{}, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.published.Load().index >= index {
		reached := make(chan struct{})
		close(reached)
		return reached, func() {}
	}
	place, waits := f.findWaiter(index)
	if !waits {
		f.waiters = slices.Insert(f.waiters, place, &waiter{index: index, reached: make(chan struct{})})
	}
	f.waiters[place].count++
	return f.waiters[place].reached, func() { f.forget(index) }
}

func (f *fsm) findWaiter(index uint64) (place int, waits bool) {
	return slices.BinarySearchFunc(f.waiters, index, func(w *waiter, index uint64) int { return cmp.Compare(w.index, index) })
}

func (f *fsm) forget(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	place, waits := f.findWaiter(index)
	if !waits {
		return
	}
	if f.waiters[place].count--; f.waiters[place].count == 0 {
		f.waiters = slices.Delete(f.waiters, place, place+1)
	}
}

// begin starts a transaction on the published state.
func (f *fsm) begin() *Tx { return newTx(f.published.Load(), &f.mu) }

// recentCommits is a ring of the last commits that were decided.
type recentCommits struct {
	ring []doneCommit // in order of age from next on, once full
	next int
	byID map[commitID]doneCommit
}

type doneCommit struct {
	id      commitID
	index   uint64
	refused bool
}

func (d doneCommit) verdict() verdict {
	if d.refused {
		return verdict{index: d.index, refusal: &refusal{reason: decidedBefore, index: d.index}}
	}
	return verdict{index: d.index}
}

func (r *recentCommits) find(id commitID) (done doneCommit, ok bool) {
	done, ok = r.byID[id]
	return done, ok
}

// mayHaveForgotten says whether a commit that was decided after an index may have left the ring since.
func (r *recentCommits) mayHaveForgotten(after uint64) bool {
	return len(r.ring) == commitIDsMax && after < r.ring[r.next].index
}

func (r *recentCommits) add(done doneCommit) {
	if r.byID == nil {
		r.byID = map[commitID]doneCommit{}
	}
	r.byID[done.id] = done
	if len(r.ring) < commitIDsMax {
		r.ring = append(r.ring, done)
		return
	}
	delete(r.byID, r.ring[r.next].id)
	r.ring[r.next] = done
	r.next = (r.next + 1) % commitIDsMax
}

// oldestFirst copies the ring.
func (r *recentCommits) oldestFirst() []doneCommit {
	return append(append([]doneCommit(nil), r.ring[r.next:]...), r.ring[:r.next]...)
}
