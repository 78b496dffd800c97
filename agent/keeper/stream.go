package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	syscallNoFollow = unix.O_NOFOLLOW
	// pipeBytes is how much a container may write while nobody reads: the time of a keeper's restart.
	pipeBytes = 1 << 20
	// lineBytesMax is where a longer line is split into several records, as docker does.
	lineBytesMax = 16 << 10
	// chunkBytesMax is read at once. It must hold a whole line.
	chunkBytesMax = 64 << 10
	// spoolKeptBytes may stay in a spool after it was read, before its space is given back.
	spoolKeptBytes = 16 << 10
)

// stream is one FIFO of a container on its way into the log. The bytes are moved (by splice, in the
// kernel) from the FIFO to the spool, a file, and from there into the log; the log's commit record
// says how much of the spool is in the log. So a keeper that is killed at any point has lost nothing,
// and its successor writes nothing twice.
type stream struct {
	name string
	fifo *os.File
	// spool is a file whose bytes before done are in the log; filled is its end.
	spool        *os.File
	done, filled int64
	// copying is set where the file system of the spool has no splice.
	copying bool
}

func openStream(dir, name string) (*stream, error) {
	path := filepath.Join(dir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make FIFO %s: %w", path, err)
	}
	// Both ends: a writer can always open it, never gets EPIPE and we never see its end.
	fifo, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|syscallNoFollow, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", path, err)
	}
	enlarge(fifo)
	spool, err := os.OpenFile(filepath.Join(dir, name+".spool"), os.O_CREATE|os.O_RDWR|syscallNoFollow, 0o600)
	if err != nil {
		fifo.Close()
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &stream{name: name, fifo: fifo, spool: spool}
	if s.filled, err = spool.Seek(0, 2); err != nil {
		s.close()
		return nil, fmt.Errorf("open spool: %w", err)
	}
	return s, nil
}

// enlarge is best effort: an unprivileged keeper may have used up its share of pipe memory.
func enlarge(fifo *os.File) {
	raw, err := fifo.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeBytes) })
}

func (s *stream) close() {
	s.fifo.Close()
	s.spool.Close()
}

// chunks lends buffers: few streams have something to say at the same time.
type chunks struct{ pool sync.Pool }

func (c *chunks) get() *[]byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, chunkBytesMax)
	return &b
}

func (c *chunks) put(b *[]byte) { c.pool.Put(b) }

// wait blocks until the FIFO has something (moved to the spool when it returns), or the stream was interrupted.
func (s *stream) wait(lent *chunks) (taken, error) {
	raw, err := s.fifo.SyscallConn()
	if err != nil {
		return taken{}, err
	}
	var t taken
	err = raw.Read(func(fd uintptr) bool {
		t = s.take(int(fd), lent)
		return !t.empty
	})
	return t, err
}

// interrupt makes wait return an error, now and later.
func (s *stream) interrupt() { _ = s.fifo.SetReadDeadline(time.Unix(1, 0)) }

// taken is what one look at the FIFO gave.
type taken struct {
	bytes   int
	empty   bool
	dropped int   // lines that had to be thrown away
	err     error // why
}

// take moves what the FIFO holds now, up to a chunk, into the spool. When the spool cannot take it (its
// file system is full) it is thrown away: a container must never hang because of its log.
func (s *stream) take(fd int, lent *chunks) taken {
	for !s.copying {
		n, err := unix.Splice(fd, nil, int(s.spool.Fd()), nil, chunkBytesMax, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == nil:
			s.filled += int64(n)
			return taken{bytes: int(n), empty: n == 0}
		case errors.Is(err, unix.EAGAIN):
			return taken{empty: true}
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL):
			s.copying = true
		default:
			return s.drop(fd, lent, err)
		}
	}
	return s.copy(fd, lent)
}

func (s *stream) copy(fd int, lent *chunks) taken {
	b := lent.get()
	defer lent.put(b)
	n, t := readOnce(fd, *b)
	if n == 0 {
		return t
	}
	if _, err := s.spool.WriteAt((*b)[:n], s.filled); err != nil {
		return taken{bytes: n, dropped: countLines((*b)[:n]), err: err}
	}
	s.filled += int64(n)
	return taken{bytes: n}
}

func (s *stream) drop(fd int, lent *chunks, why error) taken {
	b := lent.get()
	defer lent.put(b)
	n, t := readOnce(fd, *b)
	if n == 0 {
		return t
	}
	return taken{bytes: n, dropped: countLines((*b)[:n]), err: why}
}

func readOnce(fd int, b []byte) (int, taken) {
	for {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n <= 0:
			return 0, taken{empty: true}
		}
		return n, taken{}
	}
}

// countLines counts at least one: half a line is a loss, too.
func countLines(b []byte) int {
	n := 0
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return max(n, 1)
}

// forget gives the space of what is in the log back. Reports whether offsets changed and must be committed.
func (s *stream) forget() bool {
	switch {
	case s.done == s.filled && s.done >= spoolKeptBytes:
		if s.spool.Truncate(0) != nil {
			return false
		}
		_, _ = s.spool.Seek(0, 0)
		s.done, s.filled = 0, 0
		return true
	case s.done >= chunkBytesMax*4:
		// Best effort: where holes cannot be punched the spool shrinks at the next quiet moment.
		raw, err := s.spool.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, s.done&^4095)
			})
		}
	}
	return false
}
