package agent

import "sync"

// latch opens once; waiters see it open from then on.
type latch struct {
	once sync.Once
	ch   chan struct{}
}

func newLatch() *latch { return &latch{ch: make(chan struct{})} }

func (l *latch) open()                 { l.once.Do(func() { close(l.ch) }) }
func (l *latch) done() <-chan struct{} { return l.ch }

// poke is a wake-up that is never lost and never queues: many pokes before a wait are one.
type poke chan struct{}

func newPoke() poke { return make(poke, 1) }

func (p poke) send() {
	select {
	case p <- struct{}{}:
	default:
	}
}
