package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// position is a place in the log.
type position struct{ index, term uint64 }

// tell lets followers know that the log is committed up to a position. raft itself tells them with the next entry, or after
// commitTimeout, which is a hundred times longer than a commit takes; until then writers and readers there would wait.
func (h *heard) tell(committed position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if committed.index <= h.committed.index {
		return
	}
	h.committed = committed
	for p := range h.pipelines {
		p.wake()
	}
}

func (h *heard) lastCommitted() position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.committed
}

// pipeline is raft's stream of entries to one follower, to which notices of what is committed are added.
type pipeline struct {
	raft.AppendPipeline
	of   *heard
	to   raft.ServerID
	news chan struct{}
	// closed ends the notices, ended says that they have.
	closed, ended chan struct{}
	once          sync.Once

	// turn holds a token for who sends now, which puts requests in order, and guards the fields below. Sending waits for the
	// network, and nothing waits for a mutex across that.
	turn chan struct{}
	// last is raft's last request without its entries.
	last raft.AppendEntriesRequest
	// sent is the last index that the follower has once it has read all requests, told what it then takes for committed.
	sent, told uint64
}

// AppendEntriesPipeline opens a stream of entries.
func (h *heard) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	plain, err := h.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: plain, of: h, to: id, news: make(chan struct{}, 1), turn: make(chan struct{}, 1), closed: make(chan struct{}), ended: make(chan struct{})}
	h.mu.Lock()
	h.pipelines[p] = struct{}{}
	h.mu.Unlock()
	go p.run()
	return p, nil
}

// AppendEntries sends raft's own requests.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := withhold(p.to, args); err != nil {
		return nil, err
	}
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	future, err := p.AppendPipeline.AppendEntries(args, resp)
	if err != nil {
		return future, err
	}
	p.last = *args
	p.last.Entries = nil
	p.sent = args.PrevLogEntry + uint64(len(args.Entries))
	p.told = max(p.told, min(args.LeaderCommitIndex, p.sent))
	// What was committed without this follower may be told only now that it was sent the entries.
	if p.of.lastCommitted().index > p.told {
		p.wake()
	}
	return future, nil
}

func (p *pipeline) wake() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *pipeline) run() {
	defer close(p.ended)
	for {
		select {
		case <-p.news:
			p.notice(p.of.lastCommitted())
		case <-p.closed:
			return
		}
	}
}

// notice sends what raft would send a little later: a request without entries whose commit index is up to date. It names an
// entry that is committed and that the follower has by then, so a follower can always agree.
func (p *pipeline) notice(committed position) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if committed.index <= p.told || committed.index > p.sent {
		return
	}
	request := p.last
	request.PrevLogEntry, request.PrevLogTerm, request.LeaderCommitIndex = committed.index, committed.term, committed.index
	// An error is raft's to find: its next request meets it too.
	if _, err := p.AppendPipeline.AppendEntries(&request, new(raft.AppendEntriesResponse)); err == nil {
		p.told = committed.index
	}
}

// Close ends the stream.
func (p *pipeline) Close() error {
	err := p.AppendPipeline.Close()
	p.once.Do(func() {
		p.of.mu.Lock()
		delete(p.of.pipelines, p)
		p.of.mu.Unlock()
		close(p.closed)
	})
	<-p.ended
	return err
}
