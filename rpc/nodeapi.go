package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/containerd/errdefs"
)

func (s *Server) newHTTP() *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(s.serveNodeAPI),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, conn)
		},
	}
}

func (s *Server) serveNodeAPI(w http.ResponseWriter, r *http.Request) {
	s.calls.Add(1)
	defer s.calls.Done()
	if err := s.mayRequest(r); err != nil {
		refuseRequest(w, err)
		return
	}
	s.cfg.NodeAPI.ServeHTTP(w, r)
}

func (s *Server) mayRequest(r *http.Request) error {
	route, listed := matchRoute(s.routes, r)
	if !listed || s.cfg.NodeAPI == nil {
		return fmt.Errorf("%s %s is not served between nodes, or not by this version: %w", r.Method, r.URL.EscapedPath(), errdefs.ErrNotFound)
	}
	return s.mayCall(PeerFrom(r.Context()), route.roles, route.method+" "+route.pattern)
}

// refuseRequest answers as the Engine API does.
func refuseRequest(w http.ResponseWriter, err error) {
	status := http.StatusForbidden
	if errors.Is(err, errdefs.ErrNotFound) {
		status = http.StatusNotFound
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error means that the caller is gone.
	_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()})
}
