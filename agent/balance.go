package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"swarm/raftstore"
)

const (
	// balanceEvery is the mean pause between two looks at the shares. A manager that came back gets agents again in some minutes.
	balanceEvery = 30 * time.Second
	// calmMin is how long all managers must have served before any agent is moved: nothing is moved while things fail.
	calmMin = time.Minute
	// movedMax is how many agents are asked to move at a time.
	movedMax = 32
)

// runBalance asks agents to use other managers while another one serves far less than its share of them, a part of the
// surplus at a time, and only in calm times.
func (mg *manager) runBalance(ctx context.Context) error {
	calmSince := time.Now()
	for ctx.Err() == nil {
		pauseFor(ctx, balanceEvery/2+rand.N(balanceEvery))
		if !mg.calm() {
			calmSince = time.Now()
		}
		if time.Since(calmSince) < calmMin || mg.tenure.lasted() < calmMin {
			continue
		}
		for _, id := range surplus(served(mg.store.Local(), mg.store.Members()), mg.nodeID) {
			mg.dispatcher.Move(id)
		}
	}
	return nil
}

// calm says whether every manager is a voter whose agent is heard.
func (mg *manager) calm() bool {
	state := mg.store.Local()
	for _, m := range mg.store.Members() {
		row, ok := state.Nodes.Get(m.NodeID)
		if !ok || !m.Voter || !m.Reachable || !row.Session.Heard() {
			return false
		}
	}
	return true
}

// served lists the nodes whose agents each manager serves. Managers' own agents are no part of it.
func served(state *raftstore.State, members []raftstore.Member) map[string][]string {
	by := map[string][]string{}
	for _, m := range members {
		by[m.NodeID] = nil
	}
	for n := range state.Nodes.All() {
		if _, manages := by[n.ID]; !manages && n.Session.Heard() {
			by[n.Session.Manager] = append(by[n.Session.Manager], n.ID)
		}
	}
	return by
}

// surplus are the agents that manager self should be rid of now: at random, a quarter of what it has more than its share, if some
// manager serves less than half of its own.
func surplus(served map[string][]string, self string) []string {
	all, least := 0, len(served[self])
	for _, ids := range served {
		all += len(ids)
		least = min(least, len(ids))
	}
	mine := slices.Clone(served[self])
	share := all / max(len(served), 1)
	excess := len(mine) - share
	if excess <= 0 || 2*least >= share {
		return nil
	}
	rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
	return mine[:min(max(excess/4, 1), movedMax)]
}
