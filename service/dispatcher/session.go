package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"swarm/raftstore"
	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// session is one agent's stream. One goroutine receives, one sends, and serve decides.
type session struct {
	d      *Dispatcher
	nodeID string
	id     string
	stream rpc.Dispatcher_SessionServer
	ctx    context.Context
	end    context.CancelCauseFunc
	// begun and heard, the nanoseconds from then to the last message, go by the monotonic clock: a jump of the wall clock
	// must not silence nodes.
	begun time.Time
	heard atomic.Int64
	// silent says that the node counts as silent.
	silent   atomic.Bool
	replaced atomic.Bool
	// release undoes what admit left with the dispatcher.
	release func() bool

	description swarm.NodeDescription
	address     string

	outbox outbox
	report report
	mu     sync.Mutex
	due    due
	// dueSince is when the first of what is due became so.
	dueSince time.Time
	// dueTaskIDs are the tasks of dueSomeTasks.
	dueTaskIDs []string
	acks       []uint64
	wakeUp     chan struct{}
	// beat says that a beat waits for an answer; spoke is the sending goroutine's: it said something since it looked for what is due.
	beat  atomic.Bool
	spoke bool
}

// due is what a session has to look at again.
type due uint8

const (
	dueTasks due = 1 << iota
	dueOrder
	dueRoster
	// dueMove asks the agent to use another manager.
	dueMove
	// dueSomeTasks: tasks of which it is known that nothing else of the node changed.
	dueSomeTasks
	dueAll = dueTasks | dueOrder | dueRoster
)

var errRemoved = errdefs.ErrPermissionDenied.WithMessage("this node was removed from the cluster: run swarm leave --force, then join again")

// dueTasksMax bounds the tasks that are remembered one by one.
const dueTasksMax = 256

// Session serves one agent until its stream ends.
func (d *Dispatcher) Session(stream rpc.Dispatcher_SessionServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &session{
		d: d, nodeID: d.peer(ctx).NodeID, id: raftstore.NewID(), stream: stream, ctx: ctx, end: cancel,
		wakeUp: make(chan struct{}, 1), begun: time.Now(),
	}
	if s.nodeID == "" {
		return errdefs.ErrUnauthenticated.WithMessage("a session needs a node certificate")
	}
	s.outbox.begin(s)
	received := s.receive()
	if err := s.hello(received); err != nil {
		return err
	}
	if err := d.admit(s, time.Now()); err != nil {
		return err
	}
	defer d.dismiss(s)
	welcome, err := s.connect()
	if err != nil {
		return s.refuse(err)
	}
	go s.sendAll(welcome)
	err = s.serve(received, time.Duration(welcome.BeatNs))
	d.writer.drop(s)
	return err
}

// refuse tells a removed node so in a message that it acts on; other errors end the stream only.
func (s *session) refuse(err error) error {
	if errors.Is(err, errRemoved) {
		order := &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Order{Order: &rpc.NodeOrder{Removed: true}}}
		if sendErr := s.stream.Send(order); sendErr != nil {
			return sendErr
		}
	}
	return err
}

// receive hands messages on until the session ends; the error that ends the stream comes last. Beats only count as heard,
// so that they do even while serve writes.
func (s *session) receive() <-chan received {
	messages := make(chan received)
	go func() {
		for {
			m, err := s.stream.Recv()
			s.heard.Store(int64(time.Since(s.begun)))
			if m.GetBeat() != nil {
				s.beat.Store(true)
				signal(s.wakeUp)
				if !s.silent.Load() {
					continue
				}
			}
			select {
			case messages <- received{m, err}:
			case <-s.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return messages
}

type received struct {
	message *rpc.AgentMessage
	err     error
}

// hello takes the first message and checks it.
func (s *session) hello(messages <-chan received) error {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	var first received
	select {
	case first = <-messages:
	case <-timer.C:
		return fmt.Errorf("no hello came, and a session begins with one: %w", context.DeadlineExceeded)
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	if first.err != nil {
		return first.err
	}
	h := first.message.GetHello()
	if h == nil {
		return errdefs.ErrInvalidArgument.WithMessage("the first message of a session must be a hello")
	}
	return s.read(h)
}

func (s *session) read(h *rpc.Hello) error {
	switch {
	case h.FormatVersion > FormatVersion:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("the agent speaks format %d, this manager up to %d: upgrade swarm on the managers first", h.FormatVersion, FormatVersion))
	case h.FormatVersion < FormatVersion:
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("the agent speaks format %d, this manager needs %d: upgrade swarm on node %s", h.FormatVersion, FormatVersion, s.nodeID))
	case len(h.DescriptionJson) > descriptionBytesMax:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the node's description has %d bytes, at most %d are taken: use fewer engine labels", len(h.DescriptionJson), descriptionBytesMax))
	}
	if err := json.Unmarshal(h.DescriptionJson, &s.description); err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the node's description cannot be read: %v", err))
	}
	host, _, err := net.SplitHostPort(h.Address)
	if err != nil || host == "" {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the node's address %q is no host:port: set --advertise-addr", h.Address))
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the node's address %q cannot be reached by others: set --advertise-addr", h.Address))
	}
	s.address = h.Address
	return nil
}

// connect writes that the node is here, and makes the welcome.
func (s *session) connect() (*rpc.Welcome, error) {
	ctx, cancel := context.WithTimeout(s.ctx, writeTimeout)
	defer cancel()
	err := s.writeConnected(ctx)
	if errors.Is(err, errRemoved) {
		// This replica may lag behind the one that admitted the node.
		state, viewErr := s.d.cfg.Store.View(ctx)
		if viewErr != nil {
			return nil, viewErr
		}
		if _, ok := state.Nodes.Get(s.nodeID); ok {
			err = s.writeConnected(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	set := settingsOf(s.d.cfg.Store.Local())
	if !set.known {
		return nil, errdefs.ErrUnavailable.WithMessage("this manager has no state yet: try another")
	}
	return &rpc.Welcome{
		FormatVersion: FormatVersion, BeatNs: int64(set.grace / beatsPerGrace), GraceNs: int64(set.grace), GossipKey: []byte(set.gossipKey),
	}, nil
}

// writeConnected writes that the node is here, unless the row says so already.
func (s *session) writeConnected(ctx context.Context) error {
	was := raftstore.Presence("")
	err := s.d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		row, ok := tx.Nodes.Get(s.nodeID)
		if !ok {
			return errRemoved
		}
		was = row.Session.Presence
		if row.Session.ID == s.id && row.Session.Heard() {
			return nil
		}
		n := *row
		n.Description, n.Address = s.description, s.address
		host, _, _ := net.SplitHostPort(s.address)
		n.Status.Addr = host
		n.Observe(raftstore.Session{Manager: s.d.cfg.NodeID, ID: s.id, Presence: raftstore.PresenceHeard, Since: time.Now()})
		tx.PutObservedNode(n)
		return nil
	})
	if err == nil && was != raftstore.PresenceHeard {
		s.d.log.Info("node state", "node", s.nodeID, "presence", raftstore.PresenceHeard, "before", was)
	}
	return err
}

// serve takes messages until the session ends, and watches for silence.
func (s *session) serve(messages <-chan received, beat time.Duration) (err error) {
	s.d.log.Info("session begun", "node", s.nodeID, "address", s.address)
	w := &watcher{s: s, beat: beat, answers: make(chan probe, 1), check: time.NewTimer(probeBeats * beat)}
	defer w.check.Stop()
	goodbye := ""
	for err == nil {
		select {
		case r := <-messages:
			if err = r.err; err == nil {
				s.speaks()
				goodbye, err = s.take(r.message)
			}
		case <-w.check.C:
			err = w.look()
		case w.probe = <-w.answers:
			w.asking = false
			err = w.look()
		case <-s.ctx.Done():
			err = context.Cause(s.ctx)
		}
	}
	return s.over(err, goodbye, beat)
}

// quiet is how long ago the last message came.
func (s *session) quiet() time.Duration { return time.Since(s.begun) - time.Duration(s.heard.Load()) }

// watcher watches an open stream for silence: it asks the node's port first, and judges at its answer or when the beats' time is over.
type watcher struct {
	s    *session
	beat time.Duration
	// check is when to look again.
	check *time.Timer
	// asked is when the latest probe began, asking says that it is under way, probe what came of it.
	asked   time.Time
	asking  bool
	probe   probe
	answers chan probe
	// told is what was written of a silence, and when.
	told   raftstore.Presence
	toldAt time.Time
}

// look does what the length of the silence asks for, and sets the time of the next look.
func (w *watcher) look() error {
	quiet, patience := w.s.quiet(), patienceBeats*w.beat
	// What was learned before the last message came is of another silence.
	within := func(at time.Time) bool { return !at.IsZero() && time.Since(at) <= quiet }
	switch {
	case quiet > 2*beatsPerGrace*w.beat:
		return fmt.Errorf("no beats came, the session is over: %w", context.DeadlineExceeded)
	case quiet < probeBeats*w.beat:
		w.check.Reset(probeBeats*w.beat - quiet)
		return nil
	case !w.asking && !within(w.asked):
		w.asked, w.asking, w.probe = time.Now(), true, notAsked
		w.s.d.counters.silences.Add(1)
		go func() { w.answers <- w.s.d.prober.probe(w.s.ctx, w.s.address, patience-probeBeats*w.beat) }()
	}
	seen := sight{quiet: quiet}
	if within(w.asked) {
		seen.probe = w.probe
	}
	presence := seen.presence(patience)
	if presence == raftstore.PresenceHeard {
		w.check.Reset(patience - quiet)
		return nil
	}
	w.check.Reset(patience)
	if presence == w.told && within(w.toldAt) {
		return nil
	}
	// Set first: the next message has it written that the node is heard. Without a leader it is tried again at the next look.
	w.s.silent.Store(true)
	if err := w.s.writeAbsent(presence, "", quiet); err != nil {
		w.s.d.log.Warn("silence of node not written, will retry", "node", w.s.nodeID, "err", err)
		return nil
	}
	w.told, w.toldAt = presence, time.Now()
	return nil
}

// speaks writes that a silent node is heard again.
func (s *session) speaks() {
	if !s.silent.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, writeTimeout)
	defer cancel()
	// Cleared first: a verdict that is written meanwhile sets it again.
	s.silent.Store(false)
	if err := s.writeConnected(ctx); err != nil {
		s.silent.Store(true)
		s.d.log.Warn("return of node not written, will retry", "node", s.nodeID, "err", err)
	}
}

// over writes what the end of the session says of the node.
func (s *session) over(err error, goodbye string, beat time.Duration) error {
	s.d.log.Info("session over", "node", s.nodeID, "goodbye", goodbye, "reason", err)
	running := s.d.runningContext()
	switch {
	case s.replaced.Load(), errors.Is(err, errRemoved), running.Err() != nil:
	case errdefs.IsUnavailable(err) && goodbye == "":
		// This manager ended it and knows nothing of the node: it is up to the next one.
		s.d.owe(s.nodeID, debt{session: s.id, presence: raftstore.PresenceLost, heard: time.Now(), due: time.Now().Add(patienceBeats * beat)})
	default:
		seen := sight{closed: true, goodbye: goodbye, quiet: s.quiet()}
		if goodbye == "" {
			seen.probe = s.d.prober.probe(running, s.address, probeBeats*beat)
		}
		presence := seen.presence(patienceBeats * beat)
		if writeErr := s.writeAbsent(presence, goodbye, s.quiet()); writeErr != nil {
			s.d.log.Warn("end of session not written, will retry", "node", s.nodeID, "err", writeErr)
			s.d.owe(s.nodeID, debt{session: s.id, presence: presence, reason: goodbye, heard: time.Now().Add(-s.quiet()), due: time.Now()})
		}
	}
	if errors.Is(err, io.EOF) || goodbye != "" {
		return nil
	}
	return err
}

// writeAbsent writes what is known of a node that is not heard, unless a newer session says otherwise.
func (s *session) writeAbsent(presence raftstore.Presence, reason string, silence time.Duration) error {
	ctx, cancel := context.WithTimeout(s.d.runningContext(), writeTimeout)
	defer cancel()
	return s.d.writeAbsences(ctx, map[string]debt{s.nodeID: {session: s.id, presence: presence, reason: reason, heard: time.Now().Add(-silence)}})
}

// take handles one message. After a good-bye it returns io.EOF.
func (s *session) take(m *rpc.AgentMessage) (goodbye string, err error) {
	switch k := m.GetKind().(type) {
	case *rpc.AgentMessage_Beat:
		return "", nil
	case *rpc.AgentMessage_Statuses:
		return "", s.d.writer.takeStatuses(s, k.Statuses)
	case *rpc.AgentMessage_Images:
		return "", s.d.writer.takeImages(s, k.Images)
	case *rpc.AgentMessage_Goodbye:
		if reason := k.Goodbye.GetReason(); forGood(reason) {
			return reason, io.EOF
		}
		return rpc.GoodbyeRestart, io.EOF
	case *rpc.AgentMessage_Hello:
		return "", errdefs.ErrInvalidArgument.WithMessage("a session has one hello only")
	}
	return "", nil // a message of a newer agent
}

// poke asks the sender to look again.
func (s *session) poke(d due, taskIDs ...string) {
	s.mu.Lock()
	if s.due == 0 {
		s.dueSince = time.Now()
	}
	s.due |= d
	s.dueTaskIDs = append(s.dueTaskIDs, taskIDs...)
	if len(s.dueTaskIDs) > dueTasksMax {
		// A look at the whole node costs no more than that.
		s.due, s.dueTaskIDs = (s.due|dueTasks)&^dueSomeTasks, nil
	}
	s.mu.Unlock()
	signal(s.wakeUp)
}

// acknowledge has statuses confirmed to the agent.
func (s *session) acknowledge(sequences []uint64) {
	s.mu.Lock()
	s.acks = append(s.acks, sequences...)
	s.mu.Unlock()
	signal(s.wakeUp)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
