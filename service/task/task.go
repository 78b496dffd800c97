// Package task is the life of a task: the order of its states, which steps are legal, and who may take them.
// service, service/dispatcher, agent/worker and api compare states only through it.
package task

import "github.com/moby/moby/api/types/swarm"

// Number is the position of a state in a task's life (S1 numbers of the Engine API's model: NEW 0 … ORPHANED 832); it is what travels between nodes.
func Number(s swarm.TaskState) uint32 { panic("contract") }

// FromNumber is the inverse of Number; ok is false for a number that names no state.
func FromNumber(n uint32) (s swarm.TaskState, ok bool) { panic("contract") }

// Before says whether a comes earlier in a task's life than b.
func Before(a, b swarm.TaskState) bool { return Number(a) < Number(b) }

// Ended says whether a task in state s will never run (again): any state beyond RUNNING.
func Ended(s swarm.TaskState) bool { panic("contract") }

// Name is service.slot.taskid, with the node's id for the slot of a global service's task (slot 0).
func Name(serviceName string, slot uint64, nodeID, taskID string) string { panic("contract") }
