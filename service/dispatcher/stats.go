package dispatcher

import (
	"sync/atomic"

	"swarm/raftstore"
)

// Stats is what a dispatcher does and did since its manager started.
type Stats struct {
	// Sessions is how many agents this manager serves.
	Sessions int
	// Silences counts how often an agent missed its beats for so long that its node's port was asked.
	Silences uint64
	// Nodes counts the cluster's nodes by what is known of their agents; a node that never came has the empty presence.
	Nodes map[raftstore.Presence]int
	// StatusesWritten counts the statuses of tasks that were committed for agents, StatusesWaiting are those that are not yet.
	StatusesWritten uint64
	StatusesWaiting int
	// Send is how long it took from a change that concerns an agent until it was handed to the agent's connection.
	Send raftstore.HistogramSnapshot
	// SendsWaiting is how many sessions have something to send, Debts how many ends of sessions have yet to be written.
	SendsWaiting, Debts int
}

// counters are what Stats reads and nobody else needs.
type counters struct {
	silences atomic.Uint64
	send     raftstore.Histogram
}

// Stats may be called at any time. It looks at every session and node.
func (d *Dispatcher) Stats() Stats {
	s := Stats{
		Silences: d.counters.silences.Load(), StatusesWritten: d.writer.written.Load(), StatusesWaiting: d.writer.waitingStatuses(),
		Send: d.counters.send.Snapshot(), Nodes: map[raftstore.Presence]int{},
	}
	for n := range d.cfg.Store.Local().Nodes.All() {
		s.Nodes[n.Session.Presence]++
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Sessions, s.Debts = len(d.sessions), len(d.debts)
	for _, session := range d.sessions {
		if session.isDue() {
			s.SendsWaiting++
		}
	}
	return s
}

func (s *session) isDue() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.due != 0 || len(s.acks) > 0
}

func (w *writer) waitingStatuses() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.waiting {
		n += len(s.report.statuses)
	}
	return n
}
