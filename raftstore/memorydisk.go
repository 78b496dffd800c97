package raftstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// MemoryDisk is a replica's disk for simulations: what Open finds again after a Crash is what had been synced. Every write
// is synced before it returns, as on a real disk, so only what is under way is lost. It belongs to one Store at a time.
type MemoryDisk struct {
	mu sync.Mutex // guards:
	// content is what a machine that starts now finds.
	content *memoryContent
	// open is the handle of the Store that has it now.
	open *memoryHandle
	// pending is the write that is under way.
	pending *memoryWrite
	full    bool
	failing bool
	// safe is what a Crash leaves of a disk that lies; nil while it does not.
	safe  *memoryContent
	delay time.Duration
}

// memoryContent is what has reached the disk. Entries, values and snapshots are never changed in place.
type memoryContent struct {
	owner     string
	first     uint64 // index of log[0]
	log       []*raft.Log
	values    map[string][]byte
	numbers   map[string]uint64
	snapshots []*memorySnapshot // oldest first
	contact   []byte
}

type memorySnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// memoryWrite is a change of the content; half is what a torn write leaves of it, nil for nothing.
type memoryWrite struct {
	whole, half func(*memoryContent)
}

// memoryHandle is one Store's use of the disk; after a Crash it reads what it had and writes nothing.
type memoryHandle struct {
	disk *MemoryDisk
	// writing holds a token for the one write at a time. It is a channel because who waits for a mutex stops virtual time.
	writing chan struct{}
	content *memoryContent
	dead    bool
}

// NewMemoryDisk returns an empty disk.
func NewMemoryDisk() *MemoryDisk {
	return &MemoryDisk{content: &memoryContent{values: map[string][]byte{}, numbers: map[string]uint64{}}}
}

// Crash cuts the power: the Store that has the disk open writes nothing any more, and the next Open finds what was synced.
// With torn, of the write under way the first half is there too.
func (d *MemoryDisk) Crash(torn bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kept := d.content.clone()
	if d.safe != nil {
		kept, torn = d.safe.clone(), false
	}
	if torn && d.pending != nil && d.pending.half != nil {
		d.pending.half(kept)
	}
	if d.open != nil {
		d.open.dead = true
	}
	d.content, d.open, d.pending = kept, nil, nil
}

// Erase removes everything, as a node does that leaves its cluster. The Store that has the disk open writes nothing any more.
func (d *MemoryDisk) Erase() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		d.open.dead = true
	}
	d.content = &memoryContent{values: map[string][]byte{}, numbers: map[string]uint64{}}
	d.open, d.pending = nil, nil
}

// SetFull makes writes fail for want of space.
func (d *MemoryDisk) SetFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// SetFailing makes writes fail as on broken hardware.
func (d *MemoryDisk) SetFailing(failing bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = failing
}

// SetLying makes writes seem synced that a Crash loses: a disk with a cache that forgets. No cluster can survive that on most of its
// managers; it is for tests of those who watch over lost writes.
func (d *MemoryDisk) SetLying(lying bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.safe = nil
	if lying {
		d.safe = d.content.clone()
	}
}

// SetDelay makes every write take a time.
func (d *MemoryDisk) SetDelay(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

func (c *memoryContent) clone() *memoryContent {
	copied := *c
	copied.log, copied.snapshots = slices.Clone(c.log), slices.Clone(c.snapshots)
	copied.values, copied.numbers = maps.Clone(c.values), maps.Clone(c.numbers)
	return &copied
}

// openMemory takes the disk for a Store.
func openMemory(d *MemoryDisk, nodeID string) (*bottom, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		return nil, errors.New("the memory disk is in use by another store")
	}
	if d.content.owner != "" && d.content.owner != nodeID {
		return nil, fmt.Errorf("the memory disk belongs to node %q, not to this node %q", d.content.owner, nodeID)
	}
	d.content.owner = nodeID
	h := &memoryHandle{disk: d, content: d.content, writing: make(chan struct{}, 1)}
	d.open = h
	return &bottom{
		log: h, stable: h, snapshots: h, where: "memory", logPath: "memory/" + logFile, snapshotDir: "memory/snapshots",
		newest: h.newest, readContact: h.readContact, writeContact: h.writeContact, close: h.close,
	}, nil
}

func (h *memoryHandle) close() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.disk.open == h {
		h.disk.open = nil
	}
	h.dead = true
	return nil
}

// errPowerOff is what writes to a disk meet after a Crash.
var errPowerOff = errors.New("the machine of this disk is switched off")

// write makes a change as slowly, and as surely, as the disk is set to.
func (h *memoryHandle) write(op string, change memoryWrite) error {
	h.writing <- struct{}{}
	defer func() { <-h.writing }()
	delay, err := h.beginWrite(op, &change)
	if err != nil {
		return err
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.dead {
		return errPowerOff
	}
	h.disk.pending = nil
	change.whole(h.content)
	return nil
}

func (h *memoryHandle) beginWrite(op string, change *memoryWrite) (time.Duration, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	switch {
	case h.dead:
		return 0, errPowerOff
	case h.disk.full:
		return 0, fmt.Errorf("%s: %w", op, syscall.ENOSPC)
	case h.disk.failing:
		return 0, fmt.Errorf("%s: %w", op, syscall.EIO)
	}
	h.disk.pending = change
	return h.disk.delay, nil
}

// read looks at the content.
func (h *memoryHandle) read(look func(*memoryContent)) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	look(h.content)
}

// FirstIndex is 0 for an empty log.
func (h *memoryHandle) FirstIndex() (first uint64, err error) {
	h.read(func(c *memoryContent) {
		if len(c.log) > 0 {
			first = c.first
		}
	})
	return first, nil
}

// LastIndex is 0 for an empty log.
func (h *memoryHandle) LastIndex() (last uint64, err error) {
	h.read(func(c *memoryContent) {
		if len(c.log) > 0 {
			last = c.first + uint64(len(c.log)) - 1
		}
	})
	return last, nil
}

// GetLog copies an entry.
func (h *memoryHandle) GetLog(index uint64, to *raft.Log) error {
	err := raft.ErrLogNotFound
	h.read(func(c *memoryContent) {
		if len(c.log) > 0 && index >= c.first && index-c.first < uint64(len(c.log)) {
			*to, err = *c.log[index-c.first], nil
			to.Data = bytes.Clone(to.Data)
		}
	})
	return err
}

// StoreLog appends one entry.
func (h *memoryHandle) StoreLog(entry *raft.Log) error { return h.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends entries, all or none; a torn write leaves the first half of them.
func (h *memoryHandle) StoreLogs(entries []*raft.Log) error {
	follows := true
	h.read(func(c *memoryContent) { follows = len(entries) == 0 || c.follows(entries[0].Index) })
	if !follows {
		return fmt.Errorf("entry %d would leave a hole in the log", entries[0].Index)
	}
	copies := make([]*raft.Log, len(entries))
	for i, e := range entries {
		entry := *e
		entry.Data = bytes.Clone(e.Data)
		copies[i] = &entry
	}
	return h.write("write "+logFile, memoryWrite{
		whole: func(c *memoryContent) { c.append(copies) },
		half:  func(c *memoryContent) { c.append(copies[:len(copies)/2]) },
	})
}

// follows says whether entries can be stored without a hole before them, which a log never has.
func (c *memoryContent) follows(index uint64) bool {
	return len(c.log) == 0 || index >= c.first && index-c.first <= uint64(len(c.log))
}

// append overwrites what has the same index.
func (c *memoryContent) append(entries []*raft.Log) {
	for _, e := range entries {
		next := c.first + uint64(len(c.log))
		switch {
		case len(c.log) == 0:
			c.first, c.log = e.Index, []*raft.Log{e}
		case e.Index == next:
			c.log = append(c.log, e)
		default:
			c.log[e.Index-c.first] = e
		}
	}
}

// DeleteRange drops entries at the front or at the end.
func (h *memoryHandle) DeleteRange(from, to uint64) error {
	return h.write("write "+logFile, memoryWrite{whole: func(c *memoryContent) {
		end := c.first + uint64(len(c.log)) // exclusive
		if len(c.log) == 0 || to < c.first || from >= end {
			return
		}
		front, back := c.log[:max(from, c.first)-c.first], c.log[min(to+1, end)-c.first:]
		if len(front) == 0 {
			c.first = min(to+1, end)
			c.log = slices.Clone(back)
			return
		}
		c.log = slices.Clone(front)
	}})
}

// Set keeps one of raft's values.
func (h *memoryHandle) Set(key, value []byte) error {
	kept := bytes.Clone(value)
	return h.write("write "+logFile, memoryWrite{whole: func(c *memoryContent) { c.values[string(key)] = kept }})
}

// errNoValue has the text by which raft knows a value that was never set.
var errNoValue = errors.New("not found")

// Get returns one of raft's values.
func (h *memoryHandle) Get(key []byte) (value []byte, err error) {
	h.read(func(c *memoryContent) { value = bytes.Clone(c.values[string(key)]) })
	if value == nil {
		return nil, errNoValue
	}
	return value, nil
}

// SetUint64 keeps one of raft's numbers.
func (h *memoryHandle) SetUint64(key []byte, value uint64) error {
	return h.write("write "+logFile, memoryWrite{whole: func(c *memoryContent) { c.numbers[string(key)] = value }})
}

// GetUint64 returns one of raft's numbers.
func (h *memoryHandle) GetUint64(key []byte) (value uint64, err error) {
	known := false
	h.read(func(c *memoryContent) { value, known = c.numbers[string(key)] })
	if !known {
		return 0, errNoValue
	}
	return value, nil
}

// Create begins a snapshot, which is there once it is closed.
func (h *memoryHandle) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	id := fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli())
	return &memorySink{handle: h, snapshot: &memorySnapshot{meta: raft.SnapshotMeta{
		Version: version, ID: id, Index: index, Term: term, Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}}, nil
}

// List has the newest snapshot first.
func (h *memoryHandle) List() (metas []*raft.SnapshotMeta, err error) {
	h.read(func(c *memoryContent) {
		for _, s := range slices.Backward(c.snapshots) {
			meta := s.meta
			metas = append(metas, &meta)
		}
	})
	return metas, nil
}

// Open reads a snapshot.
func (h *memoryHandle) Open(id string) (meta *raft.SnapshotMeta, data io.ReadCloser, err error) {
	err = fmt.Errorf("snapshot %s is not there", id)
	h.read(func(c *memoryContent) {
		for _, s := range c.snapshots {
			if s.meta.ID == id {
				copied := s.meta
				meta, data, err = &copied, io.NopCloser(bytes.NewReader(s.data)), nil
			}
		}
	})
	return meta, data, err
}

// newest is empty without a snapshot.
func (h *memoryHandle) newest() (id string, err error) {
	h.read(func(c *memoryContent) {
		if n := len(c.snapshots); n > 0 {
			id = c.snapshots[n-1].meta.ID
		}
	})
	return id, nil
}

func (h *memoryHandle) readContact() (content []byte, err error) {
	h.read(func(c *memoryContent) { content = c.contact })
	return content, nil
}

func (h *memoryHandle) writeContact(content []byte) error {
	return h.write("write "+contactFile, memoryWrite{whole: func(c *memoryContent) { c.contact = content }})
}

type memorySink struct {
	handle   *memoryHandle
	snapshot *memorySnapshot
	closed   bool
}

func (s *memorySink) ID() string { return s.snapshot.meta.ID }

func (s *memorySink) Write(p []byte) (int, error) {
	s.snapshot.data = append(s.snapshot.data, p...)
	return len(p), nil
}

// Close syncs the snapshot; one that was cut off by a crash is not there.
func (s *memorySink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.snapshot.meta.Size = int64(len(s.snapshot.data))
	return s.handle.write("write snapshot", memoryWrite{whole: func(c *memoryContent) {
		kept := append(slices.Clone(c.snapshots), s.snapshot)
		slices.SortStableFunc(kept, func(a, b *memorySnapshot) int {
			return cmp.Or(cmp.Compare(a.meta.Term, b.meta.Term), cmp.Compare(a.meta.Index, b.meta.Index))
		})
		c.snapshots = kept[max(0, len(kept)-snapshotsKept):]
	}})
}

func (s *memorySink) Cancel() error {
	s.closed = true
	return nil
}
