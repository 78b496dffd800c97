package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// sealedLog seals the data of every entry before it reaches the log below, bound to the entry's place, and remembers
// which entries are commands.
type sealedLog struct {
	raft.LogStore
	sealer Sealer
	// path is the log's file, named in errors.
	path string
	// broken is told of an entry that cannot be read.
	broken func(error)
	// live is set once raft's own goroutines run: from then on an error would be answered by a panic.
	live atomic.Bool
	// sizeBytes counts what was stored, and what the start found beyond the newest snapshot.
	sizeBytes atomic.Int64
	// applied is the index of the last applied command.
	applied func() uint64

	mu sync.Mutex // guards:
	// commands are the indexes of commands stored since the start and not yet known to be applied, in ascending order.
	commands []uint64
	// fault is the last write that failed, nil after one that did not; faultAt is when.
	fault   error
	faultAt time.Time
	// voteFault is why raft's term or vote cannot be written just now.
	voteFault error
}

// place binds sealed data to its entry, so that entries cannot change places.
func place(l *raft.Log) []byte {
	context := append([]byte("swarm raft log "), byte(l.Type))
	context = binary.BigEndian.AppendUint64(context, l.Index)
	return binary.BigEndian.AppendUint64(context, l.Term)
}

// GetLog reads one entry. raft has no answer to a damaged entry but panic, so this stops the replica and ends raft's goroutine
// instead: its deferred calls run, and it touches nothing more.
func (s *sealedLog) GetLog(index uint64, l *raft.Log) error {
	err := s.read(index, l)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || !s.live.Load() {
		return err
	}
	s.broken(err)
	runtime.Goexit()
	return err
}

// read is GetLog for those who can handle an error.
func (s *sealedLog) read(index uint64, l *raft.Log) error {
	if err := s.LogStore.GetLog(index, l); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return s.damaged(index, err)
	}
	if l.Index != index {
		return s.damaged(index, fmt.Errorf("it says it is entry %d", l.Index))
	}
	plain, err := s.sealer.Open(l.Data, place(l))
	if err != nil {
		return s.damaged(index, err)
	}
	l.Data = plain
	return nil
}

func (s *sealedLog) damaged(index uint64, err error) error {
	return fmt.Errorf("entry %d of the cluster log %s cannot be read: %w. Nothing was changed. %s", index, s.path, err, rejoinAdvice)
}

// rejoinAdvice ends errors about damaged files.
const rejoinAdvice = "If other managers are running, remove this node from the cluster, delete its data directory and join it again; otherwise restore the data directory from a copy"

// StoreLog stores one entry.
func (s *sealedLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs seals and stores entries, all or none.
func (s *sealedLog) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		data, err := s.sealer.Seal(l.Data, place(l))
		if err != nil {
			return s.stored(fmt.Errorf("seal entry %d: %w", l.Index, err))
		}
		c := *l
		c.Data = data
		sealed[i] = &c
	}
	if err := s.LogStore.StoreLogs(sealed); err != nil {
		return s.stored(fmt.Errorf("write the cluster log %s: %w", s.path, err))
	}
	for _, l := range sealed {
		s.sizeBytes.Add(int64(len(l.Data)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = nil
	s.forget(s.applied())
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			s.commands = append(s.commands, l.Index)
		}
	}
	return nil
}

// storeFault marks an error of a log write, which says that the commit was not made durable here.
type storeFault struct{ error }

func (e storeFault) Unwrap() error { return e.error }

func (s *sealedLog) stored(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.faultAt = storeFault{err}, time.Now()
	return s.fault
}

// faultSince is the error of the last write, nil if it went well or was before a time.
func (s *sealedLog) faultSince(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faultAt.Before(t) {
		return nil
	}
	return s.fault
}

// standingFault is why this manager cannot write now, nil if it can.
func (s *sealedLog) standingFault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == nil {
		return s.voteFault
	}
	return s.fault
}

func (s *sealedLog) setVoteFault(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.voteFault = err
}

// deleteMax is how many entries are removed at once: meanwhile none can be stored.
const deleteMax = 1024

// DeleteRange removes entries, at the front to compact and at the end to drop what a new leader does not have.
func (s *sealedLog) DeleteRange(from, to uint64) error {
	if err := s.deleteInParts(from, to); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.commands[:0]
	for _, index := range s.commands {
		if index < from || index > to {
			kept = append(kept, index)
		}
	}
	s.commands = kept
	return nil
}

// deleteInParts leaves a log without holes whenever it is interrupted: from the front it goes forward, from the end backward.
func (s *sealedLog) deleteInParts(from, to uint64) error {
	first, err := s.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	from, to = max(from, first), min(to, last)
	if from > to {
		return nil
	}
	for front := from == first; to-from >= deleteMax; {
		part := [2]uint64{to - deleteMax + 1, to}
		if front {
			part = [2]uint64{from, from + deleteMax - 1}
			from += deleteMax
		} else {
			to -= deleteMax
		}
		if err := s.LogStore.DeleteRange(part[0], part[1]); err != nil {
			return err
		}
	}
	return s.LogStore.DeleteRange(from, to)
}

// IsMonotonic has raft remove the whole log when a snapshot is installed that goes beyond it: entries that follow the
// snapshot would leave a hole, and a hole is how damage looks.
func (s *sealedLog) IsMonotonic() bool { return true }

// lastCommand is the index of the last command at or below limit.
func (s *sealedLog) lastCommand(limit uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.applied()
	s.forget(last)
	for _, index := range s.commands {
		if index > limit {
			break
		}
		last = index
	}
	return last
}

// forget drops commands that are applied. It needs mu.
func (s *sealedLog) forget(applied uint64) {
	n := 0
	for n < len(s.commands) && s.commands[n] <= applied {
		n++
	}
	s.commands = append(s.commands[:0], s.commands[n:]...)
}

// stableRetry is how long to wait before writing raft's term or vote again.
const stableRetry = time.Second

// patientStable keeps raft's term and vote. raft panics when they cannot be written, for instance because the disk is
// full; this one holds raft up instead, which to the other managers looks like a manager that is away, and nothing can be voted twice.
type patientStable struct {
	raft.StableStore
	live *atomic.Bool
	// closing ends the wait, and raft's goroutine with it: it must not go on with a vote that is not on disk.
	closing <-chan struct{}
	// report is told of every attempt, nil of one that went well.
	report func(error)
}

func (s patientStable) Set(key, value []byte) error {
	return s.insist(func() error { return s.StableStore.Set(key, value) })
}

func (s patientStable) SetUint64(key []byte, value uint64) error {
	return s.insist(func() error { return s.StableStore.SetUint64(key, value) })
}

func (s patientStable) insist(write func() error) error {
	for {
		err := write()
		s.report(err)
		if err == nil || !s.live.Load() {
			return err
		}
		select {
		case <-time.After(stableRetry):
		case <-s.closing:
			runtime.Goexit()
		}
	}
}
