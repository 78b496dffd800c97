package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// formatVersion is that of the messages of node.proto.
	formatVersion = 1
	// goodbyeMax is how long a manager may take to hear a good-bye.
	goodbyeMax = time.Second
	// ownReplicaMax is how long a manager's agent waits for its own replica at the start: an election, and far less than the grace time.
	ownReplicaMax  = 1500 * time.Millisecond
	ownReplicaPoll = 50 * time.Millisecond
	// resignMax bounds the wait for a session to say in that this node leaves.
	resignMax = 3 * time.Second
	// welcomeMax is how long a manager may take to answer a hello; it has to find a leader first.
	welcomeMax = 5 * time.Second
	// beatsMissedMax is how many beats in a row may stay without any word from the manager: 2 s with the default grace time.
	beatsMissedMax = 3
	// homeAfter, and as much again at random, is how long this manager's own replica must serve before its agent comes back to it.
	homeAfter = 3 * time.Second
)

var (
	// errGoodbye ends a session that this node ended itself.
	errGoodbye = errors.New("said good-bye")
	// errSilent ends a session whose manager says nothing any more.
	errSilent = errdefs.ErrUnavailable.WithMessage("the manager is silent")
	// errSlow ends an attempt on a manager that does not answer.
	errSlow = errdefs.ErrUnavailable.WithMessage("the manager does not answer in time")
)

// runSessions keeps one session with some manager until ctx ends.
func (m *membership) runSessions(ctx context.Context) error {
	var search search
	m.awaitOwnReplica(ctx)
	for ctx.Err() == nil {
		pause, ended := time.Duration(0), false
		managers := m.managerAddresses()
		addresses := slices.Clone(managers)
		for _, a := range m.others() {
			addresses = withAddress(addresses, a)
		}
		for _, address := range search.order(addresses) {
			patience := connectMin // with a node that may be a manager by now
			if slices.Contains(managers, address) {
				patience = search.patience()
			}
			welcomed, err := m.session(ctx, address, patience)
			if ctx.Err() != nil {
				return nil
			}
			m.learnFrom(err)
			if !welcomed.IsZero() {
				m.log.Warn("session ended", "manager", address, "err", err)
				// The roster of that session is the best list there is.
				pause, ended = search.lost(address, time.Since(welcomed), m.roster.size()), true
				if mg := m.manager.Load(); (mg == nil || mg.demoted()) && address == m.currentRecord().AdvertiseAddr {
					pause = 0 // The next manager tells this one that it is a worker; until then whoever asks it waits.
				}
				break
			}
			m.log.Warn("no session", "manager", address, "err", err)
			search.avoid(address)
		}
		if !ended {
			pause = search.fruitless()
		}
		if m.resigned.Load() {
			<-ctx.Done() // A new session would take back what was said.
		}
		pauseFor(ctx, pause)
	}
	return nil
}

// awaitOwnReplica gives a manager that starts again a moment for its own replica to serve, so that its agent does not turn to another
// manager and soon back. A new one is let into raft only once some manager has heard its agent.
func (m *membership) awaitOwnReplica(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ownReplicaMax)
	defer cancel()
	for ctx.Err() == nil && m.identity.Role() == swarm.NodeRoleManager {
		if mg := m.manager.Load(); mg != nil && (mg.tenure.current() != nil || !mg.store.IsMember(mg.nodeID)) {
			return
		}
		pauseFor(ctx, ownReplicaPoll)
	}
}

// learnFrom takes from the end of a session what it says of this node.
func (m *membership) learnFrom(err error) {
	// The answer to a renewal may have been lost when the connections of the former manager were cut.
	if errdefs.IsUnauthorized(err) {
		m.renewNow.send()
	}
	// The connection may have been cut before the order to stop came through; a member is refused for nothing else.
	if errdefs.IsPermissionDenied(err) && !m.removed() {
		m.obey(&rpc.NodeOrder{Removed: true})
	}
}

// session is one stream with a manager: hello, then beats, statuses and held images up, orders down.
type session struct {
	m      *membership
	stream rpc.Dispatcher_SessionClient
	// heard says that the manager spoke since it was last looked at.
	heard atomic.Bool
	// atHome says that the manager is this node's own; leaveAt, when a manager's agent goes back to its own.
	atHome  bool
	leaveAt time.Duration
	// unacknowledged are the statuses of the one message under way, nil when none is.
	unacknowledged []*rpc.TaskStatus
	sequence       uint64
	// moving says that the manager wants to be rid of this node.
	moving bool
}

// session returns when it ended, and when it was welcomed; zero if it never was.
func (m *membership) session(ctx context.Context, address string, patience time.Duration) (welcomed time.Time, err error) {
	conn, err := m.dialer.GRPC(address)
	if err != nil {
		return welcomed, err
	}
	defer conn.Close()
	// The stream outlives ctx by the farewell, so it has a context of its own. Until the welcome, a manager
	// that does not answer and the end of ctx both end it.
	streamCtx, endStream := context.WithCancelCause(context.WithoutCancel(ctx))
	defer endStream(nil)
	late := time.AfterFunc(patience, func() { endStream(errSlow) })
	defer late.Stop()
	detach := context.AfterFunc(ctx, func() { endStream(context.Canceled) })
	defer detach()
	stream, err := rpc.NewDispatcherClient(conn).Session(streamCtx)
	if err != nil {
		return welcomed, orCause(streamCtx, err)
	}
	late.Reset(welcomeMax)
	s := &session{m: m, stream: stream, atHome: address == m.currentRecord().AdvertiseAddr, leaveAt: homeAfter + rand.N(homeAfter)}
	welcome, err := s.greet()
	if err != nil {
		return welcomed, orCause(streamCtx, err)
	}
	if !late.Stop() || !detach() {
		return welcomed, context.Canceled
	}
	m.log.Info("session begun", "manager", address)
	m.takeGossipKey(welcome.GossipKey)
	m.node.worker.Resend()
	m.inSession.Store(true)
	defer m.inSession.Store(false)
	welcomed = time.Now()
	beat := time.Duration(welcome.BeatNs)
	listening := make(chan struct{})
	go func() { defer close(listening); s.listen(streamCtx, beat, endStream) }()
	err = orCause(streamCtx, s.serve(ctx, beat))
	endStream(nil)
	<-listening
	return welcomed, err
}

// orCause prefers the reason why a context was ended to the error that followed from it.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && err != errGoodbye {
		return cause
	}
	return err
}

// listen ends the session when its manager says nothing for some beats in a row. It counts beats instead of looking at
// the clock: an agent that was itself stopped for a while finds first what waits for it.
func (s *session) listen(ctx context.Context, beat time.Duration, end context.CancelCauseFunc) {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for missed := 0; missed < beatsMissedMax; {
		select {
		case <-ctx.Done():
			return
		case <-beats.C:
		}
		missed++
		if s.heard.Swap(false) {
			missed = 0
		}
	}
	end(errSilent)
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
			s.heard.Store(true)
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
			return s.sayGoodbye(s.m.stopReason(), received, broken)
		case heard := <-s.m.resigns:
			err = s.sayGoodbye(rpc.GoodbyeLeave, received, broken)
			s.m.resigned.Store(err == errGoodbye)
			heard <- err == errGoodbye
		case <-beats.C:
			if s.shallMove() {
				return s.sayGoodbye(rpc.GoodbyeMove, received, broken)
			}
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

// shallMove says whether another manager is the better one: a manager's agent goes back to its own replica once that has served
// for a while, and any agent leaves a manager that has too many, if there is another one.
func (s *session) shallMove() bool {
	if mg := s.m.manager.Load(); mg != nil && !s.atHome && mg.tenure.lasted() > s.leaveAt {
		return true
	}
	return s.moving && !s.atHome && len(s.m.roster.managers()) > 1
}

// stopReason is what the cluster is told when the agent ends.
func (m *membership) stopReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.order != nil && m.order.Availability == string(swarm.NodeAvailabilityDrain) {
		return rpc.GoodbyeDrain
	}
	if farewell := m.node.edges.Farewell; farewell != nil {
		return farewell()
	}
	return rpc.GoodbyeRestart
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

// sayGoodbye ends the session in words: errGoodbye says that they were heard. It waits, bounded, until the manager has ended the
// stream too: closing the connection before that could lose the message, and one that was cut meanwhile has lost it.
func (s *session) sayGoodbye(reason string, received <-chan *rpc.ManagerMessage, broken <-chan error) error {
	err := s.stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Goodbye{Goodbye: &rpc.Goodbye{Reason: reason}}})
	if err = errors.Join(err, s.stream.CloseSend()); err != nil {
		return err
	}
	late := time.After(goodbyeMax)
	for {
		select {
		case <-received:
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				return errGoodbye
			}
			return err
		case <-late:
			return errSilent
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
		for _, of := range s.m.roster.news(message.GetRoster()) {
			s.m.log.Info("node presence", "node", of.NodeId, "presence", of.Presence)
		}
		for _, id := range s.m.roster.apply(message.GetRoster()) {
			s.m.cut(id)
		}
		s.m.rememberManagers()
		s.m.rosterMoved.send()
	case message.GetOrder() != nil:
		s.m.obey(message.GetOrder())
	case message.GetMove() != nil:
		s.moving = true
	}
}

// cut ends every connection with a node whose standing became less, whoever opened it. One that it opened as a worker is one
// of a worker's, and stays, unless the node was removed.
func (m *membership) cut(nodeID string) {
	if m.roster.wasRemoved(nodeID) {
		m.server.Load().Cut(nodeID)
	} else {
		m.server.Load().CutManager(nodeID)
	}
	m.dialer.Cut(nodeID)
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
		if err := m.stepDown(ctx, mg); err != nil {
			m.log.Warn("left without handing over the manager role", "err", err)
		}
	}
	if !m.inSession.Load() && len(m.roster.managers()) == 0 {
		return
	}
	// A session that ended with the manager role comes back in a moment, and one may end before the farewell was heard.
	ctx, cancel := context.WithTimeout(ctx, resignMax)
	defer cancel()
	for heard := make(chan bool, 1); ctx.Err() == nil; {
		select {
		case m.resigns <- heard:
			if <-heard {
				return
			}
		case <-ctx.Done():
		case <-m.ended:
			return
		}
	}
}
