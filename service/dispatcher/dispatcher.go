// Package dispatcher hands assignments to agents and takes their statuses: sessions, node liveness, status write-back.
// agent registers it on every manager's port; raftstore is its only memory.
package dispatcher

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service/spec"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// FormatVersion is that of the messages of node.proto.
const FormatVersion = 1

// Bounds of what sessions may hold and send.
const (
	helloTimeout = 10 * time.Second
	writeTimeout = 10 * time.Second

	// assignmentsMax and assignmentBytesMax bound one message of changes.
	assignmentsMax     = 100
	assignmentBytesMax = 2 << 20
	// holdersMax is how many holders of an image a node is told of; each node gets its own choice, which spreads the load.
	holdersMax = 8

	descriptionBytesMax = 64 << 10
	statusTextBytesMax  = 1 << 10
	statusesMax         = 20_000
	imagesMax           = 4_096
	imageTextBytesMax   = 512
	platformsMax        = 64

	// A node may begin so many sessions in a window.
	sessionsPerWindow = 20
	sessionWindow     = 10 * time.Second
	// nodesRememberedMax bounds the memory of that.
	nodesRememberedMax = 100_000
)

// Config is what a dispatcher needs.
type Config struct {
	NodeID string // of this manager
	Store  *raftstore.Store
	Log    *slog.Logger
	// Peer says who is at the other end of a call; nil: rpc.PeerFrom.
	Peer func(context.Context) rpc.Peer
	// Probe asks whether a node's port accepts connections: nil when one was made, which is closed again. It ends with its
	// context. Without it a node whose stream broke can only be suspected.
	Probe func(ctx context.Context, address string) error
}

// Dispatcher implements rpc.DispatcherServer.
type Dispatcher struct {
	rpc.UnimplementedDispatcherServer
	cfg      Config
	log      *slog.Logger
	peer     func(context.Context) rpc.Peer
	roster   *roster
	writer   *writer
	prober   *prober
	counters counters
	specs    specCache
	// beat answers all beats.
	beat *rpc.ManagerMessage
	// voters is raft's configuration as route last saw it: whether each manager in it votes.
	voters atomic.Pointer[map[string]bool]

	mu sync.Mutex
	// running ends with Run; nil before.
	running  context.Context
	sessions map[string]*session
	// begun are the times of each node's latest sessions.
	begun map[string][]time.Time
	// debts are rows that say of this manager's sessions what is not so.
	debts map[string]debt
	// owes receives after a new debt.
	owes chan struct{}
}

// New makes a dispatcher; its sessions are refused until Run.
func New(cfg Config) *Dispatcher {
	if cfg.Peer == nil {
		cfg.Peer = rpc.PeerFrom
	}
	d := &Dispatcher{
		cfg: cfg, log: cfg.Log, peer: cfg.Peer, roster: newRoster(),
		prober: newProber(cfg.Probe), sessions: map[string]*session{}, begun: map[string][]time.Time{},
		debts: map[string]debt{}, owes: make(chan struct{}, 1),
		beat: &rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Beat{Beat: &rpc.Beat{}}},
	}
	d.writer = newWriter(cfg.Store, cfg.Log)
	return d
}

// Run routes changes to sessions and writes their reports back until ctx ends; sessions are closed then.
func (d *Dispatcher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	voters := d.readVoters()
	d.voters.Store(&voters)
	d.mu.Lock()
	d.running = ctx
	d.mu.Unlock()
	g.Go(func() error { return d.route(ctx) })
	g.Go(func() error { return d.writer.run(ctx) })
	g.Go(func() error { return d.settle(ctx) })
	return g.Wait()
}

// route turns the one stream of changes into work for the sessions that it concerns.
func (d *Dispatcher) route(ctx context.Context) error {
	watch := d.cfg.Store.Watch()
	defer watch.Close()
	// later ends the time in which news of the roster are collected; it is set as long as there are any.
	var later <-chan time.Time
	var settings settings
	for {
		state, dirty := watch.Take()
		members := d.followVoters()
		fresh := d.roster.update(state, dirty, members, *d.voters.Load())
		if s := settingsOf(state); dirty.All || dirty.Cluster {
			if settings.known && s != settings {
				d.endAll(errdefs.ErrUnavailable.WithMessage("the cluster's settings changed: begin a new session"))
			}
			settings = s
		}
		d.audit(state, dirty)
		d.wake(state, dirty, members)
		switch {
		case fresh == newsNow:
			d.tellRoster()
			later = nil
		case fresh == newsInTime && later == nil:
			later = time.After(d.pace())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch.Changed():
		case <-later:
			d.tellRoster()
			later = nil
		}
	}
}

// followVoters reads raft's configuration and lists the nodes whose part in it changed. That is no row, but it wakes watches too.
func (d *Dispatcher) followVoters() (changed []string) {
	now := d.readVoters()
	if changed = differing(*d.voters.Load(), now); len(changed) > 0 {
		d.voters.Store(&now)
	}
	return changed
}

func (d *Dispatcher) readVoters() map[string]bool {
	voters := map[string]bool{}
	for _, m := range d.cfg.Store.Members() {
		voters[m.NodeID] = m.Voter
	}
	return voters
}

// differing lists the nodes whose part in raft's configuration changed.
func differing(old, now map[string]bool) (ids []string) {
	for id, voter := range now {
		if before, ok := old[id]; !ok || before != voter {
			ids = append(ids, id)
		}
	}
	for id := range old {
		if _, ok := now[id]; !ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// wake tells the sessions that a change concerns what to look at again.
func (d *Dispatcher) wake(state *raftstore.State, dirty raftstore.Dirty, members []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dirty.All {
		for _, s := range d.sessions {
			s.poke(dueAll)
		}
		return
	}
	nodes := dueOrder
	for id := range dirty.Tasks {
		if t, ok := state.Tasks.Get(id); !ok {
			nodes |= dueTasks // whose it was is known only to the node's session
		} else if s := d.sessions[t.NodeID]; s != nil {
			s.poke(dueSomeTasks, id)
		}
	}
	for id := range dirty.Nodes {
		if s := d.sessions[id]; s != nil {
			s.poke(nodes)
		}
	}
	for _, id := range members {
		if s := d.sessions[id]; s != nil {
			s.poke(dueOrder)
		}
	}
	if len(dirty.Images) == 0 {
		return
	}
	for _, s := range d.sessions {
		if s.wantsImage(dirty.Images, false) {
			s.poke(dueTasks)
		}
	}
}

// tellRoster has every session send what is new of the roster. Nodes that came or went may hold images that others wait for.
func (d *Dispatcher) tellRoster() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.poke(dueRoster)
		if s.wantsImage(nil, true) {
			s.poke(dueTasks)
		}
	}
}

// pace is how long news of the roster that are in no hurry wait for others.
func (d *Dispatcher) pace() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return min(rosterPace+time.Duration(len(d.sessions))*rosterPacePerSession, rosterPaceMax)
}

// settings are what a Welcome tells; an agent learns of others by a new session.
type settings struct {
	known     bool
	grace     time.Duration
	gossipKey string
}

func settingsOf(state *raftstore.State) settings {
	c := state.Cluster()
	if c == nil {
		return settings{}
	}
	return settings{known: true, grace: spec.HeartbeatPeriod(c.Spec), gossipKey: string(c.GossipKey)}
}

// runningContext ends with Run; it is nil before.
func (d *Dispatcher) runningContext() context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running
}

func (d *Dispatcher) endAll(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.sessions {
		s.end(cause)
	}
}

// Move asks the agent of a node to use another manager. It is a wish: the agent stays where there is none.
func (d *Dispatcher) Move(nodeID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sessions[nodeID]; s != nil {
		s.poke(dueMove)
	}
}

// admit makes s the one session of its node and ends the one before.
func (d *Dispatcher) admit(s *session, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil || d.running.Err() != nil {
		return errdefs.ErrUnavailable.WithMessage("this manager is not ready for sessions: try another")
	}
	recent := d.begun[s.nodeID][:0]
	for _, at := range d.begun[s.nodeID] {
		if now.Sub(at) < sessionWindow {
			recent = append(recent, at)
		}
	}
	if len(recent) >= sessionsPerWindow {
		d.begun[s.nodeID] = recent
		return errdefs.ErrResourceExhausted.WithMessage("too many sessions of this node: wait some seconds")
	}
	d.begun[s.nodeID] = append(recent, now)
	if len(d.begun) > nodesRememberedMax {
		clear(d.begun)
	}
	if old := d.sessions[s.nodeID]; old != nil {
		old.replaced.Store(true)
		old.end(errdefs.ErrAborted.WithMessage("a newer session of this node replaced this one"))
	}
	d.sessions[s.nodeID] = s
	s.release = context.AfterFunc(d.running, func() {
		s.end(errdefs.ErrUnavailable.WithMessage("this manager stops: try another"))
	})
	return nil
}

func (d *Dispatcher) dismiss(s *session) {
	s.release()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions[s.nodeID] == s {
		delete(d.sessions, s.nodeID)
	}
}
