package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
)

const (
	// formatVersion is that of the messages of node.proto.
	formatVersion = 1
	// sessionRetryMin and sessionRetryMax bound the pause between two rounds over all managers.
	sessionRetryMin = 100 * time.Millisecond
	sessionRetryMax = 2 * time.Second
	// goodbyeMax is how long a manager may take to hear a good-bye.
	goodbyeMax = time.Second
	// welcomeMax is how long a manager may take to answer a hello.
	welcomeMax = 5 * time.Second
)

// errGoodbye ends a session that this node ended itself.
var errGoodbye = errors.New("said good-bye")

// runSessions keeps one session with some manager until ctx ends.
func (m *membership) runSessions(ctx context.Context) error {
	retry := sessionRetryMin
	for ctx.Err() == nil {
		for _, address := range m.managerAddresses() {
			begun := time.Now()
			welcomed, err := m.session(ctx, address)
			if ctx.Err() != nil {
				return nil
			}
			m.log.Warn("session ended", "manager", address, "err", err)
			// The answer to a renewal may have been lost when the connections of the former manager were cut.
			if errdefs.IsUnauthorized(err) {
				m.renewNow.send()
			}
			// The connection may have been cut before the order to stop came through; a member is refused for nothing else.
			if errdefs.IsPermissionDenied(err) && !m.removed() {
				m.obey(&rpc.NodeOrder{Removed: true})
			}
			if welcomed {
				// One that ends as soon as it began would end again: only a session that lived starts the pauses anew.
				if time.Since(begun) > sessionRetryMax {
					retry = sessionRetryMin
				}
				break // the roster of that session is the best list there is
			}
		}
		pause := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
		retry = min(2*retry, sessionRetryMax)
	}
	return nil
}

// session is one stream with a manager: hello, then beats, statuses and held images up, orders down.
type session struct {
	m      *membership
	stream rpc.Dispatcher_SessionClient
	// unacknowledged are the statuses of the one message under way, nil when none is.
	unacknowledged []*rpc.TaskStatus
	sequence       uint64
}

func (m *membership) session(ctx context.Context, address string) (welcomed bool, err error) {
	conn, err := m.dialer.GRPC(address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	// The stream outlives ctx by the farewell, so it has a context of its own. Until the welcome, a manager
	// that does not answer and the end of ctx both end it.
	streamCtx, endStream := context.WithCancel(context.WithoutCancel(ctx))
	defer endStream()
	late := time.AfterFunc(welcomeMax, endStream)
	defer late.Stop()
	detach := context.AfterFunc(ctx, endStream)
	defer detach()
	stream, err := rpc.NewDispatcherClient(conn).Session(streamCtx)
	if err != nil {
		return false, err
	}
	s := &session{m: m, stream: stream}
	welcome, err := s.greet()
	if err != nil {
		return false, err
	}
	if !late.Stop() || !detach() {
		return false, context.Canceled
	}
	m.log.Info("session begun", "manager", address)
	m.takeGossipKey(welcome.GossipKey)
	m.node.worker.Resend()
	m.inSession.Store(true)
	defer m.inSession.Store(false)
	return true, s.serve(ctx, time.Duration(welcome.BeatNs))
}

func (s *session) greet() (*rpc.Welcome, error) {
	description, err := json.Marshal(s.m.node.edges.Description)
	if err != nil {
		return nil, err
	}
	hello := &rpc.Hello{
		FormatVersion:   formatVersion,
		DescriptionJson: description,
		Address:         s.m.currentRecord().AdvertiseAddr,
	}
	if err := s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	first, err := s.stream.Recv()
	if err != nil {
		return nil, err
	}
	if order := first.GetOrder(); order != nil && order.Removed {
		s.m.obey(order)
		return nil, errdefs.ErrPermissionDenied.WithMessage("this node was removed from the swarm")
	}
	welcome := first.GetWelcome()
	if welcome == nil || welcome.BeatNs <= 0 {
		return nil, errdefs.ErrInternal.WithMessage("the manager's first message is no welcome")
	}
	return welcome, nil
}

// serve is the session after its greeting. Only this goroutine sends.
func (s *session) serve(ctx context.Context, beat time.Duration) error {
	received := make(chan *rpc.ManagerMessage)
	broken := make(chan error, 1)
	// What arrives after the farewell is read, so that the stream's end is seen, and dropped.
	parting := make(chan struct{})
	defer close(parting)
	go func() {
		for {
			message, err := s.stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case received <- message:
			case <-parting:
			}
		}
	}()
	beats := time.NewTicker(beat)
	defer beats.Stop()
	if err := s.sendHeldImages(ctx); err != nil {
		return err
	}
	for {
		if err := s.sendStatuses(); err != nil {
			return err
		}
		var err error
		select {
		case <-ctx.Done():
			return s.sayGoodbye("restart", received, broken)
		case answered := <-s.m.resigns:
			err = s.sayGoodbye("leave", received, broken)
			close(answered)
		case <-beats.C:
			err = s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Beat{Beat: &rpc.Beat{}}})
		case <-s.m.node.images.Changed():
			err = s.sendHeldImages(ctx)
		case <-s.statusesDue():
		case message := <-received:
			s.take(message)
		case err = <-broken:
		}
		if err != nil {
			return err
		}
	}
}

// statusesDue is nil, and so never ready, while a status message is unacknowledged: meanwhile newer statuses replace older ones.
func (s *session) statusesDue() <-chan struct{} {
	if s.unacknowledged != nil {
		return nil
	}
	return s.m.node.worker.Changed()
}

func (s *session) sendStatuses() error {
	if s.unacknowledged != nil {
		return nil
	}
	statuses := s.m.node.worker.Statuses()
	if len(statuses) == 0 {
		return nil
	}
	s.sequence++
	s.unacknowledged = statuses
	message := &rpc.TaskStatuses{Sequence: s.sequence, Statuses: statuses}
	return s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Statuses{Statuses: message}})
}

func (s *session) sendHeldImages(ctx context.Context) error {
	held, err := s.m.node.images.Held(ctx)
	if err != nil {
		s.m.log.Warn("held images not reported", "err", err)
		return nil
	}
	return s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Images{Images: &rpc.HeldImages{Images: held}}})
}

// sayGoodbye ends the session in words. It waits, bounded, until the manager has ended the stream too:
// closing the connection before that could lose the message.
func (s *session) sayGoodbye(reason string, received <-chan *rpc.ManagerMessage, broken <-chan error) error {
	err := s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Goodbye{Goodbye: &rpc.Goodbye{Reason: reason}}})
	if err = errors.Join(err, s.stream.CloseSend()); err != nil {
		return err
	}
	late := time.After(goodbyeMax)
	for {
		select {
		case <-received:
		case <-broken:
			return errGoodbye
		case <-late:
			return errGoodbye
		}
	}
}

func (s *session) take(message *rpc.ManagerMessage) {
	switch {
	case message.GetAssignments() != nil:
		s.m.node.worker.Apply(message.GetAssignments())
		s.m.assigned.open()
	case message.GetAck() != nil:
		if message.GetAck().Sequence == s.sequence {
			s.m.node.worker.Acknowledge(s.unacknowledged)
			s.unacknowledged = nil
		}
	case message.GetRoster() != nil:
		for _, id := range s.m.roster.apply(message.GetRoster()) {
			s.m.server.Load().Cut(id)
		}
		s.m.rememberManagers()
		s.m.rosterMoved.send()
	case message.GetOrder() != nil:
		s.m.obey(message.GetOrder())
	}
}

// obey does what the cluster wants of the node itself.
func (m *membership) obey(order *rpc.NodeOrder) {
	m.mu.Lock()
	m.order = order
	m.mu.Unlock()
	if order.Removed {
		m.log.Warn("this node was removed from the swarm", "next", "swarm leave --force, then swarm join")
		m.node.worker.Apply(&rpc.Assignments{Full: true})
		return
	}
	if order.Role != "" && order.Role != string(m.identity.Role()) {
		m.renewNow.send()
	}
}

// resign hands the manager role over, if others can take it, and says good-bye, as far as ctx allows.
func (m *membership) resign(ctx context.Context) {
	if mg := m.manager.Load(); mg != nil && mg.serving() {
		if err := mg.stepDown(ctx); err != nil {
			m.log.Warn("left without handing over the manager role", "err", err)
		}
	}
	if !m.inSession.Load() {
		return
	}
	answered := make(chan struct{})
	select {
	case m.resigns <- answered:
		<-answered
	case <-ctx.Done():
	case <-m.ended:
	}
}
