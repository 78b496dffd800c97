package dispatcher

import (
	"context"
	"maps"
	"slices"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// RunLiveness writes nodes down after the grace time. Leader only: run it inside WhileLeader.
func (d *Dispatcher) RunLiveness(ctx context.Context) error {
	watch := d.cfg.Store.Watch()
	defer watch.Close()
	l := &liveness{self: d.cfg.NodeID, missing: map[string]absence{}}
	for ctx.Err() == nil {
		state, dirty := watch.Take()
		now := time.Now()
		if set := settingsOf(state); set.known {
			l.look(state, dirty, d.reachable(), set.grace, now)
		}
		if due := l.due(now); len(due) > 0 || len(l.gone) > 0 {
			if err := d.writeDown(ctx, due, l.gone); err != nil {
				if ctx.Err() == nil {
					d.log.Warn("lost nodes not written down, will retry", "err", err)
				}
			} else {
				l.written(due)
			}
		}
		timer := time.NewTimer(l.wait(time.Now()))
		select {
		case <-ctx.Done():
		case <-watch.Changed():
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// reachable lists the managers that the leader hears.
func (d *Dispatcher) reachable() map[string]bool {
	members := map[string]bool{}
	for _, m := range d.cfg.Store.Members() {
		members[m.NodeID] = m.Reachable
	}
	return members
}

// liveness is what a leader remembers of nodes that nobody hears. All nodes but those in missing are down already, or in a session.
type liveness struct {
	self string
	// begun is false until the first look: how long a node was missing before is not known then.
	begun    bool
	managers map[string]bool
	missing  map[string]absence
	// gone are nodes whose rows vanished, which hold no images any more.
	gone []string
}

// absence is a node without a session that counts.
type absence struct {
	session  raftstore.Session
	deadline time.Time
}

// look takes up what changed: rows, and which managers are heard.
func (l *liveness) look(state *raftstore.State, dirty raftstore.Dirty, managers map[string]bool, grace time.Duration, now time.Time) {
	heard := l.heard(state, managers)
	if dirty.All || !l.begun || !maps.Equal(heard, l.managers) {
		l.managers = heard
		for n := range state.Nodes.All() {
			l.judge(n, grace, now)
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
				l.judge(n, grace, now)
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
func (l *liveness) judge(n *raftstore.Node, grace time.Duration, now time.Time) {
	managerHeard := l.managers[n.Session.Manager]
	if n.Status.State == swarm.NodeStateDown || n.Session.Heard() && managerHeard {
		delete(l.missing, n.ID)
		return
	}
	if a, known := l.missing[n.ID]; known && a.session == n.Session {
		return
	}
	deadline := now.Add(grace - n.Session.Silence)
	if !l.begun || !managerHeard {
		// Nobody heard the node because nobody was there to hear it: it gets time to find another manager.
		deadline = now.Add(2 * grace)
	}
	l.missing[n.ID] = absence{n.Session, deadline}
}

// due are the nodes whose time is over.
func (l *liveness) due(now time.Time) map[string]raftstore.Session {
	due := map[string]raftstore.Session{}
	for id, a := range l.missing {
		if !now.Before(a.deadline) {
			due[id] = a.session
		}
	}
	return due
}

func (l *liveness) written(due map[string]raftstore.Session) {
	for id := range due {
		delete(l.missing, id)
	}
	l.gone = nil
}

// wait is how long until something may be due. Whether managers are heard is no change of state, so it is looked at now and then.
func (l *liveness) wait(now time.Time) time.Duration {
	next := memberCheck
	for _, a := range l.missing {
		next = min(next, max(a.deadline.Sub(now), time.Millisecond))
	}
	return next
}

// writeDown writes nodes down whose session is still the one that was missed, and forgets removed nodes as holders of images.
func (d *Dispatcher) writeDown(ctx context.Context, due map[string]raftstore.Session, gone []string) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var down []string
	err := d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		down = down[:0]
		for id, session := range due {
			row, ok := tx.Nodes.Get(id)
			if !ok || row.Session != session || row.Status.State == swarm.NodeStateDown {
				continue
			}
			n := *row
			s := row.Session
			s.Presence, s.Since = raftstore.PresenceDown, time.Now()
			n.Observe(s)
			tx.PutObservedNode(n)
			down = append(down, id)
		}
		sets := map[string]map[string]*raftstore.Image{}
		for _, id := range gone {
			if _, ok := tx.Nodes.Get(id); !ok {
				sets[id] = map[string]*raftstore.Image{}
			}
		}
		writeImages(tx, sets)
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(down)
	for _, id := range down {
		d.log.Info("node state", "node", id, "state", swarm.NodeStateDown, "reason", "heartbeat failure")
	}
	return nil
}
