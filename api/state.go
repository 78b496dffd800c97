package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// manager returns this node's store, or why it has none, in the words that Docker uses.
func (a *API) manager() (*raftstore.Store, error) {
	status := a.cfg.Node.Status()
	if status.Store != nil {
		return status.Store, nil
	}
	switch {
	case status.State == swarm.LocalNodeStateLocked:
		return nil, unavailable(textSwarmLocked)
	case slices.ContainsFunc(status.Managers, func(p swarm.Peer) bool { return p.NodeID != "" && p.NodeID == status.NodeID }):
		return nil, unavailable(textManagerNotUp)
	case status.State == swarm.LocalNodeStateActive:
		return nil, unavailable(textNotManager)
	case status.Error != "":
		return nil, unavailable(textNotInSwarm + " (" + status.Error + ")")
	}
	return nil, unavailable(textNotInSwarm)
}

// view returns a state to answer a read from: the newest one, or, when there has been no leader for leaderWait, this
// replica's, which the answer's headers then say.
func (a *API) view(w http.ResponseWriter, r *request) (*raftstore.State, error) {
	store, err := a.manager()
	if err != nil {
		return nil, err
	}
	state, err := a.viewFresh(r.Context(), store)
	if err != nil {
		return nil, err
	}
	if state == nil {
		state = store.Local()
		seconds := max(1, int(time.Since(time.Unix(0, a.led.Load()))/time.Second))
		w.Header().Set("Swarm-Stale", strconv.Itoa(seconds))
		w.Header().Set("Warning", `110 - "no leader is known: this is the state that this manager last saw"`)
	}
	if state.Cluster() == nil {
		return nil, unavailable(textManagerNotUp)
	}
	return state, nil
}

// viewFresh returns the newest state, or none when there is no leader.
func (a *API) viewFresh(ctx context.Context, store *raftstore.Store) (*raftstore.State, error) {
	for giveUp := time.Now().Add(readWait); a.leaderlessFor(store) < leaderWait; {
		attempt, cancel := context.WithTimeout(ctx, leaderWait)
		state, err := store.View(attempt)
		cancel()
		switch {
		case err == nil:
			return state, nil
		case ctx.Err() != nil || !noLeaderAnswered(err):
			return nil, err
		case time.Now().After(giveUp):
			return nil, unavailable("the leader does not answer: " + messageOf(err))
		}
		// A leader that was only just elected, or lost, is asked again soon.
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(leaderWait / 20):
		}
	}
	return nil, nil
}

func noLeaderAnswered(err error) bool {
	return errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err)
}

// leaderlessFor is how long no leader has been known.
func (a *API) leaderlessFor(store *raftstore.Store) time.Duration {
	now := time.Now()
	if leader, _ := store.Leader(); leader != "" {
		a.led.Store(now.UnixNano())
		return 0
	}
	return now.Sub(time.Unix(0, a.led.Load()))
}

// noLeader is the text that clients know, and this manager's disk if that is the reason.
func noLeader(store *raftstore.Store) string {
	if fault := store.DiskFault(); fault != "" {
		return textNoLeader + " " + fault
	}
	return textNoLeader
}

// update commits a change, or fails at once when there has been no leader for leaderWait.
func (a *API) update(ctx context.Context, change func(*raftstore.Tx) error) error {
	store, err := a.manager()
	if err != nil {
		return err
	}
	if a.leaderlessFor(store) >= leaderWait {
		return unavailable(noLeader(store))
	}
	ctx, cancel := context.WithTimeout(ctx, writeWait)
	defer cancel()
	err = store.Update(ctx, change)
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		return unavailable("no answer from the managers within " + writeWait.String() + ": the change may still be made, so look before you repeat it. " + noLeader(store))
	}
	return err
}
