package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// wrongsMax is how many violations are kept.
const wrongsMax = 20

// checks watch every replica and judge what must be true at any moment.
type checks struct {
	mu     sync.Mutex // guards the fields below
	wrongs []error
	// digestEvery is at which indexes replicas are compared while they change: in large clusters not at each.
	digestEvery uint64
	leaders     map[uint64]string // by term
	digests     map[moment]digestSeen
	tasks       map[taskOfLineage]taskSeen  // the furthest that any replica has shown
	replicas    map[string]*raftstore.Store // the open ones, by machine
	watchers    sync.WaitGroup
	followers   map[swarm.TaskState]map[swarm.TaskState]bool
	// looks counts what was judged, so that a test can tell silence from order.
	looks looks
}

// moment is an index of a cluster. A recovery of the cluster from one manager begins a lineage, in which indexes count anew.
type moment struct{ lineage, index uint64 }

type taskOfLineage struct {
	lineage uint64
	id      string
}

type looks struct{ Elections, Digests, Steps int }

type digestSeen struct {
	sum [32]byte
	by  string
}

type taskSeen struct {
	state, desired swarm.TaskState
	node           string
	index          uint64
}

func newChecks() *checks {
	return &checks{
		digestEvery: 1, leaders: map[uint64]string{}, digests: map[moment]digestSeen{}, tasks: map[taskOfLineage]taskSeen{},
		replicas: map[string]*raftstore.Store{}, followers: followers(),
	}
}

// wrong notes a violation.
func (c *checks) wrong(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrongLocked(format, args...)
}

func (c *checks) wrongLocked(format string, args ...any) {
	if len(c.wrongs) < wrongsMax {
		c.wrongs = append(c.wrongs, fmt.Errorf(format, args...))
	}
}

// Err is every violation so far.
func (c *checks) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.wrongs...)
}

// elected judges that a term has one leader.
func (c *checks) elected(term uint64, machine string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looks.Elections++
	if other, ok := c.leaders[term]; ok && other != machine {
		c.wrongLocked("term %d was won by %s and by %s", term, other, machine)
	}
	c.leaders[term] = machine
}

// gone forgets a machine's replica.
func (c *checks) gone(machine string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.replicas, machine)
}

// replica watches a store until it is closed or its process is gone.
func (c *checks) replica(machine string, s *raftstore.Store, alive context.Context) (closed func()) {
	ctx, end := context.WithCancel(alive)
	if alive.Err() != nil {
		return end
	}
	c.mu.Lock()
	c.replicas[machine] = s
	c.mu.Unlock()
	c.watchers.Go(func() {
		watch := s.Watch()
		defer watch.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-watch.Changed():
			}
			if ctx.Err() != nil {
				return
			}
			state, dirty := watch.Take()
			c.look(machine, s.Lineage(), state, dirty)
		}
	})
	return func() {
		end()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.replicas[machine] == s {
			delete(c.replicas, machine)
		}
	}
}

// look judges one state of one replica.
func (c *checks) look(machine string, lineage uint64, state *raftstore.State, dirty raftstore.Dirty) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state.Index()%c.digestEvery == 0 {
		sum, err := state.Digest()
		if err != nil {
			c.wrongLocked("%v", err)
			return
		}
		c.sameDigest(machine, moment{lineage, state.Index()}, sum)
	}
	if dirty.All {
		for t := range state.Tasks.All() {
			c.step(machine, lineage, t)
		}
		return
	}
	for id := range dirty.Tasks {
		if t, ok := state.Tasks.Get(id); ok {
			c.step(machine, lineage, t)
		}
	}
}

// sameDigest judges that replicas at one index are equal.
func (c *checks) sameDigest(machine string, at moment, sum [32]byte) {
	if at.index == 0 {
		return
	}
	c.looks.Digests++
	seen, ok := c.digests[at]
	if ok && seen.sum != sum {
		c.wrongLocked("replicas of %s and %s differ at index %d", seen.by, machine, at.index)
	}
	if !ok {
		c.digests[at] = digestSeen{sum, machine}
	}
}

// actors are all who may move a task.
func actors() []task.Actor {
	return []task.Actor{task.Orchestrator, task.Scheduler, task.Agent, task.Reaper}
}

// followers are the states that may be seen after each state: by steps of several actors, of which none goes back.
func followers() map[swarm.TaskState]map[swarm.TaskState]bool {
	all := map[swarm.TaskState]map[swarm.TaskState]bool{}
	for _, from := range task.States() {
		all[from] = followersOf(from)
	}
	return all
}

func followersOf(from swarm.TaskState) map[swarm.TaskState]bool {
	reached := map[swarm.TaskState]bool{from: true}
	for _, s := range task.States() {
		for r := range maps.Clone(reached) {
			if slices.ContainsFunc(actors(), func(a task.Actor) bool { return task.Legal(r, s, a) }) {
				reached[s] = true
			}
		}
	}
	return reached
}

// step judges what became of a task since any replica was seen at an earlier index.
func (c *checks) step(machine string, lineage uint64, t *raftstore.Task) {
	key := taskOfLineage{lineage, t.ID}
	now := taskSeen{t.Status.State, t.DesiredState, t.NodeID, t.Index}
	before, known := c.tasks[key]
	if known && t.Index < before.index {
		return // a replica that is behind
	}
	c.looks.Steps++
	c.tasks[key] = now
	if !known {
		return
	}
	switch {
	case t.Index == before.index && now != before:
		c.wrongLocked("task %s is %v on %s and was %v elsewhere, both written at index %d", t.ID, now, machine, before, t.Index)
	case !c.followers[before.state][now.state]:
		c.wrongLocked("task %s went from %s to %s (index %d to %d, seen on %s)", t.ID, before.state, now.state, before.index, t.Index, machine)
	case !task.LegalDesired(before.desired, now.desired):
		c.wrongLocked("task %s was wanted %s and then %s (index %d to %d)", t.ID, before.desired, now.desired, before.index, t.Index)
	case before.node != "" && before.node != now.node:
		c.wrongLocked("task %s moved from node %s to %s", t.ID, before.node, now.node)
	}
}

// close waits for the watchers, whose replicas have been closed.
func (c *checks) close() {
	c.watchers.Wait()
}
