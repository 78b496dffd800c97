package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	startMax  = 30 * time.Second      // until a started agent answers
	pollEvery = 20 * time.Millisecond // while waiting for an agent's first answer
	tailBytes = 64 << 10              // of a log kept by LogTail
	stopMax   = 30 * time.Second      // until a killed process is gone
	settle    = 5 * time.Millisecond  // between looks at dying processes
)

// Node is one machine of the lab.
type Node struct {
	Name    string
	Address string // of its only link
	Dir     string // d is its data, r its run directory, agent.log its output

	lab   *Lab
	flags []string

	mu    sync.Mutex
	agent *exec.Cmd
	gone  chan struct{} // closed when agent has been reaped
	// occupied are the sockets of Occupy.
	occupied []net.Listener
	// sane is what files held before Damage and Overwrite, by path.
	sane map[string][]byte
}

// DataDir survives a loss of power; RunDir does not.
func (n *Node) DataDir() string { return filepath.Join(n.Dir, "d") }

// RunDir is emptied by PowerOff, like /run.
func (n *Node) RunDir() string { return filepath.Join(n.Dir, "r") }

// Socket is where the node's API listens.
func (n *Node) Socket() string { return filepath.Join(n.RunDir(), "swarm.sock") }

// Namespace is what to give to "ip netns exec".
func (n *Node) Namespace() string { return namespaceName(n.lab.cfg.Name, n.Name) }

// CgroupParent of the node's containers.
func (n *Node) CgroupParent() string {
	return filepath.Join("/", groupRoot, n.lab.cfg.Name, n.Name)
}

// Begin starts a command on this node: inside its network namespace.
func (n *Node) Begin(cmd *exec.Cmd) error {
	return within(n.Namespace(), cmd.Start)
}

// Start runs the agent and waits until its API answers.
func (n *Node) Start(ctx context.Context) error {
	agent, gone, err := n.launch()
	if err != nil {
		return fmt.Errorf("start agent of %s: %w", n.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	if err := n.awaitAnswer(ctx, agent, gone); err != nil {
		return fmt.Errorf("agent of %s: %w; its last words:\n%s", n.Name, err, n.LogTail(10))
	}
	return nil
}

func (n *Node) launch() (agent *exec.Cmd, gone chan struct{}, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.runningLocked() {
		return nil, nil, errors.New("it is running already")
	}
	out, err := os.OpenFile(filepath.Join(n.Dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer out.Close()
	group, err := makeControlGroup(filepath.Join(n.lab.cfg.Name, n.Name, "agent"))
	if err != nil {
		return nil, nil, err
	}
	defer group.Close()
	cmd := exec.Command(n.lab.cfg.Program, n.arguments()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}
	// A session of its own: the agent neither gets the terminal's Ctrl-C nor dies with this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := n.Begin(cmd); err != nil {
		return nil, nil, err
	}
	n.agent, n.gone = cmd, make(chan struct{})
	go func(gone chan struct{}) {
		cmd.Wait()
		close(gone)
	}(n.gone)
	return n.agent, n.gone, nil
}

func (n *Node) arguments() []string {
	return append([]string{"agent",
		"--data-dir", n.DataDir(),
		"--run-dir", n.RunDir(),
		"--listen-addr", n.Address + ":2377",
		"--advertise-addr", n.Address,
		"--hostname", n.Name,
		"--cgroup-parent", n.CgroupParent(),
	}, n.flags...)
}

// awaitAnswer polls, because an agent has no other way to say that it serves.
func (n *Node) awaitAnswer(ctx context.Context, agent *exec.Cmd, gone chan struct{}) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: n.DialAPI}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // The keeper may hold the socket of an agent that has ended: then no answer comes.
		select {
		case <-gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://swarm/_ping", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("GET /_ping: %s", response.Status)
		}
		select {
		case <-ctx.Done():
			select {
			case <-gone:
				return fmt.Errorf("it ended: %v", agent.ProcessState)
			default:
				return fmt.Errorf("its API does not answer: %w", err)
			}
		case <-time.After(pollEvery):
		}
	}
}

// DialAPI connects to the node's API socket, whatever address is asked for.
func (n *Node) DialAPI(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", n.Socket())
}

// Running says whether the agent's process lives.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.runningLocked()
}

func (n *Node) runningLocked() bool {
	if n.agent == nil {
		return false
	}
	select {
	case <-n.gone:
		return false
	default:
		return true
	}
}

// PID of the agent; 0 while none runs.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.runningLocked() {
		return 0
	}
	return n.agent.Process.Pid
}

// Signal the agent alone: SIGSTOP and SIGCONT make it hang and go on.
func (n *Node) Signal(signal syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.runningLocked() {
		return fmt.Errorf("agent of %s does not run", n.Name)
	}
	return n.agent.Process.Signal(signal)
}

// Kill ends the agent alone, without a warning; containers, containerd and keeper live on.
func (n *Node) Kill() error { return n.end(syscall.SIGKILL) }

// Stop asks the agent to end, as a service manager would, and waits.
func (n *Node) Stop() error { return n.end(syscall.SIGTERM) }

func (n *Node) end(signal syscall.Signal) error {
	if err := n.Signal(signal); err != nil {
		return err
	}
	select {
	case <-n.gone:
		return nil
	case <-time.After(stopMax):
		return fmt.Errorf("agent of %s is still there %s after %s", n.Name, stopMax, signal)
	}
}

// Hang makes every process of the machine stand still, or go on. Its kernel still answers for open sockets.
func (n *Node) Hang(still bool) error {
	_, unified := hierarchies()
	path := filepath.Join(unified, groupRoot, n.lab.cfg.Name, n.Name, "cgroup.freeze")
	content := map[bool]string{true: "1", false: "0"}[still]
	if err := os.WriteFile(path, []byte(content), 0); err != nil {
		return fmt.Errorf("hang machine %s (%s): %w", n.Name, content, err)
	}
	return nil
}

// Unplug pulls the node's cable.
func (n *Node) Unplug() error { return n.lab.wires.setLink(n.Name, false) }

// Plug puts the node's cable back.
func (n *Node) Plug() error { return n.lab.wires.setLink(n.Name, true) }

// PowerOff is what a dead power supply does: the network is gone at once, then every process, mount and run-time file.
// Start brings the node back with its disk.
func (n *Node) PowerOff() error {
	if err := n.Unplug(); err != nil {
		return err
	}
	lab := n.lab.cfg.Name
	if err := killAll(lab, n.Name); err != nil {
		return fmt.Errorf("power off %s: %w", n.Name, err)
	}
	n.reap()
	err := errors.Join(unmountBelow(n.RunDir()), unmountBelow(n.DataDir()), removeControlGroups(lab, n.Name), os.RemoveAll(n.RunDir()))
	if err != nil {
		return fmt.Errorf("power off %s: %w", n.Name, err)
	}
	return nil
}

// reap waits for a killed agent, so that it is no zombie when it is started again.
func (n *Node) reap() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent != nil {
		<-n.gone
		n.agent = nil
	}
}

// LogTail is the last lines of what all agents of this node wrote.
func (n *Node) LogTail(lines int) string {
	file, err := os.Open(filepath.Join(n.Dir, "agent.log"))
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if end, err := file.Seek(0, io.SeekEnd); err == nil {
		file.Seek(max(0, end-tailBytes), io.SeekStart)
	}
	content, err := io.ReadAll(file)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
