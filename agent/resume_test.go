package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// local is where the machine stands, as GET /info says.
func (m *computer) local() swarm.Info {
	m.t.Helper()
	r, err := m.client().Info(m.t.Context(), client.InfoOptions{})
	if err != nil {
		m.t.Fatalf("info of %s: %v", m.name, err)
	}
	return r.Info.Swarm
}

// An agent that cannot read its certificate or record runs on and says so; nothing is changed, and what is put back counts.
func TestDamagedStateKeepsTheAgentUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 1)
		defer closeAll(all)
		n1, n2 := all[0], all[1]
		n1.service("web", 2)
		n1.within(5*time.Second, "both run", func() bool { return n1.running() == 2 })
		for file, want := range map[string]string{
			"node.json":                 "node.json is damaged",
			"certificates/identity.pem": "certificate",
		} {
			path := filepath.Join(n2.cfg.DataDir, file)
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			n2.halt()
			damaged := append([]byte("damaged"), content...)
			write(t, path, damaged)
			n2.start()
			time.Sleep(time.Second)
			info := n2.local()
			if info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, want) || !strings.Contains(info.Error, "start the agent again") {
				t.Errorf("%s: %s, %q", file, info.LocalNodeState, info.Error)
			}
			if _, err := n2.client().SwarmInit(t.Context(), client.SwarmInitOptions{}); err == nil {
				t.Errorf("%s: init went through", file)
			}
			if _, err := n2.client().SwarmLeave(t.Context(), client.SwarmLeaveOptions{}); err == nil || !strings.Contains(err.Error(), "--force") {
				t.Errorf("%s: leave says %v", file, err)
			}
			if now, err := os.ReadFile(path); err != nil || string(now) != string(damaged) {
				t.Errorf("%s was changed: %v", file, err)
			}
			if n2.runtime.runs() != 1 {
				t.Errorf("%s: %d containers run", file, n2.runtime.runs())
			}
			n2.halt()
			write(t, path, content)
			n2.start()
			n1.within(5*time.Second, "the node is back", func() bool { return n2.row(n1).Session.Heard() })
		}
		if n2.runtime.started != 1 {
			t.Errorf("%d containers were started", n2.runtime.started)
		}
	})
}

// What cannot be read can be given up; then the node joins again.
func TestDamagedMembershipCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 1)
		defer closeAll(all)
		n1, n2 := all[0], all[1]
		n2.halt()
		write(t, filepath.Join(n2.cfg.DataDir, "node.json"), []byte("{"))
		n2.start()
		if _, err := n2.client().SwarmLeave(t.Context(), client.SwarmLeaveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		n2.join(n1, swarm.NodeRoleWorker)
		if state := n2.local().LocalNodeState; state != swarm.LocalNodeStateActive {
			t.Errorf("after joining again: %s", state)
		}
	})
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A machine that got another address is found again: a worker, a manager among others, and the only manager.
func TestNodesThatMovedAreFoundAgain(t *testing.T) {
	for _, c := range []struct {
		name              string
		managers, workers int
		moves             int
	}{
		{"worker", 1, 1, 1},
		{"follower or leader", 3, 1, 0},
		{"follower or leader", 3, 1, 2},
		{"only manager", 1, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := formed(t, c.managers, c.workers)
				defer closeAll(all)
				all[0].service("web", 4)
				all[0].within(5*time.Second, "all run", func() bool { return all[0].running() == 4 })
				m := all[c.moves]
				m.halt()
				m.ip = "10.0.1.1"
				m.cfg.ListenAddr, m.cfg.AdvertiseAddr = m.ip+":2377", m.ip
				m.start()
				other := all[(c.moves+1)%c.managers]
				took := other.within(20*time.Second, "it is known by its new address", func() bool {
					if r := m.row(other); !r.Session.Heard() || r.Address != m.ip+":2377" {
						return false
					}
					members := other.store().Members()
					for _, member := range members {
						if member.NodeID == m.node.id() && (member.Address != m.ip+":2377" || !member.Voter) {
							return false
						}
					}
					return len(members) == c.managers
				})
				t.Logf("found after %s", took)
				if c.moves < c.managers {
					m.within(20*time.Second, "it manages", func() bool { return m.store() != nil && m.running() == 4 })
				}
				for _, n := range all {
					n.within(20*time.Second, n.name+" is heard", func() bool { return n.row(other).Session.Heard() && n.node.current().inSession.Load() })
					n.within(20*time.Second, n.name+" has no more than its tasks", func() bool { return n.runtime.started == n.runtime.runs() })
				}
			})
		})
	}
}
