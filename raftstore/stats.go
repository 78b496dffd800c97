package raftstore

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Stats is what one manager's replica tells about itself.
type Stats struct {
	Term uint64
	// Leads says whether this node leads and has everything that earlier leaders committed.
	Leads bool
	// Leader is the leader's node id as known here; Leaderless is how long there is none.
	Leader     string
	Leaderless time.Duration
	// LeaderChanges is how often another node was seen leading since the start.
	LeaderChanges uint64
	// CommitLatency is from a commit's arrival at this manager to its answer, PendingCommits how many are under way.
	CommitLatency  HistogramSnapshot
	PendingCommits int
	// Rows is the number of rows by table: nodes, services, specs, tasks, images, ….
	Rows map[string]int
	// Index is that of the state; LastLog, Committed and Applied are raft's, which also count entries that change no state.
	Index     uint64
	LastLog   uint64
	Committed uint64
	Applied   uint64
	Snapshot  SnapshotStats
	// Followers are the other members as the leader sees them; empty elsewhere.
	Followers []FollowerStats
	// DiskFault says why the log could not be written the last time; empty while it can.
	DiskFault string
}

// SnapshotStats is about the newest snapshot on disk; all zero without one.
type SnapshotStats struct {
	Index     uint64
	SizeBytes int64
	// Time is when it was made or received, or found at the start; Took is how long that lasted, 0 if found.
	Time time.Time
	Took time.Duration
}

// FollowerStats is how far a member is behind the leader.
type FollowerStats struct {
	NodeID string
	Voter  bool
	// Lag is the number of entries that it does not have; Heard is how long ago it answered, -1 for never.
	Lag   uint64
	Heard time.Duration
}

// counters is what a Store counts for Stats. The commit path feeds latency and pending.
type counters struct {
	commitLatency  Histogram
	pendingCommits atomic.Int64
	leaderChanges  atomic.Uint64
}

// Stats is cheap: it takes no lock that a commit waits for.
func (s *Store) Stats() Stats {
	state := s.Local()
	lead, _ := s.leadership()
	leader, _ := s.Leader()
	stats := Stats{
		Term: s.raft.CurrentTerm(), Leads: lead != nil, Leader: leader, LeaderChanges: s.counters.leaderChanges.Load(),
		CommitLatency: s.counters.commitLatency.Snapshot(), PendingCommits: int(s.counters.pendingCommits.Load()),
		Rows: map[string]int{}, Index: state.index, LastLog: s.raft.LastIndex(), Committed: s.raft.CommitIndex(), Applied: s.raft.AppliedIndex(),
		Snapshot: s.disk.snapshots.stats(), DiskFault: s.DiskFault(),
	}
	if since := s.LeaderlessSince(); !since.IsZero() {
		stats.Leaderless = time.Since(since)
	}
	for _, t := range tableIDs() {
		rows := state.table(t)
		stats.Rows[rows.kind()+"s"] = rows.length()
	}
	if lead != nil {
		stats.Followers = s.followers(stats.LastLog)
	}
	return stats
}

func (s *Store) followers(last uint64) []FollowerStats {
	var all []FollowerStats
	for _, server := range s.servers() {
		if string(server.ID) == s.cfg.NodeID {
			continue
		}
		seen := s.transport.from(server.ID)
		f := FollowerStats{NodeID: string(server.ID), Voter: server.Suffrage == raft.Voter, Heard: -1, Lag: last}
		if !seen.at.IsZero() {
			f.Heard, f.Lag = time.Since(seen.at), last-min(last, seen.lastLog)
		}
		all = append(all, f)
	}
	return all
}
