package raftstore

import "github.com/moby/moby/api/types/swarm"

// What each row is on the wire: in commits, in the log and in snapshots. Numbers are never reused; a new field gets the
// next number and stands behind wire.since: a cluster whose MinVersion is older does not write it.

// row is what every table holds a pointer to.
type row interface {
	meta() *Meta
	wire(w *wire)
	// copied is a copy of the struct, which shares what it refers to.
	copied() row
}

func (m *Meta) meta() *Meta { return m }

// wireMeta takes numbers 1 to 5.
func (m *Meta) wireMeta(w *wire) {
	if w.meta == metaNone {
		return
	}
	w.string(1, &m.ID)
	if w.meta == metaIDOnly {
		return
	}
	w.uint(2, &m.Version)
	w.uint(3, &m.Index)
	w.time(4, &m.CreatedAt)
	w.time(5, &m.UpdatedAt)
}

func (r *Cluster) wire(w *wire) {
	r.wireMeta(w)
	w.json(6, &r.Spec)
	w.bytes(7, &r.RootPEM)
	w.bytes(8, &r.RootKeyPEM)
	w.string(9, &r.JoinTokens.Worker)
	w.string(10, &r.JoinTokens.Manager)
	w.bytes(11, &r.GossipKey)
	w.uint32(12, &r.DataPathPort)
	w.strings(13, &r.DefaultAddrPool)
	w.uint32(14, &r.SubnetSize)
	w.uint32(15, &r.MinVersion)
}

func (r *Node) wire(w *wire) {
	r.wireMeta(w)
	w.json(6, &r.Spec)
	w.string(7, (*string)(&r.Role))
	w.json(8, &r.Description)
	w.json(9, &r.Status)
	w.string(10, &r.Address)
	w.string(11, &r.Session.Manager)
	w.string(12, &r.Session.ID)
	heard := !w.since(2) && r.Session.Heard() // Presence says it better
	w.bool(13, &heard)
	w.duration(14, &r.Session.Silence)
	if w.since(2) {
		w.string(15, (*string)(&r.Session.Presence))
		w.string(16, &r.Session.Reason)
		w.time(17, &r.Session.Since)
	}
	if !w.encode && !w.patch && r.Session.Presence == "" {
		r.Session.Presence = presenceOf(heard, r.Status.State)
	}
}

func (r *Service) wire(w *wire) {
	r.wireMeta(w)
	w.string(6, &r.Name)
	w.uint(7, &r.SpecVersion)
	w.uint(8, &r.PreviousSpecVersion)
	jsonPtr(w, 9, &r.UpdateStatus)
	w.bool(10, &r.Removing)
}

func (r *Spec) wire(w *wire) {
	r.wireMeta(w)
	w.string(6, &r.ServiceID)
	w.uint(7, &r.SpecVersion)
	w.json(8, &r.Spec)
}

func (r *Task) wire(w *wire) {
	r.wireMeta(w)
	w.string(6, &r.ServiceID)
	w.uint(7, &r.SpecVersion)
	w.uint(8, &r.Slot)
	w.string(9, &r.NodeID)
	w.taskState(10, &r.DesiredState)
	w.time(11, &r.NotBefore)
	w.taskState(12, &r.Status.State)
	w.time(13, &r.Status.Timestamp)
	w.string(14, &r.Status.Message)
	w.string(15, &r.Status.Err)
	w.string(16, &r.Status.ContainerID)
	w.int(17, &r.Status.PID)
	w.int(18, &r.Status.ExitCode)
}

func (r *Image) wire(w *wire) {
	r.wireMeta(w)
	w.string(6, &r.Name)
	w.string(7, &r.Digest)
	w.string(8, &r.MediaType)
	w.int64(9, &r.SizeBytes)
	messages(w, 10, &r.Platforms, func(w *wire, p *swarm.Platform) {
		w.string(1, &p.Architecture)
		w.string(2, &p.OS)
	})
	w.strings(11, &r.Holders)
}

// guardRow counts the commits that named a guard: its Index is that of the last one.
type guardRow struct{ Meta }

func (r *guardRow) wire(w *wire) { r.wireMeta(w) }

// tableID is a table's number on the wire.
type tableID = uint32

const (
	tableClusters tableID = 1
	tableNodes    tableID = 2
	tableServices tableID = 3
	tableSpecs    tableID = 4
	tableTasks    tableID = 5
	tableImages   tableID = 6
	// tableGuards is in snapshots only: commits name guards in a list of their own.
	tableGuards tableID = 7
)

// tableIDs lists all tables in the order of a snapshot.
func tableIDs() [7]tableID {
	return [7]tableID{tableClusters, tableNodes, tableServices, tableSpecs, tableTasks, tableImages, tableGuards}
}

// newRow returns an empty row for a table, nil for an unknown one.
func newRow(t tableID) row {
	switch t {
	case tableClusters:
		return new(Cluster)
	case tableNodes:
		return new(Node)
	case tableServices:
		return new(Service)
	case tableSpecs:
		return new(Spec)
	case tableTasks:
		return new(Task)
	case tableImages:
		return new(Image)
	case tableGuards:
		return new(guardRow)
	}
	return nil
}

func (r *Cluster) copied() row { c := *r; return &c }

func (r *Node) copied() row { c := *r; return &c }

func (r *Service) copied() row { c := *r; return &c }

func (r *Spec) copied() row { c := *r; return &c }

func (r *Task) copied() row { c := *r; return &c }

func (r *Image) copied() row { c := *r; return &c }

func (r *guardRow) copied() row { c := *r; return &c }
