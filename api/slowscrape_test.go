package api

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// pipes are connections in memory to a server that accepts them.
type pipes struct {
	waiting chan net.Conn
	closed  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.waiting:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// dial returns the client's end and what is closed with the server's.
func (p pipes) dial() (net.Conn, <-chan struct{}) {
	here, there := net.Pipe()
	c := &seenConn{Conn: there, gone: make(chan struct{})}
	p.waiting <- c
	return here, c.gone
}

type seenConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *seenConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// Who is slow, or says nothing, is cut off in a known time, whichever step takes so long; others are answered meanwhile.
func TestSlowScrapersAreCutOff(t *testing.T) {
	const request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, c := range []struct {
		name  string
		tls   *tls.Config
		does  func(net.Conn)
		limit time.Duration
	}{
		{"says nothing", nil, func(net.Conn) {}, headerTimeMax},
		{"says nothing where a TLS greeting is due", &tls.Config{}, func(net.Conn) {}, headerTimeMax},
		{"sends a header by the byte", nil, func(conn net.Conn) {
			var reader sync.WaitGroup
			defer reader.Wait()
			reader.Go(func() { _, _ = io.Copy(io.Discard, conn) })
			for _, b := range []byte("GET /metrics HTTP/1.1\r\nX: " + strings.Repeat("x", 1000)) {
				time.Sleep(time.Second)
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		}, headerTimeMax},
		{"does not read the answer", nil, func(conn net.Conn) { _, _ = io.WriteString(conn, request) }, scrapeSendMax},
		{"reads the answer by the byte", nil, func(conn net.Conn) {
			_, _ = io.WriteString(conn, request)
			for one := make([]byte, 1); ; time.Sleep(time.Second) {
				if _, err := conn.Read(one); err != nil {
					return
				}
			}
		}, scrapeSendMax},
		{"asks once and stays", nil, func(conn net.Conn) {
			_, _ = io.WriteString(conn, request)
			_, _ = io.Copy(io.Discard, conn)
		}, idleTimeMax},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				l := pipes{make(chan net.Conn), make(chan struct{})}
				a := newAPI(newFakeNode(Status{State: swarm.LocalNodeStateInactive}), &wires{})
				ended := make(chan error, 1)
				go func() { ended <- a.ServeMetrics(ctx, MetricsListener{Listener: l, TLS: c.tls}) }()
				began := time.Now()
				conn, gone := l.dial()
				var client sync.WaitGroup
				client.Go(func() { c.does(conn) })
				<-gone
				if took := time.Since(began); took > c.limit+time.Second || took < c.limit/2 {
					t.Errorf("it was cut off after %s, want %s", took, c.limit)
				}
				conn.Close()
				client.Wait() // time stands still once the test has returned
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
