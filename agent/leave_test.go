package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/client"
)

// Who leaves says so, and is down at once: nothing waits for it, whatever part it had.
func TestWhoLeftIsDownAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		who  func(all []*computer) *computer
	}{
		{"leader", leader},
		{"other manager", func(all []*computer) *computer {
			if all[0] == leader(all) {
				return all[1]
			}
			return all[0]
		}},
		{"worker", func(all []*computer) *computer { return all[3] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := formed(t, 3, 1)
				defer closeAll(all)
				goes := c.who(all)
				stays := all[2]
				if stays == goes {
					stays = all[1]
				}
				id := goes.node.id()
				began := time.Now()
				if _, err := goes.client().SwarmLeave(t.Context(), client.SwarmLeaveOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				left := time.Since(began)
				down := stays.within(30*time.Second, "it is down", func() bool {
					row, ok := stays.store().Local().Nodes.Get(id)
					return ok && row.Session.Presence == raftstore.PresenceDown
				})
				t.Logf("left in %s, down %s later", left, down)
				if left > 3*time.Second || down > time.Second {
					t.Errorf("it took %s to leave, and %s more to be down", left, down)
				}
			})
		})
	}
}
