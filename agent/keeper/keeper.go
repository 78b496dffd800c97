// Package keeper is the small process that holds what must outlive the agent: container logs and listening sockets; and its client.
// agent starts or adopts it; agent/containerd is given its client for log FIFOs.
package keeper

import (
	"context"
	"io"
	"log/slog"
	"net"
	"time"
)

// Config is where a keeper lives.
type Config struct {
	RunDir string // socket, FIFOs, pid file
	LogDir string // one directory per container with docker's json-file format
	// Executable is this program; Ensure starts "Executable keeper …" when none runs.
	Executable string
	Log        *slog.Logger
}

// Run is the keeper process.
func Run(ctx context.Context, cfg Config) error { panic("contract") }

// Ensure adopts the running keeper or starts one, and returns a client.
func Ensure(ctx context.Context, cfg Config) (*Client, error) { panic("contract") }

// Client speaks to the keeper over its unix socket; it reconnects by itself.
type Client struct{}

// LogOptions bound one container's log.
type LogOptions struct {
	MaxSizeBytes int64 // rotate beyond this; 0: never
	MaxFiles     int   // files kept, at least 1
	// Discard reads the FIFOs and keeps nothing (log driver none).
	Discard bool
}

// OpenLog makes the FIFOs of a container and reads them until CloseLog. Idempotent.
func (c *Client) OpenLog(ctx context.Context, containerID string, o LogOptions) (stdout, stderr string, err error) {
	panic("contract")
}

// CloseLog reads what is left, closes and removes the FIFOs; the log file stays.
func (c *Client) CloseLog(ctx context.Context, containerID string) error { panic("contract") }

// RemoveLog deletes a container's log files.
func (c *Client) RemoveLog(ctx context.Context, containerID string) error { panic("contract") }

// Listen returns a listener on a socket that the keeper keeps open when this process dies. Networks: tcp, unix (mode and gid apply).
func (c *Client) Listen(ctx context.Context, network, address string, mode uint32, gid int) (net.Listener, error) {
	panic("contract")
}

// Release closes a socket that the keeper holds.
func (c *Client) Release(ctx context.Context, network, address string) error { panic("contract") }

// Shutdown ends the keeper process: the node left or is being taken down.
func (c *Client) Shutdown(ctx context.Context) error { panic("contract") }

// PID of the keeper process.
func (c *Client) PID() int { panic("contract") }

// ReadOptions choose lines of a log.
type ReadOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time
	Tail           int // lines from the end; -1: all
	Follow         bool
}

// Line is one line (or partial line, without newline) of a container's output.
type Line struct {
	Stream string // stdout or stderr
	Time   time.Time
	Text   []byte // with its newline
}

// ReadLog calls emit for each chosen line; with Follow until ctx ends or the log is closed.
func ReadLog(ctx context.Context, logDir, containerID string, o ReadOptions, emit func(Line) error) error {
	panic("contract")
}

var _ io.Reader
