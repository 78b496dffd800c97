package service

import (
	"maps"
	"slices"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// reasonsMax bounds the reasons that Stats tells apart; tasks that wait for others are counted under reasonOther.
const (
	reasonsMax  = 20
	reasonOther = "other"
)

// Stats is what an orchestrator did since its manager started.
type Stats struct {
	// Delay is how long tasks were there before it was committed that they have a node.
	Delay raftstore.HistogramSnapshot
	// Decide is how long rounds of decisions took, Rounds how many there were.
	Decide raftstore.HistogramSnapshot
	Rounds uint64
	// Pending counts the tasks that wait for a node by the reason that they show. Empty where this manager does not lead.
	Pending map[string]int
}

// Stats may be called at any time.
func (o *Orchestrator) Stats() Stats {
	s := Stats{Delay: o.delay.Snapshot(), Decide: o.decide.Snapshot(), Rounds: o.rounds.Load(), Pending: map[string]int{}}
	waiting := o.waiting.Load()
	if waiting == nil {
		return s
	}
	state := o.store.Local()
	for _, id := range *waiting {
		for t := range state.TasksOf(id) {
			if t.Status.State != swarm.TaskStatePending || !live(t) {
				continue
			}
			reason := t.Status.Err
			if _, known := s.Pending[reason]; !known && len(s.Pending) >= reasonsMax {
				reason = reasonOther
			}
			s.Pending[reason]++
		}
	}
	return s
}

// note keeps what a round knows for Stats.
func (o *Orchestrator) note(l *loop) {
	o.rounds.Add(1)
	before := o.waiting.Load()
	if before != nil && len(*before) == 0 && len(l.waiting) == 0 {
		return
	}
	now := slices.Collect(maps.Keys(l.waiting))
	o.waiting.Store(&now)
}
