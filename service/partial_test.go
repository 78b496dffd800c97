package service

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// A loop that looks only at the slots in which something changed must leave nothing to do for one that looks at everything:
// random things happen to services and nodes, and whenever the loop is done, a new leader would find no work.
func TestWhatALoopLeavesIsWhatANewLeaderWouldLeave(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := &rig{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), store: openStore(t), now: time.Now().UTC().Round(0)}
			r.watch = r.store.Watch()
			defer r.watch.Close()
			r.loop = newLoop(slog.New(slog.DiscardHandler))
			r.nodes, r.services = 5, []string{"web", "db", "everywhere"}
			write(t, r.store, func(tx *raftstore.Tx) {
				for i := range r.nodes {
					putNode(tx, fmt.Sprint("n", i))
				}
				putService(tx, "web", 6)
				putService(tx, "db", 2)
				putService(tx, "everywhere", 0)
				v, _ := tx.Specs.Get(raftstore.SpecID("everywhere", 1))
				global := *v
				global.Spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
				tx.PutSpec(global)
			})
			for range 120 {
				r.settle()
				r.happens()
			}
		})
	}
}

// rig is a loop on a real store, in a time of its own.
type rig struct {
	*testing.T
	*rand.Rand
	store    *raftstore.Store
	watch    *raftstore.Watch
	loop     *loop
	now      time.Time
	nodes    int
	services []string
	lately   []string
}

// settle runs the loop until it has nothing to do now, and compares.
func (r *rig) settle() {
	r.Helper()
	for round := 0; ; round++ {
		r.loop.notice(r.watch.Take())
		work := r.loop.decide(r.now)
		if len(work) == 0 && len(r.loop.todo) == 0 {
			break
		}
		if round > 1000 {
			r.Fatalf("no end to it after %v", r.lately)
		}
		if err := r.loop.commit(context.Background(), r.store, work); err != nil {
			r.Fatal(err)
		}
	}
	fresh := newLoop(slog.New(slog.DiscardHandler))
	fresh.since = r.loop.since
	for id, seen := range r.loop.seenRunning {
		fresh.seenRunning[id] = seen
	}
	fresh.notice(r.store.Local(), raftstore.Dirty{All: true})
	for _, w := range fresh.decide(r.now) {
		for _, s := range w.steps {
			if s.why != "unused" { // versions of specs are swept later
				r.Errorf("a new leader would do to %s: %s", w.service.ID, s)
			}
		}
	}
	if r.Failed() {
		r.Fatalf("lately: %s", strings.Join(r.lately[max(0, len(r.lately)-8):], ", "))
	}
	if a, b := r.loop.deadlines.next(r.now), fresh.deadlines.next(r.now); b != 0 && (a == 0 || a > b) {
		r.Fatalf("the loop sleeps for %s, a new leader would for %s; lately: %s", a, b, strings.Join(r.lately[max(0, len(r.lately)-8):], ", "))
	}
}

// happens does one thing that others do: users, agents, time.
func (r *rig) happens() {
	node, service := fmt.Sprint("n", r.IntN(r.nodes)), r.services[r.IntN(len(r.services))]
	var told string
	what := r.IntN(12)
	write(r, r.store, func(tx *raftstore.Tx) {
		switch what {
		case 0:
			told = r.changeNode(tx, node, func(n *raftstore.Node) string {
				p := []raftstore.Presence{"heard", "heard", "suspect", "down", "announced"}[r.IntN(5)]
				n.Observe(raftstore.Session{Presence: p, Since: r.now})
				return string(p)
			})
		case 1:
			told = r.changeNode(tx, node, func(n *raftstore.Node) string {
				n.Spec.Availability = []swarm.NodeAvailability{"active", "active", "pause", "drain"}[r.IntN(4)]
				return string(n.Spec.Availability)
			})
		case 2:
			if r.IntN(3) == 0 {
				tx.DeleteNode(node)
				told = node + " removed"
			} else if _, ok := tx.Nodes.Get(node); !ok {
				putNode(tx, node)
				told = node + " added"
			}
		case 3:
			told = r.scale(tx, service)
		case 4, 5:
			// time passes, below
		default:
			told = r.report(tx)
		}
	})
	if what == 4 || what == 5 {
		r.now = r.now.Add([]time.Duration{time.Second, 10 * time.Second, 2 * time.Minute, 25 * time.Hour}[r.IntN(4)])
		told = "until " + r.now.Format(time.TimeOnly)
	}
	if told != "" {
		r.lately = append(r.lately, told)
	}
}

func (r *rig) changeNode(tx *raftstore.Tx, id string, change func(*raftstore.Node) string) string {
	row, ok := tx.Nodes.Get(id)
	if !ok {
		return ""
	}
	n := *row
	told := change(&n)
	tx.PutObservedNode(n)
	return id + " " + told
}

// scale changes a replicated service's size, sometimes its image too, and sometimes removes it. One that is gone is created anew.
func (r *rig) scale(tx *raftstore.Tx, id string) string {
	row, ok := tx.Services.Get(id)
	switch {
	case id == "everywhere", ok && row.Removing:
		return ""
	case !ok:
		putService(tx, id, 3)
		return id + " created"
	}
	s := *row
	if r.IntN(6) == 0 {
		s.Removing = true
		tx.PutService(s)
		return id + " removed"
	}
	n := uint64(r.IntN(9))
	if r.IntN(12) == 0 {
		n = stepsMax + 50 // takes several commits
	}
	v := raftstore.Spec{ServiceID: id, SpecVersion: s.SpecVersion + 1, Spec: *tx.Spec(id, s.SpecVersion)}
	v.ID = raftstore.SpecID(id, v.SpecVersion)
	v.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
	if r.IntN(2) == 0 {
		v.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: fmt.Sprint("image", s.SpecVersion)}
	}
	s.PreviousSpecVersion, s.SpecVersion, s.UpdateStatus = s.SpecVersion, v.SpecVersion, nil
	tx.PutService(s)
	tx.PutSpec(v)
	return fmt.Sprintf("%s has %d of v%d", id, n, v.SpecVersion)
}

// report moves some tasks on, as agents of nodes that are heard do.
func (r *rig) report(tx *raftstore.Tx) string {
	var told []string
	rows := slices.Collect(tx.Tasks.All())
	for range 4 {
		if len(rows) == 0 {
			break
		}
		t := *rows[r.IntN(len(rows))]
		n, ok := tx.Nodes.Get(t.NodeID)
		if !ok || !n.Session.Heard() || !assigned(&t) || task.Ended(t.Status.State) {
			continue
		}
		to := []swarm.TaskState{swarm.TaskStateRunning, swarm.TaskStateRunning, swarm.TaskStateFailed, swarm.TaskStateComplete}[r.IntN(4)]
		if task.Before(swarm.TaskStateRunning, t.DesiredState) {
			to = swarm.TaskStateShutdown
		}
		if !task.Legal(t.Status.State, to, task.Agent) {
			continue
		}
		t.Status.State, t.Status.Timestamp = to, r.now
		tx.PutObservedTask(t)
		told = append(told, fmt.Sprint(t.ServiceID, ".", t.Slot, t.NodeID, " ", to))
	}
	return strings.Join(told, " ")
}
