package rpc

import (
	"context"
	"net"
	"sync"
)

// queue hands accepted connections of one protocol to who serves it, as a net.Listener.
type queue struct {
	address net.Addr
	waiting chan *connection
	closed  chan struct{}
	once    sync.Once
}

func newQueue(address net.Addr, backlog int) *queue {
	return &queue{address: address, waiting: make(chan *connection, backlog), closed: make(chan struct{})}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.waiting:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Addr() net.Addr { return q.address }

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	q.drain()
	return nil
}

// hand waits until the connection is taken; one that nobody will take is closed.
func (q *queue) hand(ctx context.Context, c *connection) {
	select {
	case q.waiting <- c:
		q.drainIfClosed()
	case <-q.closed:
		c.cut()
	case <-ctx.Done():
		c.cut()
	}
}

// offer does not wait; false means that the connection was not taken.
func (q *queue) offer(c *connection) bool {
	if q.isClosed() {
		return false
	}
	select {
	case q.waiting <- c:
		q.drainIfClosed()
		return true
	default:
		return false
	}
}

func (q *queue) isClosed() bool {
	select {
	case <-q.closed:
		return true
	default:
		return false
	}
}

// drainIfClosed closes what slipped in while the queue was being closed.
func (q *queue) drainIfClosed() {
	if q.isClosed() {
		q.drain()
	}
}

func (q *queue) drain() {
	for {
		select {
		case c := <-q.waiting:
			c.cut()
		default:
			return
		}
	}
}
