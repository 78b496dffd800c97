// Package scheduler places tasks on nodes: filters with reasons, spreading, reserved resources. Pure.
// service keeps one Nodes index up to date and asks it where tasks go.
package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

// A node on which a version of a service failed failuresMax times within failureWindow is the last choice for it.
const (
	failuresMax   = 5
	failureWindow = 5 * time.Minute
)

// Version names one version of a service's spec.
type Version struct {
	ServiceID   string
	SpecVersion uint64
}

// Node is one machine as placement sees it. A Nodes takes a copy, of Services too; all else is only read.
type Node struct {
	spec.Facts
	// Open says that the node takes new tasks: it is ready and its availability is active.
	Open bool
	// Silent says that no manager hears the node at the moment, which is another reason not to give it tasks.
	Silent bool
	// NanoCPUs and MemoryBytes are what the node has in all.
	NanoCPUs, MemoryBytes int64
	Load

	// rank is the node's place in the order of ids.
	rank int
}

// Load is what the tasks of a node take of it.
type Load struct {
	ReservedNanoCPUs, ReservedMemoryBytes int64
	// Tasks counts every task that has not ended, Services those of each service that are meant to run.
	Tasks    int
	Services map[string]int
	// Failures are the times at which tasks of a version failed here, the latest ones; nil when none did.
	Failures map[Version][]time.Time
}

// Add counts one task that takes part in the load. counts says whether it is meant to run.
func (l *Load) Add(serviceID string, nanoCPUs, memoryBytes int64, counts bool) {
	l.ReservedNanoCPUs += nanoCPUs
	l.ReservedMemoryBytes += memoryBytes
	l.Tasks++
	if !counts {
		return
	}
	if l.Services == nil {
		l.Services = map[string]int{}
	}
	l.Services[serviceID]++
}

// Fail remembers one failure.
func (l *Load) Fail(v Version, at time.Time) {
	if l.Failures == nil {
		l.Failures = map[Version][]time.Time{}
	}
	l.Failures[v] = append(l.Failures[v], at)
}

// Nodes is every node of the cluster. Placing a task counts it in the load at once, so that
// the next one sees it; the caller replaces a node by Put when the truth is known.
type Nodes struct {
	byID map[string]*Node
	// ordered is byID in order of ids; nil when it has to be sorted again.
	ordered []*Node
	// spare is the memory of the last placement's candidates.
	spare []candidate
}

// NewNodes is an empty index.
func NewNodes() *Nodes { return &Nodes{byID: map[string]*Node{}} }

// Len is the number of nodes.
func (ns *Nodes) Len() int { return len(ns.byID) }

// Get is a node, or nil. It is the same for as long as the node is not removed.
func (ns *Nodes) Get(id string) *Node { return ns.byID[id] }

// Remove forgets a node.
func (ns *Nodes) Remove(id string) {
	delete(ns.byID, id)
	ns.ordered = nil
}

// all is every node in order of ids.
func (ns *Nodes) all() []*Node {
	if ns.ordered == nil {
		ns.ordered = slices.AppendSeq(make([]*Node, 0, len(ns.byID)), maps.Values(ns.byID))
		slices.SortFunc(ns.ordered, func(a, b *Node) int { return cmp.Compare(a.ID, b.ID) })
		for i, n := range ns.ordered {
			n.rank = i
		}
	}
	return ns.ordered
}

// Leave counts one task of a service less on a node: it was told to stop, although it takes resources until it has.
func (ns *Nodes) Leave(nodeID, serviceID string) {
	if n := ns.byID[nodeID]; n != nil && n.Services[serviceID] > 0 {
		n.Services[serviceID]--
	}
}

// Change is what replacing a node meant.
type Change struct {
	// Facts: what the node is changed (its labels, role, size, readiness), so tasks may not belong there any more, or now may.
	Facts bool
	// Room: something may fit there that did not fit before.
	Room bool
}

// Put adds a node or replaces what was known of it.
func (ns *Nodes) Put(n Node) Change {
	old := ns.byID[n.ID]
	if old == nil {
		n.Services = maps.Clone(n.Services)
		ns.byID[n.ID] = &n
		ns.ordered = nil
		return Change{Facts: true, Room: n.Open}
	}
	facts := !sameFacts(old, &n)
	change := Change{Facts: facts, Room: n.Open && (facts || freed(old, &n))}
	old.replace(&n)
	return change
}

// replace takes everything of now, but keeps its own memory: most often a node is read again to learn what placing had counted.
func (n *Node) replace(now *Node) {
	services, rank := n.Services, n.rank
	switch {
	case services == nil:
		services = maps.Clone(now.Services)
	case !maps.Equal(services, now.Services):
		clear(services)
		maps.Copy(services, now.Services)
	}
	*n = *now
	n.Services, n.rank = services, rank
}

func sameFacts(a, b *Node) bool {
	return a.Open == b.Open && a.Silent == b.Silent && a.NanoCPUs == b.NanoCPUs && a.MemoryBytes == b.MemoryBytes &&
		a.Hostname == b.Hostname && a.IP == b.IP && a.Role == b.Role && a.Platform == b.Platform &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.EngineLabels, b.EngineLabels)
}

func freed(old, now *Node) bool {
	if now.ReservedNanoCPUs < old.ReservedNanoCPUs || now.ReservedMemoryBytes < old.ReservedMemoryBytes {
		return true
	}
	for service, n := range old.Services {
		if now.Services[service] < n {
			return true
		}
	}
	return false
}

// Group is tasks of one version of a service: alike to the scheduler.
type Group struct {
	Version
	constraints           []spec.Constraint
	platforms             []swarm.Platform
	spread                []string
	nanoCPUs, memoryBytes int64
	replicasMax           int // per node; 0: any number
}

// NewGroup reads what placement needs from a task spec. A constraint that cannot be read fits no node.
func NewGroup(v Version, t swarm.TaskSpec) *Group {
	g := &Group{Version: v}
	g.nanoCPUs, g.memoryBytes = spec.Reserved(t)
	p := t.Placement
	if p == nil {
		return g
	}
	constraints, err := spec.ParseConstraints(p.Constraints)
	if err != nil {
		constraints = []spec.Constraint{{Key: "unreadable"}}
	}
	g.constraints, g.platforms, g.replicasMax = constraints, p.Platforms, int(p.MaxReplicas)
	for _, pref := range p.Preferences {
		if pref.Spread != nil {
			g.spread = append(g.spread, pref.Spread.SpreadDescriptor)
		}
	}
	return g
}

// Suits says whether the group's constraints and platforms allow a node, whatever its load.
func (g *Group) Suits(f *spec.Facts) bool {
	return spec.MatchAll(g.constraints, f) && spec.MatchPlatform(g.platforms, f)
}

// Allows says whether the group's constraints alone allow a node: they must hold as long as a task lives.
func (g *Group) Allows(f *spec.Facts) bool { return spec.MatchAll(g.constraints, f) }

// filter is one reason for which a node cannot take a task, in the order in which they are asked.
type filter int

const (
	fits filter = iota
	silent
	notOpen
	noResources
	constrained
	otherPlatform
	replicasFull
	filterCount
)

// check returns the first filter that refuses a node.
func (g *Group) check(n *Node) filter {
	switch {
	case n.Silent:
		return silent
	case !n.Open:
		return notOpen
	case g.nanoCPUs > n.NanoCPUs-n.ReservedNanoCPUs && g.nanoCPUs > 0,
		g.memoryBytes > n.MemoryBytes-n.ReservedMemoryBytes && g.memoryBytes > 0:
		return noResources
	case !spec.MatchAll(g.constraints, &n.Facts):
		return constrained
	case !spec.MatchPlatform(g.platforms, &n.Facts):
		return otherPlatform
	case g.full(n):
		return replicasFull
	}
	return fits
}

// hasRoom repeats only the checks that placing a task can change.
func (g *Group) hasRoom(n *Node) bool {
	return (g.nanoCPUs == 0 || g.nanoCPUs <= n.NanoCPUs-n.ReservedNanoCPUs) &&
		(g.memoryBytes == 0 || g.memoryBytes <= n.MemoryBytes-n.ReservedMemoryBytes) && !g.full(n)
}

func (g *Group) full(n *Node) bool {
	return g.replicasMax > 0 && n.Services[g.ServiceID] >= g.replicasMax
}

// tally counts the nodes that each filter refused.
type tally [filterCount]int

// String is the reason for which a task waits, in docker's words.
func (t tally) String() string {
	type part struct {
		count int
		text  string
	}
	parts := []part{
		{t[notOpen], plural(t[notOpen], "%s not available for new tasks")},
		{t[silent], plural(t[silent], "no word from %s")},
		{t[noResources], plural(t[noResources], "insufficient resources on %s")},
		{t[constrained], plural(t[constrained], "scheduling constraints not satisfied on %s")},
		{t[otherPlatform], plural(t[otherPlatform], "unsupported platform on %s")},
		{t[replicasFull], "max replicas per node limit exceed"},
	}
	sort.SliceStable(parts, func(i, j int) bool { return parts[i].count > parts[j].count })
	var texts []string
	for _, p := range parts {
		if p.count > 0 {
			texts = append(texts, p.text)
		}
	}
	if len(texts) == 0 {
		return "no suitable node"
	}
	return "no suitable node (" + strings.Join(texts, "; ") + ")"
}

func plural(count int, format string) string {
	if count == 1 {
		return fmt.Sprintf(format, "1 node")
	}
	return fmt.Sprintf(format, fmt.Sprintf("%d nodes", count))
}
