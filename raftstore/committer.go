package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
)

const (
	// entryCommitsMax, entryChangesMax and entrySizeBytesMax bound what one log entry, or one message to the leader,
	// carries. A single commit may exceed them; it then goes alone.
	entryCommitsMax   = 512
	entryChangesMax   = 512
	entrySizeBytesMax = 512 << 10
	// entriesInFlightMax is how many entries are on their way at once: one is written while the other is replicated.
	entriesInFlightMax = 2
	// waitingCommitsMax and waitingSizeBytesMax bound what waits for its turn.
	waitingCommitsMax   = 2048
	waitingSizeBytesMax = 64 << 20
)

// committer holds the commits that wait on this manager for a place in an entry of the log.
type committer struct {
	mu   sync.Mutex // guards:
	more *sync.Cond // told of new ones and of the end
	// waiting has the oldest first.
	waiting   []*proposal
	sizeBytes int
	closed    bool
	// underWay finds the proposals of an entry that is on its way by the first byte of its data.
	underWay map[*byte][]*proposal
}

// proposal is a commit on its way into the log.
type proposal struct {
	commit  rawCommit
	format  uint32
	changes int
	// stamped is set once the commit says since when it is on its way.
	stamped bool
	// term is set for what only the leader of that term may commit.
	term uint64
	// forwarded came from another manager: it is not sent on.
	forwarded bool
	// done receives exactly one outcome, unless the proposal is withdrawn.
	done chan outcome
}

type outcome struct {
	verdict verdict
	err     error
}

func newProposal(c *commit, encoded rawCommit) *proposal {
	return &proposal{commit: encoded, format: c.format, changes: len(c.changes), term: c.term, done: make(chan outcome, 1)}
}

// stamp completes a commit that was not sent before. Whoever proposes it again must send the same bytes.
func (p *proposal) stamp(index uint64) {
	if p.stamped || p.forwarded || p.format < 2 {
		return
	}
	p.commit, p.stamped = addSince(p.commit, index), true
}

func newCommitter() *committer {
	c := &committer{underWay: map[*byte][]*proposal{}}
	c.more = sync.NewCond(&c.mu)
	return c
}

// add makes proposals wait, all or none.
func (c *committer) add(proposals ...*proposal) error {
	size := 0
	for _, p := range proposals {
		size += len(p.commit)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return unsent{errStopped()}
	case len(c.waiting) > 0 && (len(c.waiting)+len(proposals) > waitingCommitsMax || c.sizeBytes+size > waitingSizeBytesMax):
		return unsent{busy{len(c.waiting)}}
	}
	for _, p := range proposals {
		c.waiting = append(c.waiting, p)
		c.more.Signal()
	}
	c.sizeBytes += size
	return nil
}

// take waits for proposals and returns as many of the oldest as one entry holds; none once there is nothing more to come.
func (c *committer) take() []*proposal {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) == 0 {
		if c.closed {
			return nil
		}
		c.more.Wait()
	}
	n, changes, size := 0, 0, 0
	for ; n < min(len(c.waiting), entryCommitsMax); n++ {
		p := c.waiting[n]
		changes, size = changes+p.changes, size+len(p.commit)
		if n > 0 && (changes > entryChangesMax || size > entrySizeBytesMax) {
			size -= len(p.commit)
			break
		}
	}
	batch := slices.Clone(c.waiting[:n])
	c.waiting = slices.Delete(c.waiting, 0, n)
	c.sizeBytes -= size
	return batch
}

// withdraw takes a proposal back, false when it is on its way already.
func (c *committer) withdraw(p *proposal) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	place := slices.Index(c.waiting, p)
	if place < 0 {
		return false
	}
	c.waiting = slices.Delete(c.waiting, place, place+1)
	c.sizeBytes -= len(p.commit)
	return true
}

// close fails what waits and whatever comes later.
func (c *committer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	resolve(c.waiting, nil, unsent{errStopped()})
	c.waiting, c.sizeBytes, c.closed = nil, 0, true
	c.more.Broadcast()
}

// depart remembers who waits for an entry, arrive returns them, once.
func (c *committer) depart(entry []byte, batch []*proposal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.underWay[&entry[0]] = batch
}

func (c *committer) arrive(entry []byte) []*proposal {
	if len(entry) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.underWay[&entry[0]]
	delete(c.underWay, &entry[0])
	return batch
}

// resolve tells those who wait: an error for all, or each its verdict.
func resolve(batch []*proposal, verdicts []verdict, err error) {
	if err == nil && len(verdicts) != len(batch) {
		err = fmt.Errorf("%d answers to %d commits", len(verdicts), len(batch))
	}
	for i, p := range batch {
		if err != nil {
			p.done <- outcome{err: err}
		} else {
			p.done <- outcome{verdict: verdicts[i]}
		}
	}
}

// busy is the refusal of a commit beyond what may wait.
type busy struct{ waiting int }

func (e busy) Error() string {
	return fmt.Sprintf("this manager is busy: %d changes wait to be committed already: try again later", e.waiting)
}
func (busy) Unwrap() error { return errdefs.ErrUnavailable }

// unsent marks an error of a commit that is in no manager's log and never will be by this try.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }

// submit has a proposal committed with whatever else waits.
func (s *Store) submit(ctx context.Context, p *proposal) (verdict, error) {
	if err := s.committer.add(p); err != nil {
		return verdict{}, err
	}
	select {
	case o := <-p.done:
		return o.verdict, o.err
	case <-ctx.Done():
	}
	if s.committer.withdraw(p) {
		return verdict{}, unsent{fmt.Errorf("wait for a place in the log: %w", ctx.Err())}
	}
	return verdict{}, fmt.Errorf("wait for commit: %w", ctx.Err())
}

// commitWaiting sends what waits, one entry after the other; several run at a time.
func (s *Store) commitWaiting() {
	for batch := s.committer.take(); batch != nil; batch = s.committer.take() {
		s.send(batch)
	}
}

// send has the leader, this manager or another, decide on a batch.
func (s *Store) send(batch []*proposal) {
	moved := s.leaderMoves()
	id, address := s.Leader()
	here := id == s.cfg.NodeID
	term := s.raft.CurrentTerm()
	batch = slices.DeleteFunc(batch, func(p *proposal) bool {
		err := s.mayGo(p, here, term)
		if err != nil {
			p.done <- outcome{err: err}
		}
		return err != nil
	})
	applied := s.Local().index
	for _, p := range batch {
		p.stamp(applied)
	}
	switch {
	case len(batch) == 0:
	case id == "":
		resolve(batch, nil, unsent{errNoLeader})
	case here:
		s.propose(batch)
	default:
		verdicts, err := s.forward(batch, moved, id, address)
		resolve(batch, verdicts, err)
	}
}

// mayGo refuses what only this manager could commit and it cannot.
func (s *Store) mayGo(p *proposal, here bool, term uint64) error {
	switch {
	case p.term != 0 && !p.forwarded && (!here || p.term != term):
		return errTermOver
	case p.forwarded && !here:
		return unsent{s.notLeading()}
	}
	return nil
}

func (s *Store) notLeading() error {
	return fmt.Errorf("manager %s does not lead: %w", s.cfg.NodeID, errdefs.ErrUnavailable)
}

// propose puts a batch into one entry of this leader's log. Who waits is told as soon as the state machine has applied it,
// or here why that did not come to pass.
func (s *Store) propose(batch []*proposal) {
	commits := make([]rawCommit, len(batch))
	format := uint32(1)
	for i, p := range batch {
		commits[i], format = p.commit, max(format, p.format)
	}
	entry, err := encodeEntry(format, commits...)
	if err != nil {
		resolve(batch, nil, unsent{err})
		return
	}
	s.committer.depart(entry, batch)
	future, err := s.await(s.committing, func() raft.Future { return s.raft.Apply(entry, enqueueTimeout) })
	if err == nil {
		err, _ = future.(raft.ApplyFuture).Response().(error)
	} else {
		err = s.explain(err)
	}
	if err == nil {
		err = errors.New("applied without an answer of the state machine")
	}
	resolve(s.committer.arrive(entry), nil, err)
}

// entryApplied hears of every entry, in the state machine's goroutine.
func (s *Store) entryApplied(entry []byte, done applied) {
	if batch := s.committer.arrive(entry); batch != nil {
		resolve(batch, done.verdicts, nil)
		s.transport.tell(done.at)
	}
}

// forward sends a batch to the manager that leads.
func (s *Store) forward(batch []*proposal, moved <-chan struct{}, id, address string) ([]verdict, error) {
	ctx, cancel := s.askLeader(s.committing, moved)
	defer cancel()
	commits := make([][]byte, len(batch))
	for i, p := range batch {
		commits[i] = p.commit
	}
	answers, err := s.ask(ctx, address, commits)
	if err != nil {
		return nil, fmt.Errorf("propose to leader %s at %s: %w", id, address, err)
	}
	verdicts := make([]verdict, len(answers))
	for i, answer := range answers {
		if verdicts[i], err = answer.verdict(); err != nil {
			return nil, err
		}
	}
	return verdicts, nil
}

// ask has the manager at an address decide on commits. Where one may be that reads the first format only, they go one by one:
// such a manager takes the last of several for the only one.
func (s *Store) ask(ctx context.Context, address string, commits [][]byte) (answers []Answer, err error) {
	atOnce := len(commits)
	if s.Local().format() == 1 {
		atOnce = 1
	}
	for part := range slices.Chunk(commits, atOnce) {
		some, err := s.cfg.Peers.Propose(ctx, address, part)
		if err != nil {
			return nil, err
		}
		answers = append(answers, some...)
	}
	return answers, nil
}

// Answer is what the leader says to a commit that another manager forwarded.
type Answer struct {
	// Index is where the commit was done.
	Index uint64
	// Refusal is the encoded check that failed; empty when the commit was done.
	Refusal []byte
}

func (a Answer) verdict() (verdict, error) {
	answer := verdict{index: a.Index}
	if len(a.Refusal) == 0 {
		return answer, nil
	}
	answer.refusal = new(refusal)
	if err := unmarshal(a.Refusal, answer.refusal.wire); err != nil {
		return answer, fmt.Errorf("answer of the leader: %w", err)
	}
	answer.index = answer.refusal.index
	return answer, nil
}

func (v verdict) answer() (Answer, error) {
	if v.refusal == nil {
		return Answer{Index: v.index}, nil
	}
	raw, err := marshal(v.refusal.wire)
	return Answer{Index: v.index, Refusal: raw}, err
}

// ProposeLocal commits what another manager forwarded: encoded commits, each of which is done or refused on its own.
// With an error any of them may be done or not. Unavailable when this node does not lead.
func (s *Store) ProposeLocal(ctx context.Context, commits [][]byte) ([]Answer, error) {
	began := time.Now()
	batch := make([]*proposal, len(commits))
	for i, encoded := range commits {
		// What does not decode here would stop every replica once it is in the log.
		c, err := decodeCommit(encoded)
		if err != nil {
			return nil, fmt.Errorf("forwarded commit: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		batch[i] = newProposal(c, encoded)
		batch[i].forwarded = true
	}
	if s.raft.State() != raft.Leader {
		return nil, s.notLeading()
	}
	s.counters.pendingCommits.Add(int64(len(batch)))
	defer s.counters.pendingCommits.Add(-int64(len(batch)))
	if err := s.committer.add(batch...); err != nil {
		return nil, err
	}
	answers := make([]Answer, len(batch))
	for i, p := range batch {
		select {
		case o := <-p.done:
			answer, err := o.verdict.answer()
			if err := errors.Join(o.err, err); err != nil {
				return nil, err
			}
			answers[i] = answer
			s.counters.commitLatency.Observe(time.Since(began))
		case <-ctx.Done():
			for _, p := range batch[i:] {
				s.committer.withdraw(p)
			}
			return nil, fmt.Errorf("wait for forwarded commits: %w", ctx.Err())
		}
	}
	return answers, nil
}

// explain gives raft's errors their kind.
func (s *Store) explain(err error) error {
	switch {
	case errors.As(err, new(storeFault)):
		return fmt.Errorf("nothing was changed: %w. Free space on the disk of manager %s%w", err, s.cfg.NodeID, silent{errdefs.ErrUnavailable})
	case errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, context.Canceled):
		return errStopped()
	}
	err = fmt.Errorf("commit: %w%w", err, silent{errdefs.ErrUnavailable})
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return unsent{err}
	}
	return err
}
