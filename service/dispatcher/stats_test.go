package dispatcher

import (
	"testing"
	"time"

	"swarm/raftstore"
)

func TestStatsTellWhatHappened(t *testing.T) {
	withManager(t, 3, func(m *manager) {
		m.start("n1", "n2")
		m.create("web", 4)
		settled(30 * time.Second)
		m.agents["n2"].silence(true)
		settled(2600 * time.Millisecond)
		s := m.d.Stats()
		if s.Sessions != 2 || s.Nodes[raftstore.PresenceHeard] != 1 || s.Nodes[raftstore.PresenceSuspect] != 1 || s.Nodes[raftstore.PresenceDown] != 1 {
			t.Errorf("%d sessions, nodes %v", s.Sessions, s.Nodes)
		}
		if s.StatusesWritten < 4 || s.StatusesWaiting != 0 || s.Silences != 1 || s.Send.Count == 0 || s.SendsWaiting != 0 || s.Debts != 0 {
			t.Errorf("%+v", s)
		}
	})
}
