package raftstore

import (
	"errors"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// settled is raft's configuration as far as it is known here to be committed. raft itself goes by the latest one in its log, and
// tells only that; but what is not committed may still be undone.
type settled struct {
	mu sync.Mutex // guards:
	// index is that of the configuration's entry, 0 while none is known.
	index   uint64
	servers []raft.Server
}

func (s *settled) note(index uint64, configuration raft.Configuration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index > s.index {
		s.index, s.servers = index, configuration.Servers
	}
}

// without says whether a configuration is known, and has not a node.
func (s *settled) without(id raft.ServerID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index > 0 && !hasServer(s.servers, id)
}

func hasServer(servers []raft.Server, id raft.ServerID) bool {
	return slices.ContainsFunc(servers, func(server raft.Server) bool { return server.ID == id })
}

// errWithheld is what raft gets for entries that a manager which is being taken out must not have yet.
var errWithheld = errors.New("the manager is not told of its own removal before that is committed")

// withhold keeps an uncommitted removal from whom it is about. With that entry in its log it would vote for nobody without it, and would
// not stand itself, though those who stay, without it in theirs, still need one of both if the leader is lost now.
func withhold(id raft.ServerID, args *raft.AppendEntriesRequest) error {
	for _, entry := range args.Entries {
		if entry.Type == raft.LogConfiguration && entry.Index > args.LeaderCommitIndex && !hasServer(raft.DecodeConfiguration(entry.Data).Servers, id) {
			return errWithheld
		}
	}
	return nil
}

// Released says whether raft goes on without a node: no configuration has it, neither the last one that is known here to be committed
// nor a later one. Until that is so, the node's vote may be needed, also for its own removal: those who stay may still have
// a configuration with it.
func (s *Store) Released(nodeID string) bool {
	id := raft.ServerID(nodeID)
	return s.fsm.settled.without(id) && !hasServer(s.servers(), id)
}
