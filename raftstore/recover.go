package raftstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// recoveredTermJump is how far a recovery moves the term on, beyond what the other managers may have reached meanwhile.
	recoveredTermJump = 1 << 20
	// contactPause is how often the last contact with a leader is noted; it also is when the leader is lost and at the end.
	contactPause = 30 * time.Second
)

// Recovery is what becoming a cluster of one would mean for a manager that the others cannot be reached from.
type Recovery struct {
	NodeID string
	// LastIndex is that of the last entry in this manager's log, LastChange when the newest change in it was proposed.
	LastIndex  uint64
	LastChange time.Time
	// Unconfirmed is how many changes in the log are not known to be committed. They are kept: any of them may have been
	// acknowledged to whoever made it.
	Unconfirmed int
	// LastContact is when this manager last heard of a leader, within half a minute; zero if that is not known. What the
	// others committed after that is lost.
	LastContact time.Time
	// Removed are the managers that would not be managers any more. Of a running Store's, those are Reachable that can be reached now.
	Removed []Member
	// Services and Tasks are how many rows are kept.
	Services int
	Tasks    int
}

// PreviewRecovery says what Recover would do, and changes nothing. It needs of cfg what Recover needs.
func PreviewRecovery(cfg Config) (Recovery, error) {
	lost, err := openLost(cfg)
	if err != nil {
		return Recovery{}, err
	}
	return lost.preview, lost.disk.close()
}

// Recover makes the manager whose state lies in cfg.Dir (or cfg.Disk) the only one of its cluster. It needs NodeID, Address and
// Sealer of cfg, and that no Store has the directory open. Interrupted, it can be repeated.
//
// All that is in the manager's log is kept, also what is not known to be committed: a leader acknowledges a change
// once most managers have it in their logs, and only later tells them so. Dropping such entries could lose acknowledged changes;
// keeping one that was never acknowledged is what its caller was told may happen.
//
// The other managers' rows become workers', and the cluster gets a new lineage, so that managers that come back with
// the old state can neither vote nor replicate: they find out that they are outdated and stop.
func Recover(cfg Config) (Recovery, error) {
	lost, err := openLost(cfg)
	if err != nil {
		return Recovery{}, err
	}
	err = lost.recover()
	return lost.preview, errors.Join(err, lost.disk.close())
}

// Peek is the state that follows from all of a manager's log, committed or not, without taking part in the cluster. It
// needs of cfg what Recover needs, and changes nothing.
func Peek(cfg Config) (*State, error) {
	lost, err := openLost(cfg)
	if err != nil {
		return nil, err
	}
	return lost.fsm.published.Load(), lost.disk.close()
}

// PreviewRecovery is the same for a manager that runs, which knows more.
func (s *Store) PreviewRecovery() (Recovery, error) {
	state := s.Local()
	r := Recovery{
		NodeID: s.cfg.NodeID, LastIndex: s.raft.LastIndex(), LastContact: s.lastContact(),
		Services: state.Services.Len(), Tasks: state.Tasks.Len(),
	}
	answering := s.Reach()
	for _, m := range s.Members() {
		if m.Reachable = answering[m.NodeID]; m.NodeID != s.cfg.NodeID {
			r.Removed = append(r.Removed, m)
		}
	}
	return r, r.readLog(s.disk.log, s.raft.CommitIndex())
}

// lost is a manager's state, opened for recovery.
type lost struct {
	cfg     Config
	disk    *disk
	fsm     *fsm
	preview Recovery
	// term is the newest one that the manager knew of.
	term uint64
}

// openLost reads a manager's snapshot and all of its log.
func openLost(cfg Config) (*lost, error) {
	cfg = cfg.withDefaults()
	l := &lost{cfg: cfg, preview: Recovery{NodeID: cfg.NodeID}}
	var broken error
	l.fsm = newFSM(func(err error) { broken = err })
	var err error
	if l.disk, err = openDisk(cfg, &sealedLog{broken: func(error) {}, applied: func() uint64 { return 0 }}, make(chan struct{})); err != nil {
		return nil, err
	}
	if err := cmp.Or(l.replay(), broken); err != nil {
		return nil, errors.Join(err, l.disk.close())
	}
	return l, nil
}

// replay rebuilds the state and the last configuration.
func (l *lost) replay() error {
	covered, servers, err := l.restore()
	if err != nil {
		return err
	}
	last, err := l.disk.log.LastIndex()
	if err != nil {
		return err
	}
	l.preview.LastIndex = max(covered, last)
	if l.preview.LastIndex == 0 {
		return fmt.Errorf("there is no cluster in %s to recover: %w", l.disk.where, errdefs.ErrFailedPrecondition)
	}
	for index := covered + 1; index <= last; index++ {
		var entry raft.Log
		if err := l.disk.log.read(index, &entry); err != nil {
			return err
		}
		l.term = max(l.term, entry.Term)
		switch entry.Type {
		case raft.LogCommand:
			l.fsm.Apply(&entry)
		case raft.LogConfiguration:
			servers = raft.DecodeConfiguration(entry.Data).Servers
		}
	}
	term, err := l.disk.stable.GetUint64([]byte(raftTermKey))
	if err != nil && err.Error() != errNoValue.Error() {
		return err
	}
	l.term = max(l.term, term)
	return l.describe(servers)
}

// restore takes up the newest snapshot.
func (l *lost) restore() (covered uint64, servers []raft.Server, err error) {
	newest, err := l.disk.newest()
	if err != nil || newest == "" {
		return 0, nil, err
	}
	meta, plain, err := l.disk.snapshots.Open(newest)
	if err != nil {
		return 0, nil, err
	}
	l.term = meta.Term
	return meta.Index, meta.Configuration.Servers, l.fsm.Restore(plain)
}

// describe completes the preview.
func (l *lost) describe(servers []raft.Server) error {
	state := l.fsm.published.Load()
	r := &l.preview
	r.Services, r.Tasks = state.Services.Len(), state.Tasks.Len()
	for _, server := range servers {
		if string(server.ID) != l.cfg.NodeID {
			r.Removed = append(r.Removed, Member{NodeID: string(server.ID), Address: string(server.Address), Voter: server.Suffrage == raft.Voter})
		}
	}
	note, err := l.disk.readContact()
	if err != nil {
		return err
	}
	committed, at := decodeContact(note)
	r.LastContact = at
	return r.readLog(l.disk.log, committed)
}

// readLog finds the newest change, and counts those above what is known to be committed.
func (r *Recovery) readLog(log *sealedLog, committed uint64) error {
	first, err := log.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	for index := last; index >= first && (index > committed || r.LastChange.IsZero()); index-- {
		var entry raft.Log
		if err := log.read(index, &entry); err != nil {
			return err
		}
		if entry.Type != raft.LogCommand {
			continue
		}
		commits, err := decodeEntry(entry.Data)
		if err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
		if r.LastChange.IsZero() {
			r.LastChange = commits[len(commits)-1].time
		}
		if index > committed {
			r.Unconfirmed += len(commits)
		}
	}
	return nil
}

// recover writes in an order in which an interruption leaves the old state or the new one, never a manager that the
// others would still listen to.
func (l *lost) recover() error {
	old, err := readLineage(l.disk.stable)
	if err != nil {
		return fmt.Errorf("read the cluster's lineage: %w", err)
	}
	term, index := l.term+recoveredTermJump, l.preview.LastIndex+1
	if err := l.disk.stable.SetUint64([]byte(lineageKey), nextLineage(old)); err != nil {
		return fmt.Errorf("write the cluster's new lineage: %w", err)
	}
	if err := l.disk.stable.SetUint64([]byte(raftTermKey), term); err != nil {
		return fmt.Errorf("write raft's term: %w", err)
	}
	l.dismissOthers(index)
	if err := l.writeSnapshot(index, term); err != nil {
		return err
	}
	first, err := l.disk.log.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	return l.disk.log.DeleteRange(first, l.preview.LastIndex)
}

// dismissOthers makes workers of the other managers, or they would become voters again by themselves.
func (l *lost) dismissOthers(index uint64) {
	var rows []*Node
	for row := range l.fsm.work.Nodes.All() {
		changed := *row
		if row.ID == l.cfg.NodeID {
			changed.Spec.Role, changed.Role, changed.Address = swarm.NodeRoleManager, swarm.NodeRoleManager, l.cfg.Address
		} else {
			changed.Spec.Role, changed.Role = swarm.NodeRoleWorker, swarm.NodeRoleWorker
		}
		changed.Version, changed.Index = index, index
		rows = append(rows, &changed)
	}
	for _, row := range rows {
		l.fsm.work.Nodes.put(row)
	}
	l.fsm.work.index = index
	l.fsm.publish(&Dirty{All: true})
}

// writeSnapshot writes a state in which this manager is the only one.
func (l *lost) writeSnapshot(index, term uint64) error {
	image, err := l.fsm.Snapshot()
	if err != nil {
		return err
	}
	address := raft.ServerAddress(l.cfg.Address)
	one := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(l.cfg.NodeID), Address: address}}}
	_, transport := raft.NewInmemTransport(address)
	sink, err := l.disk.snapshots.Create(raft.SnapshotVersionMax, index, term, one, 1, transport)
	if err != nil {
		return err
	}
	return image.Persist(sink)
}

// followContact notes now and then how far this manager knows the log to be committed, and when it last heard of a leader.
func (s *Store) followContact() {
	for {
		moved := s.leaderMoves()
		select {
		case <-moved:
		case <-time.After(contactPause):
		case <-s.closing:
			return
		}
		s.noteContact()
	}
}

func (s *Store) noteContact() {
	at := s.lastContact()
	if at.IsZero() {
		return
	}
	if err := s.disk.writeContact(encodeContact(s.raft.CommitIndex(), at)); err != nil {
		s.log.Debug("last contact with a leader not noted", "error", err)
	}
}

// lastContact is when this node last heard of a leader, itself included; zero for never.
func (s *Store) lastContact() time.Time {
	if s.raft.State() == raft.Leader {
		return time.Now()
	}
	return s.raft.LastContact()
}

func encodeContact(committed uint64, at time.Time) []byte {
	return fmt.Appendf(nil, "committed %d\nat %s\n", committed, at.UTC().Format(time.RFC3339))
}

// decodeContact takes what it cannot read for nothing: it is only told, nothing depends on it.
func decodeContact(note []byte) (committed uint64, at time.Time) {
	var when string
	if n, err := fmt.Fscanf(bytes.NewReader(note), "committed %d\nat %s\n", &committed, &when); n < 2 || err != nil {
		return 0, time.Time{}
	}
	at, err := time.Parse(time.RFC3339, when)
	if err != nil {
		return 0, time.Time{}
	}
	return committed, at
}
