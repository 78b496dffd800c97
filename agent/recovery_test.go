package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

func (m *computer) force(advertise string) error {
	_, err := m.client().SwarmInit(m.t.Context(), client.SwarmInitOptions{ForceNewCluster: true, AdvertiseAddr: advertise, ListenAddr: defaultListenAddr})
	return err
}

// One manager of three is left: it goes on alone, with all it knew, at another address if it must; and who returns is a worker.
func TestOneManagerGoesOnAlone(t *testing.T) {
	for _, returns := range []string{"one", "both"} {
		t.Run(returns+" come back", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := formed(t, 3, 2)
				defer closeAll(all)
				n1, gone := all[0], all[1:3]
				service := n1.service("web", 10)
				n1.within(10*time.Second, "all run", func() bool { return n1.running() == 10 })
				id, cluster := n1.node.id(), n1.store().Local().Cluster().ID
				for _, m := range gone {
					m.halt()
				}
				preview, err := n1.node.PreviewRecovery(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if preview.NodeID != id || preview.Services != 1 || preview.Tasks != 10 || len(preview.Removed) != 2 || preview.LeaderlessSince.IsZero() {
					t.Errorf("preview: %+v", preview)
				}
				if err := n1.force(""); err != nil {
					t.Fatal(err)
				}
				if n1.node.id() != id || n1.store().Local().Cluster().ID != cluster || len(n1.store().Members()) != 1 {
					t.Errorf("node %s of cluster %s among %v", n1.node.id(), n1.store().Local().Cluster().ID, n1.store().Members())
				}
				took := n1.within(30*time.Second, "lost tasks are replaced", func() bool { return n1.running() == 10 && n1.row(n1).Session.Heard() && down(n1, gone) })
				t.Logf("tasks of the lost managers run elsewhere after %s", took)
				if _, err := n1.client().ServiceInspect(t.Context(), service, client.ServiceInspectOptions{}); err != nil {
					t.Error(err)
				}
				n1.service("more", 2)
				back := gone
				if returns == "one" {
					back = gone[:1]
				}
				for _, m := range back {
					m.start()
				}
				for _, m := range back {
					took := n1.within(2*time.Minute, m.name+" is a worker", func() bool {
						r := m.row(n1)
						return r.Session.Heard() && m.node.current().identity.Role() == swarm.NodeRoleWorker && m.node.current().manager.Load() == nil
					})
					t.Logf("%s came back as a worker after %s", m.name, took)
					m.within(10*time.Second, "its superfluous tasks are gone", func() bool { return n1.running() == 12 && runs(all) == 12 })
				}
				if leads := leader(all); leads != n1 {
					t.Errorf("%v leads", leads)
				}
			})
		})
	}
}

func down(at *computer, machines []*computer) bool {
	for _, m := range machines {
		if m.row(at).Session.Presence != raftstore.PresenceDown {
			return false
		}
	}
	return true
}

func runs(machines []*computer) (n int) {
	for _, m := range machines {
		if m.stop != nil {
			n += m.runtime.runs()
		}
	}
	return n
}

// The only manager left has moved: it is recovered at its new address.
func TestRecoveredAtAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		n1 := all[0]
		for _, m := range all[1:3] {
			m.halt()
		}
		if err := n1.force("10.0.9.9:2400"); err != nil {
			t.Fatal(err)
		}
		if members := n1.store().Members(); len(members) != 1 || members[0].Address != "10.0.9.9:2400" {
			t.Errorf("members: %v", members)
		}
		if err := n1.force("nonsense!"); err == nil {
			t.Error("a second one went through")
		}
	})
}

// Where there is nothing to recover, it is said why and what to do.
func TestRecoveryIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		outside := newComputer(t, all[0].ether, 9)
		defer outside.close()
		refused := func(m *computer, advertise string, is func(error) bool, text string) {
			t.Helper()
			if err := m.force(advertise); err == nil || !is(err) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		refused(all[0], "", errdefs.IsConflict, "The swarm has a leader")
		refused(all[3], "", errdefs.IsUnavailable, "not a swarm manager")
		refused(outside, "", errdefs.IsUnavailable, "not part of a swarm")
		// A leader that stops leaves two, which elect another one.
		leads := leader(all)
		leads.halt()
		for _, m := range all[:3] {
			if m != leads {
				refused(m, "", errdefs.IsConflict, "The swarm has a leader")
				m.halt()
				break
			}
		}
		for _, m := range all[:3] {
			if m.stop != nil {
				refused(m, "0.0.0.0", errdefs.IsInvalidArgument, "non-zero IP address")
				refused(m, "no-such-interface", errdefs.IsInvalidArgument, "neither an IP address nor a network interface")
			}
		}
	})
}

// The preview names the managers that can be reached: with them, starting the others may be enough.
func TestPreviewNamesWhoCanBeReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 4, 0)
		defer closeAll(all)
		for _, m := range all[2:] {
			m.halt()
		}
		preview, err := all[0].node.PreviewRecovery(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{all[1].node.id()}; len(preview.Removed) != 3 || !slices.Equal(preview.Reachable, want) {
			t.Errorf("preview: %+v, want %v to be reachable", preview, want)
		}
	})
}
