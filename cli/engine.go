package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/context/docker"
	"github.com/moby/moby/client"
)

const (
	// defaultHost is where an agent with default flags serves its API.
	defaultHost = "unix:///run/swarm/swarm.sock"
	// hostVariable is the environment variable that --host falls back to.
	hostVariable = "SWARM_HOST"
	// silenceNotice is how long the agent may be silent before a command says that it waits.
	silenceNotice = 3 * time.Second
	// answerBytesMax bounds what is read of an answer that we decode ourselves.
	answerBytesMax = 16 << 20
)

// engine is what docker's commands and ours know of the world: the streams and a client for one agent.
// It stands in for docker's own context: DOCKER_HOST, docker contexts, TLS variables, plugins and hooks have no say.
// Docker's configuration file is read for registry credentials and output formats only.
type engine struct {
	*command.DockerCli
	// host is --host as given; empty means SWARM_HOST, then the default socket.
	host string

	once   sync.Once
	client *client.Client
	warned sync.Once
	first  sync.Once // connection: the one whose silence is spoken of
}

func newEngine(stdin io.ReadCloser, stdout, stderr io.Writer) (*engine, error) {
	inner, err := command.NewDockerCli(command.WithInputStream(stdin), command.WithOutputStream(stdout), command.WithErrorStream(stderr))
	if err != nil {
		return nil, err
	}
	return &engine{DockerCli: inner}, nil
}

// rewriteHints makes the output of a command that shows progress speak of us. Other output, of containers above all, is never touched.
func (e *engine) rewriteHints() error {
	terminal := e.Out().IsTerminal()
	if err := command.WithOutputStream(&rewriter{Writer: e.Out(), terminal: terminal})(e.DockerCli); err != nil {
		return err
	}
	e.Out().SetIsTerminal(terminal)
	return nil
}

// Client talks to the agent. A host that makes no sense surfaces with the first request, like one that does not answer.
func (e *engine) Client() client.APIClient {
	e.once.Do(func() {
		// Every connection goes through e.dial, so the host given here only decides that it is plain HTTP.
		c, err := client.New(client.WithHost(defaultHost), client.WithDialContext(e.dial), client.WithUserAgent("swarm/"+version), client.WithHTTPResponseHook(e.passOnWarning))
		if err != nil {
			panic(err) // constant arguments
		}
		e.client = c
	})
	return e.client
}

// passOnWarning prints what an answer's Warning header says, once: that a manager answered without a leader, above all.
func (e *engine) passOnWarning(answer *http.Response) {
	if answer == nil {
		return
	}
	// 110 - "text", as RFC 7234 has it.
	if _, quoted, found := strings.Cut(answer.Header.Get("Warning"), ` - "`); found {
		e.warned.Do(func() { fmt.Fprintln(e.Err(), "WARNING: "+strings.TrimSuffix(quoted, `"`)) })
	}
}

// address is the agent's address in force: flag, then environment, then default.
func (e *engine) address() string {
	for _, host := range []string{e.host, os.Getenv(hostVariable)} {
		if host != "" {
			return host
		}
	}
	return defaultHost
}

func (e *engine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	path, err := socketPath(e.address())
	if err != nil {
		return nil, &unreachableError{text: err.Error()}
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, unreachable(path, err)
	}
	e.first.Do(func() { conn = e.speakOfSilence(conn, path) })
	return conn, nil
}

// speakOfSilence says so when nothing answers on a first connection: the socket stays open while the agent
// is away, so a request waits for the agent's return instead of failing.
func (e *engine) speakOfSilence(conn net.Conn, path string) net.Conn {
	notice := time.AfterFunc(silenceNotice, func() {
		fmt.Fprintf(e.Err(), "waiting for the agent at unix://%s: it does not answer yet (is it starting, or stopped? systemctl status swarm)\n", path)
	})
	return &firstRead{Conn: conn, notice: notice}
}

// firstRead is a connection whose first answer ends the wait for it.
type firstRead struct {
	net.Conn
	notice *time.Timer
}

func (c *firstRead) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.notice.Stop()
	return n, err
}

func (c *firstRead) Close() error {
	c.notice.Stop()
	return c.Conn.Close()
}

// CloseWrite lets hijacked streams end their input.
func (c *firstRead) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// socketPath takes unix:///path or /path.
func socketPath(host string) (string, error) {
	path := strings.TrimPrefix(host, "unix://")
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf(`%q is not an address of an agent: give unix:///PATH (an agent serves its API on a unix socket only;
to reach another machine: ssh -L /tmp/swarm.sock:/run/swarm/swarm.sock MACHINE, then swarm --host unix:///tmp/swarm.sock …)`, host)
	}
	return path, nil
}

// unreachableError is a connection that could not be made. Its text says what to do about it.
type unreachableError struct{ text string }

func (e *unreachableError) Error() string { return e.text }

func unreachable(path string, cause error) error {
	switch {
	case errors.Is(cause, os.ErrPermission):
		return &unreachableError{fmt.Sprintf("not allowed to reach the agent at unix://%s: only root and members of group swarm are (sudo usermod -aG swarm $USER, then log in again)", path)}
	case errors.Is(cause, os.ErrNotExist), errors.Is(cause, syscall.ECONNREFUSED):
		return &unreachableError{fmt.Sprintf("cannot reach the agent at unix://%s: is `swarm agent` running? (systemctl status swarm)", path)}
	}
	return &unreachableError{fmt.Sprintf("cannot reach the agent at unix://%s: %s", path, lastCause(cause))}
}

// lastCause is the innermost error: what the system said, without the layers that name the address again.
func lastCause(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// get decodes the answer to GET path, for fields that the docker client does not know.
func (e *engine) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+client.DummyHost+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: e.dial, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body := json.NewDecoder(io.LimitReader(answer.Body, answerBytesMax))
	if answer.StatusCode != http.StatusOK {
		var refusal struct{ Message string }
		if body.Decode(&refusal) != nil || refusal.Message == "" {
			refusal.Message = "GET " + path + ": " + answer.Status
		}
		return fmt.Errorf("Error response from daemon: %s", refusal.Message)
	}
	if err := body.Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer to GET %s: %w", path, err)
	}
	return nil
}

// The rest of docker's interface, for a world without contexts.

func (e *engine) CurrentVersion() string          { return e.Client().ClientVersion() }
func (e *engine) CurrentContext() string          { return command.DefaultContextName }
func (e *engine) DockerEndpoint() docker.Endpoint { return docker.Endpoint{} }
func (e *engine) ServerInfo() command.ServerInfo  { return command.ServerInfo{OSType: "linux"} }

// rewriter puts the one hint that docker prints while it waits for a service in our words. Where nobody watches a terminal
// it also drops lines that repeat the one before: docker tells the state five times a second, which fills the logs of scripts.
type rewriter struct {
	io.Writer
	terminal bool
	last     string
	partial  []byte // of a line that has not ended yet
}

func (w *rewriter) Write(p []byte) (int, error) {
	if w.terminal {
		return len(p), w.put(string(p))
	}
	w.partial = append(w.partial, p...)
	for {
		line, rest, ended := bytes.Cut(w.partial, []byte("\n"))
		if !ended {
			return len(p), nil
		}
		text := string(line)
		w.partial = rest
		if text == w.last {
			continue
		}
		w.last = text
		if err := w.put(text + "\n"); err != nil {
			return 0, err
		}
	}
}

func (w *rewriter) put(text string) error {
	_, err := io.WriteString(w.Writer, strings.ReplaceAll(text, "`docker service", "`swarm service"))
	return err
}
