package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	fillingFile  = "filling" // takes up what is free of a small disk
	fillingBytes = 64 << 10  // of it, written at a time
)

// LimitDisk gives the node a data directory of at most size bytes, on a memory disk that keeps its content over PowerOff
// and goes with the lab. The agent must not have been started yet.
func (n *Node) LimitDisk(size int64) error {
	if err := os.MkdirAll(n.DataDir(), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("lab-"+n.Name, n.DataDir(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		return fmt.Errorf("mount the disk of %s: %w", n.Name, err)
	}
	return nil
}

// FillDisk writes until the node's disk is full. Only a disk with a limit can be filled: the machine's own is left alone.
func (n *Node) FillDisk() error {
	if !mountedAt(n.DataDir()) {
		return fmt.Errorf("the disk of %s has no limit", n.Name)
	}
	file, err := os.OpenFile(filepath.Join(n.DataDir(), fillingFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	for block := make([]byte, fillingBytes); err == nil; {
		_, err = file.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("fill the disk of %s: %w", n.Name, err)
	}
	return nil
}

// FreeDisk takes back what FillDisk did.
func (n *Node) FreeDisk() error {
	if err := os.Remove(filepath.Join(n.DataDir(), fillingFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func mountedAt(path string) bool {
	for _, m := range mounts() {
		if m.point == path {
			return true
		}
	}
	return false
}

// Occupy has another program, which speaks HTTP, listen at a port of the node until Vacate.
func (n *Node) Occupy(port string) error {
	var listener net.Listener
	err := within(n.Namespace(), func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(n.Address, port))
		return err
	})
	if err != nil {
		return fmt.Errorf("occupy port %s of %s: %w", port, n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.occupied = append(n.occupied, listener)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no swarm here\n") }))
	return nil
}

// Vacate ends what Occupy began, at all ports of the node.
func (n *Node) Vacate() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, listener := range n.occupied {
		errs = append(errs, listener.Close())
	}
	n.occupied = nil
	return errors.Join(errs...)
}

// Damage turns over every bit in the middle half of files below the data directory, pattern as in a shell. What they
// were is kept for Repair.
func (n *Node) Damage(pattern string) error {
	return n.change(pattern, func(content []byte) []byte {
		for i := len(content) / 4; i < len(content)*3/4; i++ {
			content[i] ^= 0xff
		}
		return content
	})
}

// Overwrite gives files below the data directory other content. What they were is kept for Repair.
func (n *Node) Overwrite(pattern, content string) error {
	return n.change(pattern, func([]byte) []byte { return []byte(content) })
}

func (n *Node) change(pattern string, change func([]byte) []byte) error {
	if n.Running() {
		return fmt.Errorf("agent of %s runs: stop it first", n.Name)
	}
	paths := glob(filepath.Join(n.DataDir(), pattern))
	if len(paths) == 0 {
		return fmt.Errorf("%s has no file %s", n.Name, pattern)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n.sane == nil {
			n.sane = map[string][]byte{}
		}
		if _, known := n.sane[path]; !known {
			n.sane[path] = append([]byte{}, content...)
		}
		if err := os.WriteFile(path, change(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Repair gives the files that were damaged or overwritten the content that they had before.
func (n *Node) Repair() error {
	if n.Running() {
		return fmt.Errorf("agent of %s runs: stop it first", n.Name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for path, content := range n.sane {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	n.sane = nil
	return nil
}

// Connections are the remote addresses of the node's open TCP connections to other machines.
func (n *Node) Connections() (remote []string, err error) {
	err = within(n.Namespace(), func() error {
		sockets, err := netlink.SocketDiagTCP(unix.AF_INET)
		for _, s := range sockets {
			if to := s.ID.Destination; s.State == netlink.TCP_ESTABLISHED && !to.IsLoopback() && to.String() != n.Address {
				remote = append(remote, fmt.Sprintf("%s:%d", to, s.ID.DestinationPort))
			}
		}
		return err
	})
	return remote, err
}

// movedBy is how much greater the number in a node's address gets by Readdress.
const movedBy = 100

// Readdress gives the machine another address, as a network's administrator might. Its agent must be stopped.
func (n *Node) Readdress() error {
	if n.Running() {
		return fmt.Errorf("agent of %s runs: stop it first", n.Name)
	}
	m := n.lab.wires.members[n.Name]
	if m.number > movedBy {
		return fmt.Errorf("%s has moved before", n.Name)
	}
	if err := m.links.AddrDel(m.eth, linkAddress(address(m.number))); err != nil {
		return fmt.Errorf("take address %s from %s: %w", n.Address, n.Name, err)
	}
	m.number += movedBy
	n.Address = address(m.number).String()
	if err := m.links.AddrAdd(m.eth, linkAddress(address(m.number))); err != nil {
		return fmt.Errorf("give %s address %s: %w", n.Name, n.Address, err)
	}
	return nil
}
