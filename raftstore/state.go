package raftstore

import (
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// State is one immutable version of the cluster. The zero State is an empty cluster.
type State struct {
	Nodes    Table[*Node]
	Services Table[*Service]
	Specs    Table[*Spec]
	Tasks    Table[*Task]
	Images   Table[*Image]

	clusters Table[*Cluster]
	guards   Table[*guardRow]
	index    uint64
}

// Where each index stands in its table's layout.
const (
	nodesByName    = 0
	servicesByName = 0
	tasksByService = 0
	tasksByNode    = 1
	imagesByName   = 0
	imagesByDigest = 1
)

// newState returns an empty state that may be written.
func newState() *State {
	return &State{
		Nodes: newTable(&layout[*Node]{
			kind: "node",
			name: func(r *Node) string { return r.Description.Hostname },
			indexes: []index[*Node]{
				nodesByName: {
					key: func(r *Node) string { return r.Description.Hostname },
					probe: func(key string) *Node {
						return &Node{Description: swarm.NodeDescription{Hostname: key}}
					},
				},
			},
		}),
		Services: newTable(&layout[*Service]{
			kind: "service",
			name: func(r *Service) string { return r.Name },
			indexes: []index[*Service]{
				servicesByName: {
					key:   func(r *Service) string { return r.Name },
					probe: func(key string) *Service { return &Service{Name: key} },
				},
			},
		}),
		Specs: newTable(&layout[*Spec]{kind: "spec"}),
		Tasks: newTable(&layout[*Task]{
			kind: "task",
			class: func(r *Task) int {
				number, _ := taskStateNumber(r.Status.State)
				return int(number)
			},
			indexes: []index[*Task]{
				tasksByService: {
					key:   func(r *Task) string { return r.ServiceID },
					rank:  func(r *Task) uint64 { return r.Slot },
					probe: func(key string) *Task { return &Task{ServiceID: key} },
				},
				tasksByNode: {
					key:   func(r *Task) string { return r.NodeID },
					probe: func(key string) *Task { return &Task{NodeID: key} },
				},
			},
		}),
		Images: newTable(&layout[*Image]{
			kind: "image",
			name: func(r *Image) string { return r.Name },
			indexes: []index[*Image]{
				imagesByName: {
					key:   func(r *Image) string { return r.Name },
					probe: func(key string) *Image { return &Image{Name: key} },
				},
				imagesByDigest: {
					key:   func(r *Image) string { return r.Digest },
					probe: func(key string) *Image { return &Image{Digest: key} },
				},
			},
		}),
		clusters: newTable(&layout[*Cluster]{kind: "cluster"}),
		guards:   newTable(&layout[*guardRow]{kind: "guard"}),
	}
}

// publish returns what s is now, for readers, sharing with last the tables that did not change.
func (s *State) publish(last *State) *State {
	return &State{
		Nodes: s.Nodes.publish(last.Nodes), Services: s.Services.publish(last.Services),
		Specs: s.Specs.publish(last.Specs), Tasks: s.Tasks.publish(last.Tasks), Images: s.Images.publish(last.Images),
		clusters: s.clusters.publish(last.clusters), guards: s.guards.publish(last.guards), index: s.index,
	}
}

// table returns nil for an unknown id.
func (s *State) table(id tableID) table {
	switch id {
	case tableClusters:
		return &s.clusters
	case tableNodes:
		return &s.Nodes
	case tableServices:
		return &s.Services
	case tableSpecs:
		return &s.Specs
	case tableTasks:
		return &s.Tasks
	case tableImages:
		return &s.Images
	case tableGuards:
		return &s.guards
	}
	return nil
}

// rowIndex is the Index of a row, 0 when there is none.
func (s *State) rowIndex(t tableID, id string) uint64 {
	if r := s.table(t).get(id); r != nil {
		return r.meta().Index
	}
	return 0
}

// GuardManagers is the guard of every change of who shall be a manager, so that two demotions at once cannot leave none.
const GuardManagers = "managers"

// AnotherManager says whether a node other than one shall be a manager.
func (s *State) AnotherManager(nodeID string) bool {
	for row := range s.Nodes.All() {
		if row.ID != nodeID && row.Spec.Role == swarm.NodeRoleManager {
			return true
		}
	}
	return false
}

// Index is the raft index of the last commit in s.
func (s *State) Index() uint64 { return s.index }

// GuardIndex is the index of the last commit that named a guard, 0 when none did.
func (s *State) GuardIndex(name string) uint64 { return s.rowIndex(tableGuards, name) }

// format is the newest format that every member understands; a new cluster begins with the newest there is.
func (s *State) format() uint32 {
	cluster := s.Cluster()
	if cluster == nil {
		return FormatVersion
	}
	return min(max(cluster.MinVersion, 1), FormatVersion)
}

// written is the format that may be in the log and in snapshots; 1 while there is no cluster.
func (s *State) written() uint32 {
	if s.Cluster() == nil {
		return 1
	}
	return s.format()
}

// Admits refuses a manager that reads formats up to one that is older than what the log has; 0 stands for the first.
func (s *State) Admits(reads uint32) error {
	if needs := s.written(); max(reads, 1) < needs {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("the cluster's log has format %d and this node's version of swarm reads up to %d, so it cannot be a manager: upgrade swarm on this node", needs, max(reads, 1)))
	}
	return nil
}

// Cluster is the cluster's row, nil before init.
func (s *State) Cluster() *Cluster {
	for r := range s.clusters.All() {
		return r
	}
	return nil
}

// TasksOf iterates over the tasks of a service in order of slots, TasksOfSlot over those of one slot, and TasksOn over those
// assigned to a node, in order of ids.
func (s *State) TasksOf(serviceID string) iter.Seq[*Task] {
	return s.Tasks.with(tasksByService, serviceID)
}
func (s *State) TasksOfSlot(serviceID string, slot uint64) iter.Seq[*Task] {
	return s.Tasks.like(tasksByService, &Task{ServiceID: serviceID, Slot: slot})
}
func (s *State) TasksOn(nodeID string) iter.Seq[*Task] { return s.Tasks.with(tasksByNode, nodeID) }

// TasksInState is how many tasks were last observed in a state. It costs nothing, however many there are.
func (s *State) TasksInState(state swarm.TaskState) int {
	number, ok := taskStateNumber(state)
	if !ok {
		return 0
	}
	return s.Tasks.settled().tally[number]
}

// Spec is the spec of a service at a version; nil when there is none.
func (s *State) Spec(serviceID string, version uint64) *swarm.ServiceSpec {
	r, ok := s.Specs.Get(SpecID(serviceID, version))
	if !ok {
		return nil
	}
	return &r.Spec
}

// ImagesNamed iterates over the image rows with a name, ImagesByDigest over those with a digest.
func (s *State) ImagesNamed(name string) iter.Seq[*Image] { return s.Images.with(imagesByName, name) }
func (s *State) ImagesByDigest(digest string) iter.Seq[*Image] {
	return s.Images.with(imagesByDigest, digest)
}

// share makes a task use the id strings of its service's and node's rows instead of copies: with half a million tasks that
// is what they weigh most.
func (s *State) share(r row) {
	t, ok := r.(*Task)
	if !ok {
		return
	}
	if service, ok := s.Services.Get(t.ServiceID); ok {
		t.ServiceID = service.ID
	}
	if node, ok := s.Nodes.Get(t.NodeID); ok {
		t.NodeID = node.ID
	}
}
