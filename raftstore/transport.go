package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// connectionsPerPeerMax bounds the pooled raft streams to one manager.
const connectionsPerPeerMax = 3

// requestsInFlightMax is how many requests with entries, or notices of commits, go to one follower before it has answered the first.
const requestsInFlightMax = 4

// streams lets raft's transport run over the node's one port. Close also ends the open streams, which raft leaves to their other end.
type streams struct {
	net.Listener
	address string
	dial    func(ctx context.Context, address string) (net.Conn, error)
	lineage *lineage

	mu sync.Mutex // guards:
	// open is nil after Close.
	open map[*stream]struct{}
}

// stream is one connection that streams knows of.
type stream struct {
	net.Conn
	of *streams
	// welcome greets whoever opened the stream, before its first byte is read.
	welcome func() error
}

// Read returns what follows the greeting.
func (c *stream) Read(p []byte) (int, error) {
	if c.welcome != nil {
		if err := c.welcome(); err != nil {
			return 0, err
		}
		c.welcome = nil
	}
	return c.Conn.Read(p)
}

// Addr is the address that the other managers use, not the one that is listened on.
func (s *streams) Addr() net.Addr { return streamAddr(s.address) }

// Accept returns the next stream that another manager opened.
func (s *streams) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// raft accepts one stream after the other, so greeting waits for its reader.
	return s.keep(conn, func() error { return s.lineage.welcome(conn) })
}

// Dial opens a stream within timeout.
func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := s.dial(ctx, string(address))
	if err != nil {
		return nil, err
	}
	kept, err := s.keep(conn, nil)
	if err != nil {
		return nil, err
	}
	if err := s.lineage.greet(conn, timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("raft stream to %s: %w", address, err), kept.Close())
	}
	return kept, nil
}

func (s *streams) keep(conn net.Conn, welcome func() error) (*stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	kept := &stream{Conn: conn, of: s, welcome: welcome}
	s.open[kept] = struct{}{}
	return kept, nil
}

// Close ends the listener and every stream.
func (s *streams) Close() error {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for conn := range open {
		_ = conn.Conn.Close()
	}
	return s.Listener.Close()
}

// Close forgets the stream.
func (c *stream) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

type streamAddr string

func (streamAddr) Network() string  { return "tcp" }
func (a streamAddr) String() string { return string(a) }

// heard is raft's transport, listening in on what followers answer: raft itself does not tell how far they are.
type heard struct {
	*raft.NetworkTransport

	mu sync.Mutex // guards:
	// peers holds each follower's last answer to this node as leader.
	peers map[raft.ServerID]progress
	// committed is what followers are told about over pipelines.
	committed position
	pipelines map[*pipeline]struct{}
}

type progress struct {
	at time.Time
	// lastLog is the index of the last entry in its log.
	lastLog uint64
}

// AppendEntries is used for heartbeats, which reach every voter and non-voter several times per election timeout.
func (h *heard) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := h.NetworkTransport.AppendEntries(id, target, args, resp)
	if err == nil && resp.Term == args.Term {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.peers[id] = progress{at: time.Now(), lastLog: resp.LastLog}
	}
	return err
}

// from is what a follower answered last; the zero value if it never did.
func (h *heard) from(id raft.ServerID) progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[id]
}

// raftLogger passes raft's warnings and errors on. Both are warnings to us: raft tries again by itself.
func raftLogger(log *slog.Logger) hclog.Logger {
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off})
	logger.RegisterSink(logSink{log})
	return logger
}

type logSink struct{ log *slog.Logger }

func (s logSink) Accept(_ string, level hclog.Level, message string, args ...any) {
	switch {
	case level >= hclog.Warn:
		s.log.Warn("raft: "+message, args...)
	case level == hclog.Info:
		s.log.Debug("raft: "+message, args...)
	}
}
