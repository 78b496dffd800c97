package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Serve answers on the listeners until ctx ends, and watches the cluster for GET /events meanwhile. Call it once.
// When ctx ends, streams end with it and other requests get drainTime to finish, so that an answered write was made and a
// write that was made is answered.
func (a *API) Serve(ctx context.Context, listeners ...net.Listener) error {
	server := &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: headerTimeMax,
		IdleTimeout:       idleTimeMax,
		MaxHeaderBytes:    headerBytesMax,
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.WithoutCancel(ctx), servingKey{}, ctx)
		},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
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

// servingKey finds the context of Serve in that of a request.
type servingKey struct{}

// untilStop returns a request whose context also ends when the server is to stop; followers would otherwise hold it open.
func untilStop(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	serving, ok := ctx.Value(servingKey{}).(context.Context)
	if !ok {
		return r.WithContext(ctx), cancel
	}
	forget := context.AfterFunc(serving, cancel)
	return r.WithContext(ctx), func() { forget(); cancel() }
}

// boundedListener refuses connections beyond a number with an answer that says so, instead of letting them wait unheard.
type boundedListener struct {
	net.Listener
	slots chan struct{}
	// silent closes without an answer, where the client would expect another protocol first.
	silent bool
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
			if !l.silent {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = conn.Write([]byte(tooManyConnections))
			}
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
