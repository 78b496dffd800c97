package sim

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// pair is one connection: two ends, one flow in each direction. Everything is guarded by network.mu.
type pair struct {
	network *Network
	ends    [2]*end
	flows   [2]*flow // flows[i] is written by ends[i]
	giveUp  *time.Timer
}

// flow is the bytes in one direction, in order.
type flow struct {
	pair     *pair
	from, to *Host
	segments []segment
	bytes    int
	finished bool // the writer has closed
	finishAt time.Time
	last     time.Time // arrival of the last segment
	// stalled flows were cut: what they hold arrives after a retransmission that gets through.
	stalled   bool
	stalledAt time.Time
	// changed is closed and replaced when a waiting reader or writer has to look again; nil while nobody waits.
	changed chan struct{}
}

type segment struct {
	at   time.Time
	data []byte
}

// never is when a stalled segment arrives.
func never() time.Time { return time.Unix(1<<40, 0) }

func (f *flow) wake() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

func (f *flow) wait() <-chan struct{} {
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// arrivalOf the next segment: later than the one before it, with TCP's pauses for each loss.
func (f *flow) arrivalOf(bytes int) time.Time {
	if f.stalled {
		return never()
	}
	at, lost := f.pair.network.arrival(f.from, f.to, bytes)
	for pause, tries := retransmitMin, 0; lost; pause, tries = 2*pause, tries+1 {
		if tries == resendsMax {
			f.pair.failBoth(syscall.ETIMEDOUT)
			return never()
		}
		var again time.Time
		again, lost = f.pair.network.arrival(f.from, f.to, bytes)
		at = again.Add(pause)
	}
	if at.Before(f.last) {
		at = f.last
	}
	f.last = at
	return at
}

// flows says whether what is written leaves: not while the link is cut, nor while the writer is frozen. A frozen program writes
// nothing; what ours writes meanwhile, because it cannot be stopped, is held back. It is not made to wait for its write, because
// it may hold a mutex, and who waits for that stops the clock.
func (f *flow) flows() bool {
	writer := f.pair.ends[0]
	if f == f.pair.flows[1] {
		writer = f.pair.ends[1]
	}
	return f.pair.network.open(f.from, f.to) && (writer.process == nil || !writer.process.frozen)
}

// unwrite forgets what a frozen program wrote, as it is killed.
func (f *flow) unwrite() {
	if !f.stalled || !f.pair.network.open(f.from, f.to) {
		return
	}
	f.stalled = false
	for n := len(f.segments); n > 0 && f.segments[n-1].at.Equal(never()); n-- {
		f.bytes -= len(f.segments[n-1].data)
		f.segments = f.segments[:n-1]
	}
}

func (f *flow) push(data []byte) {
	if !f.stalled && !f.flows() {
		f.stall(time.Now())
	}
	f.segments = append(f.segments, segment{at: f.arrivalOf(len(data)), data: append([]byte(nil), data...)})
	f.bytes += len(data)
	f.wake()
}

func (f *flow) finish() {
	if f.finished {
		return
	}
	if !f.stalled && !f.flows() {
		f.stall(time.Now())
	}
	f.finished, f.finishAt = true, f.arrivalOf(0)
	f.wake()
}

// stall loses what has not arrived yet.
func (f *flow) stall(now time.Time) {
	f.stalled, f.stalledAt = true, now
	for i := range f.segments {
		if f.segments[i].at.After(now) {
			f.segments[i].at = never()
		}
	}
	if f.finished && f.finishAt.After(now) {
		f.finishAt = never()
	}
	f.wake()
}

// resend is TCP's next try after a stall. Its pauses double, so the next try is up to as far away as the stall was long.
func (f *flow) resend() {
	pause := max(retransmitMin, min(time.Since(f.stalledAt), silenceMax/2))
	f.resendAt(roundUp(time.Now().Add(time.Duration(f.pair.network.random.Int64N(int64(pause))))))
}

func (f *flow) resendAt(at time.Time) {
	f.stalled = false
	for i := range f.segments {
		if f.segments[i].at.Equal(never()) {
			f.segments[i].at = at
		}
	}
	if f.finished && f.finishAt.Equal(never()) {
		f.finishAt = at
	}
	f.last = at
	f.wake()
}

// end is one side of a connection, as its program holds it.
type end struct {
	pair *pair
	side int
	host *Host
	// process is what the end dies with; nil while it waits to be accepted.
	process       *Process
	local, remote net.Addr
	closed        bool
	err           error // a reset or timeout, once it arrived
	// forgotten ends belong to a host that lost its power: no packet leaves or enters any more.
	forgotten                   bool
	readDeadline, writeDeadline time.Time
}

var _ net.Conn = (*end)(nil)

func (e *end) in() *flow  { return e.pair.flows[1-e.side] }
func (e *end) out() *flow { return e.pair.flows[e.side] }
func (e *end) peer() *end { return e.pair.ends[1-e.side] }

func (e *end) wakeBoth() {
	e.in().wake()
	e.out().wake()
}

// Read waits for what arrives. While the host is frozen nothing is handed to its programs.
func (e *end) Read(b []byte) (int, error) {
	n := e.pair.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if e.closed {
			return 0, e.fault("read", net.ErrClosed)
		}
		if e.process.frozen {
			e.pause(e.in(), time.Time{})
			continue
		}
		count, until, err := e.take(b)
		if count > 0 || err != nil {
			return count, err
		}
		if len(b) == 0 {
			return 0, nil
		}
		if passed(e.readDeadline) {
			return 0, e.fault("read", os.ErrDeadlineExceeded)
		}
		e.pause(e.in(), earlier(until, e.readDeadline))
	}
}

// take what has arrived; else say when the next bytes do.
func (e *end) take(b []byte) (count int, until time.Time, err error) {
	in, now := e.in(), time.Now()
	for len(in.segments) > 0 && count < len(b) && !in.segments[0].at.After(now) {
		s := &in.segments[0]
		copied := copy(b[count:], s.data)
		count += copied
		in.bytes -= copied
		if s.data = s.data[copied:]; len(s.data) == 0 {
			in.segments[0] = segment{}
			in.segments = in.segments[1:]
		}
	}
	switch {
	case count > 0:
		in.wake() // there is room for the writer
		return count, until, nil
	case e.err != nil:
		return 0, until, e.fault("read", e.err)
	case len(in.segments) > 0:
		return 0, in.segments[0].at, nil
	case in.finished && !in.finishAt.After(now):
		return 0, until, io.EOF
	case in.finished:
		return 0, in.finishAt, nil
	}
	return 0, until, nil
}

// Write waits while the buffer is full.
func (e *end) Write(b []byte) (int, error) {
	n := e.pair.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for written := 0; ; {
		switch {
		case e.closed:
			return written, e.fault("write", net.ErrClosed)
		case e.err != nil:
			return written, e.fault("write", e.err)
		case e.out().finished:
			return written, e.fault("write", syscall.EPIPE)
		case e.peer().closed && !e.peer().forgotten && e.in().finished && !e.in().finishAt.After(time.Now()):
			e.err = syscall.ECONNRESET
			return written, e.fault("write", e.err)
		case passed(e.writeDeadline):
			return written, e.fault("write", os.ErrDeadlineExceeded)
		}
		if room := streamBufferBytes - e.out().bytes; room > 0 {
			part := b[written:min(len(b), written+room)]
			if len(part) > 0 {
				e.out().push(part)
			}
			if written += len(part); written == len(b) {
				return written, nil
			}
			continue
		}
		e.pause(e.out(), e.writeDeadline)
	}
}

// pause gives the network up until something changes, or until then.
func (e *end) pause(f *flow, until time.Time) {
	changed, process := f.wait(), e.process.changed
	e.pair.network.mu.Unlock()
	waitFor(until, changed, process)
	e.pair.network.mu.Lock()
}

// waitFor either channel, or the time if there is one.
func waitFor(until time.Time, one, other <-chan struct{}) {
	var late <-chan time.Time
	if !until.IsZero() && until.Before(never()) {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-one:
	case <-other:
	case <-late:
	}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (e *end) fault(op string, err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: e.local.Network(), Source: e.local, Addr: e.remote, Err: err}
}

// Close sends what was written, and then the end. Data that was never read makes it a reset.
func (e *end) Close() error {
	n := e.pair.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closed {
		return e.fault("close", net.ErrClosed)
	}
	e.closeLocked()
	return nil
}

// CloseWrite says that nothing more will be written.
func (e *end) CloseWrite() error {
	n := e.pair.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closed {
		return e.fault("close", net.ErrClosed)
	}
	e.out().finish()
	return nil
}

func (e *end) closeLocked() {
	if e.closed {
		return
	}
	e.closed = true
	if e.process != nil {
		delete(e.process.ends, e)
	}
	if !e.forgotten {
		if e.in().bytes > 0 {
			e.pair.resetPeer(e)
		}
		e.out().finish()
	}
	e.wakeBoth()
	e.pair.release()
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

func (e *end) SetReadDeadline(t time.Time) error { return e.setDeadline(&e.readDeadline, t, e.in()) }

func (e *end) SetWriteDeadline(t time.Time) error { return e.setDeadline(&e.writeDeadline, t, e.out()) }

func (e *end) setDeadline(deadline *time.Time, t time.Time, f *flow) error {
	e.pair.network.mu.Lock()
	defer e.pair.network.mu.Unlock()
	if e.closed {
		return e.fault("set", net.ErrClosed)
	}
	*deadline = t
	f.wake()
	return nil
}

// newPair connects two hosts. The first end is the one that dialed.
func (n *Network) newPair(dialer, listener *Host, local, remote net.Addr) *pair {
	p := &pair{network: n}
	p.ends = [2]*end{
		{pair: p, side: 0, host: dialer, local: local, remote: remote},
		{pair: p, side: 1, host: listener, local: remote, remote: local},
	}
	p.flows = [2]*flow{{pair: p, from: dialer, to: listener}, {pair: p, from: listener, to: dialer}}
	n.pairs[p] = struct{}{}
	return p
}

// release forgets a connection that both sides have closed.
func (p *pair) release() {
	for _, e := range p.ends {
		if !e.closed {
			return
		}
	}
	if p.giveUp != nil {
		p.giveUp.Stop()
	}
	delete(p.network.pairs, p)
}

// resetPeer lets the other side fail as soon as word of it gets there.
func (p *pair) resetPeer(e *end) {
	if !p.network.open(e.host, e.peer().host) {
		return
	}
	at, _ := p.network.arrival(e.host, e.peer().host, 0)
	time.AfterFunc(time.Until(at), func() { p.fail(e.peer(), syscall.ECONNRESET) })
}

// fail breaks one side.
func (p *pair) fail(e *end, err error) {
	p.network.mu.Lock()
	defer p.network.mu.Unlock()
	e.failLocked(err)
}

func (e *end) failLocked(err error) {
	if e.err == nil {
		e.err = err
	}
	e.wakeBoth()
}

func (p *pair) failBoth(err error) {
	p.ends[0].failLocked(err)
	p.ends[1].failLocked(err)
}

// cut says whether keep-alive goes unanswered: it needs both directions.
func (p *pair) cut() bool {
	a, b := p.ends[0].host, p.ends[1].host
	return !p.network.open(a, b) || !p.network.open(b, a)
}

// expectGiveUp has a connection whose link was cut time out, unless the link is back by then.
func (p *pair) expectGiveUp() {
	if p.giveUp != nil || !p.cut() {
		return
	}
	p.giveUp = time.AfterFunc(silenceMax, func() {
		p.network.mu.Lock()
		defer p.network.mu.Unlock()
		p.giveUp = nil
		if p.cut() {
			p.failBoth(syscall.ETIMEDOUT)
		}
	})
}

// forgetHost is what a loss of power does to a connection: its side is gone, the other one hears nothing.
func (p *pair) forgetHost(h *Host) {
	for _, e := range p.ends {
		if e.host == h && !e.closed {
			e.forgotten, e.closed = true, true
			if e.process != nil {
				delete(e.process.ends, e)
			}
			e.wakeBoth()
		}
	}
	if p.ends[0].host == p.ends[1].host {
		delete(p.network.pairs, p)
	}
}
