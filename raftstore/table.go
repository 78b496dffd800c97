package raftstore

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/tidwall/btree"
)

// Table reads one kind of rows. It is a copy-on-write B-tree by id with further trees for each index,
// so a snapshot costs a few pointers and a write copies only the path to its row.
type Table[R row] struct {
	layout *layout[R]
	rows   *btree.Map[string, R]
	// indexes stand in the order of layout.indexes; rows with equal keys are in order of ids.
	indexes []*btree.BTreeG[R]
	// live says that the trees may be written while one iterates: iteration then runs on a copy.
	live bool
	// touched says that live trees were written since they were last published.
	touched bool
	// tally counts the rows of each class.
	tally [classesMax]int
	// over is what a transaction wrote to t; nil elsewhere.
	over *overlay[R]
}

// classesMax bounds the classes by which rows of one kind are counted.
const classesMax = 16

// layout says how a kind of rows is found.
type layout[R row] struct {
	// kind is the word for one row in messages.
	kind string
	// name is what Find compares after the id; nil when rows have no name.
	name    func(R) string
	indexes []index[R]
	// class, below classesMax, is what rows are counted by; nil for those that nobody counts.
	class func(R) int
}

// index orders rows by a key that several may share.
type index[R row] struct {
	key func(R) string
	// rank orders rows of one key, before their ids; nil: ids alone do.
	rank func(R) uint64
	// probe is a row with nothing but that key, where iteration starts.
	probe func(key string) R
}

func newTable[R row](l *layout[R]) Table[R] {
	t := Table[R]{layout: l, rows: new(btree.Map[string, R]), live: true, touched: true}
	for _, x := range l.indexes {
		t.indexes = append(t.indexes, btree.NewBTreeGOptions(func(a, b R) bool {
			ka, kb := x.key(a), x.key(b)
			if ka != kb {
				return ka < kb
			}
			if x.rank != nil {
				if ra, rb := x.rank(a), x.rank(b); ra != rb {
					return ra < rb
				}
			}
			return a.meta().ID < b.meta().ID
		}, btree.Options{NoLocks: true}))
	}
	return t
}

// fork returns an independent table with the same rows. Forks of one table must not run at the same time; reads may.
func (t *Table[R]) fork(live bool) Table[R] {
	f := Table[R]{layout: t.layout, rows: t.rows.Copy(), live: live, tally: t.tally}
	for _, x := range t.indexes {
		f.indexes = append(f.indexes, x.Copy())
	}
	return f
}

// publish returns t for readers: last when nothing was written since.
func (t *Table[R]) publish(last Table[R]) Table[R] {
	if !t.touched && last.rows != nil {
		return last
	}
	t.touched = false
	return t.fork(false)
}

// Get returns the row with an id.
func (t Table[R]) Get(id string) (R, bool) {
	if t.rows == nil {
		var none R
		return none, false
	}
	if t.over != nil {
		return t.over.get(t, id)
	}
	return t.rows.Get(id)
}

// settled is t with what a transaction wrote in its trees.
func (t Table[R]) settled() Table[R] {
	if t.over == nil || t.rows == nil {
		return t
	}
	return t.over.settle(t)
}

// Find looks up by full id, then exact name, then id prefix; several matches are an InvalidArgument
// error "… is ambiguous (N matches found)", none is NotFound.
func (t Table[R]) Find(ref string) (R, error) {
	var none R
	if t.rows == nil || ref == "" {
		return none, fmt.Errorf("%q: %w", ref, errdefs.ErrNotFound)
	}
	if r, ok := t.Get(ref); ok {
		return r, nil
	}
	t = t.settled()
	var found []R
	if t.layout.name != nil {
		for r := range t.with(0, ref) {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		t.rows.Ascend(ref, func(id string, r R) bool {
			if !strings.HasPrefix(id, ref) {
				return false
			}
			found = append(found, r)
			return true
		})
	}
	switch len(found) {
	case 0:
		return none, fmt.Errorf("%s %s not found%w", t.layout.kind, ref, silent{errdefs.ErrNotFound})
	case 1:
		return found[0], nil
	}
	return none, fmt.Errorf("%s %s is ambiguous (%d matches found)%w", t.layout.kind, ref, len(found), silent{errdefs.ErrInvalidArgument})
}

// All iterates in order of ids.
func (t Table[R]) All() iter.Seq[R] {
	return func(yield func(R) bool) {
		if t.rows == nil {
			return
		}
		t := t.settled()
		rows := t.rows
		if t.live {
			rows = rows.Copy()
		}
		rows.Scan(func(_ string, r R) bool { return yield(r) })
	}
}

// Len is the number of rows.
func (t Table[R]) Len() int {
	if t.rows == nil {
		return 0
	}
	return t.settled().rows.Len()
}

// with iterates over the rows that have a key in an index, in order of rank and ids.
func (t Table[R]) with(index int, key string) iter.Seq[R] {
	return func(yield func(R) bool) {
		if t.rows == nil {
			return
		}
		x := t.layout.indexes[index]
		t.ascend(index, x.probe(key), func(r R) bool { return x.key(r) == key && yield(r) })
	}
}

// like iterates over the rows that have key and rank of a probe in an index, in order of ids.
func (t Table[R]) like(index int, probe R) iter.Seq[R] {
	return func(yield func(R) bool) {
		if t.rows == nil {
			return
		}
		x := t.layout.indexes[index]
		key, rank := x.key(probe), x.rank(probe)
		t.ascend(index, probe, func(r R) bool { return x.key(r) == key && x.rank(r) == rank && yield(r) })
	}
}

func (t Table[R]) ascend(index int, from R, yield func(R) bool) {
	t = t.settled()
	tree := t.indexes[index]
	if t.live {
		tree = tree.Copy()
	}
	tree.Ascend(from, yield)
}

// table is what code that handles every kind of rows needs of one.
type table interface {
	kind() string
	get(id string) row
	put(r row) (old row)
	remove(id string) (old row)
	scan(yield func(row) bool)
	length() int
	load(rows []row)
}

func (t *Table[R]) kind() string { return t.layout.kind }

// get returns nil when there is no such row.
func (t *Table[R]) get(id string) row {
	if r, ok := t.Get(id); ok {
		return r
	}
	return nil
}

func (t *Table[R]) length() int { return t.Len() }

func (t *Table[R]) put(r row) row {
	typed := r.(R)
	if t.over != nil {
		return t.over.write(*t, r.meta().ID, written[R]{row: typed})
	}
	t.touched = true
	old, replaced := t.rows.Set(r.meta().ID, typed)
	if replaced {
		t.count(old, -1)
	}
	t.count(typed, 1)
	for i, x := range t.layout.indexes {
		if replaced && (x.key(old) != x.key(typed) || x.rank != nil && x.rank(old) != x.rank(typed)) {
			t.indexes[i].Delete(old)
		}
		t.indexes[i].Set(typed)
	}
	if !replaced {
		return nil
	}
	return old
}

// load fills an empty table with rows in order of their ids. It is several times faster than to put them one by one: each tree
// is built at its end.
func (t *Table[R]) load(rows []row) {
	t.touched = true
	typed := make([]R, len(rows))
	for i, r := range rows {
		typed[i] = r.(R)
		t.rows.Load(r.meta().ID, typed[i])
		t.count(typed[i], 1)
	}
	for i, x := range t.layout.indexes {
		for r := range x.inOrder(typed) {
			t.indexes[i].Load(r)
		}
	}
}

// inOrder iterates over rows that are in order of ids in the order of an index.
func (x index[R]) inOrder(rows []R) iter.Seq[R] {
	byKey := map[string][]R{}
	for _, r := range rows {
		key := x.key(r)
		byKey[key] = append(byKey[key], r)
	}
	return func(yield func(R) bool) {
		for _, key := range slices.Sorted(maps.Keys(byKey)) {
			same := byKey[key]
			if x.rank != nil {
				slices.SortStableFunc(same, func(a, b R) int { return cmp.Compare(x.rank(a), x.rank(b)) })
			}
			for _, r := range same {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (t *Table[R]) remove(id string) row {
	if t.over != nil {
		return t.over.write(*t, id, written[R]{gone: true})
	}
	old, ok := t.rows.Delete(id)
	if !ok {
		return nil
	}
	t.touched = true
	t.count(old, -1)
	for _, x := range t.indexes {
		x.Delete(old)
	}
	return old
}

func (t *Table[R]) count(r R, by int) {
	if t.layout.class != nil {
		t.tally[t.layout.class(r)] += by
	}
}

func (t *Table[R]) scan(yield func(row) bool) {
	for r := range t.All() {
		if !yield(r) {
			return
		}
	}
}

// silent gives an error a kind without adding to its text.
type silent struct{ kind error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.kind }
