package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Preflight names what this machine lacks for running containers, before anything is started.
func Preflight(cfg Config) error {
	_, err := preflight(cfg)
	return err
}

// preflight names what this machine lacks, and returns the path of runc.
func preflight(cfg Config) (runc string, err error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("running containers needs root: start the agent as root: %w", errdefs.ErrFailedPrecondition)
	}
	if runc, err = findProgram(cfg.BinDir, "runc"); err != nil {
		return "", fmt.Errorf("runc is not installed: install the package runc: %w", errdefs.ErrFailedPrecondition)
	}
	if !hasFilesystem("overlay") {
		return "", fmt.Errorf("this kernel has no overlayfs: run modprobe overlay, or use a kernel that has it: %w", errdefs.ErrFailedPrecondition)
	}
	if hierarchies, err := cgroupHierarchies(); err != nil || len(hierarchies) == 0 {
		return "", fmt.Errorf("no cgroup file system at %s: mount it (a new mount namespace may have lost it): %w", cgroupRoot, errdefs.ErrFailedPrecondition)
	}
	return runc, nil
}

// findProgram prefers the directory of our own programs to PATH.
func findProgram(binDir, name string) (string, error) {
	if binDir != "" {
		if path, err := exec.LookPath(filepath.Join(binDir, name)); err == nil {
			return filepath.Abs(path)
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// hasFilesystem reports whether the kernel knows a file system, loading its module when that is possible.
func hasFilesystem(name string) bool {
	known := func() bool {
		text, err := os.ReadFile("/proc/filesystems")
		return err == nil && strings.Contains(string(text), "\t"+name+"\n")
	}
	if known() {
		return true
	}
	// A missing modprobe or module shows in the second look.
	_ = exec.Command("modprobe", name).Run()
	return known()
}
