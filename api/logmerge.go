package api

import (
	"container/heap"
	"context"
	"sync"
)

// logAhead is how many lines are read ahead of each container.
const logAhead = 4

// history writes what the sources have now, merged by time. It holds a few lines per source.
func (g *gathering) history(ctx context.Context, sources []*logSource) error {
	ctx, cancel := context.WithCancel(ctx)
	o := g.options
	o.Follow = false
	var readers sync.WaitGroup
	defer func() { cancel(); readers.Wait() }()
	merge := &mergeHeap{}
	streams := make([]*mergeStream, len(sources))
	for i, s := range sources {
		streams[i] = &mergeStream{source: s, lines: make(chan LogLine, logAhead)}
		readers.Go(func() { streams[i].fill(ctx, g, o) })
	}
	for _, s := range streams {
		if s.advance() {
			heap.Push(merge, s)
		}
	}
	for merge.Len() > 0 {
		s := (*merge)[0]
		if err := g.out.write(s.head, s.source.origin()); err != nil {
			return nil // the client has gone
		}
		if s.advance() {
			heap.Fix(merge, 0)
		} else {
			heap.Pop(merge)
		}
	}
	for _, s := range streams {
		g.warnUnread(s.source, s.err)
	}
	return g.out.flush()
}

// mergeStream is one source's lines in order; err is set once lines is closed.
type mergeStream struct {
	source *logSource
	lines  chan LogLine
	err    error
	head   LogLine
}

func (s *mergeStream) fill(ctx context.Context, g *gathering, o LogOptions) {
	defer close(s.lines)
	s.err = g.read(ctx, s.source, o, func(line LogLine) error {
		select {
		case s.lines <- line:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (s *mergeStream) advance() (ok bool) {
	s.head, ok = <-s.lines
	return ok
}

// mergeHeap has the stream with the oldest head first.
type mergeHeap []*mergeStream

func (h mergeHeap) Len() int           { return len(h) }
func (h mergeHeap) Less(i, j int) bool { return h[i].head.Time.Before(h[j].head.Time) }
func (h mergeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(x any)        { *h = append(*h, x.(*mergeStream)) }
func (h *mergeHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
