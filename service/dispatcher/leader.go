package dispatcher

import (
	"context"
	"slices"
	"time"

	"swarm/raftstore"
)

const (
	// verdictsPerCommit bounds the nodes that one commit writes down, or lost.
	verdictsPerCommit = 500
	// reachCheck is how often a leader looks which managers it reaches, which is no row.
	reachCheck = 500 * time.Millisecond
)

// RunLiveness judges the nodes that nobody hears. Leader only: run it inside WhileLeader.
func (d *Dispatcher) RunLiveness(ctx context.Context) error {
	watch := d.cfg.Store.Watch()
	defer watch.Close()
	l := newLiveness(d.cfg.NodeID)
	answers := make(chan probeAnswer, probesMax)
	retry := writeRetryMin
	for ctx.Err() == nil {
		state, dirty := watch.Take()
		now := time.Now()
		if set := settingsOf(state); set.known {
			l.look(state, dirty, d.reachable(), set.grace, now)
		}
		write, probe := l.due(now)
		for id, a := range probe {
			go d.ask(ctx, id, a, l.beats(probeBeats), answers)
		}
		most := reachCheck
		if err := d.writeVerdicts(ctx, write, l.gone); err != nil {
			if ctx.Err() == nil {
				d.log.Warn("lost nodes not written down, will retry", "err", err)
			}
			// What was due is due still; its time is over, so only the pause holds it back.
			pause(ctx, retry)
			retry = min(2*retry, writeRetryMax)
		} else {
			retry, l.gone = writeRetryMin, nil
		}
		timer := time.NewTimer(l.wait(time.Now(), most))
		select {
		case <-ctx.Done():
		case <-watch.Changed():
		case a := <-answers:
			if err := d.writeVerdicts(ctx, l.probed(a.id, a.absence, a.answers, time.Now()), nil); err != nil && ctx.Err() == nil {
				d.log.Warn("answer of a node's port not written, will ask again", "node", a.id, "err", err)
			}
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// probeAnswer is what a missing node's port said.
type probeAnswer struct {
	id      string
	absence *absence
	answers bool
}

func (d *Dispatcher) ask(ctx context.Context, id string, a *absence, patience time.Duration, answers chan<- probeAnswer) {
	answer := probeAnswer{id, a, d.prober.answers(ctx, a.address, patience)}
	select {
	case answers <- answer:
	case <-ctx.Done():
	}
}

// reachable lists the managers that the leader hears.
func (d *Dispatcher) reachable() map[string]bool {
	members := map[string]bool{}
	for _, m := range d.cfg.Store.Members() {
		members[m.NodeID] = m.Reachable
	}
	return members
}

// writeVerdicts writes what became of nodes whose session is still the one that was missed, and forgets removed nodes as
// holders of images.
func (d *Dispatcher) writeVerdicts(ctx context.Context, verdicts map[string]verdict, gone []string) error {
	if len(verdicts) == 0 && len(gone) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var written []string
	err := d.cfg.Store.Update(ctx, func(tx *raftstore.Tx) error {
		written = written[:0]
		for id, v := range verdicts {
			row, ok := tx.Nodes.Get(id)
			if !ok || !sameSession(row.Session, v.about) || row.Session.Presence != v.about.Presence {
				continue
			}
			n := *row
			n.Observe(v.now)
			tx.PutObservedNode(n)
			written = append(written, id)
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
	slices.Sort(written)
	for _, id := range written {
		d.logPresence(id, verdicts[id].now)
	}
	return nil
}

// logPresence writes the one line of a transition.
func (d *Dispatcher) logPresence(nodeID string, s raftstore.Session) {
	d.log.Info("node state", "node", nodeID, "presence", s.Presence, "reason", s.Reason, "silence", s.Silence)
}
