package dispatcher

import (
	"context"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
)

// How long things may take, in beats, of which beatsPerGrace fit into the grace time.
const (
	beatsPerGrace = 10
	// probeBeats of silence make a manager ask the node's port, which has the time until patienceBeats to answer: a node
	// whose port does not is suspect at once, and one that stays silent that long in any case.
	probeBeats    = 2
	patienceBeats = 4
	// announcedBeats is how long an agent that said that it restarts may take before the ordinary rules hold.
	announcedBeats = beatsPerGrace
	// reprobeBeats is how often a node is asked whose agent is away: its machine may follow.
	reprobeBeats = 2
)

// forGood says whether a good-bye announces that the node will not be back soon, so that there is nothing to wait for.
func forGood(goodbye string) bool {
	return goodbye == rpc.GoodbyeShutdown || goodbye == rpc.GoodbyeLeave || goodbye == rpc.GoodbyeDrain
}

// sight is what a manager sees of an agent whose session it serves, or did until the stream closed.
type sight struct {
	closed bool
	// goodbye is what the agent said before its stream closed; empty when it said nothing.
	goodbye string
	// quiet is how long ago the last message came.
	quiet time.Duration
	// probe says what came of asking the node's port since.
	probe probe
}

// presence is what follows from a sight, row by row. An open stream without beats is a machine that hangs as often as an agent
// that does, and both accept connections: that they do excuses only an agent whose stream was closed for it, which means
// that the rest of the machine works.
func (s sight) presence(patience time.Duration) raftstore.Presence {
	switch {
	case s.goodbye != "":
		return raftstore.PresenceAnnounced
	case !s.closed && s.quiet < patience && s.probe != unanswered:
		return raftstore.PresenceHeard
	case s.closed && s.probe == accepted:
		return raftstore.PresenceAway
	}
	return raftstore.PresenceSuspect
}

// probe is what came of asking a node's port.
type probe int

const (
	// notAsked also stands for an answer that is still to come.
	notAsked probe = iota
	accepted
	// unanswered: the port refused, or took too long.
	unanswered
)

// probesMax bounds the ports that a manager asks at the same time.
const probesMax = 512

// prober asks nodes' ports.
type prober struct {
	ask  func(ctx context.Context, address string) error
	room chan struct{}
}

func newProber(ask func(context.Context, string) error) *prober {
	return &prober{ask: ask, room: make(chan struct{}, probesMax)}
}

// probe asks the port at address to accept within d of being asked, which may have to wait for others.
func (p *prober) probe(ctx context.Context, address string, d time.Duration) probe {
	if p.ask == nil || address == "" {
		return notAsked
	}
	select {
	case p.room <- struct{}{}:
		defer func() { <-p.room }()
	case <-ctx.Done():
		return notAsked
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	if p.ask(ctx, address) != nil {
		return unanswered
	}
	return accepted
}
