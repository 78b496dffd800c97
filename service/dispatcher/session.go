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
	acks   []uint64
	wakeUp chan struct{}
}

// due is what a session has to look at again.
type due uint8

const (
	dueTasks due = 1 << iota
	dueOrder
	dueRoster
	dueAll = dueTasks | dueOrder | dueRoster
)

var errRemoved = errdefs.ErrPermissionDenied.WithMessage("this node was removed from the cluster: run swarm leave --force, then join again")

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
			if m.GetBeat() != nil && !s.silent.Load() {
				continue
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

func (s *session) writeConnected(ctx context.Context) error {
	was := swarm.NodeState("")
	err := s.d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		row, ok := tx.Nodes.Get(s.nodeID)
		if !ok {
			return errRemoved
		}
		was = row.Status.State
		n := *row
		n.Description, n.Address = s.description, s.address
		host, _, _ := net.SplitHostPort(s.address)
		n.Status.Addr = host
		n.Observe(raftstore.Session{Manager: s.d.cfg.NodeID, ID: s.id, Presence: raftstore.PresenceHeard, Since: time.Now()})
		tx.PutObservedNode(n)
		return nil
	})
	if err == nil && was != swarm.NodeStateReady {
		s.d.log.Info("node state", "node", s.nodeID, "state", swarm.NodeStateReady, "before", was)
	}
	return err
}

// writeAbsent writes what is known of a node that is not heard, unless a newer session says otherwise.
func (s *session) writeAbsent(presence raftstore.Presence, reason string, silence time.Duration) error {
	ctx, cancel := context.WithTimeout(s.d.runningContext(), writeTimeout)
	defer cancel()
	return s.d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		row, ok := tx.Nodes.Get(s.nodeID)
		if !ok || row.Session.ID != s.id {
			return nil
		}
		n := *row
		n.Observe(raftstore.Session{
			Manager: s.d.cfg.NodeID, ID: s.id, Presence: presence, Reason: reason, Silence: silence, Since: time.Now(),
		})
		tx.PutObservedNode(n)
		return nil
	})
}

// serve takes messages until the session ends, and watches for silence.
func (s *session) serve(messages <-chan received, beat time.Duration) (err error) {
	s.d.log.Info("session begun", "node", s.nodeID, "address", s.address)
	patience, grace := beatsMissed*beat, beatsPerGrace*beat
	goodbye := ""
	check := time.NewTimer(patience)
	defer check.Stop()
	for err == nil {
		select {
		case r := <-messages:
			if err = r.err; err == nil {
				s.speaks()
				goodbye, err = s.take(r.message)
			}
		case <-check.C:
			quiet := s.quiet()
			if quiet > 2*grace {
				err = fmt.Errorf("no beats came, the session is over: %w", context.DeadlineExceeded)
			} else if quiet >= patience {
				s.isSilent(quiet)
				check.Reset(patience)
			} else {
				check.Reset(patience - quiet)
			}
		case <-s.ctx.Done():
			err = context.Cause(s.ctx)
		}
	}
	return s.over(err, goodbye, grace)
}

// quiet is how long ago the last message came.
func (s *session) quiet() time.Duration { return time.Since(s.begun) - time.Duration(s.heard.Load()) }

// isSilent writes once that the node is silent. Without a leader it is tried again later.
func (s *session) isSilent(quiet time.Duration) {
	if s.silent.Load() {
		return
	}
	if err := s.writeAbsent(raftstore.PresenceSuspect, "", quiet); err != nil {
		s.d.log.Warn("silence of node not written, will retry", "node", s.nodeID, "err", err)
		return
	}
	s.silent.Store(true)
	s.d.log.Info("node silent", "node", s.nodeID, "for", quiet)
}

// speaks writes that a silent node is heard again.
func (s *session) speaks() {
	if !s.silent.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, writeTimeout)
	defer cancel()
	if err := s.writeConnected(ctx); err != nil {
		s.d.log.Warn("return of node not written, will retry", "node", s.nodeID, "err", err)
		return
	}
	s.silent.Store(false)
	s.d.log.Info("node heard again", "node", s.nodeID)
}

// over writes how the session ended. A node that said that it leaves has no grace time.
func (s *session) over(err error, goodbye string, grace time.Duration) error {
	silence, presence := s.quiet(), raftstore.PresenceSuspect
	switch goodbye {
	case goodbyeLeave, goodbyeShutdown:
		silence, presence = grace, raftstore.PresenceAnnounced
	case goodbyeRestart:
		presence = raftstore.PresenceAnnounced
	}
	s.d.log.Info("session over", "node", s.nodeID, "goodbye", goodbye, "reason", err)
	// A manager that lost the leader cannot write; the next leader counts the grace time itself.
	if !s.replaced.Load() && s.d.runningContext().Err() == nil && !errdefs.IsUnavailable(err) {
		if writeErr := s.writeAbsent(presence, goodbye, silence); writeErr != nil {
			s.d.log.Warn("end of session not written, the leader will notice", "node", s.nodeID, "err", writeErr)
		}
	}
	if errors.Is(err, io.EOF) || goodbye != "" {
		return nil
	}
	return err
}

// What an agent may say when it ends its session on purpose.
const (
	goodbyeRestart  = "restart"
	goodbyeShutdown = "shutdown"
	goodbyeLeave    = "leave"
)

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
		switch reason := k.Goodbye.GetReason(); reason {
		case goodbyeShutdown, goodbyeLeave:
			return reason, io.EOF
		}
		return goodbyeRestart, io.EOF
	case *rpc.AgentMessage_Hello:
		return "", errdefs.ErrInvalidArgument.WithMessage("a session has one hello only")
	}
	return "", nil // a message of a newer agent
}

// poke asks the sender to look again.
func (s *session) poke(d due) {
	s.mu.Lock()
	s.due |= d
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
