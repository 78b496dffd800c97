package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Serve answers on the listeners until ctx ends, and watches the cluster for GET /events meanwhile. Call it once.
// Requests that are open when ctx ends are cancelled and get drainTime to say so.
func (a *API) Serve(ctx context.Context, listeners ...net.Listener) error {
	server := &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: headerTimeMax,
		IdleTimeout:       idleTimeMax,
		MaxHeaderBytes:    headerBytesMax,
		// Requests end with the server: followers and watchers would otherwise hold it open.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.watchCluster(ctx) })
	connections := make(chan struct{}, connectionsMax)
	for _, l := range listeners {
		g.Go(func() error {
			err := server.Serve(&boundedListener{Listener: l, slots: connections})
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := server.Shutdown(drain); err != nil {
			return server.Close()
		}
		return nil
	})
	return g.Wait()
}

// boundedListener refuses connections beyond a number with an answer that says so, instead of letting them wait unheard.
type boundedListener struct {
	net.Listener
	slots chan struct{}
}

const tooManyConnections = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 54\r\n\r\n" +
	`{"message":"this node has too many open connections"}` + "\n"

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write([]byte(tooManyConnections))
			_ = conn.Close()
		}
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
