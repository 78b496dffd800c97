package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// sockets are the listening sockets that a keeper holds, by network and address as they were asked for.
type sockets struct {
	mu   sync.Mutex
	held map[string]*heldSocket
}

// heldSocket listens, but nobody accepts here: connections wait in the kernel until an agent does.
type heldSocket struct {
	listener net.Listener
	raw      syscall.RawConn
}

func socketKey(network, address string) string { return network + " " + address }

// listen opens a socket unless it is open.
func (s *sockets) listen(r request) (*heldSocket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.held[socketKey(r.Network, r.Address)]
	if !ok {
		if len(s.held) >= socketsMax {
			return nil, fmt.Errorf("listen on %s: the keeper holds %d sockets already: %w", r.Address, socketsMax, errdefs.ErrResourceExhausted)
		}
		listener, err := listen(r)
		if err != nil {
			return nil, err
		}
		if h, err = s.add(r, listener); err != nil {
			return nil, err
		}
	}
	if r.Network == "unix" {
		if err := errors.Join(os.Chown(r.Address, -1, r.GID), os.Chmod(r.Address, os.FileMode(r.Mode&0o777))); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", r.Address, err)
		}
	}
	return h, nil
}

// hold keeps a socket that a client already has: an earlier keeper opened it.
func (s *sockets) hold(r request, file *os.File) error {
	if file == nil {
		return fmt.Errorf("hold %s: no socket came with the request: %w", r.Address, errdefs.ErrInvalidArgument)
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("hold %s: %w", r.Address, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.held[socketKey(r.Network, r.Address)]; ok || len(s.held) >= socketsMax {
		listener.Close()
		return nil
	}
	_, err = s.add(r, listener)
	return err
}

func (s *sockets) add(r request, listener net.Listener) (*heldSocket, error) {
	raw, err := listener.(syscall.Conn).SyscallConn()
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("listen on %s: %w", r.Address, err)
	}
	if s.held == nil {
		s.held = map[string]*heldSocket{}
	}
	h := &heldSocket{listener, raw}
	s.held[socketKey(r.Network, r.Address)] = h
	return h, nil
}

func (s *sockets) release(r request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.held[socketKey(r.Network, r.Address)]
	if !ok {
		return nil
	}
	delete(s.held, socketKey(r.Network, r.Address))
	if r.Network == "unix" {
		_ = os.Remove(r.Address)
	}
	return h.listener.Close()
}

func (s *sockets) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		h.listener.Close()
	}
	s.held = nil
}

func listen(r request) (net.Listener, error) {
	switch r.Network {
	case "tcp", "tcp4", "tcp6":
	case "unix":
		if err := removeStaleSocket(r.Address); err != nil {
			return nil, err
		}
		// Until its group and mode are set nobody else may connect.
		old := syscall.Umask(0o177)
		defer syscall.Umask(old)
	default:
		return nil, fmt.Errorf("listen on %s: network %q is none of tcp, tcp4, tcp6 and unix: %w", r.Address, r.Network, errdefs.ErrInvalidArgument)
	}
	listener, err := net.Listen(r.Network, r.Address)
	if err != nil {
		return nil, explainListen(r.Address, err)
	}
	if l, ok := listener.(*net.UnixListener); ok {
		// An agent may still accept on it when the keeper ends.
		l.SetUnlinkOnClose(false)
	}
	return listener, nil
}

// explainListen says in one sentence why address cannot be listened on, and what to do.
func explainListen(address string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("listen on %s: another program uses this address; stop it or choose another address: %w", address, errdefs.ErrConflict)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("listen on %s: no interface of this machine has this address: %w", address, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("listen on %s: %w: %w", address, err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("listen on %s: %w", address, err)
}

// staleDialTimeout bounds the question whether anybody answers on a socket file.
const staleDialTimeout = 2 * time.Second

// removeStaleSocket removes a socket file on which nobody listens any more.
func removeStaleSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("listen on %s: the file exists and is no socket; remove it: %w", path, errdefs.ErrConflict)
	}
	ctx, cancel := context.WithTimeout(context.Background(), staleDialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return explainListen(path, unix.EADDRINUSE)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	return nil
}
