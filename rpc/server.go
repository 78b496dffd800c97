package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// ServerConfig is what a node's port needs.
type ServerConfig struct {
	Listener   net.Listener
	Identity   Identity
	Authorizer Authorizer
	// NodeAPI serves swarm-node requests that the role table lets through.
	NodeAPI http.Handler
	// Log may be nil.
	Log *slog.Logger
}

// Server is a node's one port.
type Server struct {
	cfg     ServerConfig
	log     *slog.Logger
	methods map[string]roleSet
	routes  []route

	grpc  *grpc.Server
	http  *http.Server
	calls sync.WaitGroup // swarm-node requests in progress

	grpcQueue, httpQueue *queue
	raftQueue            atomic.Pointer[queue] // nil until Raft is called

	*registry
}

// NewServer makes a node's port of a listener. Register services, then Run.
func NewServer(cfg ServerConfig) *Server {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	address := cfg.Listener.Addr()
	s := &Server{
		cfg:       cfg,
		log:       log.With("component", "rpc"),
		methods:   methodRoles(),
		routes:    nodeRoutes(),
		grpcQueue: newQueue(address, 0),
		httpQueue: newQueue(address, 0),
		registry:  newRegistry(),
	}
	s.grpc = s.newGRPC()
	s.http = s.newHTTP()
	return s
}

// RegisterService adds a gRPC service before Run. Its methods must be in the role table.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) { s.grpc.RegisterService(d, impl) }

// Raft accepts raft streams from managers until it is closed; while there is no such listener, they are told that this
// node is not a manager. Each call makes a new one, for a node that is promoted again, and closes the one before.
func (s *Server) Raft() net.Listener {
	q := newQueue(s.cfg.Listener.Addr(), raftBacklog)
	if before := s.raftQueue.Swap(q); before != nil {
		_ = before.Close()
	}
	return q
}

// Run serves until ctx ends. It closes the listener and every connection, and returns when every handler has.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.accept(ctx) })
	g.Go(func() error {
		// Stopped before it began: ctx ended at once.
		if err := s.grpc.Serve(s.grpcQueue); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		s.http.BaseContext = func(net.Listener) context.Context { return ctx }
		if err := s.http.Serve(s.httpQueue); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		s.shutdown()
		return nil
	})
	return g.Wait()
}

func (s *Server) shutdown() {
	_ = s.cfg.Listener.Close()
	if q := s.raftQueue.Load(); q != nil {
		_ = q.Close()
	}
	for _, c := range s.all() {
		c.cut()
	}
	s.grpc.Stop()
	_ = s.http.Close()
	s.calls.Wait()
}

// Cut closes every live connection of a node.
func (s *Server) Cut(nodeID string) { s.cutAll(nodeID, s.of(nodeID)) }

// CutManager closes every live connection that a node opened with a manager's certificate.
func (s *Server) CutManager(nodeID string) {
	s.cutAll(nodeID, slices.DeleteFunc(s.of(nodeID), func(c *connection) bool { return c.peer.Role != Manager }))
}

func (s *Server) cutAll(nodeID string, connections []*connection) {
	for _, c := range connections {
		c.cut()
	}
	if len(connections) > 0 {
		s.log.Info("connections cut", "node", nodeID, "connections", len(connections))
	}
}

// acceptPause is waited after an error that is the machine's, not the listener's.
const acceptPause = 50 * time.Millisecond

func (s *Server) accept(ctx context.Context) error {
	var handshakes sync.WaitGroup
	defer handshakes.Wait()
	for {
		raw, err := s.cfg.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = raw.Close()
			}
			return nil
		case passing(err):
			s.log.Warn("connection not accepted", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accept on node port %s: %w", s.cfg.Listener.Addr(), err)
		}
		watchPeer(raw)
		if !s.admit(hostOf(raw)) {
			s.log.Warn("connection refused, there are too many", "address", raw.RemoteAddr().String())
			_ = raw.Close()
			continue
		}
		handshakes.Go(func() { s.begin(ctx, raw) })
	}
}

// passing tells the accept errors that go away by themselves.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
