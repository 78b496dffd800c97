package dispatcher

import (
	"context"
	"slices"
	"time"

	"swarm/raftstore"
)

// verdictsPerCommit bounds the nodes that one commit writes down, or lost.
const verdictsPerCommit = 500

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
		reachable, until := d.reachable()
		if set := settingsOf(state); set.known {
			l.look(state, dirty, reachable, set.grace, now)
		}
		write, probe := l.due(now)
		for id, a := range probe {
			go d.ask(ctx, id, a, l.beats(probeBeats), answers)
		}
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
		timer := time.NewTimer(l.wait(time.Now(), until))
		select {
		case <-ctx.Done():
		case <-watch.Changed():
		case a := <-answers:
			if err := d.writeVerdicts(ctx, l.probed(a.id, a.absence, a.probe, time.Now()), nil); err != nil && ctx.Err() == nil {
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
	probe   probe
}

func (d *Dispatcher) ask(ctx context.Context, id string, a *absence, patience time.Duration, answers chan<- probeAnswer) {
	answer := probeAnswer{id, a, d.prober.probe(ctx, a.address, patience)}
	select {
	case answers <- answer:
	case <-ctx.Done():
	}
}

// reachable lists the managers that the leader hears, and until when all of them count as heard even if none answers again; zero:
// always. One that answers again is no news before something is due, and then it is looked.
func (d *Dispatcher) reachable() (members map[string]bool, until time.Time) {
	members = map[string]bool{}
	for _, m := range d.cfg.Store.Members() {
		members[m.NodeID] = m.Reachable
		if m.Reachable {
			until = earlier(until, m.ReachableUntil)
		}
	}
	return members, until
}

// earlier takes zero for never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
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
