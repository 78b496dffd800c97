package dispatcher

import (
	"maps"
	"slices"
	"time"

	"swarm/raftstore"
)

// liveness is what a leader remembers of nodes that nobody hears: the pure part of the loop in leader.go.
// All nodes but those in missing are down already, or in a session.
type liveness struct {
	self string
	// begun is false until the first look: how long a node was missing before is not known then.
	begun    bool
	grace    time.Duration
	managers map[string]bool
	missing  map[string]*absence
	// gone are nodes whose rows vanished, which hold no images any more.
	gone []string
	// next is when something may be due; zero: nothing is.
	next time.Time
}

// absence is a node without a session that counts.
type absence struct {
	session raftstore.Session
	address string
	// down is when the node is down unless it is heard before, look when its presence is to be judged again; zero: not at all.
	down, look time.Time
}

func newLiveness(self string) *liveness {
	return &liveness{self: self, missing: map[string]*absence{}}
}

func (l *liveness) beats(n int) time.Duration { return time.Duration(n) * l.grace / beatsPerGrace }

// look takes up what changed: rows, and which managers are heard.
func (l *liveness) look(state *raftstore.State, dirty raftstore.Dirty, managers map[string]bool, grace time.Duration, now time.Time) {
	heard := l.heard(state, managers)
	if dirty.All || !l.begun || !maps.Equal(heard, l.managers) || grace != l.grace {
		l.managers, l.grace = heard, grace
		for n := range state.Nodes.All() {
			l.judge(n, now)
		}
		for id := range l.missing {
			if _, ok := state.Nodes.Get(id); !ok {
				delete(l.missing, id)
			}
		}
		l.gone = append(l.gone, strangers(state)...)
	} else {
		for id := range dirty.Nodes {
			if n, ok := state.Nodes.Get(id); ok {
				l.judge(n, now)
			} else {
				delete(l.missing, id)
				l.gone = append(l.gone, id)
			}
		}
	}
	l.begun = true
}

// strangers are holders of images that are no nodes.
func strangers(state *raftstore.State) (ids []string) {
	for i := range state.Images.All() {
		for _, id := range i.Holders {
			if _, ok := state.Nodes.Get(id); !ok && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// heard are the managers whose word about their sessions counts: the leader itself, and those that raft reaches and
// whose own agent has a session.
func (l *liveness) heard(state *raftstore.State, reachable map[string]bool) map[string]bool {
	heard := map[string]bool{l.self: true}
	for id, ok := range reachable {
		if n, known := state.Nodes.Get(id); ok && known && n.Session.Heard() {
			heard[id] = true
		}
	}
	return heard
}

// judge decides whether a node is missing, and until when it may be.
func (l *liveness) judge(n *raftstore.Node, now time.Time) {
	s := n.Session
	if s.Presence == raftstore.PresenceDown || s.Heard() && l.managers[s.Manager] {
		delete(l.missing, n.ID)
		return
	}
	before := l.missing[n.ID]
	if before != nil && sameSession(before.session, s) && before.session.Presence == s.Presence && before.session.Since.Equal(s.Since) {
		return
	}
	a := &absence{session: s, address: n.Address}
	l.missing[n.ID] = a
	switch {
	case s.Presence == raftstore.PresenceAnnounced && forGood(s.Reason):
		a.down = now
	case s.Presence == raftstore.PresenceAnnounced:
		a.look = now.Add(l.beats(announcedBeats))
	case s.Heard() && s.Manager == n.ID && l.begun:
		// A manager that served itself and is lost: its port tells more.
		a.look, a.down = now, now.Add(l.grace)
	case s.Heard() && s.Manager == n.ID:
		a.look, a.down = now, now.Add(2*l.grace)
	case s.Heard():
		// Its manager is lost, so nobody knows: it gets time to find another one.
		a.look, a.down = now.Add(l.beats(patienceBeats)), now.Add(2*l.grace)
	case before != nil && sameSession(before.session, s) && !before.down.IsZero() &&
		(s.Presence == raftstore.PresenceLost || !l.managers[s.Manager]):
		a.down = before.down
	case !l.begun || !l.managers[s.Manager] || s.Presence == raftstore.PresenceLost || s.Presence == "":
		// Nobody heard the node because nobody was there to hear it.
		a.down = now.Add(2 * l.grace)
	default:
		a.down = now.Add(l.grace - s.Silence)
		if before != nil && sameSession(before.session, s) && before.down.After(a.down) {
			a.down = before.down
		}
	}
	if s.Presence == raftstore.PresenceAway {
		a.look = now.Add(l.beats(reprobeBeats))
	}
	l.soon(a)
}

func sameSession(a, b raftstore.Session) bool { return a.Manager == b.Manager && a.ID == b.ID }

// soon brings next forward to when a is due.
func (l *liveness) soon(a *absence) { l.next = earlier(l.next, earlier(a.down, a.look)) }

// due is what a leader has to do now about missing nodes: rows to write, and ports to ask before more can be said.
func (l *liveness) due(now time.Time) (write map[string]verdict, probe map[string]*absence) {
	if l.next.IsZero() || now.Before(l.next) {
		return nil, nil
	}
	write, probe = map[string]verdict{}, map[string]*absence{}
	l.next = time.Time{}
	for id, a := range l.missing {
		switch {
		case over(a.down, now) && len(write) < verdictsPerCommit:
			write[id] = verdict{a.session, l.written(a, raftstore.PresenceDown, now)}
		case over(a.down, now): // its turn comes with the next commit
		case over(a.look, now) && a.session.Heard() && a.session.Manager != id:
			if len(write) < verdictsPerCommit {
				write[id] = verdict{a.session, l.written(a, raftstore.PresenceLost, now)}
			}
		case over(a.look, now):
			probe[id] = a
			a.look = time.Time{} // until the port has answered
		}
		l.soon(a)
	}
	return write, probe
}

func over(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// probed takes the answer of a node's port. What it changes is returned, nil for nothing.
func (l *liveness) probed(id string, asked *absence, answer probe, now time.Time) map[string]verdict {
	a := l.missing[id]
	if a != asked {
		return nil // something newer is known
	}
	presence := sight{closed: true, probe: answer}.presence(0)
	a.look = now.Add(l.beats(reprobeBeats))
	l.soon(a)
	if presence == a.session.Presence {
		return nil
	}
	return map[string]verdict{id: {a.session, l.written(a, presence, now)}}
}

// written is the row's session for a new presence. An announced restart was no silence; one that took too long begins one.
func (l *liveness) written(a *absence, presence raftstore.Presence, now time.Time) raftstore.Session {
	s := a.session
	if !a.down.IsZero() {
		s.Silence = max(s.Silence, l.grace-a.down.Sub(now))
	}
	if s.Presence == raftstore.PresenceAnnounced && presence != raftstore.PresenceDown {
		s.Reason, s.Silence = "", 0
	}
	s.Presence, s.Since = presence, now
	return s
}

// verdict is what shall be written of a node whose session is still the one that it is about.
type verdict struct{ about, now raftstore.Session }

// waitMax is how long a leader waits when nothing is due at all.
const waitMax = time.Hour

// wait is how long until something may be due, or until another time.
func (l *liveness) wait(now, until time.Time) time.Duration {
	next := earlier(l.next, until)
	if next.IsZero() {
		return waitMax
	}
	return max(next.Sub(now), time.Millisecond)
}
