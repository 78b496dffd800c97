package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// suspects are the names of the machines that this one's connections avoid.
func (m *computer) suspects(all []*computer) (names string) {
	ids := m.node.current().Suspects()
	var found []string
	for _, other := range all {
		if slices.Contains(ids, other.node.id()) {
			found = append(found, other.name)
		}
	}
	return strings.Join(found, " ")
}

// Every agent avoids a machine within three seconds of its last sign of life, and no longer than two seconds after its return.
func TestSilentMachineIsAvoidedEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 3, 3)
		defer closeAll(all)
		lost := all[5]
		lost.cutOff()
		took := all[0].within(3*time.Second, "all others avoid it", func() bool {
			for _, m := range all[:5] {
				if m.suspects(all) != lost.name {
					return false
				}
			}
			return true
		})
		t.Logf("avoided after %s", took)
		lost.rejoins()
		back := all[0].within(10*time.Second, "its session is back", func() bool { return lost.row(all[0]).Session.Heard() })
		took = all[0].within(2*time.Second, "nobody avoids it", func() bool {
			for _, m := range all[:5] {
				if m.suspects(all) != "" {
					return false
				}
			}
			return true
		})
		t.Logf("back after %s, and %s later nobody avoids it", back, took)
	})
}

// Without any manager, agents go on, and avoid what is dead to gossip.
func TestGossipIsTheWitnessWithoutManagers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 3)
		defer closeAll(all)
		n1, n2, n4 := all[0], all[1], all[3]
		n1.service("web", 8)
		n1.within(10*time.Second, "all run", func() bool { return n1.running() == 8 })
		n1.cutOff()
		n2.within(4*time.Second, "no manager hears it", func() bool { return !n2.node.current().inSession.Load() })
		n4.cutOff()
		took := n2.within(25*time.Second, "it avoids both", func() bool { return n2.suspects(all) == "n1 n4" })
		t.Logf("avoided after %s", took)
		if warnings := strings.Join(n2.local().Warnings, "\n"); !strings.Contains(warnings, "no manager hears this node") {
			t.Errorf("info warns %q", warnings)
		}
		if n2.runtime.runs() != 2 {
			t.Errorf("%d containers run", n2.runtime.runs())
		}
		n1.rejoins()
		n2.within(10*time.Second, "a manager hears it", func() bool { return n2.row(n1).Session.Heard() && n2.node.current().inSession.Load() })
	})
}
