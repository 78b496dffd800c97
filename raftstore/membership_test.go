package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// Whatever the rows say and whoever answers, no step takes the quorum away from a cluster that has one, even if nobody
// answers at a new address; and where all answer, the steps come to an end at what the rows say.
func TestNoStepEverBreaksQuorum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, answering := drawMembership(t)
		if !hasQuorum(m.servers, answering) {
			t.Skip("such a cluster has no leader that could change anything")
		}
		for steps := 0; ; steps++ {
			step, _ := m.next()
			if step == nil || step.verb == handOver {
				break
			}
			m.servers = m.after(*step)
			switch {
			case !hasQuorum(m.servers, answering):
				t.Fatalf("%s %s leaves %v, of whom %v answer", step.verb, step.id, m.servers, answering)
			case step.verb == setAddress && step.id != m.self && m.moved[step.id] != step.address:
				delete(answering, step.id)
				if !hasQuorum(m.servers, answering) {
					t.Fatalf("quorum hangs on the new address of %s: %v, of whom %v answer", step.id, m.servers, answering)
				}
			case steps > 3*len(memberNames):
				t.Fatalf("no end: %s %s", step.verb, step.id)
			}
		}
		// Nobody answers at a new address that was not told of.
		if everybody := len(answering) == len(memberNames); everybody && m.wanted(m.self) {
			checkArrived(t, m)
		}
	})
}

var memberNames = [...]raft.ServerID{"a", "b", "c", "d", "e", "f", "g"}

func drawMembership(t *rapid.T) (membership, map[raft.ServerID]bool) {
	answering := map[raft.ServerID]bool{"a": true}
	m := membership{
		self: "a", nodes: newState().Nodes, moved: map[raft.ServerID]raft.ServerAddress{},
		answers:  func(id raft.ServerID) bool { return answering[id] },
		caughtUp: func(id raft.ServerID) bool { return answering[id] },
	}
	all := rapid.Bool().Draw(t, "all answer")
	for i, id := range memberNames {
		if all || rapid.Bool().Draw(t, fmt.Sprint(id, " answers")) {
			answering[id] = true
		}
		address := func(where string) string { return fmt.Sprint(id, rapid.IntRange(1, 2).Draw(t, fmt.Sprint(id, where))) }
		if kind := rapid.IntRange(0, 3).Draw(t, fmt.Sprint(id, " in raft")); i == 0 || kind > 0 {
			server := raft.Server{ID: id, Address: raft.ServerAddress(address(" address")), Suffrage: raft.Voter}
			if i > 0 && kind == 1 {
				server.Suffrage = raft.Nonvoter
			}
			m.servers = append(m.servers, server)
		}
		if rapid.IntRange(0, 3).Draw(t, fmt.Sprint(id, " has a row")) > 0 {
			node := &Node{Meta: Meta{ID: string(id)}, Address: address(" row"), Role: swarm.NodeRoleWorker}
			node.Spec.Role = swarm.NodeRoleWorker
			if rapid.Bool().Draw(t, fmt.Sprint(id, " wanted")) {
				node.Spec.Role, node.Role = swarm.NodeRoleManager, swarm.NodeRoleManager
			}
			m.nodes.put(node)
			if all { // they have moved there and told so
				m.moved[id] = raft.ServerAddress(node.Address)
			}
		}
	}
	return m, answering
}

func hasQuorum(servers []raft.Server, answering map[raft.ServerID]bool) bool {
	all, up := 0, 0
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			all++
			if answering[s.ID] {
				up++
			}
		}
	}
	return up > all/2
}

// after is raft's configuration once a step was made.
func (m membership) after(step memberStep) []raft.Server {
	servers := slices.Clone(m.servers)
	place := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == step.id })
	switch step.verb {
	case addNonvoter:
		return append(servers, raft.Server{ID: step.id, Address: step.address, Suffrage: raft.Nonvoter})
	case promote:
		servers[place].Suffrage = raft.Voter
	case setAddress:
		servers[place].Address = step.address
	case remove:
		return slices.Delete(servers, place, place+1)
	}
	return servers
}

func checkArrived(t *rapid.T, m membership) {
	wanted := 0
	for row := range m.nodes.All() {
		if row.Spec.Role == swarm.NodeRoleManager {
			wanted++
		}
	}
	for _, s := range m.servers {
		switch row, ok := m.nodes.Get(string(s.ID)); {
		case !ok || row.Spec.Role != swarm.NodeRoleManager:
			t.Errorf("%s is still there", s.ID)
		case row.Address != string(s.Address) || s.Suffrage != raft.Voter:
			t.Errorf("%s is %v, its row says %s", s.ID, s, row.Address)
		}
	}
	if wanted != len(m.servers) {
		t.Errorf("%d managers instead of %d: %v", len(m.servers), wanted, m.servers)
	}
}

// Managers move one after the other, as when a network is renumbered: each stops, starts at its new address, and the row
// follows. The leader is among them.
func TestAllManagersMove(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(n, " managers"), func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				all := c.form(n)
				c.leader(all...)
				for i := range all {
					id := all[i].id
					c.stop(all[i])
					c.adjust = func(cfg *Config) { cfg.Address = id + ":9999" }
					all[i] = c.start(id, false)
					c.adjust = nil
					c.eventually("some manager leads", func() bool { return c.leads(all) != nil })
					c.update(c.leads(all), func(tx *Tx) error {
						r, _ := tx.Nodes.Get(id)
						seen := *r
						seen.Address = id + ":9999"
						tx.PutObservedNode(seen)
						return nil
					})
					c.eventually(id+" is known at its new address", func() bool {
						return c.leads(all) != nil && slices.ContainsFunc(c.leads(all).Members(), func(m Member) bool {
							return m.NodeID == id && m.Address == id+":9999" && m.Voter && m.Reachable
						})
					})
				}
				c.update(all[0], createService("web"))
			})
		})
	}
}

// leads is one that leads, nil without.
func (c *cluster) leads(all []*manager) *manager {
	for _, m := range all {
		if lead, _ := m.leadership(); lead != nil {
			return m
		}
	}
	return nil
}

// A change of raft's configuration is no change of the state, but those who watch the state hear of it.
func TestWatchTellsOfMembers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		leader := c.leader(all...)
		watches := map[*manager]*Watch{}
		for _, m := range all {
			watches[m] = m.Watch()
			watches[m].Take()
		}
		gone := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
		c.update(leader, setRole(gone.id, swarm.NodeRoleWorker))
		for _, m := range all {
			if m == gone {
				continue
			}
			told := false
			for deadline := time.After(10 * time.Second); !told; {
				select {
				case <-watches[m].Changed():
					_, dirty := watches[m].Take()
					told = dirty.Members && len(m.Members()) == 2
				case <-deadline:
					t.Fatalf("%s was not told", m.id)
				}
			}
			watches[m].Close()
		}
	})
}

// Planned stops of leaders, one after the other, cost writers on the others no election: what is under way meanwhile is
// done within a fraction of one.
func TestHandOverOnShutdownIsShort(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(3)
		longest := time.Duration(0)
		for round := range 4 {
			leader := c.leader(all...)
			writer := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })[0]
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range 60 {
					began := time.Now()
					c.update(writer, createService(fmt.Sprint("s", round, "-", i)))
					longest = max(longest, time.Since(began))
					time.Sleep(10 * time.Millisecond)
				}
			}()
			time.Sleep(200 * time.Millisecond)
			c.stop(leader)
			<-done
			all[slices.Index(all, leader)] = c.start(leader.id, false)
		}
		t.Logf("longest commit during a planned stop: %s", longest)
		if longest > 100*time.Millisecond {
			t.Errorf("a commit took %s", longest)
		}
	})
}
