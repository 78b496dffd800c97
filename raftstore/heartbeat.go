package raftstore

import (
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// silenceCheck is the least time between finding that the leader is silent and acting on it: a process that was held
	// up itself takes up what has arrived meanwhile.
	silenceCheck = 10 * time.Millisecond
	// heldUp is by how much a timer may be late before the silence is blamed on this process.
	heldUp = 50 * time.Millisecond
	// heartbeatNudge is by how much the timeout changes for a moment; raft looks at its clock when it gets shorter.
	heartbeatNudge = time.Millisecond
)

// followHeartbeat has raft notice a silent leader in time. By itself it looks at random moments, one to two timeouts apart,
// and so finds it after one to three; and because nobody votes while he still believes in the old leader, the
// last one of the majority counts. The timeout itself stays what it is; a random part of it keeps candidates apart.
func (s *Store) followHeartbeat() {
	timeout := s.cfg.HeartbeatTimeout
	wait := timeout
	for {
		late, ok := s.sleep(wait)
		if !ok {
			return
		}
		contact := s.raft.LastContact()
		silent := time.Since(contact)
		wait = timeout
		switch {
		case late:
			wait = timeout / 2
		case s.raft.State() != raft.Follower || contact.IsZero():
		case silent < timeout:
			wait = timeout - silent
		default:
			if late, ok = s.sleep(silenceCheck + rand.N(timeout/2)); !ok {
				return
			}
			if !late && s.raft.State() == raft.Follower && s.raft.LastContact().Equal(contact) {
				s.nudge()
			}
		}
	}
}

// nudge makes a follower look at once how long it has not heard of the leader.
func (s *Store) nudge() {
	settings := s.raft.ReloadableConfig()
	usual := settings.HeartbeatTimeout
	settings.HeartbeatTimeout -= heartbeatNudge
	if err := s.raft.ReloadConfig(settings); err != nil {
		return // settings without room for it: raft looks by itself, later
	}
	settings.HeartbeatTimeout = usual
	if err := s.raft.ReloadConfig(settings); err != nil {
		s.log.Warn("heartbeat timeout not set back", "error", err)
	}
}

// sleep says whether it took much longer than it should; it is not ok when the store ends.
func (s *Store) sleep(d time.Duration) (late, ok bool) {
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return time.Since(began) > d+heldUp, true
	case <-s.closing:
		return false, false
	}
}
