package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	// spreadMin and spreadMax bound the time over which agents that lost one manager come to the others; in between it is
	// spreadPerNode for each node of the cluster, because every new session costs its manager a handshake and a commit.
	spreadMin     = 100 * time.Millisecond
	spreadMax     = 1500 * time.Millisecond
	spreadPerNode = time.Millisecond
	// sessionRetryMin and sessionRetryMax bound the pause after a round over all managers in which none had an ear.
	sessionRetryMin = 100 * time.Millisecond
	sessionRetryMax = 2 * time.Second
	// connectMin and connectMax bound how long one manager may take to accept a connection. A dead machine must not cost the
	// grace time, a slow link must not be given up for ever: the limit doubles with each round that found no manager.
	connectMin = time.Second
	connectMax = 5 * time.Second
	// avoidFor is how long a manager that was lost, or did not answer, comes last.
	avoidFor = 10 * time.Second
	// avoidedMax bounds the managers that are avoided; more than there are.
	avoidedMax = 64
)

// search is what the look for a manager knows: whom to ask last, and how patient to be. One goroutine owns it.
type search struct {
	avoided map[string]time.Time // until when
	rounds  int                  // without a session that lived
}

// avoid puts a manager last for a while.
func (s *search) avoid(address string) {
	now := time.Now()
	for a, until := range s.avoided {
		if now.After(until) {
			delete(s.avoided, a)
		}
	}
	if s.avoided == nil || len(s.avoided) >= avoidedMax {
		s.avoided = map[string]time.Time{}
	}
	s.avoided[address] = now.Add(avoidFor)
}

// order puts the avoided ones last and leaves the others as they are.
func (s *search) order(addresses []string) []string {
	now := time.Now()
	bad := func(a string) bool { return now.Before(s.avoided[a]) }
	good := slices.DeleteFunc(slices.Clone(addresses), bad)
	return append(good, slices.DeleteFunc(addresses, func(a string) bool { return !bad(a) })...)
}

// patience is how long one manager may take to accept a connection.
func (s *search) patience() time.Duration {
	return min(connectMin<<min(s.rounds, 8), connectMax)
}

// fruitless notes a round without a session, and returns the pause before the next one.
func (s *search) fruitless() time.Duration {
	pause := min(sessionRetryMin<<min(s.rounds, 8), sessionRetryMax)
	s.rounds++
	return pause/2 + rand.N(pause)
}

// lost notes the end of a session, and returns the pause before another manager is asked. A session that ended
// as soon as it began would end again.
func (s *search) lost(address string, lived time.Duration, nodes int) time.Duration {
	s.avoid(address)
	if lived < sessionRetryMax {
		return s.fruitless()
	}
	s.rounds = 0
	return rand.N(min(max(spreadMin, time.Duration(nodes)*spreadPerNode), spreadMax))
}

// pauseFor returns early when ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
