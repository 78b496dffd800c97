package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"swarm/scenarios/lab"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

const (
	settleMax  = 30 * time.Second       // until a cluster that is left alone is in order
	watchEvery = 150 * time.Millisecond // between looks at all tasks
	wrongsMax  = 20                     // kept of what a watch saw
	// A slot that gets more than stormTasks new tasks within stormWindow is being restarted without a pause.
	stormTasks  = 5
	stormWindow = 2 * time.Second
)

// settled says what is not in order in a cluster that has been left alone. No manager at all is in order: some stories have no cluster.
func settled(ctx context.Context, w *World) error {
	if len(w.Managers(ctx)) == 0 {
		return nil
	}
	if err := oneLeader(ctx, w); err != nil {
		return err
	}
	tasks, err := w.Tasks(ctx, "")
	if err != nil {
		return err
	}
	services, err := w.Services(ctx)
	if err != nil {
		return err
	}
	return errors.Join(oneTaskPerSlot(services, tasks), containersMatch(ctx, w, tasks))
}

// oneLeader asks every manager who leads.
func oneLeader(ctx context.Context, w *World) error {
	var leader string
	for _, manager := range w.Managers(ctx) {
		got, err := w.Client(manager).NodeList(ctx, client.NodeListOptions{})
		if err != nil {
			return fmt.Errorf("list nodes on %s: %w", manager.Name, err)
		}
		leaders := slices.DeleteFunc(got.Items, func(n swarm.Node) bool { return n.ManagerStatus == nil || !n.ManagerStatus.Leader })
		if len(leaders) != 1 {
			return fmt.Errorf("%s sees %d leaders", manager.Name, len(leaders))
		}
		name := leaders[0].Description.Hostname
		if leader != "" && leader != name {
			return fmt.Errorf("%s says that %s leads, another manager says %s", manager.Name, name, leader)
		}
		leader = name
	}
	return nil
}

// oneTaskPerSlot: no slot, or node of a global service, has two running tasks, and no task runs without its service.
func oneTaskPerSlot(services []swarm.Service, tasks []swarm.Task) error {
	known := map[string]swarm.Service{}
	for _, s := range services {
		known[s.ID] = s
	}
	holder := map[string]string{}
	for _, task := range tasks {
		if !runs(task) {
			continue
		}
		service, ok := known[task.ServiceID]
		if !ok {
			return fmt.Errorf("task %s runs, but its service %s is gone", task.ID, task.ServiceID)
		}
		slot := fmt.Sprintf("%s.%d", service.Spec.Name, task.Slot)
		if service.Spec.Mode.Global != nil {
			slot = service.Spec.Name + " on " + task.NodeID
		}
		if other := holder[slot]; other != "" {
			return fmt.Errorf("tasks %s and %s both run as %s", other, task.ID, slot)
		}
		holder[slot] = task.ID
	}
	return nil
}

// containersMatch: on every node that can be asked, exactly the tasks that run there have containers.
func containersMatch(ctx context.Context, w *World, tasks []swarm.Task) error {
	for _, n := range w.Awake() {
		info, err := w.Info(ctx, n)
		if err != nil {
			return fmt.Errorf("ask %s: %w", n.Name, err)
		}
		containers, err := w.Containers(ctx, n)
		if err != nil {
			return fmt.Errorf("list containers on %s: %w", n.Name, err)
		}
		for _, task := range tasks {
			if task.NodeID != info.Swarm.NodeID || task.Status.State != swarm.TaskStateRunning {
				continue
			}
			if _, ok := containers[task.ID]; !ok {
				return fmt.Errorf("task %s runs on %s, but has no container there", task.ID, n.Name)
			}
			delete(containers, task.ID)
		}
		for id, extra := range containers {
			return fmt.Errorf("container %.12s on %s belongs to no running task (label %q)", extra.ID, n.Name, id)
		}
	}
	return nil
}

// watch looks at all tasks during a story: a state that was seen must never be undone, and no slot be restarted without a pause.
type watch struct {
	world *World
	end   context.CancelFunc
	done  sync.WaitGroup
	seen  map[string]swarm.TaskState
	born  map[string][]time.Time // by service and slot or node; cut short by a storm
	wrong []error
}

func startWatch(ctx context.Context, w *World) *watch {
	ctx, cancel := context.WithCancel(ctx)
	watching := &watch{world: w, end: cancel, seen: map[string]swarm.TaskState{}, born: map[string][]time.Time{}}
	watching.done.Go(func() { watching.run(ctx) })
	return watching
}

// stop watching and say what was wrong.
func (w *watch) stop() error {
	w.end()
	w.done.Wait()
	return errors.Join(w.wrong...)
}

func (w *watch) run(ctx context.Context) {
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
		awake := w.world.Awake()
		if len(awake) == 0 {
			continue
		}
		// Every node in turn: what one manager has shown, another must not take back. Workers refuse.
		tasks, err := w.world.freshTasks(ctx, awake[turn%len(awake)])
		if err == nil {
			w.look(tasks)
		}
	}
}

func (w *watch) look(tasks []swarm.Task) {
	for _, task := range tasks {
		before, now := w.seen[task.ID], task.Status.State
		if !mayFollow(before, now) {
			w.note(fmt.Errorf("task %s went from %s to %s", task.ID, before, now))
		}
		w.seen[task.ID] = now
		if before == "" {
			w.newborn(task)
		}
	}
}

func (w *watch) note(wrong error) {
	if len(w.wrong) < wrongsMax {
		w.wrong = append(w.wrong, wrong)
	}
}

func (w *watch) newborn(task swarm.Task) {
	slot := fmt.Sprintf("%s slot %d", task.ServiceID, task.Slot)
	if task.Slot == 0 {
		slot += " node " + task.NodeID
	}
	recent := slices.DeleteFunc(w.born[slot], func(at time.Time) bool { return task.CreatedAt.Sub(at).Abs() > stormWindow })
	w.born[slot] = append(recent, task.CreatedAt)
	if len(w.born[slot]) > stormTasks {
		w.note(fmt.Errorf("service %s got more than %d new tasks within %s", slot, stormTasks, stormWindow))
		w.born[slot] = nil
	}
}

// progress is the order in which a task's states may be seen. The four ends are equal: none follows another.
var progress = []string{"new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete shutdown failed rejected", "remove", "orphaned"}

func mayFollow(before, now swarm.TaskState) bool {
	if before == now || before == "" {
		return true
	}
	rank := func(state swarm.TaskState) int {
		return slices.IndexFunc(progress, func(states string) bool { return slices.Contains(strings.Fields(states), string(state)) })
	}
	return rank(before) < rank(now)
}

// freshTasks reads a manager's tasks, unless it answers from a replica that may be behind.
func (w *World) freshTasks(ctx context.Context, n *lab.Node) ([]swarm.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	got, err := w.ask(ctx, n, http.MethodGet, "/tasks", nil)
	if !got.fresh(err) {
		return nil, fmt.Errorf("%s is not a manager that is up to date: %w", n.Name, errors.Join(err, errors.New(got.text())))
	}
	var tasks []swarm.Task
	return tasks, json.Unmarshal(got.body, &tasks)
}
