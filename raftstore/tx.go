package raftstore

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Tx is a State that a closure may change; it reads its own writes.
type Tx struct {
	State
	// base is the state before the closure wrote anything.
	base    *State
	changes []change
	// at finds the place of a row's change in changes.
	at      map[rowKey]int
	asserts []assertion
	guards  []guard
	// err is the first write that cannot be committed whatever the others do.
	err error
}

type rowKey struct {
	table tableID
	id    string
}

// newTx begins a transaction on base; lock is held while trees of base are copied.
func newTx(base *State, lock sync.Locker) *Tx {
	return &Tx{State: base.overlaid(lock), base: base, at: map[rowKey]int{}}
}

// Put* write a row whose Index is that of the row it replaces (0: create). A spec write moves Version;
// PutObserved* leave Version and UpdatedAt alone.
// A new cluster without MinVersion begins with the newest format.
func (tx *Tx) PutCluster(r Cluster) {
	if r.Index == 0 && r.MinVersion == 0 {
		r.MinVersion = FormatVersion
	}
	tx.put(tableClusters, opPut, &r)
}
func (tx *Tx) PutNode(r Node)               { tx.put(tableNodes, opPut, &r) }
func (tx *Tx) PutObservedNode(r Node)       { tx.put(tableNodes, opObserve, &r) }
func (tx *Tx) PutService(r Service)         { tx.put(tableServices, opPut, &r) }
func (tx *Tx) PutObservedService(r Service) { tx.put(tableServices, opObserve, &r) }
func (tx *Tx) PutSpec(r Spec)               { tx.put(tableSpecs, opPut, &r) }
func (tx *Tx) PutTask(r Task)               { tx.put(tableTasks, opPut, &r) }
func (tx *Tx) PutObservedTask(r Task)       { tx.put(tableTasks, opObserve, &r) }
func (tx *Tx) PutImage(r Image)             { tx.put(tableImages, opPut, &r) }

// Delete* remove a row; without such a row they do nothing.
func (tx *Tx) DeleteNode(id string)    { tx.remove(tableNodes, id) }
func (tx *Tx) DeleteService(id string) { tx.remove(tableServices, id) }
func (tx *Tx) DeleteSpec(id string)    { tx.remove(tableSpecs, id) }
func (tx *Tx) DeleteTask(id string)    { tx.remove(tableTasks, id) }
func (tx *Tx) DeleteImage(id string)   { tx.remove(tableImages, id) }

// AssertNode makes the commit fail (and the closure run again) when the row changed since this snapshot.
func (tx *Tx) AssertNode(id string)    { tx.assert(tableNodes, id) }
func (tx *Tx) AssertService(id string) { tx.assert(tableServices, id) }

// Guard names an invariant shared by several rows (such as "managers"): of two commits that name the
// same guard, the one that read the older state runs again.
func (tx *Tx) Guard(name string) {
	for _, g := range tx.guards {
		if g.name == name {
			return
		}
	}
	tx.guards = append(tx.guards, guard{name: name, index: tx.base.rowIndex(tableGuards, name)})
}

func (tx *Tx) assert(t tableID, id string) {
	tx.asserts = append(tx.asserts, assertion{table: t, id: id, index: tx.base.rowIndex(t, id)})
}

func (tx *Tx) fail(err error) {
	if tx.err == nil {
		tx.err = err
	}
}

func (tx *Tx) put(t tableID, op op, r row) {
	m, table := r.meta(), tx.table(t)
	if m.ID == "" {
		tx.fail(fmt.Errorf("%s without id: %w", table.kind(), errdefs.ErrInvalidArgument))
		return
	}
	if have := tx.rowIndex(t, m.ID); have != m.Index {
		tx.fail(fmt.Errorf("%s %s: update out of sequence (its index is %d, not %d)%w", table.kind(), m.ID, have, m.Index, silent{errdefs.ErrConflict}))
		return
	}
	if s, ok := r.(*Service); ok {
		for other := range tx.Services.with(servicesByName, s.Name) {
			if other.ID != s.ID {
				tx.fail(fmt.Errorf("service %s already exists%w", s.Name, silent{errdefs.ErrAlreadyExists}))
				return
			}
		}
	}
	if _, another := r.(*Cluster); another && tx.Cluster() != nil && tx.Cluster().ID != m.ID {
		tx.fail(fmt.Errorf("the cluster has the id %s, not %s: %w", tx.Cluster().ID, m.ID, errdefs.ErrConflict))
		return
	}
	table.put(r)
	tx.record(change{table: t, op: op, id: m.ID, expected: m.Index, row: r})
}

func (tx *Tx) remove(t tableID, id string) {
	old := tx.table(t).remove(id)
	if old == nil {
		return
	}
	tx.record(change{table: t, op: opDelete, id: id, expected: old.meta().Index})
}

// record keeps one change per row: what it does in the end to the row that was there before.
func (tx *Tx) record(c change) {
	key := rowKey{c.table, c.id}
	place, again := tx.at[key]
	if !again {
		tx.at[key] = len(tx.changes)
		tx.changes = append(tx.changes, c)
		return
	}
	before := tx.changes[place]
	c.expected = before.expected
	if c.op == opObserve && before.op != opObserve {
		// The spec was written too, or the row was deleted first and is a new one.
		c.op = opPut
	}
	tx.changes[place] = c
}

// commit returns what the closure wrote, nil when there is nothing to commit.
func (tx *Tx) commit(now time.Time) *commit {
	c := &commit{format: tx.base.format(), id: newCommitID(), time: now, asserts: tx.asserts, guards: tx.guards}
	for _, change := range tx.changes {
		if change.op == opDelete && change.expected == 0 {
			continue // created and deleted by the same closure
		}
		if change.expected != 0 {
			change.base = tx.base.table(change.table).get(change.id)
		}
		c.changes = append(c.changes, change)
	}
	if len(c.changes)+len(c.asserts)+len(c.guards) == 0 {
		return nil
	}
	return c
}
