package service

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// TestServicesConvergeWhateverHappened does random things to a cluster, then heals it and looks whether the service became true.
func TestServicesConvergeWhateverHappened(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		zero := time.Duration(0)
		w.spec().TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &zero}
		if rapid.Bool().Draw(t, "delayed") {
			w.spec().TaskTemplate.RestartPolicy = nil
		}
		if rapid.Bool().Draw(t, "global") {
			w.spec().Mode.Global = &swarm.GlobalService{}
		} else {
			n := rapid.Uint64Range(0, 6).Draw(t, "replicas")
			w.spec().Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
		}
		w.history = rapid.Int64Range(0, 3).Draw(t, "history")
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			w.node(fmt.Sprint("n", i), []string{"zone=a"})
		}
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			w.mishap(t)
			w.check(t)
		}
		w.failures = map[string]bool{}
		for id, n := range w.nodes {
			n.Observe(raftstore.Session{Presence: raftstore.PresenceHeard})
			n.Spec.Availability = swarm.NodeAvailabilityActive
			w.stuck[id] = false
		}
		w.settleAll(2000)
		if w.service.UpdateStatus != nil && paused(w.service.UpdateStatus) {
			w.update(func(*swarm.ServiceSpec) {}) // a paused update waits for the next one
		}
		if rounds := w.settleAll(2000); rounds == 2000 {
			var log []string
			for range 4 {
				log = append(log, slices.Collect(w.tellTasks())...)
				p := w.plan()
				w.apply(p)
				w.agents()
				log = append(append(log, "plan"), slices.Collect(w.tellPlan(p))...)
			}
			t.Fatalf("no end:\n%s", strings.Join(log, "\n"))
		}
		w.check(t)
		w.checkConverged(t)
	})
}

func (w *world) mishap(t *rapid.T) {
	ids := make([]string, 0, len(w.nodes))
	for id := range w.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	node := rapid.SampledFrom(ids).Draw(t, "node")
	switch rapid.SampledFrom([]string{"plan", "plan", "plan", "agents", "agents", "node", "label", "gone", "scale", "image", "constraint", "crash", "wait", "order", "stuck"}).Draw(t, "event") {
	case "plan":
		p := w.plan()
		w.apply(p)
	case "agents":
		w.agents()
	case "node":
		w.node(node, []string{rapid.SampledFrom([]string{"down", "ready", "unknown", "drain", "pause", "active"}).Draw(t, "as")})
	case "label":
		w.node(node, []string{"zone=" + rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")})
	case "gone":
		if len(ids) > 1 {
			delete(w.nodes, node)
		}
		w.node(fmt.Sprint("m", w.created), []string{"zone=a"})
	case "scale":
		if w.spec().Mode.Replicated != nil {
			n := rapid.Uint64Range(0, 6).Draw(t, "to")
			w.update(func(v *swarm.ServiceSpec) { v.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n} })
		}
	case "image":
		w.update(func(v *swarm.ServiceSpec) {
			v.TaskTemplate.ContainerSpec.Image = rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(t, "image")
		})
	case "order":
		w.update(func(v *swarm.ServiceSpec) {
			v.UpdateConfig = &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst, Parallelism: 2, FailureAction: swarm.UpdateFailureActionContinue}
		})
	case "constraint":
		w.update(func(v *swarm.ServiceSpec) {
			v.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==" + rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")}}
		})
	case "crash":
		if rapid.Bool().Draw(t, "image fails") {
			w.failures["v2"] = true
		}
		for _, row := range w.sorted() {
			if running(row) && rapid.Bool().Draw(t, "crash") {
				w.report(row.ID, rapid.SampledFrom([]swarm.TaskState{swarm.TaskStateFailed, swarm.TaskStateComplete}).Draw(t, "end"))
			}
		}
	case "wait":
		w.now = w.now.Add(7 * time.Second)
	case "stuck":
		w.stuck[node] = true
	}
}

// check holds at any time.
func (w *world) check(t *rapid.T) {
	for _, row := range w.sorted() {
		if w.specs[row.SpecVersion] == nil {
			t.Fatalf("task %s has lost its spec v%d", row.ID, row.SpecVersion)
		}
		if !task.Desirable(row.DesiredState) {
			t.Fatalf("task %s is wanted %q", row.ID, row.DesiredState)
		}
	}
}

// checkConverged holds once everything is healed and nothing is left to do.
func (w *world) checkConverged(t *rapid.T) {
	type key struct {
		slot uint64
		node string
	}
	count := map[key]int{}
	past := map[key]int{}
	s := &scene{service: &w.service, spec: w.spec(), specAt: func(v uint64) *swarm.ServiceSpec { return w.specs[v] }}
	suits := func(n *raftstore.Node) bool {
		f := factsOf(n)
		return s.group(w.service.SpecVersion).Suits(&f)
	}
	room := 0
	for _, n := range w.nodes {
		if suits(n) {
			room++
		}
	}
	for _, row := range w.sorted() {
		k := key{slot: row.Slot}
		if row.Slot == 0 {
			k.node = row.NodeID
		}
		if !live(row) {
			past[k]++
			continue
		}
		count[k]++
		if room == 0 {
			continue // a rollout whose tasks fit nowhere waits for ever
		}
		if !running(row) {
			t.Fatalf("task %s is %s", row.ID, row.Status.State)
		}
		if n := w.nodes[row.NodeID]; n != nil && running(row) && !suits(n) {
			t.Fatalf("task %s v%d runs on %s, which does not fit v%d", row.ID, row.SpecVersion, n.ID, w.service.SpecVersion)
		}
		if running(row) && s.differs(row.SpecVersion) {
			t.Fatalf("task %s follows v%d, not v%d", row.ID, row.SpecVersion, w.service.SpecVersion)
		}
	}
	want := room
	if !spec.IsGlobal(*w.spec()) {
		want = int(spec.Replicas(*w.spec()))
	}
	if len(count) != want {
		t.Fatalf("%d slots, want %d", len(count), want)
	}
	for k, n := range count {
		if n != 1 && room > 0 {
			t.Fatalf("slot %v has %d tasks", k, n)
		}
	}
	for k, n := range past {
		if n > int(max(w.history, 1)) {
			t.Fatalf("slot %v keeps %d old tasks", k, n)
		}
	}
	if len(w.specs) > len(w.tasks)+2 {
		t.Fatalf("%d specs for %d tasks", len(w.specs), len(w.tasks))
	}
}
