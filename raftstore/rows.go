package raftstore

import (
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Meta is what every row has. Rows read from the store are shared and must not be changed:
// copy the struct, replace (never mutate) what it refers to, and Put the copy.
type Meta struct {
	ID string
	// Version is the raft index of the last write of the spec: the API's Version.Index.
	Version uint64
	// Index is the raft index of the last write of any kind. Put compares it.
	Index     uint64
	CreatedAt time.Time
	// UpdatedAt is the time of the last write of the spec, by the clock of the manager that proposed it.
	UpdatedAt time.Time
}

// Cluster is the one row of the cluster's own settings and keys; its ID is the cluster id.
type Cluster struct {
	Meta
	Spec swarm.Spec
	// RootPEM and RootKeyPEM are the cluster's certificate authority.
	RootPEM    []byte
	RootKeyPEM []byte
	// JoinTokens are whole tokens (SWMTKN-1-…), one per role.
	JoinTokens swarm.JoinTokens
	// GossipKey encrypts gossip: 32 bytes.
	GossipKey       []byte
	DataPathPort    uint32
	DefaultAddrPool []string
	SubnetSize      uint32
	// MinVersion is the oldest format version that every member understands.
	MinVersion uint32
}

// Node is a machine of the cluster: what the operator wants of it and what is seen of it.
type Node struct {
	Meta
	// Spec holds the wanted role, the availability and the labels.
	Spec swarm.NodeSpec
	// Role is the role of the node's valid certificate; it follows Spec.Role.
	Role        swarm.NodeRole
	Description swarm.NodeDescription
	Status      swarm.NodeStatus
	// Address is the host:port of the node's one port as others reach it; empty until first seen.
	Address string
	Session Session
}

// Service is a declared service. Its spec lives in the specs table, once per version, shared with its tasks.
type Service struct {
	Meta
	// Name repeats Spec.Annotations.Name for the unique index.
	Name string
	// SpecVersion grows with every update call of a user; PreviousSpecVersion is what a rollback returns to (0: none).
	SpecVersion         uint64
	PreviousSpecVersion uint64
	UpdateStatus        *swarm.UpdateStatus
	// Removing is set by service rm: tasks are shut down first, then the row goes.
	Removing bool
}

// Spec is one version of a service's spec. Its ID is SpecID(service, version).
type Spec struct {
	Meta
	ServiceID   string
	SpecVersion uint64
	Spec        swarm.ServiceSpec
}

// Task is one run of one slot of a service. It passes the scheduler once, is never moved and never restarted.
type Task struct {
	Meta
	ServiceID   string
	SpecVersion uint64
	// Slot numbers a replicated service's tasks from 1; 0 for a global service, whose slot is the node.
	Slot   uint64
	NodeID string
	// DesiredState is written by the orchestrator alone, Status by the scheduler up to ASSIGNED and by the agent from there.
	DesiredState swarm.TaskState
	Status       TaskStatus
	// NotBefore is when a task that replaces an ended one may be promoted from READY to RUNNING.
	NotBefore time.Time
}

// TaskStatus is what was last observed of a task. State only grows.
type TaskStatus struct {
	State       swarm.TaskState
	Timestamp   time.Time
	Message     string
	Err         string
	ContainerID string
	PID         int
	ExitCode    int
}

// Image says which nodes hold an image. Its ID is ImageID(name, digest).
type Image struct {
	Meta
	// Name is a normalized reference with tag, such as docker.io/library/hello:latest.
	Name      string
	Digest    string
	MediaType string
	// SizeBytes is the size of all blobs.
	SizeBytes int64
	Platforms []swarm.Platform
	// Holders are the ids of the nodes that have every blob of it, sorted.
	Holders []string
}

// SpecID is the id of a service's spec row.
func SpecID(serviceID string, specVersion uint64) string {
	return serviceID + "/" + strconv.FormatUint(specVersion, 10)
}

// ImageID is the id of an image row.
func ImageID(name, digest string) string { return name + "@" + digest }
