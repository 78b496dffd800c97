package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// TestMain is the keeper process, too: Ensure starts this test binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 5 && os.Args[1] == "keeper" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := Run(ctx, Config{RunDir: os.Args[3], LogDir: os.Args[5], Log: log}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const id = "c0ffee"

// startKeeper runs a keeper process in short-named directories and ends it with the test.
func startKeeper(t *testing.T) (*Client, Config) {
	t.Helper()
	dir, err := os.MkdirTemp("", "k")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{RunDir: filepath.Join(dir, "r"), LogDir: filepath.Join(dir, "l"), Executable: os.Args[0], Log: testLog(t)}
	c, err := Ensure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(cfg.stderrPath())
			t.Logf("keeper said:\n%s", text)
		}
		os.RemoveAll(dir)
	})
	return c, cfg
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// openWriter opens a container's end of a FIFO, as its shim does: for reading, too.
func openWriter(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openLog(t *testing.T, c *Client, o LogOptions) (stdout, stderr *os.File) {
	t.Helper()
	outPath, errPath, err := c.OpenLog(t.Context(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	return openWriter(t, outPath), openWriter(t, errPath)
}

// readText is the whole log as "stream: text" pieces.
func readText(t *testing.T, cfg Config, o ReadOptions) string {
	t.Helper()
	var b strings.Builder
	err := ReadLog(t.Context(), cfg.LogDir, id, o, func(l Line) error {
		fmt.Fprintf(&b, "%s: %s", l.Stream, l.Text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func all() ReadOptions { return ReadOptions{Stdout: true, Stderr: true, Tail: -1} }

func TestLogKeepsBothStreams(t *testing.T) {
	c, cfg := startKeeper(t)
	stdout, _ := openLog(t, c, LogOptions{MaxFiles: 1})
	fmt.Fprintln(stdout, `one "quoted" <b>`)
	fmt.Fprint(stdout, "unfinished")
	if err := c.CloseLog(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got, want := readText(t, cfg, all()), "stdout: one \"quoted\" <b>\nstdout: unfinished\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// Opened again it goes on where it was.
	_, stderr := openLog(t, c, LogOptions{MaxFiles: 1})
	fmt.Fprintln(stderr, "two")
	if err := c.CloseLog(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got, want := readText(t, cfg, ReadOptions{Stderr: true, Tail: -1}), "stderr: two\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := c.RemoveLog(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	err := ReadLog(t.Context(), cfg.LogDir, id, all(), nil)
	if !errdefs.IsNotFound(err) {
		t.Errorf("reading a removed log: %v", err)
	}
}

// A keeper that is killed in the middle of a stream, again and again, loses no line and writes none twice.
func TestKilledKeeperLosesNothing(t *testing.T) {
	const lines, kills = 200_000, 6
	c, cfg := startKeeper(t)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- c.Run(ctx) }()
	defer func() { cancel(); <-watched }()
	stdout, _ := openLog(t, c, LogOptions{MaxSizeBytes: 4 << 20, MaxFiles: 10})
	wrote := make(chan error, 1)
	killAt := make(chan struct{})
	go func() {
		w := bufio.NewWriterSize(stdout, 777)
		for n := range lines {
			fmt.Fprintf(w, "line %d\n", n)
			if n%(lines/kills) == lines/kills/2 {
				killAt <- struct{}{}
			}
		}
		wrote <- w.Flush()
	}()
	for range kills {
		<-killAt
		pid := c.PID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for c.PID() == pid {
			if _, _, err := c.call(t.Context(), request{Op: opHello}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if err := c.CloseLog(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := ReadLog(t.Context(), cfg.LogDir, id, all(), func(l Line) error {
		if want := fmt.Sprintf("line %d\n", n); string(l.Text) != want {
			return fmt.Errorf("got %q, want %q", l.Text, want)
		}
		n++
		return nil
	})
	if err != nil || n != lines {
		t.Errorf("%d lines of %d, %v", n, lines, err)
	}
}

func TestEnsureAdoptsTheRunningKeeper(t *testing.T) {
	c, cfg := startKeeper(t)
	again, err := Ensure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c.PID() != again.PID() {
		t.Errorf("pid %d became %d", c.PID(), again.PID())
	}
	err = Run(t.Context(), cfg)
	if !errdefs.IsConflict(err) {
		t.Errorf("a second keeper: %v", err)
	}
}

func TestEnsureTellsWhyTheKeeperDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "r")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(run, "c"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Ensure(t.Context(), Config{RunDir: run, LogDir: dir, Executable: os.Args[0]})
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v", err)
	}
}

func TestListenerSurvivesItsClientAndItsKeeper(t *testing.T) {
	c, cfg := startKeeper(t)
	l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close() // the agent died

	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("nothing listens while the agent is away: %v", err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")

	c2, err := Ensure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l2, err := c2.Listen(t.Context(), "tcp", "127.0.0.1:0", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l2)
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 204") {
		t.Fatalf("got %q, %v", answer, err)
	}

	// The keeper dies; the agent's socket goes to the next one.
	if err := syscall.Kill(c2.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if l, err = c2.Listen(t.Context(), "tcp", "127.0.0.1:0", 0, -1); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Addr().String() != address {
		t.Errorf("address %s became %s", address, l.Addr())
	}
	if err := c2.Release(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, l net.Listener) {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

func TestListenNamesTheAddressInUse(t *testing.T) {
	c, cfg := startKeeper(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = c.Listen(t.Context(), "tcp", taken.Addr().String(), 0, -1)
	if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), taken.Addr().String()+": another program uses this address") {
		t.Errorf("got %v", err)
	}
	path := filepath.Join(filepath.Dir(cfg.RunDir), "s")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Listen(t.Context(), "unix", path, 0o660, -1); !errdefs.IsConflict(err) {
		t.Errorf("got %v", err)
	}
	other.(*net.UnixListener).SetUnlinkOnClose(false)
	other.Close() // a stale file stays
	l, err := c.Listen(t.Context(), "unix", path, 0o660, os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := c.Listen(t.Context(), "udp", "127.0.0.1:0", 0, -1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if err := c.Release(t.Context(), "unix", path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("released socket file: %v", err)
	}
}
