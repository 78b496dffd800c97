package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// connectionsPerPeerMax bounds the pooled raft streams to one manager.
const connectionsPerPeerMax = 3

// requestsInFlightMax is how many requests with entries, or notices of commits, go to one follower before it has answered the first.
const requestsInFlightMax = 4

// replicatePause is between two tries to reach a follower, unless it is heard before.
const replicatePause = time.Second

// streams lets raft's transport run over the node's one port. Close also ends the open streams, which raft leaves to their other end.
type streams struct {
	net.Listener
	address string
	dial    func(ctx context.Context, address string) (net.Conn, error)
	lineage *lineage
	// addresses is told where nobody answers, and what is read by who does.
	addresses *addresses

	mu sync.Mutex // guards:
	// open is nil after Close.
	open map[*stream]struct{}
}

// stream is one connection that streams knows of.
type stream struct {
	net.Conn
	of *streams
	// welcome greets whoever opened the stream, before its first byte is read, and returns what it read beyond the greeting.
	welcome func() ([]byte, error)
	begun   []byte
}

// Read returns what follows the greeting.
func (c *stream) Read(p []byte) (int, error) {
	if c.welcome != nil {
		begun, err := c.welcome()
		if err != nil {
			return 0, err
		}
		c.welcome, c.begun = nil, begun
	}
	if len(c.begun) > 0 {
		n := copy(p, c.begun)
		c.begun = c.begun[n:]
		return n, nil
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
	return s.keep(conn, func() ([]byte, error) { return s.lineage.welcome(conn) })
}

// Dial opens a stream within timeout.
func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	conn, err := s.connect(address, timeout)
	if err != nil {
		return nil, err
	}
	reads, err := s.lineage.greet(conn, timeout)
	if errors.As(err, new(noGreeting)) && !isTimeout(err) && s.lineage.knowsOld() {
		// A version from before greetings takes one for a broken request, and hangs up.
		_ = conn.Close()
		conn, err = s.connect(address, timeout)
		if err != nil {
			return nil, err
		}
		reads = 1
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raft stream to %s: %w", address, err), conn.Close())
	}
	s.addresses.told(address, reads)
	return conn, nil
}

// connect opens a connection.
func (s *streams) connect(address raft.ServerAddress, timeout time.Duration) (*stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := s.dial(ctx, string(address))
	if err != nil {
		s.addresses.refused(address)
		return nil, err
	}
	return s.keep(conn, nil)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func (s *streams) keep(conn net.Conn, welcome func() ([]byte, error)) (*stream, error) {
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

// addresses are where managers say they are, when that is not where raft's configuration has them. A manager that
// moved can then be reached at once: the configuration follows only when there is a leader, and for a leader its vote may be needed.
type addresses struct {
	// self is at own, whatever the configuration says.
	self raft.ServerID
	own  raft.ServerAddress
	// configured are the members of raft's configuration.
	configured func() []raft.Server

	mu sync.Mutex // guards:
	// moved has at most one address for each member of the configuration.
	moved map[raft.ServerID]raft.ServerAddress
	// reads is the newest format that is read at the addresses of members, as told when the last stream was opened.
	reads map[raft.ServerAddress]uint32
}

// ServerAddr is asked by raft's transport before each connection.
func (a *addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if id == a.self {
		return a.own, nil
	}
	a.mu.Lock()
	address, ok := a.moved[id]
	a.mu.Unlock()
	if ok {
		return address, nil
	}
	for _, server := range a.configured() {
		if server.ID == id {
			return server.Address, nil
		}
	}
	return "", fmt.Errorf("manager %s is not a member", id)
}

// claimed takes up what a manager says of itself.
func (a *addresses) claimed(id raft.ServerID, address raft.ServerAddress) {
	for _, server := range a.configured() {
		if server.ID != id || address == "" {
			continue
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if delete(a.moved, id); server.Address != address {
			a.moved[id] = address
		}
		return
	}
}

// told takes up which formats are read at an address, and forgets addresses that are no member's.
func (a *addresses) told(address raft.ServerAddress, reads uint32) {
	servers := a.configured()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads[address] = reads
	maps.DeleteFunc(a.reads, func(known raft.ServerAddress, _ uint32) bool {
		return known != address && !slices.ContainsFunc(servers, func(server raft.Server) bool {
			return server.Address == known || a.moved[server.ID] == known
		})
	})
}

// readsAt is the newest format that a member reads, 0 if that is not known.
func (a *addresses) readsAt(id raft.ServerID) uint32 {
	address, err := a.ServerAddr(id)
	if err != nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads[address]
}

func (a *addresses) all() map[raft.ServerID]raft.ServerAddress {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.moved)
}

// refused forgets a claim that does not hold.
func (a *addresses) refused(address raft.ServerAddress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.moved, func(_ raft.ServerID, moved raft.ServerAddress) bool { return moved == address })
}

type streamAddr string

func (streamAddr) Network() string  { return "tcp" }
func (a streamAddr) String() string { return string(a) }

// heard is raft's transport, listening in on what followers answer: raft itself does not tell how far they are.
type heard struct {
	*raft.NetworkTransport
	// follows says whether this node still leads in a term and has the follower at an address.
	follows func(id raft.ServerID, address raft.ServerAddress, term uint64) bool
	closing <-chan struct{}

	mu sync.Mutex // guards:
	// peers holds each follower's last answer to this node as leader.
	peers map[raft.ServerID]progress
	// awaited are closed with a follower's next answer.
	awaited map[raft.ServerID]chan struct{}
	// committed is what followers are told about over pipelines.
	committed position
	pipelines map[*pipeline]struct{}
}

type progress struct {
	at time.Time
	// lastLog is the index of the last entry in its log.
	lastLog uint64
}

// AppendEntries is used for heartbeats, which reach every voter and non-voter several times per election timeout, and for
// entries outside of a pipeline. Those are tried until the follower answers: raft itself would wait after each failure,
// in the end ten seconds, and leave a manager that is back without anything for as long.
func (h *heard) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := withhold(id, args); err != nil {
		return err
	}
	err := h.NetworkTransport.AppendEntries(id, target, args, resp)
	for err != nil && !isHeartbeat(args) && h.untilAnswer(id, target, args.Term) {
		*resp = raft.AppendEntriesResponse{}
		err = h.NetworkTransport.AppendEntries(id, target, args, resp)
	}
	if err == nil && resp.Term == args.Term {
		h.note(id, progress{at: time.Now(), lastLog: resp.LastLog})
	}
	return err
}

// isHeartbeat tells raft's heartbeats, which name no entry, from the requests that replicate.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.LeaderCommitIndex == 0
}

// InstallSnapshot waits until the follower answers heartbeats, for the same reason.
func (h *heard) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	for time.Since(h.from(id).at) > replicatePause && h.untilAnswer(id, target, args.Term) {
	}
	return h.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
}

// untilAnswer waits for a follower's next answer, or a moment, and says whether to try again.
func (h *heard) untilAnswer(id raft.ServerID, target raft.ServerAddress, term uint64) bool {
	h.mu.Lock()
	answer := h.awaited[id]
	if answer == nil {
		answer = make(chan struct{})
		h.awaited[id] = answer
	}
	h.mu.Unlock()
	timer := time.NewTimer(replicatePause)
	defer timer.Stop()
	select {
	case <-answer:
	case <-timer.C:
	case <-h.closing:
		return false
	}
	return h.follows(id, target, term)
}

func (h *heard) note(id raft.ServerID, p progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.peers[id] = p
	if answer := h.awaited[id]; answer != nil {
		close(answer)
		delete(h.awaited, id)
	}
}

// from is what a follower answered last; the zero value if it never did.
func (h *heard) from(id raft.ServerID) progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[id]
}

// forget makes a follower one that has not answered.
func (h *heard) forget(id raft.ServerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, id)
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
