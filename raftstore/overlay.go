package raftstore

import "sync"

// overlay holds what a transaction wrote to one table. Most transactions write a few rows and look rows up by id, so the
// table's trees are copied only when somebody iterates after a write: copying the paths to a few rows, in every index, costs more
// than all else that a small transaction does.
type overlay[R row] struct {
	// lock is held while the trees are copied: two copies of one tree must not be made at the same time.
	lock sync.Locker
	// pending are the writes that are not in trees yet.
	pending map[string]written[R]
	// trees hold the table with all other writes; nil as long as there was no need.
	trees *Table[R]
}

// written is what became of a row.
type written[R row] struct {
	row  R
	gone bool
}

// get looks a row up, written or not.
func (o *overlay[R]) get(base Table[R], id string) (R, bool) {
	if w, ok := o.pending[id]; ok {
		return w.row, !w.gone
	}
	if o.trees != nil {
		return o.trees.rows.Get(id)
	}
	return base.rows.Get(id)
}

// write puts or deletes a row and returns the one before, nil for none.
func (o *overlay[R]) write(base Table[R], id string, w written[R]) row {
	old, replaced := o.get(base, id)
	if !replaced && w.gone {
		return nil
	}
	if o.pending == nil {
		o.pending = map[string]written[R]{}
	}
	o.pending[id] = w
	if !replaced {
		return nil
	}
	return old
}

// settle brings the trees up to date and returns the table that they make.
func (o *overlay[R]) settle(base Table[R]) Table[R] {
	if len(o.pending) == 0 && o.trees == nil {
		base.over = nil
		return base
	}
	if o.trees == nil {
		o.lock.Lock()
		trees := base.fork(true)
		o.lock.Unlock()
		o.trees = &trees
	}
	for id, w := range o.pending {
		if w.gone {
			o.trees.remove(id)
		} else {
			o.trees.put(w.row)
		}
	}
	clear(o.pending)
	return *o.trees
}

// overlays are those of one transaction.
type overlays struct {
	nodes    overlay[*Node]
	services overlay[*Service]
	specs    overlay[*Spec]
	tasks    overlay[*Task]
	images   overlay[*Image]
	clusters overlay[*Cluster]
	guards   overlay[*guardRow]
}

// overlaid returns s as a state that may be written without touching s.
func (s *State) overlaid(lock sync.Locker) State {
	o := new(overlays)
	own := *s
	lay(&own.Nodes, &o.nodes, lock)
	lay(&own.Services, &o.services, lock)
	lay(&own.Specs, &o.specs, lock)
	lay(&own.Tasks, &o.tasks, lock)
	lay(&own.Images, &o.images, lock)
	lay(&own.clusters, &o.clusters, lock)
	lay(&own.guards, &o.guards, lock)
	return own
}

func lay[R row](t *Table[R], o *overlay[R], lock sync.Locker) {
	o.lock = lock
	t.over = o
}
