package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	startTimeout   = 15 * time.Second
	startPoll      = 10 * time.Millisecond
	stderrBytesMax = 1 << 20 // of an earlier keeper's messages; more is cut off
	stderrTailMax  = 2 << 10 // shown when a keeper does not start
	socketPathMax  = 107     // bytes that the kernel allows
)

// Ensure adopts the running keeper or starts one, and returns a client.
func Ensure(ctx context.Context, cfg Config) (*Client, error) {
	c := &Client{cfg: cfg, log: cfg.log()}
	if err := c.revive(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// adoptOrStart returns the greeting of the keeper that runs.
func adoptOrStart(ctx context.Context, cfg Config) (response, error) {
	if len(cfg.socketPath()) > socketPathMax {
		return response{}, fmt.Errorf("the keeper's socket %s has a path of more than %d bytes; choose a shorter run directory: %w", cfg.socketPath(), socketPathMax, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	res, _, err := exchange(ctx, cfg.socketPath(), request{Op: opHello})
	if err == nil || !gone(err) {
		return res, err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return response{}, fmt.Errorf("start the keeper: %w", err)
	}
	ended, err := start(cfg)
	if err != nil {
		return response{}, fmt.Errorf("start the keeper: %w", err)
	}
	return awaitGreeting(ctx, cfg, ended)
}

// start runs the keeper in a session of its own, with nothing of ours but the messages' file, so that
// neither our death nor our terminal reaches it. The channel is closed when it ended.
func start(cfg Config) (ended <-chan struct{}, err error) {
	stderr, err := openStderr(cfg.stderrPath())
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	run, err := filepath.Abs(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	logs, err := filepath.Abs(cfg.LogDir)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(cfg.Executable, "keeper", "--run-dir", run, "--log-dir", logs)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	// Nobody waits for this goroutine: it only takes note of the child's end, which should come after ours.
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	return done, nil
}

func openStderr(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscallNoFollow, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err == nil && info.Size() > stderrBytesMax {
		_ = file.Truncate(0)
	}
	return file, nil
}

func awaitGreeting(ctx context.Context, cfg Config, ended <-chan struct{}) (response, error) {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		res, _, err := exchange(ctx, cfg.socketPath(), request{Op: opHello})
		if err == nil || !gone(err) {
			return res, err
		}
		select {
		case <-tick.C:
		case <-ended:
			// Another agent's may have been faster than ours: then it answers in a moment.
			ended = nil
			if !locked(cfg.pidPath()) {
				return response{}, fmt.Errorf("the keeper ended at once: %s: %w", stderrTail(cfg.stderrPath()), errdefs.ErrFailedPrecondition)
			}
		case <-ctx.Done():
			return response{}, fmt.Errorf("the keeper does not answer at %s after %s (%w): %s", cfg.socketPath(), startTimeout, ctx.Err(), stderrTail(cfg.stderrPath()))
		}
	}
}

func stderrTail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-stderrTailMax):])
}

// locked says whether a keeper holds the pid file.
func locked(path string) bool {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// waitUnlocked returns when no keeper holds the pid file any more.
func waitUnlocked(ctx context.Context, path string) error {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for locked(path) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the keeper does not end: %w", ctx.Err())
		}
	}
	return nil
}
