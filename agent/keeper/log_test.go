package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writeLog makes a log of lines "line 0", "line 1", … one second apart, without a keeper: every third is stderr.
func writeLog(t *testing.T, cfg Config, from, to int, rotate bool) {
	t.Helper()
	j, err := openJSONFile(logPath(cfg.LogDir, id), 100, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	for n := from; n < to; n++ {
		if rotate && n > from && n%10 == 0 {
			if err := j.rotate(); err != nil {
				t.Fatal(err)
			}
		}
		stream := "stdout"
		if n%3 == 2 {
			stream = "stderr"
		}
		if _, err := j.write(appendRecord(nil, fmt.Appendf(nil, "line %d", n), true, stream, second(n))); err != nil {
			t.Fatal(err)
		}
	}
}

func second(n int) time.Time { return time.Date(2026, 1, 1, 0, 0, n, 0, time.UTC) }

func testConfig(t *testing.T) Config {
	dir := t.TempDir()
	return Config{RunDir: filepath.Join(dir, "r"), LogDir: filepath.Join(dir, "l"), Log: testLog(t)}
}

// numbers is which lines were read.
func numbers(t *testing.T, cfg Config, o ReadOptions) string {
	t.Helper()
	text := readText(t, cfg, o)
	for _, word := range []string{"stdout: ", "stderr: ", "line "} {
		text = strings.ReplaceAll(text, word, "")
	}
	return strings.TrimSpace(strings.ReplaceAll(text, "\n", " "))
}

func TestReadChoosesLines(t *testing.T) {
	cfg := testConfig(t)
	writeLog(t, cfg, 0, 35, true) // in four files
	for name, test := range map[string]struct {
		o    ReadOptions
		want string
	}{
		"tail":                 {ReadOptions{Stdout: true, Stderr: true, Tail: 3}, "32 33 34"},
		"tail over files":      {ReadOptions{Stdout: true, Stderr: true, Tail: 12}, "23 24 25 26 27 28 29 30 31 32 33 34"},
		"tail of whole files":  {ReadOptions{Stdout: true, Stderr: true, Tail: 5}, "30 31 32 33 34"},
		"tail of one stream":   {ReadOptions{Stderr: true, Tail: 4}, "23 26 29 32"},
		"tail 0":               {ReadOptions{Stdout: true, Stderr: true, Tail: 0}, ""},
		"tail beyond":          {ReadOptions{Stderr: true, Tail: 1000}, "2 5 8 11 14 17 20 23 26 29 32"},
		"since":                {ReadOptions{Stdout: true, Tail: -1, Since: second(27)}, "27 28 30 31 33 34"},
		"since and tail":       {ReadOptions{Stdout: true, Tail: 2, Since: second(27)}, "33 34"},
		"since after the tail": {ReadOptions{Stdout: true, Tail: 20, Since: second(33)}, "33 34"},
		"until":                {ReadOptions{Stdout: true, Tail: -1, Until: second(4)}, "0 1 3 4"},
		"until and tail":       {ReadOptions{Stdout: true, Tail: 2, Until: second(14)}, "12 13"},
		"nothing":              {ReadOptions{Tail: -1}, ""},
	} {
		if got := numbers(t, cfg, test.o); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if got := numbers(t, cfg, all()); !strings.HasPrefix(got, "0 1 2") || !strings.HasSuffix(got, "33 34") || len(strings.Fields(got)) != 35 {
		t.Errorf("all: %s", got)
	}
}

func TestTailReadsOnlyTheEnd(t *testing.T) {
	cfg := testConfig(t)
	writeLog(t, cfg, 0, 5000, false)
	file, err := os.Open(logPath(cfg.LogDir, id))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	counted := &countingReader{file: file}
	offset, found, _, err := tailOffset(counted, info.Size(), 10, func(Line) (bool, bool) { return true, false })
	if err != nil || found != 10 || counted.bytes > chunkBytesMax {
		t.Errorf("offset %d, found %d, read %d bytes, %v", offset, found, counted.bytes, err)
	}
	// Over the borders of blocks, too.
	if _, found, _, err := tailOffset(counted, info.Size(), 4990, func(Line) (bool, bool) { return true, false }); err != nil || found != 4990 {
		t.Errorf("found %d, %v", found, err)
	}
	if got := numbers(t, cfg, ReadOptions{Stdout: true, Stderr: true, Tail: 4321}); !strings.HasPrefix(got, "679 ") || len(strings.Fields(got)) != 4321 {
		t.Errorf("%d lines: %.40s", len(strings.Fields(got)), got)
	}
}

type countingReader struct {
	file  *os.File
	bytes int
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.bytes += len(p)
	return c.file.ReadAt(p, off)
}

func TestDamagedLinesAreSkipped(t *testing.T) {
	cfg := testConfig(t)
	writeLog(t, cfg, 0, 3, false)
	path := logPath(cfg.LogDir, id)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	half := text[:len(text)-20] // the machine lost power
	garbage := append(bytes.Repeat([]byte("x"), 2*recordBytesMax), '\n')
	if err := os.WriteFile(path, append(garbage, half...), 0o600); err != nil {
		t.Fatal(err)
	}
	writeLog(t, cfg, 3, 5, false)
	if got := numbers(t, cfg, all()); got != "0 1 3 4" {
		t.Errorf("got %s", got)
	}
	if got := numbers(t, cfg, ReadOptions{Stdout: true, Stderr: true, Tail: 3}); got != "1 3 4" {
		t.Errorf("tail: %s", got)
	}
	if got := numbers(t, cfg, ReadOptions{Stdout: true, Stderr: true, Tail: 30}); got != "0 1 3 4" {
		t.Errorf("long tail: %s", got)
	}
}

// startInProcess serves a keeper's logs without its process.
func startInProcess(t *testing.T, cfg Config) *keeper {
	t.Helper()
	k := &keeper{cfg: cfg, log: cfg.log(), logs: map[string]*containerLog{}}
	t.Cleanup(k.pauseLogs)
	return k
}

func (k *keeper) openForTest(t *testing.T, o LogOptions) (stdout, stderr *os.File) {
	t.Helper()
	outPath, errPath, err := k.openLog(id, o)
	if err != nil {
		t.Fatal(err)
	}
	return openWriter(t, outPath), openWriter(t, errPath)
}

func (k *keeper) closeForTest(t *testing.T) {
	t.Helper()
	if err := k.closeLog(id); err != nil {
		t.Fatal(err)
	}
}

func TestLogRotates(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{MaxSizeBytes: 1000, MaxFiles: 3})
	for n := range 200 {
		fmt.Fprintf(stdout, "line %d\n", n)
	}
	k.closeForTest(t)
	entries, err := filepath.Glob(filepath.Join(cfg.LogDir, id, "*json.log*"))
	if err != nil || len(entries) != 3 {
		t.Fatalf("files %v, %v", entries, err)
	}
	for _, path := range entries {
		if info, err := os.Stat(path); err != nil || info.Size() > 1000 {
			t.Errorf("%s: %d bytes, %v", path, info.Size(), err)
		}
	}
	got := numbers(t, cfg, all())
	if !strings.HasSuffix(got, "197 198 199") || len(strings.Fields(got)) < 25 {
		t.Errorf("got %s", got)
	}
}

func TestOneFileIsEmptiedWhenFull(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{MaxSizeBytes: 500, MaxFiles: 1})
	for n := range 50 {
		fmt.Fprintf(stdout, "line %d\n", n)
	}
	k.closeForTest(t)
	if got := numbers(t, cfg, all()); !strings.HasSuffix(got, " 49") || len(strings.Fields(got)) > 7 {
		t.Errorf("got %s", got)
	}
}

func TestLongLinesAreSplit(t *testing.T) {
	for _, length := range []int{0, 1, lineBytesMax - 1, lineBytesMax, lineBytesMax + 1, 5 * lineBytesMax, 300_000} {
		cfg := testConfig(t)
		k := startInProcess(t, cfg)
		stdout, _ := k.openForTest(t, LogOptions{})
		long := strings.Repeat("x", length)
		fmt.Fprintf(stdout, "%s\nnext\n", long)
		k.closeForTest(t)
		var got strings.Builder
		err := ReadLog(t.Context(), cfg.LogDir, id, all(), func(l Line) error {
			if len(l.Text) > lineBytesMax+1 {
				t.Errorf("%d bytes in a piece", len(l.Text))
			}
			got.Write(l.Text)
			return nil
		})
		if err != nil || got.String() != long+"\nnext\n" {
			t.Errorf("line of %d bytes: %d bytes, %v", length, got.Len(), err)
		}
	}
}

func TestDiscardedLogNeverBlocksItsWriter(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{Discard: true})
	for range 4 {
		if _, err := stdout.Write(make([]byte, pipeBytes)); err != nil {
			t.Fatal(err)
		}
	}
	k.closeForTest(t)
	if _, err := os.Stat(filepath.Join(cfg.LogDir, id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("discarded log has a directory: %v", err)
	}
	if _, err := os.Stat(cfg.openDir(id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed log has FIFOs: %v", err)
	}
}

// A file limit stands for a full disk: writing fails for a while, and the container goes on.
func TestFullDiskDropsLinesAndSaysSo(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{})
	fmt.Fprintln(stdout, "line 0")
	awaitSpools(t, k)

	l := k.logs[id]
	l.mu.Lock()
	whole := l.file.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		l.mu.Unlock()
		t.Fatal(err)
	}
	l.file.file = full
	l.mu.Unlock()
	for n := 1; n < 4; n++ {
		fmt.Fprintf(stdout, "line %d\n", n)
	}
	awaitSpools(t, k)
	l.mu.Lock()
	l.file.file = whole
	l.mu.Unlock()
	full.Close()
	fmt.Fprintln(stdout, "line 4")
	k.closeForTest(t)
	got := readText(t, cfg, all())
	if want := "stdout: line 0\nstderr: swarm: 3 lines of this log were dropped: write /dev/full: no space left on device\nstdout: line 4\n"; got != want {
		t.Errorf("got %q", got)
	}
}

// awaitSpools returns when everything written so far was read from the FIFOs.
func awaitSpools(t *testing.T, k *keeper) {
	t.Helper()
	l := k.logs[id]
	deadline := time.Now().Add(10 * time.Second)
	for _, s := range l.streams {
		raw, err := s.fifo.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for waiting := 1; waiting > 0 || !l.digested(s); {
			if time.Now().After(deadline) {
				t.Fatal("the FIFO is not read")
			}
			if err := raw.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (l *containerLog) digested(s *stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, err := s.spool.Stat()
	return err == nil && s.done >= info.Size()
}

// What a keeper wrote without taking note of it is written again, and half a line waits for its end.
func TestNextKeeperResumesWhereTheLastOneTookNote(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{MaxSizeBytes: 10_000, MaxFiles: 2})
	fmt.Fprint(stdout, "line 0\nli")
	awaitFIFO(t, k, 9)
	k.pauseLogs()
	delete(k.logs, id)

	fmt.Fprint(stdout, "ne 1\n") // nobody reads
	log, err := os.OpenFile(logPath(cfg.LogDir, id), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(log, `{"log":"uncommitted`)
	log.Close()

	next := startInProcess(t, cfg)
	next.resumeLogs()
	if got := next.logs[id].options; got.MaxSizeBytes != 10_000 || got.MaxFiles != 2 {
		t.Errorf("options %+v", got)
	}
	fmt.Fprintln(stdout, "line 2")
	next.closeForTest(t)
	if got := readText(t, cfg, all()); got != "stdout: line 0\nstdout: line 1\nstdout: line 2\n" {
		t.Errorf("got %q", got)
	}
}

// awaitFIFO returns when n bytes of stdout were taken.
func awaitFIFO(t *testing.T, k *keeper, n int64) {
	t.Helper()
	l := k.logs[id]
	for deadline := time.Now().Add(10 * time.Second); ; {
		l.mu.Lock()
		info, err := l.streams[0].spool.Stat()
		taken := err == nil && info.Size() >= n && l.streams[0].done > 0
		l.mu.Unlock()
		if taken {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the FIFO is not read")
		}
	}
}

// The run directory is full, or its file system knows no splice: the FIFO is emptied nevertheless.
func TestFIFOIsEmptiedWithoutASpool(t *testing.T) {
	dir := t.TempDir()
	s, err := openStream(dir, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	w := openWriter(t, filepath.Join(dir, "stdout"))
	var lent chunks

	s.copying = true
	fmt.Fprint(w, "one\ntwo")
	if got, err := s.wait(&lent); err != nil || got.bytes != 7 || s.filled != 7 {
		t.Errorf("%+v, %d in the spool, %v", got, s.filled, err)
	}
	s.copying = false
	s.spool.Close()
	if s.spool, err = os.OpenFile("/dev/full", os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "one\ntwo\n")
	if got, err := s.wait(&lent); err != nil || got.dropped != 2 || !errors.Is(got.err, unix.ENOSPC) {
		t.Errorf("%+v, %v", got, err)
	}
	s.interrupt()
	if _, err := s.wait(&lent); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestRecordsAreDockersJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	for text, want := range map[string]string{
		"plain":             `{"log":"plain\n","stream":"stdout","time":"2026-01-02T03:04:05.0000006Z"}`,
		"a\"b\\c\td\x01\r":  `{"log":"a\"b\\c\td\u0001\r\n","stream":"stdout","time":"2026-01-02T03:04:05.0000006Z"}`,
		"grüß <b> \xff end": `{"log":"grüß <b> \ufffd end\n","stream":"stdout","time":"2026-01-02T03:04:05.0000006Z"}`,
	} {
		if got := string(appendRecord(nil, []byte(text), true, "stdout", at)); got != want+"\n" {
			t.Errorf("got %s", got)
		}
	}
}
