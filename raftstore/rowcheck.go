package raftstore

import (
	"fmt"
	"hash/maphash"
)

// rowSums notices rows that were changed by who read them, which would make this replica differ from the others.
// It re-hashes every row at every entry, so it is for tests; nil checks nothing.
type rowSums struct {
	seed maphash.Seed
	sums map[row]uint64
}

func newRowSums(on bool) *rowSums {
	if !on {
		return nil
	}
	return &rowSums{seed: maphash.MakeSeed(), sums: map[row]uint64{}}
}

func (c *rowSums) sum(r row) uint64 {
	raw, err := marshal(r.wire)
	if err != nil {
		panic(fmt.Errorf("row %s: %w", r.meta().ID, err))
	}
	return maphash.Bytes(c.seed, raw)
}

// replace forgets an old row and remembers a new one; either may be nil.
func (c *rowSums) replace(old, now row) {
	if c == nil {
		return
	}
	if old != nil {
		delete(c.sums, old)
	}
	if now != nil {
		c.sums[now] = c.sum(now)
	}
}

// reset remembers the rows of a restored state.
func (c *rowSums) reset(s *State) {
	if c == nil {
		return
	}
	clear(c.sums)
	for _, t := range tableIDs() {
		s.table(t).scan(func(r row) bool { c.replace(nil, r); return true })
	}
}

// verify panics when a row is not what it was: that is a broken invariant of our own code.
func (c *rowSums) verify() {
	if c == nil {
		return
	}
	for r, sum := range c.sums {
		if c.sum(r) != sum {
			panic(fmt.Errorf("%T %s was changed by a reader: rows from the store are read-only, copy them and Put the copy", r, r.meta().ID))
		}
	}
}
