package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"swarm/scenarios/lab"
)

const (
	againAfter    = 50 * time.Millisecond  // first pause of a step marked *
	againAfterMax = 400 * time.Millisecond // and the longest
)

// Settings of a telling.
type Settings struct {
	BinDir string // swarm, docker, hello.tar
	// Slowness multiplies every limit; 1 on a machine of one's own.
	Slowness float64
	// Prefix of the lab's name; a number follows.
	Prefix string
	// KeepDir gets the whole logs of a story that did not come true; empty: they go with the lab.
	KeepDir string
	Log     io.Writer
}

// teller is one telling of one story.
type teller struct {
	*World
	settings  Settings
	verbs     map[string]verb
	variables map[string]string
	memory    map[string]map[string]string // service → task → container and pid
	stdin     []byte
	clients   *clients // nil: nobody is recorded
}

// Tell runs a story in a fresh lab, checks the invariants and removes the lab.
// The error of a story that did not come true holds the step, the cluster's state and the agents' last words.
func Tell(ctx context.Context, story *Story, settings Settings) (err error) {
	l, err := openFree(settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	work, err := os.MkdirTemp("", "story-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for _, file := range story.files {
		if err := os.WriteFile(filepath.Join(work, filepath.Base(file.Name)), file.Data, 0o644); err != nil {
			return err
		}
	}
	t := &teller{
		World:     NewWorld(l, filepath.Join(settings.BinDir, "docker")),
		settings:  settings,
		verbs:     allVerbs(),
		variables: map[string]string{"HELLO": filepath.Join(settings.BinDir, "hello.tar"), "WORK": work},
		memory:    map[string]map[string]string{},
	}
	defer func() {
		if t.clients != nil {
			t.clients.stop()
		}
	}()
	watch := startWatch(ctx, t.World)
	for _, s := range story.steps {
		if err := t.do(ctx, s); err != nil {
			watch.stop()
			return fmt.Errorf("%s.txtar:%d: %s\n%w\n%s", story.Name, s.line, s.text, err, t.autopsy(ctx, story))
		}
	}
	err = t.again(ctx, t.limit(settleMax), func(ctx context.Context) error { return settled(ctx, t.World) })
	if err = errors.Join(err, watch.stop()); err != nil {
		return fmt.Errorf("%s.txtar: invariant after the story: %w\n%s", story.Name, err, t.autopsy(ctx, story))
	}
	return nil
}

// autopsy reports, and keeps the logs before the lab is removed.
func (t *teller) autopsy(ctx context.Context, story *Story) string {
	report := Report(ctx, t.World)
	if t.settings.KeepDir == "" {
		return report
	}
	dir := filepath.Join(t.settings.KeepDir, story.Name)
	if err := keepLogs(t.World, dir); err != nil {
		return report + "keep the logs: " + err.Error()
	}
	return report + "the whole logs are in " + dir
}

// openFree takes the first lab of the prefix that nobody uses.
func openFree(settings Settings) (*lab.Lab, error) {
	const labsMax = 99
	for i := 1; i <= labsMax; i++ {
		l, err := lab.Open(lab.Config{Name: fmt.Sprintf("%s%d", settings.Prefix, i), Program: filepath.Join(settings.BinDir, "swarm")})
		if !errors.Is(err, lab.ErrInUse) {
			return l, err
		}
	}
	return nil, fmt.Errorf("%d labs are in use", labsMax)
}

func (t *teller) limit(d time.Duration) time.Duration {
	return time.Duration(float64(d) * t.settings.Slowness)
}

func (t *teller) do(ctx context.Context, s step) error {
	began := time.Now()
	defer func() {
		fmt.Fprintf(t.settings.Log, "%6.1fs  %s\n", time.Since(began).Seconds(), s.text)
	}()
	if s.retry == 0 {
		ctx, cancel := context.WithTimeout(ctx, t.limit(patience))
		defer cancel()
		return t.once(ctx, s)
	}
	return t.again(ctx, t.limit(s.retry), func(ctx context.Context) error { return t.once(ctx, s) })
}

// again tries until it works or the limit is over, and returns the last error.
func (t *teller) again(ctx context.Context, limit time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for pause := againAfter; ; pause = min(2*pause, againAfterMax) {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // an attempt that was cut short explains nothing
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not true within %s: %w", limit, last)
		case <-time.After(pause):
		}
	}
}

func (t *teller) once(ctx context.Context, s step) error {
	args := make([]string, len(s.words))
	for i, w := range s.words {
		args[i] = t.expand(ctx, w)
	}
	t.stdin = nil
	if s.stdin != nil {
		content, err := os.ReadFile(t.expand(ctx, *s.stdin))
		if err != nil {
			return err
		}
		t.stdin = content
	}
	output, err := t.run(ctx, args)
	switch {
	case s.fails && err == nil:
		return fmt.Errorf("it worked, but must fail:\n%s", output)
	case !s.fails && err != nil:
		return fmt.Errorf("%w\n%s", err, output)
	case s.fails:
		output += "\n" + err.Error()
	}
	if s.pattern == nil {
		return nil
	}
	pattern, err := regexp.Compile("(?m)" + t.expand(ctx, *s.pattern))
	if err != nil {
		return err
	}
	if pattern.MatchString(output) == s.absent {
		return fmt.Errorf("output must%s match %s:\n%s", map[bool]string{true: " not"}[s.absent], pattern, output)
	}
	return nil
}

// run one command line: a verb of ours, or swarm's on the seat.
func (t *teller) run(ctx context.Context, args []string) (string, error) {
	if verb, ok := t.verbs[args[0]]; ok {
		return verb(t, ctx, args[1:])
	}
	seat, err := t.Seat(ctx)
	if err != nil {
		return "", err
	}
	return t.Swarm(ctx, seat, t.input(), args...)
}

func (t *teller) input() io.Reader {
	if t.stdin == nil {
		return nil
	}
	return bytes.NewReader(t.stdin)
}

// expand $NAME and ${NAME}: what the story has set, addresses by node name, and the names of $leader and $follower.
func (t *teller) expand(ctx context.Context, w word) string {
	if w.literal {
		return w.text
	}
	return os.Expand(w.text, func(name string) string {
		if name == "leader" || name == "follower" {
			n, err := t.Find(ctx, name)
			if err != nil {
				return "no-" + name
			}
			return n.Name
		}
		if n := t.Lab.Node(name); n != nil {
			return n.Address
		}
		return strings.TrimSpace(t.variables[name])
	})
}
