package service

import (
	"maps"
	"slices"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// reasonsMax bounds the reasons that Pending tells apart; tasks that wait for others are counted under reasonOther.
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
}

// Stats is cheap; it may be called at any time.
func (o *Orchestrator) Stats() Stats {
	return Stats{Delay: o.delay.Snapshot(), Decide: o.decide.Snapshot(), Rounds: o.rounds.Load()}
}

// Pending counts the tasks that wait for a node by the reason that they show; it walks over all tasks of the services that wait.
// Empty where this manager does not lead.
func (o *Orchestrator) Pending() map[string]int {
	pending := map[string]int{}
	waiting := o.waiting.Load()
	if waiting == nil {
		return pending
	}
	state := o.store.Local()
	for _, id := range *waiting {
		for t := range state.TasksOf(id) {
			if t.Status.State != swarm.TaskStatePending || !live(t) {
				continue
			}
			reason := t.Status.Err
			if _, known := pending[reason]; !known && len(pending) >= reasonsMax {
				reason = reasonOther
			}
			pending[reason]++
		}
	}
	return pending
}

// note keeps what a round knows for Stats and Pending.
func (o *Orchestrator) note(l *loop) {
	o.rounds.Add(1)
	before := o.waiting.Load()
	if before != nil && len(*before) == 0 && len(l.waiting) == 0 {
		return
	}
	now := slices.Collect(maps.Keys(l.waiting))
	o.waiting.Store(&now)
}
