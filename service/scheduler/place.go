package scheduler

import (
	"cmp"
	"slices"
	"time"

	"swarm/service/spec"
)

// Place chooses nodes for count tasks of a group and counts them in the nodes' load. It returns fewer
// ids than count when no more fit; reason then says why. It costs one look at every node and a step in a heap per task.
func (ns *Nodes) Place(g *Group, count int, now time.Time) (nodeIDs []string, reason string) {
	if count <= 0 {
		return nil, ""
	}
	if count == 1 && len(g.spread) == 0 {
		return ns.placeOne(g, now)
	}
	root := ns.tree(g, now)
	nodeIDs = make([]string, 0, count)
	for len(nodeIDs) < count {
		n := root.take(g)
		if n == nil {
			return nodeIDs, ns.explain(g)
		}
		nodeIDs = append(nodeIDs, n.ID)
	}
	return nodeIDs, ""
}

// placeOne needs no heap.
func (ns *Nodes) placeOne(g *Group, now time.Time) (nodeIDs []string, reason string) {
	var best candidate
	for _, n := range ns.all() {
		if g.check(n) != fits {
			continue
		}
		if c := g.candidate(n, now); best.Node == nil || g.compare(c, best) < 0 {
			best = c
		}
	}
	if best.Node == nil {
		return nil, ns.explain(g)
	}
	best.Add(g.ServiceID, g.nanoCPUs, g.memoryBytes, true)
	return []string{best.ID}, ""
}

// PlaceOn puts one task on a given node (a global service's), or says why it cannot go there.
func (ns *Nodes) PlaceOn(g *Group, nodeID string) (reason string) {
	var refused tally
	n := ns.byID[nodeID]
	if n == nil {
		return refused.String()
	}
	if f := g.check(n); f != fits {
		refused[f]++
		return refused.String()
	}
	n.Add(g.ServiceID, g.nanoCPUs, g.memoryBytes, true)
	return ""
}

func (ns *Nodes) explain(g *Group) string {
	var refused tally
	for _, n := range ns.byID {
		refused[g.check(n)]++
	}
	refused[fits] = 0
	return refused.String()
}

// candidate is a node that fits, with its failures of the version and tasks of the service.
type candidate struct {
	*Node
	failures, running int
}

func (g *Group) candidate(n *Node, now time.Time) candidate {
	return candidate{n, n.recentFailures(g.Version, now), n.Services[g.ServiceID]}
}

// branch is a part of the cluster: nodes that share the labels which the group spreads over, down to a leaf of candidates.
type branch struct {
	value string
	// tasks counts the service's tasks on all nodes of the branch, also on those that are full.
	tasks    int
	children heap[*branch]
	leaf     heap[candidate]
	named    map[string]*branch
}

// tree sorts the nodes that fit into branches.
func (ns *Nodes) tree(g *Group, now time.Time) *branch {
	root := newBranch(g, "")
	root.leaf.items = ns.spare[:0]
	for _, n := range ns.all() {
		fit := g.check(n) == fits
		if !fit && len(g.spread) == 0 {
			continue
		}
		b, c := root, g.candidate(n, now)
		for _, descriptor := range g.spread {
			value, _ := spec.SpreadLabel(descriptor, &n.Facts)
			b.tasks += c.running
			b = b.child(g, value)
		}
		b.tasks += c.running
		if fit {
			b.leaf.items = append(b.leaf.items, c)
		}
	}
	ns.spare = root.leaf.items[:0]
	root.order()
	return root
}

func newBranch(g *Group, value string) *branch {
	return &branch{
		value: value,
		leaf:  heap[candidate]{compare: g.compare},
		children: heap[*branch]{compare: func(a, b *branch) int {
			return cmp.Or(cmp.Compare(a.tasks, b.tasks), cmp.Compare(a.value, b.value))
		}},
	}
}

func (b *branch) child(g *Group, value string) *branch {
	if c := b.named[value]; c != nil {
		return c
	}
	if b.named == nil {
		b.named = map[string]*branch{}
	}
	c := newBranch(g, value)
	b.named[value] = c
	b.children.items = append(b.children.items, c)
	return c
}

// order makes heaps of what was collected, and drops branches without a candidate.
func (b *branch) order() {
	for _, c := range b.children.items {
		c.order()
	}
	b.children.items = slices.DeleteFunc(b.children.items, (*branch).empty)
	b.children.init()
	b.leaf.init()
}

func (b *branch) empty() bool { return len(b.children.items) == 0 && len(b.leaf.items) == 0 }

// take chooses the best node below b and counts a task there; nil when none is left.
func (b *branch) take(g *Group) *Node {
	if len(b.children.items) > 0 {
		c := b.children.items[0]
		n := c.take(g)
		b.tasks++
		b.children.settle(!c.empty())
		return n
	}
	if len(b.leaf.items) == 0 {
		return nil
	}
	n := b.leaf.items[0].Node
	b.leaf.items[0].running++
	n.Add(g.ServiceID, g.nanoCPUs, g.memoryBytes, true)
	b.tasks++
	b.leaf.settle(g.hasRoom(n))
	return n
}

// compare ranks nodes: those that keep failing last, then by tasks of this service, then by tasks in all.
func (g *Group) compare(a, b candidate) int {
	if a.failures >= failuresMax || b.failures >= failuresMax {
		if c := cmp.Compare(a.failures, b.failures); c != 0 {
			return c
		}
	}
	return cmp.Or(
		cmp.Compare(a.running, b.running),
		cmp.Compare(a.Tasks, b.Tasks),
		cmp.Compare(a.rank, b.rank))
}

func (n *Node) recentFailures(v Version, now time.Time) int {
	count := 0
	for _, at := range n.Failures[v] {
		if now.Sub(at) < failureWindow {
			count++
		}
	}
	return count
}

// heap is a binary min-heap whose least item is items[0].
type heap[T any] struct {
	items   []T
	compare func(a, b T) int
}

func (h *heap[T]) init() {
	for i := len(h.items)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
}

// settle puts the first item where it now belongs, or drops it.
func (h *heap[T]) settle(keep bool) {
	if !keep {
		last := len(h.items) - 1
		h.items[0] = h.items[last]
		h.items = h.items[:last]
	}
	h.down(0)
}

func (h *heap[T]) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h.items); c++ {
			if h.compare(h.items[c], h.items[least]) < 0 {
				least = c
			}
		}
		if least == i {
			return
		}
		h.items[i], h.items[least] = h.items[least], h.items[i]
		i = least
	}
}
