package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
)

// A manager that was taken out is still needed while those who stay do not know that: the one who leads may be lost before it told
// them, and then their quorum counts the old members.
func TestManagerIsReleasedOnlyOnceItsRemovalIsCommitted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		all := c.form(4)
		leader := c.leader(all...)
		others := slices.DeleteFunc(slices.Clone(all), func(m *manager) bool { return m == leader })
		gone, staying := others[0], others[1:]
		for _, m := range staying {
			c.isolate(m.id)
		}
		removal := leader.raft.RemoveServer(raft.ServerID(gone.id), 0, 0)
		c.eventually("it is out of the leader's configuration", func() bool { return len(leader.Members()) == 3 })
		for end := time.Now().Add(leader.cfg.LeaderLease); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			for _, m := range all {
				if m.Released(gone.id) {
					t.Fatalf("%s releases it, though %v do not know", m.id, staying)
				}
			}
		}
		c.kill(leader)
		if removal.Error() == nil {
			t.Fatal("the removal was committed")
		}
		c.heal()
		// Without the vote of the one that was to go, there would be no leader now.
		c.update(c.leader(others...), setRole(gone.id, swarm.NodeRoleWorker))
		all[slices.Index(all, leader)] = c.start(leader.id, false)
		released := func(by ...*manager) {
			t.Helper()
			c.eventually("all release it", func() bool {
				return !slices.ContainsFunc(by, func(m *manager) bool { return !m.Released(gone.id) })
			})
		}
		staying = append(slices.Clone(staying), all[slices.IndexFunc(all, func(m *manager) bool { return m.id == leader.id })])
		released(staying...)
		for _, m := range staying {
			if m.Released(m.id) {
				t.Errorf("%s releases itself", m.id)
			}
		}
		// Also when a snapshot is all that tells of it.
		for i := range 30 {
			c.update(staying[0], createService(fmt.Sprint("s", i)))
		}
		check(t, staying[0].raft.Snapshot().Error())
		c.stop(staying[0])
		staying[0] = c.start(staying[0].id, false)
		released(staying...)
	})
}
