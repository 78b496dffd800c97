package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// Whole agents run in memory: a cluster of a manager and two workers runs a service, and goes on after all were restarted.
func TestAgentsInMemoryFormAClusterAndKeepIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := formed(t, 1, 2)
		defer func() { closeAll(all) }()
		n1 := all[0]
		n1.service("web", 6)
		n1.within(5*time.Second, "six tasks run", func() bool { return n1.running() == 6 })
		for _, m := range all {
			m.halt()
		}
		for _, m := range all {
			m.start()
		}
		n1.within(10*time.Second, "the service goes on", func() bool { return n1.running() == 6 })
		for _, m := range all {
			if m.runtime.runs() != 2 || m.runtime.started != 2 {
				t.Errorf("%s: %d containers run and %d were started: a restart of agents restarts no container", m.name, m.runtime.runs(), m.runtime.started)
			}
		}
	})
}
