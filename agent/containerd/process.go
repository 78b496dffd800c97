package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	dialTimeout    = 2 * time.Second  // one attempt to reach the socket
	startTimeout   = 20 * time.Second // from exec to an answering socket, many shims to load included
	stopTimeout    = 10 * time.Second // from SIGTERM to SIGKILL
	probeEvery     = 20 * time.Millisecond
	restartMin     = 50 * time.Millisecond // first pause before a restart
	restartMax     = 10 * time.Second      // longest pause between restarts
	restartHealthy = time.Minute           // alive this long: the next death starts at restartMin again
	logTailBytes   = 2048                  // of containerd's log in an error
)

// process is the private containerd: a detached program that outlives the agent.
type process struct {
	paths
	cgroupParent string
	containerd   string // its path
	binDir       string
	log          *slog.Logger
	// beforeStart runs while containerd is down, just before it is started.
	beforeStart func(ctx context.Context)
	child       *exec.Cmd // set when this process started it: it has to be waited for
}

func newProcess(cfg Config, log *slog.Logger, beforeStart func(context.Context)) (*process, error) {
	p, err := privatePaths(cfg.DataDir, cfg.RunDir)
	if err != nil {
		return nil, err
	}
	containerd, err := findProgram(cfg.BinDir, "containerd")
	if err != nil {
		return nil, fmt.Errorf("containerd is neither beside this program nor in PATH: run make build or make install: %w", errdefs.ErrFailedPrecondition)
	}
	if _, err := findProgram(cfg.BinDir, "containerd-shim-runc-v2"); err != nil {
		return nil, fmt.Errorf("containerd-shim-runc-v2 is neither beside this program nor in PATH: run make build or make install: %w", errdefs.ErrFailedPrecondition)
	}
	return &process{paths: p, cgroupParent: cfg.CgroupParent, containerd: containerd, binDir: cfg.BinDir, log: log, beforeStart: beforeStart}, nil
}

// ensure adopts the containerd that runs, or starts one.
func (p *process) ensure(ctx context.Context) error {
	pid := p.running()
	if pid == 0 {
		return p.start(ctx)
	}
	err := p.answers(ctx, pid)
	if err == nil {
		p.log.Info("containerd adopted", "pid", pid)
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	// Containers do not need it: a hanging containerd may be replaced at any time.
	p.log.Warn("containerd hangs and is replaced", "pid", pid, "err", err)
	if err := p.stop(ctx); err != nil {
		return err
	}
	return p.start(ctx)
}

// running is the pid of our containerd, 0 when there is none. A recycled pid is told by the command line.
func (p *process) running() int {
	text, err := os.ReadFile(p.pid)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(args, []byte(p.config)) {
		return 0
	}
	return pid
}

// start runs containerd detached and waits until it answers.
func (p *process) start(ctx context.Context) error {
	if p.beforeStart != nil {
		p.beforeStart(ctx)
	}
	cmd, err := p.launch()
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	p.child = cmd
	pid := cmd.Process.Pid
	if err := enterCgroup(p.cgroupParent, pid); err != nil {
		p.log.Warn("containerd stays in the agent's cgroup", "pid", pid, "err", err)
	}
	if err := writeFile(p.pid, []byte(strconv.Itoa(pid)+"\n")); err != nil {
		_ = cmd.Process.Kill()
		p.reapChild()
		return err
	}
	if err := p.answers(ctx, pid); err != nil {
		return errors.Join(fmt.Errorf("containerd (see %s): %w: %s", p.paths.log, err, p.logTail()), p.stop(context.WithoutCancel(ctx)))
	}
	p.log.Info("containerd started", "pid", pid)
	return nil
}

func (p *process) launch() (*exec.Cmd, error) {
	for _, dir := range []string{p.root, p.state, p.shimSockets} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	if err := keepConfig(p.config, []byte(configTOML(p.paths))); errors.Is(err, errOldConfig) {
		p.log.Warn("containerd starts with its former configuration", "err", err)
	} else if err != nil {
		return nil, err
	}
	logFile, err := rotateLog(p.paths.log)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(p.containerd, "--config", p.config)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = p.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, cmd.Start()
}

// environment is the agent's own without what systemd meant for the agent alone, and with our programs first.
func (p *process) environment() []string {
	var env []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "PATH":
		default:
			env = append(env, v)
		}
	}
	return append(env, "PATH="+filepath.Dir(p.containerd)+":"+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

// answers waits until containerd serves its socket, and fails when the process ends before.
func (p *process) answers(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ended, err := processEnd(ctx, pid)
	if err != nil {
		return err
	}
	for {
		if err = probe(ctx, p.socket); err == nil {
			return nil
		}
		select {
		case <-ended:
			if ctx.Err() == nil {
				return fmt.Errorf("ended at once: %w", errdefs.ErrUnavailable)
			}
		case <-time.After(probeEvery):
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no answer at %s: %w: %w", p.socket, err, ctx.Err())
		}
	}
}

func probe(ctx context.Context, socket string) error {
	if _, err := os.Stat(socket); err != nil {
		return err
	}
	c, err := client.New(socket, client.WithDefaultNamespace(namespace), client.WithTimeout(dialTimeout))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	_, err = c.Version(ctx)
	return err
}

// watch starts containerd again whenever it ends, until ctx ends; restarted is called once it answers again.
func (p *process) watch(ctx context.Context, restarted func()) error {
	wait := restartMin
	for {
		up := time.Now()
		if pid := p.running(); pid != 0 {
			ended, err := processEnd(ctx, pid)
			if err == nil {
				<-ended
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.reapChild()
		if time.Since(up) > restartHealthy {
			wait = restartMin
		}
		p.log.Warn("containerd ended and is started again", "pause", wait)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		wait = min(2*wait, restartMax)
		if err := p.ensure(ctx); err != nil {
			p.log.Error("containerd cannot be started", "err", err)
			continue
		}
		restarted()
	}
}

// processEnd returns a channel that is closed when a process (a child or not) ended, or ctx did.
func processEnd(ctx context.Context, pid int) (<-chan struct{}, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	ended := make(chan struct{})
	if errors.Is(err, unix.ESRCH) {
		close(ended)
		return ended, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	go func() {
		defer close(ended)
		defer file.Close()
		stop := context.AfterFunc(ctx, func() { file.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		waitReadable(file)
	}()
	return ended, nil
}

// waitReadable returns when a pollable file has something to read or its deadline passed.
func waitReadable(file *os.File) {
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
}

// stop ends containerd, gently first. Containers and shims stay.
func (p *process) stop(ctx context.Context) error {
	pid := p.running()
	if pid == 0 {
		p.reapChild()
		return p.forget()
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		patience, cancel := context.WithTimeout(ctx, stopTimeout)
		ended, err := processEnd(patience, pid)
		if err == nil {
			_ = unix.Kill(pid, sig)
			<-ended
		}
		gone := patience.Err() == nil && err == nil
		cancel()
		if gone {
			p.reapChild()
			return p.forget()
		}
	}
	return fmt.Errorf("containerd (pid %d) does not end: %w", pid, errdefs.ErrUnavailable)
}

// reapChild takes the exit status of a child that ended; an adopted containerd has another parent.
func (p *process) reapChild() {
	if p.child == nil {
		return
	}
	_ = p.child.Wait() // how it ended is in its log
	p.child = nil
}

func (p *process) forget() error {
	for _, path := range []string{p.pid, p.socket, p.socket + ".ttrpc"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// rotateLog keeps the log of the run before as .1 and opens a new one; containerd logs warnings only.
func rotateLog(path string) (*os.File, error) {
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

func (p *process) logTail() string {
	f, err := os.Open(p.paths.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTailBytes {
		f.Seek(-logTailBytes, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, logTailBytes))
	return strings.TrimSpace(string(text))
}

// errOldConfig says that a configuration is there, but not the wanted one.
var errOldConfig = errors.New("the configuration could not be written")

// keepConfig makes a file say what it shall. One that says so already is left alone, so that a full disk keeps nothing from
// starting; one that cannot be replaced stays, with an errOldConfig.
func keepConfig(path string, data []byte) error {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	there := err == nil
	if err = writeFile(path, data); err != nil && there {
		return fmt.Errorf("%w: %w", errOldConfig, err)
	}
	return err
}

// writeFile replaces a file in one step, so that a crash leaves the old or the new one.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		// What was written of it takes room where there is none.
		_ = os.Remove(path + ".new")
		return err
	}
	return os.Rename(path+".new", path)
}
