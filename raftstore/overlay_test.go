package raftstore

import (
	"maps"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// A transaction reads its own writes, whatever it has looked at in between, and the state below it stays as it was.
func TestTransactionsBehaveLikeAMapOverAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
		key := rapid.SampledFrom([]string{"", "x", "y"})
		state := rapid.SampledFrom([]swarm.TaskState{swarm.TaskStateRunning, swarm.TaskStateFailed})
		draw := func(t *rapid.T) Task {
			return Task{Meta: Meta{ID: id.Draw(t, "id")}, ServiceID: key.Draw(t, "service"), NodeID: key.Draw(t, "node"), Status: TaskStatus{State: state.Draw(t, "state")}}
		}
		work, below := newState(), map[string]Task{}
		for range rapid.IntRange(0, 5).Draw(t, "rows below") {
			r := draw(t)
			below[r.ID] = r
			work.Tasks.put(&r)
		}
		base := work.publish(&State{})
		tx := newTx(base, new(sync.Mutex))
		model := maps.Clone(below)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				r := draw(t)
				old := tx.Tasks.put(&r)
				if before, had := model[r.ID]; (old != nil) != had || had && *old.(*Task) != before {
					t.Fatalf("put %s over %v", r.ID, old)
				}
				model[r.ID] = r
			},
			"remove": func(t *rapid.T) {
				gone := id.Draw(t, "id")
				if _, want := model[gone]; (tx.Tasks.remove(gone) != nil) != want {
					t.Fatalf("remove %s", gone)
				}
				delete(model, gone)
			},
			"write while iterating": func(t *rapid.T) {
				seen, want := 0, len(model)
				for r := range tx.Tasks.All() {
					seen++
					tx.Tasks.remove(r.ID)
					delete(model, r.ID)
				}
				if seen != want {
					t.Fatalf("saw %d rows of %d", seen, want)
				}
			},
			"look at all": func(t *rapid.T) { compare(t, &tx.State, model) },
			"": func(t *rapid.T) {
				for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
					got, has := tx.Tasks.Get(id)
					if want, had := model[id]; has != had || has && *got != want {
						t.Fatalf("get %s: %v", id, got)
					}
				}
			},
		})
		compare(t, &tx.State, model)
		compare(t, base, below)
	})
}
