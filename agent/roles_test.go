package agent

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// setRole promotes or demotes a machine through the API of another one.
func (m *computer) setRole(at *computer, role swarm.NodeRole) error {
	row := m.row(at)
	spec := row.Spec
	spec.Role = role
	_, err := at.client().NodeUpdate(m.t.Context(), row.ID, client.NodeUpdateOptions{Version: swarm.Version{Index: row.Version}, Spec: spec})
	return err
}

// streamsWith counts the streams between a machine's node port and others, in either direction.
func (e *ether) streamsWith(host string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		if _, port, _ := net.SplitHostPort(string(c.remote)); port == "2377" && c.of(host) {
			n++
		}
	}
	return n
}

// The leader can be demoted while it leads: another one leads without a gap worth mention, no container is started again, and the
// demoted one is a worker like any other, until it is promoted again.
func TestLeaderIsDemotedWhileItLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		all[0].service("web", 8)
		all[0].within(10*time.Second, "all run", func() bool { return all[0].running() == 8 })
		leads := leader(all)
		if err := leads.setRole(leads, swarm.NodeRoleWorker); err != nil {
			t.Fatal(err)
		}
		other := all[0]
		if other == leads {
			other = all[1]
		}
		took := other.within(10*time.Second, "it is a worker", func() bool {
			m := leads.node.current()
			return m.identity.Role() == swarm.NodeRoleWorker && m.manager.Load() == nil && len(other.store().Members()) == 2 && leads.row(other).Session.Heard()
		})
		t.Logf("demoted in %s", took)
		if now := leader(all); now == nil || now == leads {
			t.Errorf("%v leads", now)
		}
		time.Sleep(15 * time.Second)
		if n := started(all); n != 8 || other.running() != 8 {
			t.Errorf("%d containers were started, %d run", n, other.running())
		}
		if err := leads.setRole(other, swarm.NodeRoleManager); err != nil {
			t.Fatal(err)
		}
		other.within(20*time.Second, "it manages again", func() bool { return leads.store() != nil && len(other.store().Members()) == 3 && leads.running() == 8 })
	})
}

func started(machines []*computer) (n int) {
	for _, m := range machines {
		n += m.runtime.started
	}
	return n
}

// The last manager can neither be demoted nor leave without force, and both are told in words.
func TestLastManagerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 1)
		defer closeAll(all)
		n1 := all[0]
		if err := n1.setRole(n1, swarm.NodeRoleWorker); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "last manager") {
			t.Errorf("demote: %v", err)
		}
		if _, err := n1.client().SwarmLeave(t.Context(), client.SwarmLeaveOptions{}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "Removing the last manager erases all current state") {
			t.Errorf("leave: %v", err)
		}
	})
}

// A manager that leaves hands its part over before it goes, also when it leads.
func TestLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		leads := leader(all)
		if _, err := leads.client().SwarmLeave(t.Context(), client.SwarmLeaveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		other := all[0]
		if other == leads {
			other = all[1]
		}
		other.within(5*time.Second, "two are left", func() bool {
			return len(other.store().Members()) == 2 && leader(all) != nil && leads.row(other).Session.Presence == raftstore.PresenceDown
		})
		if state := leads.local().LocalNodeState; state != swarm.LocalNodeStateInactive {
			t.Errorf("who left is %s", state)
		}
		leads.join(other, swarm.NodeRoleWorker)
	})
}

// A node that is removed by force loses every connection, whoever opened it, and everything that ran there.
func TestRemovedNodeIsCutOff(t *testing.T) {
	for _, c := range []struct {
		name   string
		number int
	}{{"manager", 1}, {"worker", 3}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := formed(t, 3, 2)
				defer closeAll(all)
				n1, out := all[0], all[c.number]
				n1.service("web", 10)
				n1.within(10*time.Second, "all run", func() bool { return n1.running() == 10 })
				if n1.ether.streamsWith(out.ip) == 0 {
					t.Fatal("no stream to be cut is seen")
				}
				if c.name == "manager" {
					if err := out.setRole(n1, swarm.NodeRoleWorker); err != nil {
						t.Fatal(err)
					}
					n1.within(10*time.Second, "it is a worker", func() bool { return out.row(n1).Role == swarm.NodeRoleWorker })
				}
				if _, err := n1.client().NodeRemove(t.Context(), out.node.id(), client.NodeRemoveOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				took := n1.within(5*time.Second, "it is out", func() bool { return out.node.current().removed() && out.runtime.runs() == 0 })
				t.Logf("out after %s", took)
				n1.within(5*time.Second, "raft goes on without it", func() bool { return len(n1.store().Members()) <= 3-(3-c.number)/2 })
				// It asks the managers now and then, and each hangs up.
				quiet := 0
				for range 50 {
					time.Sleep(100 * time.Millisecond)
					if n1.ether.streamsWith(out.ip) == 0 {
						quiet++
					}
				}
				if quiet < 40 {
					t.Errorf("it had connections in %d of 50 looks", 50-quiet)
				}
				if info := out.local(); info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, "removed from the swarm") {
					t.Errorf("it says %s: %s", info.LocalNodeState, info.Error)
				}
				if leader(all) == nil {
					t.Error("no leader")
				}
			})
		})
	}
}

// Certificates are renewed at half of their life; a node that slept beyond the end of its own is told what to do, but a manager
// with a replica helps itself.
func TestCertificatesAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = time.Hour
		e := newEther()
		n1, n2 := newComputer(t, e, 1), newComputer(t, e, 2)
		all := []*computer{n1, n2}
		defer closeAll(all)
		spec := swarm.Spec{CAConfig: swarm.CAConfig{NodeCertExpiry: life}, Dispatcher: swarm.DispatcherConfig{HeartbeatPeriod: time.Minute}}
		if _, err := n1.client().SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: n1.cfg.ListenAddr, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		n2.join(n1, swarm.NodeRoleWorker)
		ends := func(m *computer) time.Time { return m.node.current().identity.Certificate().Leaf.NotAfter }
		first := []time.Time{ends(n1), ends(n2)}
		time.Sleep(8 * life / 5)
		for i, m := range all {
			if end := ends(m); !end.After(first[i].Add(life/2)) || !m.row(n1).Session.Heard() {
				t.Errorf("after more than one life the certificate of %s ends at %s", m.name, end)
			}
		}
		for _, m := range all {
			m.halt()
		}
		time.Sleep(2 * life)
		for _, m := range all {
			m.start()
		}
		n1.within(time.Minute, "the manager helped itself", func() bool { return n1.row(n1).Session.Heard() && ends(n1).After(time.Now()) })
		if info := n2.local(); info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, "certificate expired") || !strings.Contains(info.Error, "join again") {
			t.Errorf("the worker says %s: %s", info.LocalNodeState, info.Error)
		}
	})
}

// Managers that all slept beyond the end of their certificates, and so would not even let each other vote, help themselves.
func TestManagersThatSleptTooLongFormTheirClusterAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		all := []*computer{newComputer(t, e, 1), newComputer(t, e, 2), newComputer(t, e, 3)}
		defer closeAll(all)
		n1 := all[0]
		spec := swarm.Spec{CAConfig: swarm.CAConfig{NodeCertExpiry: time.Hour}}
		if _, err := n1.client().SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: n1.cfg.ListenAddr, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		for _, m := range all[1:] {
			m.join(n1, swarm.NodeRoleManager)
		}
		time.Sleep(time.Second)
		for _, m := range all {
			m.halt()
		}
		time.Sleep(90 * 24 * time.Hour)
		for _, m := range all {
			m.start()
		}
		took := n1.within(30*time.Second, "all manage", func() bool {
			for _, m := range all {
				if m.store() == nil || !m.row(n1).Session.Heard() {
					return false
				}
			}
			return leader(all) != nil
		})
		t.Logf("formed again in %s", took)
	})
}
