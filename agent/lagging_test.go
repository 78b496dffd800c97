package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// A manager was cut off while another node became one, and now leads. Its own replica does not know that yet, but it can only learn it
// from there; and without it, the cluster could lose nobody more.
func TestLeaderThatALaggingManagerDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 1)
		defer closeAll(all)
		lagging, promoted := all[2], all[3]
		lagging.cutOff()
		other := all[0]
		other.within(20*time.Second, "another one leads", func() bool {
			l := leader(all)
			return l != nil && l != lagging && l.row(l).Session.Heard()
		})
		if err := promoted.setRole(other, swarm.NodeRoleManager); err != nil {
			t.Fatal(err)
		}
		other.within(20*time.Second, "it votes", func() bool {
			for _, m := range other.store().Members() {
				if m.NodeID == promoted.node.id() && m.Voter {
					return promoted.store() != nil
				}
			}
			return false
		})
		demote := func(m *computer) {
			t.Helper()
			promoted.within(10*time.Second, m.name+" may go", func() bool { return m.setRole(promoted, swarm.NodeRoleWorker) == nil })
			took := promoted.within(10*time.Second, m.name+" is a worker", func() bool { return m.node.current().manager.Load() == nil })
			t.Logf("%s is a worker after %s", m.name, took)
		}
		demote(all[0])
		promoted.within(10*time.Second, "it leads", func() bool {
			if all[1].store() != nil {
				_ = all[1].store().TransferLeadership()
			}
			return leader(all) == promoted
		})
		lagging.rejoins()
		took := promoted.within(20*time.Second, "the one that was away follows", func() bool {
			return lagging.store() != nil && lagging.row(lagging).Session.Heard() && lagging.store().Local().Index() == promoted.store().Local().Index()
		})
		t.Logf("it caught up in %s", took)
		demote(all[1])
		promoted.service("web", 2)
		promoted.within(10*time.Second, "all run", func() bool { return promoted.running() == 2 })
	})
}
