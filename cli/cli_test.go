package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite the expected texts under testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"swarm": func() { os.Exit(Main(os.Args, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the command lines of testdata/script against an agent that gives the answers written there.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			// Unix socket paths are short; $WORK may not be.
			dir, err := os.MkdirTemp("", "cli")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("SOCKET", filepath.Join(dir, "s"))
			env.Setenv("SWARM_HOST", "unix://"+filepath.Join(dir, "s"))
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"agent": agentCommand},
	})
}

// The help of our own commands is reviewed as text: read the diff after go test -update.
func TestHelpOfOurCommands(t *testing.T) {
	for _, line := range []string{"", "init", "join", "join-token", "leave", "info", "version", "agent", "keeper"} {
		t.Run(strings.TrimSpace("swarm "+line), func(t *testing.T) {
			out, _, status := runLine(append(strings.Fields(line), "--help")...)
			if status != 0 {
				t.Fatalf("exit status %d", status)
			}
			golden(t, filepath.Join("testdata", "help", "swarm-"+line+".txt"), out)
		})
	}
}

func TestEachVisibleCommandExplainsItself(t *testing.T) {
	eachCommand(t, func(t *testing.T, c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("Short %q, Example %q: give both", c.Short, c.Example)
		}
		out, errors, status := runLine(append(strings.Fields(c.CommandPath())[1:], "--help")...)
		if status != 0 || errors != "" || !strings.HasPrefix(out, "Usage:  "+c.CommandPath()) {
			t.Errorf("--help: status %d, errors %q, output %q", status, errors, out)
		}
	})
}

// Commands hoisted from docker must not send people to another program.
func TestHelpSpeaksOfOurselves(t *testing.T) {
	foreign := regexp.MustCompile(`(?i)docker|mobyproject`)
	eachCommand(t, func(t *testing.T, c *cobra.Command) {
		if at := foreign.FindString(c.UsageString()); at != "" {
			t.Errorf("help says %q:\n%s", at, c.UsageString())
		}
	})
}

func TestExamplesParse(t *testing.T) {
	eachCommand(t, func(t *testing.T, c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			words := strings.Fields(strings.NewReplacer("'", "", "(", "", ")", "").Replace(line))
			if words[0] != "swarm" {
				t.Fatalf("example %q does not begin with swarm", line)
			}
			named, rest, err := c.Root().Traverse(words[1:])
			if err != nil || named == c.Root() {
				t.Fatalf("example %q: %v", line, err)
			}
			if err := named.ParseFlags(beforeRedirection(rest)); err != nil && !errors.Is(err, pflag.ErrHelp) {
				t.Errorf("example %q: %v", line, err)
			}
		}
	})
}

func beforeRedirection(words []string) []string {
	for i, w := range words {
		if w == "<" || w == ">" {
			return words[:i]
		}
	}
	return words
}

func TestFlagsThatAreNotOfferedExist(t *testing.T) {
	root := testRoot(t)
	for path, flags := range notOffered {
		c, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		for _, name := range strings.Fields(flags) {
			if f := c.Flags().Lookup(name); f == nil || !f.Hidden {
				t.Errorf("%s --%s is not a hidden flag: docker changed it, follow", path, name)
			}
		}
	}
}

func TestEachHoistedCommandExists(t *testing.T) {
	root := testRoot(t)
	for _, h := range hoisted {
		for name := range h.examples {
			if c, _, err := root.Find([]string{h.group, name}); err != nil || c.Name() != name {
				t.Errorf("docker's tree has no %s %s", h.group, name)
			}
		}
	}
}

func TestAnUnreachableAgentSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		cause error
		want  string
	}{
		{syscall.ENOENT, "cannot reach the agent at unix:///s: is `swarm agent` running? (systemctl status swarm)"},
		{syscall.ECONNREFUSED, "cannot reach the agent at unix:///s: is `swarm agent` running? (systemctl status swarm)"},
		{syscall.EACCES, "not allowed to reach the agent at unix:///s: only root and members of group swarm are (sudo usermod -aG swarm $USER, then log in again)"},
		{syscall.EMFILE, "cannot reach the agent at unix:///s: too many open files"},
	} {
		if got := unreachable("/s", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", c.cause)}).Error(); got != c.want {
			t.Errorf("%v: got  %s\nwant %s", c.cause, got, c.want)
		}
	}
}

func TestDockersEnvironmentHasNoSay(t *testing.T) {
	t.Setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
	t.Setenv("DOCKER_CONTEXT", "elsewhere")
	t.Setenv("DOCKER_API_VERSION", "1.1")
	t.Setenv("SWARM_HOST", "unix:///nonexistent/s")
	_, stderr, status := runLine("node", "ls")
	if status != 1 || !strings.HasPrefix(stderr, "cannot reach the agent at unix:///nonexistent/s: ") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

func TestASignalEndsLongLivedPartsInOrder(t *testing.T) {
	cleaned := false
	err := untilSignal(context.Background(), func(ctx context.Context) error {
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
		<-ctx.Done()
		cleaned = true
		return fmt.Errorf("wait for work: %w", ctx.Err())
	})
	if err != nil || !cleaned {
		t.Errorf("cleaned %v, err %v; want a clean end", cleaned, err)
	}
	broken := fmt.Errorf("dial: %w", context.Canceled)
	if err := untilSignal(context.Background(), func(context.Context) error { return broken }); err != broken {
		t.Errorf("got %v, want the part's own error: no signal came", err)
	}
}

func TestProgressIsBriefAndNamesOurCommand(t *testing.T) {
	var out bytes.Buffer
	e, err := newEngine(io.NopCloser(strings.NewReader("")), &out, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.rewriteHints(); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"0 out of 2", "0 out of 2", "1 out of 2", "Use `docker service ps s1` to check progress."} {
		fmt.Fprint(e.Out(), "progress: ") // docker writes a line in pieces
		fmt.Fprintln(e.Out(), line)
	}
	if got, want := out.String(), "progress: 0 out of 2\nprogress: 1 out of 2\nprogress: Use `swarm service ps s1` to check progress.\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func runLine(args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	status = run(context.Background(), args, io.NopCloser(strings.NewReader("")), &out, &errs)
	return out.String(), errs.String(), status
}

func testRoot(t *testing.T) *cobra.Command {
	t.Helper()
	root, err := newRoot(nil, io.NopCloser(strings.NewReader("")), io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// eachCommand calls f for every command that help shows.
func eachCommand(t *testing.T, f func(*testing.T, *cobra.Command)) {
	t.Helper()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		t.Run(c.CommandPath(), func(t *testing.T) { f(t, c) })
		for _, child := range c.Commands() {
			if child.IsAvailableCommand() {
				walk(child)
			}
		}
	}
	walk(testRoot(t))
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is missing: go test -update", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update, then read the diff):\n%s", path, firstDifference(got, string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d\n got  %q\n want %q", i+1, g[i], append(w, "(end)")[min(i, len(w))])
		}
	}
	return fmt.Sprintf("line %d: want %q, got the end", len(g)+1, w[len(g)])
}
