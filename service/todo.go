package service

import (
	"container/heap"
	"time"

	"swarm/raftstore"
)

// slotKey names a slot of a service: a number of a replicated one, a node of a global one.
type slotKey struct {
	number uint64
	nodeID string
}

func slotOf(t *raftstore.Task) slotKey {
	if t.Slot == 0 {
		return slotKey{nodeID: t.NodeID}
	}
	return slotKey{number: t.Slot}
}

// todo is what there is to decide on: services as a whole, or slots of them of which alone something changed.
// A change of one task then costs the same however many its service has.
type todo map[string]*pending

// pending is what of one service is to be decided on.
type pending struct {
	all   bool
	slots map[slotKey]struct{}
}

func (td todo) service(id string) {
	td[id] = &pending{all: true}
}

func (td todo) slot(id string, k slotKey) {
	p := td[id]
	switch {
	case p == nil:
		td[id] = &pending{slots: map[slotKey]struct{}{k: {}}}
	case !p.all:
		p.slots[k] = struct{}{}
	}
}

// deadlines are the times at which slots, or services as a whole, are to be decided on although nothing changed.
// One that is not needed any more costs one decision that finds nothing to do.
type deadlines struct {
	at    map[deadlineKey]time.Time
	queue deadlineQueue
}

type deadlineKey struct {
	serviceID string
	// all: the service as a whole.
	all  bool
	slot slotKey
}

type deadline struct {
	at  time.Time
	key deadlineKey
}

func newDeadlines() *deadlines { return &deadlines{at: map[deadlineKey]time.Time{}} }

func (d *deadlines) set(key deadlineKey, at time.Time) {
	if known, ok := d.at[key]; ok && known.Equal(at) {
		return
	}
	d.at[key] = at
	heap.Push(&d.queue, deadline{at, key})
}

// due moves what is due to td.
func (d *deadlines) due(now time.Time, td todo) {
	for len(d.queue) > 0 && !now.Before(d.queue[0].at) {
		if first := d.pop(); first.key.all {
			td.service(first.key.serviceID)
		} else {
			td.slot(first.key.serviceID, first.key.slot)
		}
	}
}

// next is how long until something is due; 0: nothing is.
func (d *deadlines) next(now time.Time) time.Duration {
	for len(d.queue) > 0 && !d.at[d.queue[0].key].Equal(d.queue[0].at) {
		d.pop() // a later time replaced it
	}
	if len(d.queue) == 0 {
		return 0
	}
	return max(d.queue[0].at.Sub(now), time.Nanosecond)
}

func (d *deadlines) pop() deadline {
	first := heap.Pop(&d.queue).(deadline)
	if d.at[first.key].Equal(first.at) {
		delete(d.at, first.key)
	}
	return first
}

type deadlineQueue []deadline

func (q deadlineQueue) Len() int           { return len(q) }
func (q deadlineQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q deadlineQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *deadlineQueue) Push(x any)        { *q = append(*q, x.(deadline)) }
func (q *deadlineQueue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}
