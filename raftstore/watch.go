package raftstore

// dirtyKeysMax bounds what a watch that nobody takes from collects; beyond it everything counts as changed.
const dirtyKeysMax = 1 << 16

// Watch collects what changed since the last Take.
type Watch struct {
	fsm     *fsm
	changed chan struct{}
	// dirty is guarded by fsm.mu.
	dirty *Dirty
}

// watch subscribes with everything dirty.
func (f *fsm) watch() *Watch {
	w := &Watch{fsm: f, changed: make(chan struct{}, 1), dirty: newDirty()}
	w.dirty.All = true
	w.changed <- struct{}{}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches[w] = struct{}{}
	return w
}

// Changed receives after a change; one receive may stand for many changes.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Take returns this replica's state and what changed since the last Take. The sets belong to the caller.
func (w *Watch) Take() (*State, Dirty) {
	w.fsm.mu.Lock()
	defer w.fsm.mu.Unlock()
	dirty := w.dirty
	w.dirty = newDirty()
	return w.fsm.published.Load(), *dirty
}

// Close ends the subscription.
func (w *Watch) Close() {
	w.fsm.mu.Lock()
	defer w.fsm.mu.Unlock()
	delete(w.fsm.watches, w)
}

// merge needs fsm.mu.
func (w *Watch) merge(more *Dirty) {
	if more.empty() {
		return
	}
	w.dirty.merge(more)
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Dirty names the rows that changed, by id. All means anything may have changed.
type Dirty struct {
	All      bool
	Cluster  bool
	Services map[string]struct{} // also those whose tasks or specs changed
	Nodes    map[string]struct{} // also those whose tasks changed
	Tasks    map[string]struct{}
	Images   map[string]struct{}
	// Members says that raft's configuration changed: read it with Store.Members.
	Members bool
}

func newDirty() *Dirty {
	return &Dirty{Services: map[string]struct{}{}, Nodes: map[string]struct{}{}, Tasks: map[string]struct{}{}, Images: map[string]struct{}{}}
}

func (d *Dirty) empty() bool { return !d.All && !d.Cluster && !d.Members && d.keys() == 0 }

func (d *Dirty) keys() int { return len(d.Services) + len(d.Nodes) + len(d.Tasks) + len(d.Images) }

// add takes a row as it was before or is after a change; nil is none.
func (d *Dirty) add(r row) {
	switch r := r.(type) {
	case *Cluster:
		d.Cluster = true
	case *Node:
		d.Nodes[r.ID] = struct{}{}
	case *Service:
		d.Services[r.ID] = struct{}{}
	case *Spec:
		d.Services[r.ServiceID] = struct{}{}
	case *Task:
		d.Tasks[r.ID] = struct{}{}
		d.Services[r.ServiceID] = struct{}{}
		if r.NodeID != "" {
			d.Nodes[r.NodeID] = struct{}{}
		}
	case *Image:
		d.Images[r.ID] = struct{}{}
	}
}

func (d *Dirty) merge(more *Dirty) {
	d.Cluster = d.Cluster || more.Cluster
	d.Members = d.Members || more.Members || more.All
	d.All = d.All || more.All || d.keys()+more.keys() > dirtyKeysMax
	if d.All {
		// All says everything that keys could say.
		cluster, members := d.Cluster, d.Members
		*d = *newDirty()
		d.All, d.Cluster, d.Members = true, cluster, members
		return
	}
	for _, sets := range [][2]map[string]struct{}{
		{d.Services, more.Services}, {d.Nodes, more.Nodes}, {d.Tasks, more.Tasks}, {d.Images, more.Images},
	} {
		for key := range sets[1] {
			sets[0][key] = struct{}{}
		}
	}
}
