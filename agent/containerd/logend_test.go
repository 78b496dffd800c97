package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swarm/agent/keeper"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"
)

// keptLogs are logs of a real keeper.
type keptLogs struct {
	*keeper.Client
	dir string
}

func (k keptLogs) OpenLog(ctx context.Context, id, _ string, _ map[string]string) (stdout, stderr string, err error) {
	return k.Client.OpenLog(ctx, id, keeper.LogOptions{MaxFiles: 1})
}

// newKeptBench is a bench whose logs a keeper has.
func newKeptBench(t *testing.T) (*bench, keptLogs) {
	t.Helper()
	needRoot(t)
	logs := runKeeper(t)
	b := newBench(t)
	b.close()
	b.cfg.Logs = logs
	b.open()
	return b, logs
}

func socketMissing(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "k.sock"))
	return err != nil
}

func runKeeper(t *testing.T) keptLogs {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "swkpr")
	check(t, err)
	cfg := keeper.Config{RunDir: dir, LogDir: filepath.Join(dir, "logs")}
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- keeper.Run(ctx, cfg) }()
	t.Cleanup(func() {
		end()
		check(t, <-ended)
		os.RemoveAll(dir)
	})
	for socketMissing(dir) && pause(t.Context(), probeEvery) && len(ended) == 0 {
	}
	client, err := keeper.Ensure(t.Context(), cfg)
	check(t, err)
	return keptLogs{client, cfg.LogDir}
}

// follow reads a log to its end, which has to come by itself.
func (k keptLogs) follow(t *testing.T, id string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var text strings.Builder
	err := keeper.ReadLog(ctx, k.dir, id, keeper.ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true}, func(l keeper.Line) error {
		_, err := text.Write(l.Text)
		return err
	})
	if err != nil || ctx.Err() != nil {
		t.Errorf("the log of %.12s has no end: %v", id, err)
	}
	return text.String()
}

func TestLogEndsWithItsProcess(t *testing.T) {
	b, logs := newKeptBench(t)
	const lines = 20000
	c := b.container(args("count", fmt.Sprint(lines)))
	b.start(c)
	waited := make(chan int, 1)
	go func() { waited <- b.wait(c.ID).Code }()
	text := logs.follow(t, c.ID)
	if n, last := strings.Count(text, "\n"), fmt.Sprintf("line %d\n", lines); n != lines || !strings.HasSuffix(text, last) {
		t.Errorf("%d lines, the last of them %q", n, text[max(0, len(text)-40):])
	}
	if code := <-waited; code != 0 {
		t.Errorf("exit code %d", code)
	}
	// What is repeated after the end must not open the log again.
	check(t, b.runtime.Create(t.Context(), c))
	_, err := b.runtime.Start(t.Context(), c.ID)
	check(t, err)
	equal(t, "followed again", fmt.Sprint(strings.Count(logs.follow(t, c.ID), "\n")), fmt.Sprint(lines))
	check(t, b.runtime.Remove(t.Context(), c.ID))
}

func TestLogOfAProcessThatNobodySawEndEndsToo(t *testing.T) {
	b, logs := newKeptBench(t)
	c := b.container(args("graceful"))
	pid := b.start(c)
	b.close()
	ended, err := processEnd(t.Context(), pid)
	check(t, err)
	check(t, unix.Kill(pid, unix.SIGKILL))
	<-ended
	b.open()
	// The agent is killed between the record of the end and the end of the log.
	_, err = b.runtime.recordExit(c.ID, 137, time.Now())
	check(t, err)
	_, err = b.runtime.List(t.Context())
	check(t, err)
	logs.follow(t, c.ID)
}

func TestLogOfACommandThatIsMissingEnds(t *testing.T) {
	b, logs := newKeptBench(t)
	c := b.container(having(func(s *swarm.ContainerSpec) { s.Command = []string{"nope"} }))
	check(t, b.runtime.Create(t.Context(), c))
	for range 2 {
		if _, err := b.runtime.Start(t.Context(), c.ID); err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
			t.Errorf("start: %v", err)
		}
		equal(t, "log", logs.follow(t, c.ID), "")
	}
}
