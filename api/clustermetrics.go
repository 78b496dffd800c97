package api

import (
	"slices"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
	"github.com/prometheus/client_golang/prometheus"
)

// clusterCollector reads what the store and the rest of the agent count, at each scrape anew.
type clusterCollector struct{ api *API }

// Describe says nothing, so the registry checks names and labels at each scrape: which metrics there are depends on the node's role.
func (clusterCollector) Describe(chan<- *prometheus.Desc) {}

// Collect costs a walk over the nodes and counters; it never waits for the store.
func (c clusterCollector) Collect(out chan<- prometheus.Metric) {
	status := c.api.cfg.Node.Status()
	var measured Measured
	if c.api.cfg.Measure != nil {
		measured = c.api.cfg.Measure()
	}
	s := sink{out}
	s.gauge("swarm_agent_info", "Which program runs here, and the node's role: manager, worker or none.", 1,
		label{"version", c.api.cfg.Version}, label{"role", roleOf(status)})
	for _, state := range task.States() {
		s.gauge("swarm_worker_tasks", "Tasks that this node holds, by their state here.", float64(measured.WorkerTasks[state]), label{"state", string(state)})
	}
	if measured.Manager != nil {
		s.manager(*measured.Manager)
	}
	if status.Store != nil {
		s.raft(status.Store.Stats())
		s.cluster(status.Store.Local())
	}
}

func roleOf(status Status) string {
	switch {
	case status.Store != nil:
		return "manager"
	case status.State == swarm.LocalNodeStateActive:
		return "worker"
	}
	return "none"
}

// sink turns numbers into metrics.
type sink struct{ out chan<- prometheus.Metric }

type label struct{ name, value string }

func (s sink) put(kind prometheus.ValueType, name, help string, value float64, labels []label) {
	names, values := make([]string, len(labels)), make([]string, len(labels))
	for i, l := range labels {
		names[i], values[i] = l.name, l.value
	}
	s.out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
}

func (s sink) gauge(name, help string, value float64, labels ...label) {
	s.put(prometheus.GaugeValue, name, help, value, labels)
}

func (s sink) counter(name, help string, value float64) {
	s.put(prometheus.CounterValue, name, help, value, nil)
}

// histogram turns counts per bucket into Prometheus's sums of counts.
func (s sink) histogram(name, help string, h raftstore.HistogramSnapshot) {
	buckets := make(map[float64]uint64, len(h.Bounds))
	sum := uint64(0)
	for i, bound := range h.Bounds {
		sum += h.Counts[i]
		buckets[bound] = sum
	}
	s.out <- prometheus.MustNewConstHistogram(prometheus.NewDesc(name, help, nil, nil), h.Count, h.Sum, buckets)
}

func (s sink) truth(name, help string, holds bool) {
	value := 0.0
	if holds {
		value = 1
	}
	s.gauge(name, help, value)
}

// manager is what this manager's dispatcher and orchestrator count.
func (s sink) manager(m MeasuredManager) {
	s.gauge("swarm_dispatcher_sessions", "Agents that this manager hears.", float64(m.Sessions))
	s.counter("swarm_dispatcher_silences_total", "How often an agent missed its beats for so long that its node was asked.", float64(m.Silences))
	s.counter("swarm_dispatcher_statuses_written_total", "Statuses of tasks that this manager wrote for its agents.", float64(m.StatusesWritten))
	s.gauge("swarm_dispatcher_statuses_waiting", "Statuses of tasks that this manager has yet to write.", float64(m.StatusesWaiting))
	s.histogram("swarm_dispatcher_send_duration_seconds", "Time from a change that concerns an agent until it was handed to the agent's connection.", m.Send)
	s.gauge("swarm_dispatcher_sends_waiting", "Agents of this manager to which something has yet to be sent.", float64(m.SendsWaiting))
	s.histogram("swarm_scheduling_delay_seconds", "Time that tasks were there before they had a node; counted by the manager that leads.", m.SchedulingDelay)
	s.histogram("swarm_scheduling_round_duration_seconds", "Time that a round of decisions took; counted by the manager that leads.", m.Decide)
}

// raft is what this manager's replica says of itself.
func (s sink) raft(stats raftstore.Stats) {
	s.gauge("swarm_raft_term", "Current term of the managers' elections.", float64(stats.Term))
	s.truth("swarm_raft_leader", "1 on the manager that leads.", stats.Leads)
	s.gauge("swarm_raft_leaderless_seconds", "How long this manager has known no leader; 0 while it knows one.", stats.Leaderless.Seconds())
	s.counter("swarm_raft_leader_changes_total", "How often this manager saw another manager begin to lead since it started.", float64(stats.LeaderChanges))
	s.histogram("swarm_raft_commit_duration_seconds", "Time from a change's arrival at this manager to its commit.", stats.CommitLatency)
	s.gauge("swarm_raft_pending_commits", "Changes that wait here for their commit.", float64(stats.PendingCommits))
	s.gauge("swarm_raft_last_log_index", "Index of the newest entry in this manager's log.", float64(stats.LastLog))
	s.gauge("swarm_raft_commit_index", "Index of the newest entry that this manager knows to be committed.", float64(stats.Committed))
	s.gauge("swarm_raft_applied_index", "Index of the newest entry handed to this manager's state.", float64(stats.Applied))
	s.truth("swarm_raft_disk_failing", "1 while this manager cannot write its log.", stats.DiskFault != "")
	for _, f := range stats.Followers {
		s.gauge("swarm_raft_follower_lag_entries", "Entries that another manager does not have yet, as the leader sees it.", float64(f.Lag), label{"node", f.NodeID})
	}
	for table, rows := range stats.Rows {
		s.gauge("swarm_store_rows", "Rows of the replicated state, by table.", float64(rows), label{"table", table})
	}
	s.gauge("swarm_store_index", "Index of the last change in this manager's state.", float64(stats.Index))
	if stats.Snapshot.Time.IsZero() {
		return
	}
	s.gauge("swarm_store_snapshot_size_bytes", "Size of the newest snapshot on this manager's disk.", float64(stats.Snapshot.SizeBytes))
	s.gauge("swarm_store_snapshot_timestamp_seconds", "When the newest snapshot was made or received.", float64(stats.Snapshot.Time.UnixNano())/1e9)
	s.gauge("swarm_store_snapshot_index", "Index of the newest snapshot.", float64(stats.Snapshot.Index))
	s.gauge("swarm_store_snapshot_duration_seconds", "How long the newest snapshot took; 0 when it was found at the start.", stats.Snapshot.Took.Seconds())
}

// cluster counts nodes and tasks by state. The store counts the tasks itself, so there may be millions.
func (s sink) cluster(state *raftstore.State) {
	nodes, agents := map[swarm.NodeState]int{}, map[raftstore.Presence]int{}
	for row := range state.Nodes.All() {
		nodes[nodeState(row)]++
		agents[row.Session.Presence]++
	}
	for _, p := range presences() {
		name := string(p)
		if p == "" {
			name = "never"
		}
		s.gauge("swarm_node_agents", "Nodes of the cluster, by what the managers know of their agents.", float64(agents[p]), label{"presence", name})
	}
	for _, name := range nodeStates() {
		s.gauge("swarm_nodes", "Nodes of the cluster, by state.", float64(nodes[name]), label{"state", string(name)})
	}
	for _, name := range task.States() {
		s.gauge("swarm_tasks", "Tasks of the cluster, by last observed state.", float64(state.TasksInState(name)), label{"state", string(name)})
	}
}

func nodeStates() []swarm.NodeState {
	return []swarm.NodeState{swarm.NodeStateReady, swarm.NodeStateDisconnected, swarm.NodeStateUnknown, swarm.NodeStateDown}
}

// presences are the words for what is known of an agent; the empty one is that of a node that never came.
func presences() []raftstore.Presence {
	return []raftstore.Presence{"", raftstore.PresenceHeard, raftstore.PresenceAnnounced, raftstore.PresenceAway, raftstore.PresenceSuspect, raftstore.PresenceLost, raftstore.PresenceDown}
}

// nodeState is a node's state in one of the API's words.
func nodeState(row *raftstore.Node) swarm.NodeState {
	if slices.Contains(nodeStates(), row.Status.State) {
		return row.Status.State
	}
	return swarm.NodeStateUnknown
}
