package keeper

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// containerLog reads the two FIFOs of a container into its log.
type containerLog struct {
	id      string
	dir     string // its FIFOs, spools, options and commit record
	options LogOptions
	streams [2]*stream
	lent    *chunks
	log     *slog.Logger
	readers sync.WaitGroup

	mu     sync.Mutex // guards what follows, and the streams' offsets
	file   *jsonFile  // nil when everything is discarded
	commit *os.File
	// dropped lines could not be written; a line in the log tells so once there is space again.
	dropped   int
	dropCause error
	// batch holds records on their way to the file, during digest.
	batch           []byte
	rotateNotBefore time.Time
}

// rotateRetry is how long a log grows on after it could not be rotated.
const rotateRetry = time.Minute

// openContainerLog opens or resumes the log of a container and begins to read.
func openContainerLog(cfg Config, id string, o LogOptions, lent *chunks) (*containerLog, error) {
	l := &containerLog{id: id, dir: cfg.openDir(id), options: o, lent: lent, log: cfg.log().With("container", id)}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log of %s: %w", id, err)
	}
	if err := saveOptions(l.dir, o); err != nil {
		return nil, fmt.Errorf("open log of %s: %w", id, err)
	}
	if err := l.open(cfg.LogDir); err != nil {
		l.closeFiles()
		return nil, fmt.Errorf("open log of %s: %w", id, err)
	}
	for _, s := range l.streams {
		l.readers.Go(func() { l.read(s) })
	}
	return l, nil
}

func (l *containerLog) open(logDir string) (err error) {
	for i, name := range []string{"stdout", "stderr"} {
		if l.streams[i], err = openStream(l.dir, name); err != nil {
			return err
		}
	}
	if l.options.Discard {
		return nil
	}
	if l.commit, err = os.OpenFile(filepath.Join(l.dir, "commit"), os.O_CREATE|os.O_RDWR|syscallNoFollow, 0o600); err != nil {
		return err
	}
	committed := l.resume()
	if l.file, err = openJSONFile(logPath(logDir, l.id), l.options.MaxFiles, committed); err != nil {
		return err
	}
	if err := os.Remove(closedPath(logDir, l.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return l.save()
}

// commitBytes: checksum (4), version (4), bytes of the log file (8), bytes done of either spool (8 each).
const (
	commitBytes   = 32
	commitVersion = 1
)

// resume takes up the offsets that an earlier keeper left and returns how much of the log file counts, -1 when unknown.
func (l *containerLog) resume() int64 {
	record := make([]byte, commitBytes)
	if n, _ := l.commit.ReadAt(record, 0); n < commitBytes {
		return -1
	}
	if crc32.ChecksumIEEE(record[4:]) != binary.BigEndian.Uint32(record) || binary.BigEndian.Uint32(record[4:]) != commitVersion {
		l.log.Error("progress of a log is unreadable; some lines may appear twice", "file", l.commit.Name())
		return -1
	}
	for i, s := range l.streams {
		// Beyond the end: it was emptied just before the record would have been written.
		if done := int64(binary.BigEndian.Uint64(record[16+8*i:])); done <= s.filled {
			s.done = done
		}
	}
	return int64(binary.BigEndian.Uint64(record[8:]))
}

// save writes the commit record: one small write, which a kill cannot cut in half.
func (l *containerLog) save() error {
	record := make([]byte, commitBytes)
	binary.BigEndian.PutUint32(record[4:], commitVersion)
	binary.BigEndian.PutUint64(record[8:], uint64(l.file.size))
	for i, s := range l.streams {
		binary.BigEndian.PutUint64(record[16+8*i:], uint64(s.done))
	}
	binary.BigEndian.PutUint32(record, crc32.ChecksumIEEE(record[4:]))
	_, err := l.commit.WriteAt(record, 0)
	return err
}

// read moves one stream until it is interrupted.
func (l *containerLog) read(s *stream) {
	l.digest(s, taken{}, false) // what an earlier keeper left in the spool
	for {
		t, err := s.wait(l.lent)
		if err != nil {
			return
		}
		l.digest(s, t, false)
	}
}

// digest writes what is in the spool into the log. Half a line stays, unless the stream is at its end.
func (l *containerLog) digest(s *stream, t taken, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		s.done = s.filled
		s.forget()
		return
	}
	if t.dropped > 0 {
		l.noteDropped(t.dropped, t.err)
	}
	chunk, batch := l.lent.get(), l.lent.get()
	l.batch = (*batch)[:0]
	defer func() {
		l.lent.put(chunk)
		l.lent.put(batch) // not one that grew: encoding rarely needs more
	}()
	now := time.Now()
	for atEnd := false; s.done < s.filled && !atEnd; {
		n, err := s.spool.ReadAt((*chunk)[:min(int64(chunkBytesMax), s.filled-s.done)], s.done)
		if n == 0 {
			l.log.Error("spool cannot be read", "error", err)
			l.noteDropped(1, err)
			s.done = s.filled
			break
		}
		atEnd = s.done+int64(n) == s.filled
		l.records(s, (*chunk)[:n], end && atEnd, now)
		l.flush()
	}
	if s.forget() {
		l.trySave()
	}
}

// records splits text into records; half a line at its end is left over unless it is the end of the stream.
func (l *containerLog) records(s *stream, text []byte, end bool, now time.Time) {
	for used := 0; used < len(text); {
		rest := text[used:]
		line := rest[:min(len(rest), lineBytesMax)]
		newline, skip := false, 0
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line, newline, skip = line[:i], true, 1
		} else if len(rest) > lineBytesMax && rest[lineBytesMax] == '\n' {
			newline, skip = true, 1
		} else if len(rest) < lineBytesMax {
			if !end {
				return
			}
			newline = true
		}
		l.add(line, newline, s, now)
		used += len(line) + skip
		s.done += int64(len(line) + skip)
	}
}

// add puts a record into the batch, and begins a new file when the current one would grow too big.
// It is called before the stream counts the line as done.
func (l *containerLog) add(line []byte, newline bool, s *stream, now time.Time) {
	before := len(l.batch)
	l.batch = appendRecord(l.batch, line, newline, s.name, now)
	limit := l.options.MaxSizeBytes
	if limit <= 0 || l.file.size+int64(len(l.batch)) <= limit || l.file.size+int64(before) == 0 || now.Before(l.rotateNotBefore) {
		return
	}
	record := l.batch[before:]
	l.batch = l.batch[:before]
	l.flush()
	if err := l.file.rotate(); err != nil {
		l.log.Warn("log is not rotated; trying again later", "error", err)
		l.rotateNotBefore = now.Add(rotateRetry)
	}
	l.trySave()
	l.batch = append(l.batch[:0], record...)
}

// flush writes the batch, and then that it is written.
func (l *containerLog) flush() {
	if len(l.batch) == 0 {
		return
	}
	lines := bytes.Count(l.batch, []byte{'\n'})
	out := l.batch
	if l.dropped > 0 {
		out = append(l.lossRecord(), l.batch...)
	}
	l.batch = l.batch[:0]
	if _, err := l.file.write(out); err != nil {
		l.noteDropped(lines, err)
	} else {
		l.dropped, l.dropCause = 0, nil
	}
	l.trySave()
}

func (l *containerLog) trySave() {
	if err := l.save(); err != nil {
		l.log.Warn("progress of a log is not saved", "error", err)
	}
}

func (l *containerLog) noteDropped(lines int, why error) {
	if l.dropped == 0 {
		l.log.Warn("log lines are dropped", "error", why)
		l.dropCause = why
	}
	l.dropped += lines
}

func (l *containerLog) lossRecord() []byte {
	text := fmt.Sprintf("swarm: %d lines of this log were dropped: %v", l.dropped, l.dropCause)
	return appendRecord(nil, []byte(text), true, "stderr", time.Now())
}

// pause stops reading and leaves everything in place for the next keeper.
func (l *containerLog) pause() {
	for _, s := range l.streams {
		s.interrupt()
	}
	l.readers.Wait()
	l.closeFiles()
}

// finish reads what is left, ends the log and removes the FIFOs.
func (l *containerLog) finish(logDir string) error {
	for _, s := range l.streams {
		s.interrupt()
	}
	l.readers.Wait()
	for _, s := range l.streams {
		l.drain(s)
	}
	l.mu.Lock()
	if l.dropped > 0 && l.file != nil {
		if _, err := l.file.write(l.lossRecord()); err == nil {
			l.dropped = 0
		}
	}
	l.mu.Unlock()
	l.closeFiles()
	if l.options.Discard {
		return os.RemoveAll(l.dir)
	}
	err := os.WriteFile(closedPath(logDir, l.id), nil, 0o600)
	return errors.Join(err, os.RemoveAll(l.dir))
}

// drainBytesMax bounds what finish still reads: a writer that never stops is not waited for.
const drainBytesMax = 64 * pipeBytes

func (l *containerLog) drain(s *stream) {
	raw, err := s.fifo.SyscallConn()
	if err != nil {
		return
	}
	var t taken
	for total := 0; !t.empty && total < drainBytesMax; total += t.bytes {
		if raw.Control(func(fd uintptr) { t = s.take(int(fd), l.lent) }) != nil {
			break
		}
		l.digest(s, t, false)
	}
	l.digest(s, taken{}, true)
}

func (l *containerLog) closeFiles() {
	for _, s := range l.streams {
		if s != nil {
			s.close()
		}
	}
	if l.file != nil {
		l.file.close()
	}
	if l.commit != nil {
		l.commit.Close()
	}
}

// fifoPaths are where the container writes.
func (l *containerLog) fifoPaths() (stdout, stderr string) {
	return filepath.Join(l.dir, "stdout"), filepath.Join(l.dir, "stderr")
}

func saveOptions(dir string, o LogOptions) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "options.json")
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func loadOptions(dir string) (LogOptions, error) {
	o := LogOptions{MaxFiles: 1}
	path := filepath.Join(dir, "options.json")
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err != nil {
		return LogOptions{MaxFiles: 1}, fmt.Errorf("read %s: %w", path, err)
	}
	return o, nil
}
