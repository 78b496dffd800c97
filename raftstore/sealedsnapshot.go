package raftstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// snapshotChunkBytes is how much plain data is sealed at once; snapshotChunkBytesMax bounds what is read back.
	snapshotChunkBytes    = 64 << 10
	snapshotChunkBytesMax = 2 * snapshotChunkBytes
	// snapshotFlushBytes is how much of a snapshot is given to the disk at a time.
	snapshotFlushBytes = 4 << 20
	// snapshotsKept is how many snapshots stay on disk.
	snapshotsKept = 2
)

// sealedSnapshots seals snapshots in chunks, each bound to its snapshot and place, so that none can be changed, moved or
// cut off. raft and the other managers see plain data: each manager seals with its own key.
type sealedSnapshots struct {
	raft.SnapshotStore
	sealer Sealer
	// dir is where the snapshots are, named in errors.
	dir string
	// flush has what is there of a snapshot written; nil where that means nothing.
	flush func(id string) error
	// logged is how many bytes of the log were stored so far.
	logged func() int64
	// closing cuts writing and reading short: a large snapshot takes longer than the store may take to end.
	closing <-chan struct{}
	// opened is told of the members in a snapshot that is read; nil tells nobody.
	opened func(index uint64, members raft.Configuration)

	mu sync.Mutex // guards:
	// newest describes the newest snapshot.
	newest SnapshotStats
	// logBytes is how much of the log there was when the newest was begun.
	logBytes int64
}

// logSince is how much of the log the newest snapshot does not cover.
func (s *sealedSnapshots) logSince() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logged() - s.logBytes
}

func (s *sealedSnapshots) stats() SnapshotStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

func (s *sealedSnapshots) note(newest SnapshotStats, logBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest, s.logBytes = newest, logBytes
}

// Create begins a snapshot.
func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, transport raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, transport)
	if err != nil {
		return nil, fmt.Errorf("create snapshot in %s: %w", s.dir, err)
	}
	context := snapshotContext(index, term, configuration, configurationIndex)
	return &sealedSink{SnapshotSink: sink, chunks: chunks{sealer: s.sealer, context: context}, of: s, index: index, began: time.Now(), logBytes: s.logged()}, nil
}

// snapshotContext also covers the membership, which lies in plain text beside the sealed state.
func snapshotContext(index, term uint64, configuration raft.Configuration, configurationIndex uint64) []byte {
	context := []byte("swarm snapshot ")
	for _, n := range []uint64{index, term, configurationIndex} {
		context = binary.BigEndian.AppendUint64(context, n)
	}
	return append(context, raft.EncodeConfiguration(configuration)...)
}

// Open reads a snapshot. Every chunk is authenticated before the first byte is handed out, so nobody starts on a snapshot that is damaged further on.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	_, plain, err := s.openOnce(id)
	if err != nil {
		return nil, nil, err
	}
	size, err := io.Copy(io.Discard, plain)
	if err := errors.Join(err, plain.Close()); err != nil {
		return nil, nil, cmp.Or(s.stopping(), s.damaged(id, err))
	}
	meta, plain, err := s.openOnce(id)
	if err != nil {
		return nil, nil, err
	}
	meta.Size = size
	if s.opened != nil {
		s.opened(meta.ConfigurationIndex, meta.Configuration)
	}
	return meta, plain, nil
}

func (s *sealedSnapshots) openOnce(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, sealed, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, s.damaged(id, err)
	}
	context := snapshotContext(meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex)
	return meta, &sealedReader{sealed: sealed, of: s, chunks: chunks{sealer: s.sealer, context: context}}, nil
}

// stopping is the error of work that nobody waits for any more.
func (s *sealedSnapshots) stopping() error {
	select {
	case <-s.closing:
		return errStopped()
	default:
		return nil
	}
}

func (s *sealedSnapshots) damaged(id string, err error) error {
	return fmt.Errorf("snapshot %s cannot be read: %w. Nothing was changed. %s", filepath.Join(s.dir, id), err, rejoinAdvice)
}

// chunks seals and opens the chunks of one snapshot in order.
type chunks struct {
	sealer  Sealer
	context []byte
	count   uint64
}

// place binds a chunk to its number and says whether it is the last.
func (c *chunks) place(last bool) []byte {
	place := binary.BigEndian.AppendUint64(bytes.Clone(c.context), c.count)
	if last {
		return append(place, 1)
	}
	return append(place, 0)
}

// sealedSink holds back the last chunk until Close, because only then it is known to be the last.
type sealedSink struct {
	raft.SnapshotSink
	chunks
	of    *sealedSnapshots
	index uint64
	began time.Time
	// logBytes is how much of the log there was at the beginning.
	logBytes int64
	// sizeBytes is what was written so far, sealed.
	sizeBytes int64
	// unflushed is how much of it the kernel may not have written yet.
	unflushed int
	plain     []byte
	closed    bool
}

func (s *sealedSink) Write(p []byte) (int, error) {
	s.plain = append(s.plain, p...)
	for len(s.plain) > snapshotChunkBytes {
		if err := s.seal(s.plain[:snapshotChunkBytes], false); err != nil {
			return 0, err
		}
		s.plain = append(s.plain[:0], s.plain[snapshotChunkBytes:]...)
	}
	return len(p), nil
}

// seal writes a chunk: last byte, length in 4 bytes, sealed data.
func (s *sealedSink) seal(plain []byte, last bool) error {
	if err := s.of.stopping(); err != nil {
		return err
	}
	sealed, err := s.sealer.Seal(plain, s.place(last))
	if err != nil {
		return err
	}
	s.count++
	var header [5]byte
	if last {
		header[0] = 1
	}
	binary.BigEndian.PutUint32(header[1:], uint32(len(sealed)))
	if _, err := s.SnapshotSink.Write(header[:]); err != nil {
		return err
	}
	n, err := s.SnapshotSink.Write(sealed)
	n += len(header)
	// Who commits meanwhile goes first.
	runtime.Gosched()
	s.sizeBytes += int64(n)
	s.unflushed += n
	if err == nil && s.unflushed >= snapshotFlushBytes && s.of.flush != nil {
		s.unflushed = 0
		// Where the file system cannot do it, the snapshot is written when it is closed.
		_ = s.of.flush(s.ID())
	}
	return err
}

// Close may be called again, as raft does after Persist.
func (s *sealedSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.seal(s.plain, true); err != nil {
		return errors.Join(err, s.SnapshotSink.Cancel())
	}
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	s.of.note(SnapshotStats{Index: s.index, SizeBytes: s.sizeBytes, Time: time.Now(), Took: time.Since(s.began)}, s.logBytes)
	return nil
}

// Cancel drops the snapshot.
func (s *sealedSink) Cancel() error {
	s.closed = true
	return s.SnapshotSink.Cancel()
}

type sealedReader struct {
	sealed io.ReadCloser
	of     *sealedSnapshots
	chunks
	plain []byte
	ended bool
}

func (r *sealedReader) Read(p []byte) (int, error) {
	for len(r.plain) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

func (r *sealedReader) fill() error {
	if err := r.of.stopping(); err != nil {
		return err
	}
	var header [5]byte
	if _, err := io.ReadFull(r.sealed, header[:]); err != nil {
		return fmt.Errorf("it is cut short: %w", noEOF(err))
	}
	size := binary.BigEndian.Uint32(header[1:])
	if header[0] > 1 || size > snapshotChunkBytesMax {
		return fmt.Errorf("chunk %d has a damaged header", r.count)
	}
	sealed := make([]byte, size)
	if _, err := io.ReadFull(r.sealed, sealed); err != nil {
		return fmt.Errorf("it is cut short: %w", noEOF(err))
	}
	r.ended = header[0] == 1
	var err error
	if r.plain, err = r.sealer.Open(sealed, r.place(r.ended)); err != nil {
		return fmt.Errorf("chunk %d: %w", r.count, err)
	}
	r.count++
	if !r.ended {
		return nil
	}
	if _, err := io.ReadFull(r.sealed, header[:1]); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func (r *sealedReader) Close() error { return r.sealed.Close() }

// noEOF keeps a missing end from looking like the end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
