// Package keeper is the small process that holds what must outlive the agent: container logs and listening sockets; and its client.
// agent starts or adopts it; agent/containerd is given its client for log FIFOs.
package keeper

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
)

// Config is where a keeper lives.
type Config struct {
	RunDir string // socket, FIFOs, pid file
	LogDir string // one directory per container with docker's json-file format
	// Executable is this program; Ensure starts "Executable keeper …" when none runs.
	Executable string
	Log        *slog.Logger
}

// The bounds of a keeper.
const (
	logsMax        = 8192 // open container logs
	socketsMax     = 1024 // listening sockets
	connectionsMax = 128  // client connections at a time
)

// LogOptions bound one container's log.
type LogOptions struct {
	MaxSizeBytes int64 // rotate beyond this; 0: never
	MaxFiles     int   // files kept, at least 1, at most 1000
	// Discard reads the FIFOs and keeps nothing (log driver none).
	Discard bool
}

func (c Config) socketPath() string { return filepath.Join(c.RunDir, "k.sock") }
func (c Config) pidPath() string    { return filepath.Join(c.RunDir, "keeper.pid") }
func (c Config) stderrPath() string { return filepath.Join(c.RunDir, "keeper.log") }

// openDir holds the FIFOs and the progress of an open log.
func (c Config) openDir(id string) string { return filepath.Join(c.RunDir, "c", id) }

func (c Config) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// logPath is the current file of a container's log.
func logPath(logDir, id string) string {
	return filepath.Join(logDir, id, id+"-json.log")
}

// closedPath marks a log that nothing will be added to, so that followers end.
func closedPath(logDir, id string) string { return filepath.Join(logDir, id, "closed") }

// checkID refuses ids that could name a path outside of the keeper's directories.
func checkID(id string) error {
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`).MatchString(id) {
		return fmt.Errorf("container id %q is not made of at most 128 letters, digits, '_', '.' and '-': %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}
