package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// unixPathMax is the kernel's limit on a unix socket's path, its final NUL included.
const unixPathMax = 108

// longestSocket is the longest name that anything of ours puts below the run directory.
const longestSocket = "/containerd/c.sock.ttrpc"

// prepareDirs makes the agent's directories and takes the lock on the data directory; the returned function gives it up.
func prepareDirs(cfg Config) (unlock func(), err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("swarm agent must run as root: it makes network namespaces, mounts and cgroups")
	}
	if n := len(cfg.RunDir) + len(longestSocket); n >= unixPathMax {
		return nil, fmt.Errorf("--run-dir %s is too long by %d characters for the sockets below it: choose a shorter path", cfg.RunDir, n-unixPathMax+1)
	}
	for dir, mode := range map[string]os.FileMode{cfg.DataDir: 0o700, cfg.RunDir: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("make the agent's directory: %w", err)
		}
	}
	path := filepath.Join(cfg.DataDir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another swarm agent uses the data directory %s: stop it, or give this one its own --data-dir and --run-dir", cfg.DataDir)
	}
	return func() { f.Close() }, nil
}
