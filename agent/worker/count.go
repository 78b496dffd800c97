package worker

import "github.com/moby/moby/api/types/swarm"

// TaskStates counts the tasks that this node holds, by what is known of them here.
func (w *Worker) TaskStates() map[swarm.TaskState]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := map[swarm.TaskState]int{}
	for _, t := range w.tasks {
		if !t.stray() {
			counts[t.record.Status.State]++
		}
	}
	return counts
}
