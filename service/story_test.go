package service

import (
	"flag"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"
	"swarm/service/scheduler"
	"swarm/service/spec"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

var update = flag.Bool("update", false, "write golden files")

// world is a cluster of plain values with one service: what the store holds, without a store.
type world struct {
	now      time.Time
	index    uint64
	nodes    map[string]*raftstore.Node
	service  raftstore.Service
	gone     bool
	specs    map[uint64]*swarm.ServiceSpec
	tasks    map[string]*raftstore.Task
	history  int64
	seen     map[string]time.Time
	created  int
	stuck    map[string]bool // nodes whose agents report nothing
	failures map[string]bool // tasks that fail when they start
}

func newWorld() *world {
	w := &world{
		now:   time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC),
		nodes: map[string]*raftstore.Node{}, specs: map[uint64]*swarm.ServiceSpec{}, tasks: map[string]*raftstore.Task{},
		history: 5, seen: map[string]time.Time{}, stuck: map[string]bool{}, failures: map[string]bool{},
	}
	w.service = raftstore.Service{Name: "web", SpecVersion: 1}
	w.service.ID = "web"
	v := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}}
	v.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "v1"}
	w.specs[1] = v
	return w
}

func (w *world) spec() *swarm.ServiceSpec { return w.specs[w.service.SpecVersion] }

// cluster builds what the loop would remember of the nodes.
func (w *world) cluster() *cluster {
	c := newCluster()
	for id, row := range w.nodes {
		n := scheduler.Node{Facts: factsOf(row), Open: open(row), NanoCPUs: row.Description.Resources.NanoCPUs, MemoryBytes: 1 << 40}
		for _, t := range w.sorted() {
			if t.NodeID == id && assigned(t) && !task.Ended(t.Status.State) {
				cpu, memory := spec.Reserved(w.specs[t.SpecVersion].TaskTemplate)
				n.Add(t.ServiceID, cpu, memory, live(t))
			}
		}
		c.nodes.Put(n)
		c.machines[id] = &machine{
			facts: &n.Facts, open: n.Open,
			down: row.Session.Presence == raftstore.PresenceDown, since: row.Session.Since, drained: row.Spec.Availability == swarm.NodeAvailabilityDrain,
			paused: row.Spec.Availability == swarm.NodeAvailabilityPause,
		}
	}
	return c
}

func (w *world) sorted() []*raftstore.Task {
	return slices.SortedFunc(maps.Values(w.tasks), func(a, b *raftstore.Task) int { return strings.Compare(a.ID, b.ID) })
}

func (w *world) plan() plan {
	c := w.cluster()
	for _, t := range w.tasks {
		if _, ok := w.seen[t.ID]; !ok && running(t) && inProgress(w.service.UpdateStatus) {
			w.seen[t.ID] = w.now
		}
	}
	service := w.service
	s := &scene{
		now: w.now, service: &service, spec: w.spec(), specAt: func(v uint64) *swarm.ServiceSpec { return w.specs[v] },
		tasks: w.sorted(), machine: func(id string) *machine { return c.machines[id] }, machines: c.sorted,
		history: w.history, seenRunning: w.seen, versions: slices.Sorted(maps.Keys(w.specs)),
		newID: func() string { w.created++; return fmt.Sprintf("t%03d", w.created) },
	}
	p := decide(s)
	limit(&p, changesMax)
	place(s, &p, c.nodes)
	return p
}

// apply writes a plan as the store would.
func (w *world) apply(p plan) {
	w.index++
	for _, st := range p.steps {
		for _, c := range st.changes {
			switch c.op {
			case opCreate:
				t := *c.task
				t.Version = w.index
				w.tasks[t.ID] = &t
			case opDesire:
				w.edit(c.task.ID, func(t *raftstore.Task) { t.DesiredState = c.desired })
			case opObserve:
				w.edit(c.task.ID, func(t *raftstore.Task) { t.Status, t.NodeID = c.status, c.nodeOf(t) })
			case opErase:
				delete(w.tasks, c.task.ID)
			case opRollback:
				w.service.SpecVersion++
				w.service.PreviousSpecVersion = 0
				w.service.UpdateStatus = c.update
				w.specs[w.service.SpecVersion] = w.specs[c.version]
			case opUpdateStatus:
				w.service.UpdateStatus = c.update
			case opEraseSpec:
				delete(w.specs, c.version)
			case opEraseService:
				w.gone = true
			}
		}
	}
}

func (w *world) edit(id string, change func(*raftstore.Task)) {
	t := *w.tasks[id]
	change(&t)
	w.tasks[id] = &t
}

// agents does what the agents of reachable nodes would do, one state change each.
func (w *world) agents() (acted bool) {
	for _, t := range w.sorted() {
		n := w.nodes[t.NodeID]
		if !assigned(t) || task.Ended(t.Status.State) || n == nil || n.Status.State != swarm.NodeStateReady || w.stuck[t.NodeID] {
			continue
		}
		var state swarm.TaskState
		switch {
		case !live(t):
			state = swarm.TaskStateShutdown
		case t.DesiredState == swarm.TaskStateReady:
			state = swarm.TaskStateReady
		case w.failures[w.specs[t.SpecVersion].TaskTemplate.ContainerSpec.Image]:
			state = swarm.TaskStateFailed
		default:
			state = swarm.TaskStateRunning
		}
		if state != t.Status.State && task.Before(t.Status.State, state) {
			w.report(t.ID, state)
			acted = true
		}
	}
	return acted
}

func (w *world) report(id string, state swarm.TaskState) {
	w.edit(id, func(t *raftstore.Task) { t.Status.State, t.Status.Timestamp = state, w.now })
}

// settleAll lets orchestrator and agents work, and time pass, until nothing is left to do. It returns how many rounds that took.
func (w *world) settleAll(limit int) (rounds int) {
	for rounds = range limit {
		p := w.plan()
		w.apply(p)
		if w.agents() || len(p.steps) > 0 {
			continue
		}
		next := w.next(p)
		if next.IsZero() {
			return rounds
		}
		w.now = next
	}
	return limit
}

// next is when a plan wants to be made again, zero for never: nobody waits for what is due after half a day.
func (w *world) next(p plan) (first time.Time) {
	for _, at := range append(slices.Collect(maps.Values(p.wakes)), p.wake) {
		if !at.IsZero() && at.Before(w.now.Add(12*time.Hour)) && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// update gives the service a new spec.
func (w *world) update(change func(*swarm.ServiceSpec)) {
	v := *w.spec()
	container := *v.TaskTemplate.ContainerSpec
	v.TaskTemplate.ContainerSpec = &container
	change(&v)
	w.service.PreviousSpecVersion = w.service.SpecVersion
	w.service.SpecVersion++
	w.service.UpdateStatus = nil
	w.specs[w.service.SpecVersion] = &v
}

// TestStories runs testdata/*.txt: commands with (indented) what the orchestrator then does. The stories of a file are apart by empty lines.
//
//	node n1 [heard announced away suspect lost down drain pause active zone=a cpu=2]   add or change a node          gone n1      remove one
//	spec replicas=3 global image=v2 label=x …              change the spec               first …      the same without a new version
//	plan        decide once, commit it                     agents       let agents act        stuck n1    its agent reports nothing
//	settle      all of it, also time, until nothing is left (prints the end)
//	fails v2    containers of this image fail               ends t001 complete           a task ends     wait 5s      let time pass
//	tasks       print the tasks                             remove      remove the service
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var stories []string
			for _, story := range strings.Split(strings.TrimSpace(string(golden)), "\n\n") {
				stories = append(stories, tell(t, story))
			}
			got := strings.Join(stories, "\n\n") + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(golden) {
				t.Errorf("the story changed; run with -update and read the diff. Now:\n%s", got)
			}
		})
	}
}

func tell(t *testing.T, story string) string {
	w := newWorld()
	var lines []string
	for line := range strings.Lines(story) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		lines = append(lines, line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		for answer := range w.do(t, strings.Fields(line)) {
			lines = append(lines, "  "+answer)
		}
	}
	return strings.Join(lines, "\n")
}

func (w *world) do(t *testing.T, words []string) iter.Seq[string] {
	switch words[0] {
	case "node":
		w.node(words[1], words[2:])
	case "gone":
		delete(w.nodes, words[1])
	case "first":
		w.change(t, w.spec(), words[1:])
	case "spec":
		w.update(func(v *swarm.ServiceSpec) { w.change(t, v, words[1:]) })
	case "remove":
		w.service.Removing = true
	case "agents":
		w.agents()
	case "stuck":
		w.stuck[words[1]] = true
	case "fails":
		w.failures[words[1]] = true
	case "ends":
		w.report(words[1], swarm.TaskState(words[2]))
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "plan":
		p := w.plan()
		w.apply(p)
		return w.tellPlan(p)
	case "settle":
		w.settleAll(1000)
		return w.tellTasks()
	case "tasks":
		return w.tellTasks()
	default:
		t.Fatalf("unknown word %q", words[0])
	}
	return func(func(string) bool) {}
}

func (w *world) node(id string, words []string) {
	n := w.nodes[id]
	if n == nil {
		n = &raftstore.Node{}
		n.ID = id
		n.Observe(raftstore.Session{Presence: raftstore.PresenceHeard})
		n.Spec.Availability = swarm.NodeAvailabilityActive
		n.Description.Resources.NanoCPUs = 1e12
		w.nodes[id] = n
	}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "down", "heard", "announced", "away", "suspect", "lost":
			n.Observe(raftstore.Session{Presence: raftstore.Presence(key), Since: w.now})
		case "drain", "pause", "active":
			n.Spec.Availability = swarm.NodeAvailability(key)
		case "cpu":
			n.Description.Resources.NanoCPUs = atoi(value) * 1e9
		default:
			n.Spec.Labels = map[string]string{key: value}
		}
	}
}

func atoi(s string) int64 { n, _ := strconv.ParseInt(s, 10, 64); return n }

func (w *world) change(t *testing.T, v *swarm.ServiceSpec, words []string) {
	restart := &swarm.RestartPolicy{}
	if v.TaskTemplate.RestartPolicy != nil {
		*restart = *v.TaskTemplate.RestartPolicy
	}
	settings := &swarm.UpdateConfig{Parallelism: 1}
	if v.UpdateConfig != nil {
		*settings = *v.UpdateConfig
	}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		n := uint64(atoi(value))
		d, _ := time.ParseDuration(value)
		switch key {
		case "replicas":
			v.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n}
		case "global":
			v.Mode.Global = &swarm.GlobalService{}
		case "image":
			v.TaskTemplate.ContainerSpec.Image = value
		case "label":
			v.Labels = map[string]string{"x": value}
		case "cpu":
			v.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: int64(n) * 1e9}}
		case "restart":
			restart.Condition = swarm.RestartPolicyCondition(value)
		case "delay":
			restart.Delay = &d
		case "attempts":
			restart.MaxAttempts = &n
		case "window":
			restart.Window = &d
		case "parallel":
			settings.Parallelism = n
		case "pace":
			settings.Delay = d
		case "order":
			settings.Order = swarm.UpdateOrder(value)
		case "onfailure":
			settings.FailureAction = swarm.FailureAction(value)
		case "history":
			w.history = int64(n)
		case "only":
			v.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels." + strings.Replace(value, ":", "==", 1)}}
		default:
			t.Fatalf("unknown setting %q", key)
		}
	}
	v.TaskTemplate.RestartPolicy, v.UpdateConfig = restart, settings
}

func (w *world) tellPlan(p plan) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, s := range p.steps {
			if !yield(s.String()) {
				return
			}
		}
		if next := w.next(p); !next.IsZero() {
			yield("wake at " + next.Format("15:04:05"))
		}
		if p.waiting {
			yield("waits for room")
		}
	}
}

func (w *world) tellTasks() iter.Seq[string] {
	return func(yield func(string) bool) {
		order := slices.SortedFunc(maps.Values(w.tasks), func(a, b *raftstore.Task) int {
			return strings.Compare(fmt.Sprintf("%05d%s%s", a.Slot, a.NodeID, a.ID), fmt.Sprintf("%05d%s%s", b.Slot, b.NodeID, b.ID))
		})
		for _, t := range order {
			line := fmt.Sprintf("%s %s v%d %s on %s, wanted %s", t.ID, slotName(t), t.SpecVersion, t.Status.State, t.NodeID, t.DesiredState)
			if t.Status.Err != "" {
				line += ": " + t.Status.Err
			}
			if !yield(line) {
				return
			}
		}
		if u := w.service.UpdateStatus; u != nil {
			yield(fmt.Sprintf("%s at %s: %s", u.State, w.now.Format("15:04:05"), u.Message))
		}
		if w.gone {
			yield("service gone")
		}
	}
}
