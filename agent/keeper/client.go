package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Client speaks to the keeper over its unix socket; it reconnects by itself, and starts a new keeper when the old one died.
type Client struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex // guards what follows, and starting a keeper
	pid     int
	sockets map[string]clientSocket // handed to the next keeper should this one die
}

type clientSocket struct {
	network, address string
	file             *os.File
}

// callTimeout bounds one request; opening and closing logs touches the disk.
const callTimeout = 30 * time.Second

// OpenLog makes the FIFOs of a container and reads them until CloseLog. Idempotent.
func (c *Client) OpenLog(ctx context.Context, containerID string, o LogOptions) (stdout, stderr string, err error) {
	res, _, err := c.call(ctx, request{Op: opOpenLog, ID: containerID, Options: o})
	return res.Stdout, res.Stderr, err
}

// CloseLog reads what is left, closes and removes the FIFOs; the log file stays, and those who follow it come to its end.
func (c *Client) CloseLog(ctx context.Context, containerID string) error {
	_, _, err := c.call(ctx, request{Op: opCloseLog, ID: containerID})
	return err
}

// RemoveLog deletes a container's log files.
func (c *Client) RemoveLog(ctx context.Context, containerID string) error {
	_, _, err := c.call(ctx, request{Op: opRemoveLog, ID: containerID})
	return err
}

// Listen returns a listener on a socket that the keeper keeps open when this process dies. Networks: tcp,
// unix (mode and gid apply; gid -1 leaves the group). Conflict when another program uses the address.
func (c *Client) Listen(ctx context.Context, network, address string, mode uint32, gid int) (net.Listener, error) {
	_, file, err := c.call(ctx, request{Op: opListen, Network: network, Address: address, Mode: mode, GID: gid})
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, fmt.Errorf("listen on %s: the keeper sent no socket", address)
	}
	listener, err := net.FileListener(file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	c.remember(clientSocket{network, address, file})
	return listener, nil
}

func (c *Client) remember(s clientSocket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets == nil {
		c.sockets = map[string]clientSocket{}
	}
	key := socketKey(s.network, s.address)
	if old, ok := c.sockets[key]; ok {
		old.file.Close()
	}
	c.sockets[key] = s
}

// Release closes a socket that the keeper holds. Listeners on it must be closed by who has them.
func (c *Client) Release(ctx context.Context, network, address string) error {
	c.mu.Lock()
	key := socketKey(network, address)
	if s, ok := c.sockets[key]; ok {
		s.file.Close()
		delete(c.sockets, key)
	}
	c.mu.Unlock()
	_, _, err := c.call(ctx, request{Op: opRelease, Network: network, Address: address})
	return err
}

// Shutdown ends the keeper process: the node left or is being taken down. It returns when the keeper is gone.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	for _, s := range c.sockets {
		s.file.Close()
	}
	c.sockets = nil
	c.mu.Unlock()
	_, _, err := exchange(ctx, c.cfg.socketPath(), request{Op: opShutdown})
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the keeper: %w", err)
	}
	return waitUnlocked(ctx, c.cfg.pidPath())
}

// PID of the keeper process.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Run watches the keeper and starts a new one as soon as it died, so that containers never wait long for
// a reader, until ctx ends. The keeper lives on.
func (c *Client) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		c.watch(ctx)
		if ctx.Err() != nil {
			break
		}
		c.log.Warn("keeper is gone; starting it again", "pid", c.PID())
		if err := c.revive(ctx); err != nil {
			c.log.Error("keeper cannot be started; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// watch returns when the keeper ended or ctx did.
func (c *Client) watch(ctx context.Context) {
	conn, err := dial(ctx, c.cfg.socketPath())
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// The keeper never speaks first: a read ends when it dies.
	_, _ = conn.Read(make([]byte, 1))
}

// call asks the keeper, and once more after starting it when it is gone. All requests may be repeated.
func (c *Client) call(ctx context.Context, r request) (response, *os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, file, err := exchange(ctx, c.cfg.socketPath(), r)
	if !gone(err) || ctx.Err() != nil {
		return res, file, err
	}
	if err := c.revive(ctx); err != nil {
		return response{}, nil, err
	}
	return exchange(ctx, c.cfg.socketPath(), r)
}

// gone says whether err means that no keeper answers, as opposed to a refusal.
func gone(err error) bool {
	for _, kind := range []error{unix.ECONNREFUSED, unix.ENOENT, unix.ECONNRESET, unix.EPIPE, net.ErrClosed} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return errors.Is(err, errLost)
}

// errLost is a connection that ended before the answer.
var errLost = errors.New("the keeper hung up")

// exchange sends one request over a connection of its own.
func exchange(ctx context.Context, path string, r request) (response, *os.File, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return response{}, nil, fmt.Errorf("reach the keeper at %s: %w", path, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return ask(conn, r, -1)
}

func ask(conn *net.UnixConn, r request, fd int) (response, *os.File, error) {
	if err := writeFrame(conn, r, fd); err != nil {
		return response{}, nil, fmt.Errorf("ask the keeper to %s: %w", r.Op, err)
	}
	var res response
	file, err := readFrame(conn, &res)
	if err == nil {
		err = res.err()
	} else if !errdefs.IsFailedPrecondition(err) && !errdefs.IsInvalidArgument(err) {
		err = fmt.Errorf("ask the keeper to %s: %w: %w", r.Op, errLost, err)
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return response{}, nil, err
	}
	return res, file, nil
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	unixConn := conn.(*net.UnixConn)
	if err := checkPeer(unixConn); err != nil {
		conn.Close()
		return nil, err
	}
	return unixConn, nil
}

// revive finds or starts a keeper and hands it the sockets that this client has.
func (c *Client) revive(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	res, err := adoptOrStart(ctx, c.cfg)
	if err != nil {
		return err
	}
	c.pid = res.PID
	for _, s := range c.sockets {
		if err := c.handOver(ctx, s); err != nil {
			c.log.Error("socket is not handed to the keeper: it ends with this process", "address", s.address, "error", err)
		}
	}
	return nil
}

func (c *Client) handOver(ctx context.Context, s clientSocket) error {
	conn, err := dial(ctx, c.cfg.socketPath())
	if err != nil {
		return err
	}
	defer conn.Close()
	var raw syscall.RawConn
	if raw, err = s.file.SyscallConn(); err != nil {
		return err
	}
	var asked error
	err = raw.Control(func(fd uintptr) {
		_, _, asked = ask(conn, request{Op: opHold, Network: s.network, Address: s.address}, int(fd))
	})
	return errors.Join(err, asked)
}
