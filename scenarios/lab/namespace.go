package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where iproute2 looks, so that "ip netns exec lab-NAME-NODE …" works for people.
const namespaceDir = "/run/netns"

func namespaceName(lab, node string) string { return "lab-" + lab + "-" + node }
func namespacePath(lab, node string) string {
	return namespaceDir + "/" + namespaceName(lab, node)
}

// onOwnThread runs f on a thread that dies with it, so that f may move the thread to another namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// newNamespace makes a named network namespace, which lives until removeNamespace, and opens netlink in it.
func newNamespace(name string) (*netlink.Handle, error) {
	var links *netlink.Handle
	err := onOwnThread(func() error {
		handle, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		defer handle.Close()
		links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return links, nil
}

// within runs f inside a named namespace.
func within(name string, f func() error) error {
	return onOwnThread(func() error {
		handle, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("find network namespace %s: %w", name, err)
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return f()
	})
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
