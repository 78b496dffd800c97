package dispatcher

import (
	"context"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"
)

// debtRetry is the pause after debts could not be written.
const debtRetry = 500 * time.Millisecond

// debt is what the row of a node shall say in place of being heard by this manager: the session ended while there was no leader,
// or it was one of this manager's former life. Nobody else can know.
type debt struct {
	session  string
	presence raftstore.Presence
	reason   string
	// heard is when the node was last heard.
	heard time.Time
	// due leaves the node time to begin a session elsewhere.
	due time.Time
}

// owe has a row corrected once the debt is due.
func (d *Dispatcher) owe(nodeID string, b debt) {
	d.mu.Lock()
	d.debts[nodeID] = b
	d.mu.Unlock()
	signal(d.owes)
}

// audit compares rows that changed with the sessions that there are: a row may claim one that this manager does not have,
// and others may think that one is lost which is not.
func (d *Dispatcher) audit(state *raftstore.State, dirty raftstore.Dirty) {
	c := state.Cluster()
	if c == nil {
		return
	}
	now := time.Now()
	claimed := debt{presence: raftstore.PresenceLost, heard: now, due: now.Add(patienceBeats * spec.HeartbeatPeriod(c.Spec) / beatsPerGrace)}
	d.mu.Lock()
	defer d.mu.Unlock()
	check := func(n *raftstore.Node) {
		s := d.sessions[n.ID]
		own := s != nil && s.id == n.Session.ID
		switch {
		case n.Session.Manager != d.cfg.NodeID:
		case own && !n.Session.Heard():
			s.silent.Store(true) // the next message has it written that the node is heard
		case !own && n.Session.Heard() && d.debts[n.ID].session != n.Session.ID:
			b := claimed
			b.session = n.Session.ID
			d.debts[n.ID] = b
			signal(d.owes)
		}
	}
	if dirty.All {
		for n := range state.Nodes.All() {
			check(n)
		}
		return
	}
	for id := range dirty.Nodes {
		if n, ok := state.Nodes.Get(id); ok {
			check(n)
		}
	}
}

// settle writes debts when they are due, until ctx ends.
func (d *Dispatcher) settle(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.owes:
		case <-timer.C:
		}
		due, next := d.dueDebts(time.Now())
		if len(due) > 0 {
			if err := d.settleDue(ctx, due); err != nil {
				if ctx.Err() == nil {
					d.log.Warn("ends of sessions not written, will retry", "nodes", len(due), "err", err)
				}
				next = debtRetry
			}
		}
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// dueDebts are those to write now, as many as fit into a commit, and how long until others are due; 0: never.
func (d *Dispatcher) dueDebts(now time.Time) (due map[string]debt, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due = map[string]debt{}
	for id, b := range d.debts {
		wait := max(b.due.Sub(now), time.Millisecond)
		if !now.Before(b.due) && len(due) < verdictsPerCommit {
			due[id] = b
		} else if next == 0 || wait < next {
			next = wait
		}
	}
	return due, next
}

func (d *Dispatcher) settleDue(ctx context.Context, due map[string]debt) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := d.writeAbsences(ctx, due); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, b := range due {
		if d.debts[id] == b {
			delete(d.debts, id)
		}
	}
	return nil
}

// writeAbsences writes what is known of nodes that are not heard, unless newer sessions say otherwise.
func (d *Dispatcher) writeAbsences(ctx context.Context, absences map[string]debt) error {
	now := time.Now()
	var written map[string]raftstore.Session
	err := d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		written = map[string]raftstore.Session{}
		for id, b := range absences {
			row, ok := tx.Nodes.Get(id)
			if !ok || row.Session.ID != b.session || row.Session.Presence == raftstore.PresenceDown || row.Session.Presence == b.presence {
				continue
			}
			n := *row
			n.Observe(raftstore.Session{
				Manager: d.cfg.NodeID, ID: b.session, Presence: b.presence, Reason: b.reason, Silence: now.Sub(b.heard), Since: now,
			})
			tx.PutObservedNode(n)
			written[id] = n.Session
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, s := range written {
		d.logPresence(id, s)
	}
	return nil
}
