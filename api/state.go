package api

import (
	"context"
	"errors"
	"fmt"
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

// view returns a state to answer a read from: the newest one, or, when no leader confirmed that it is, this replica's,
// which the answer's headers then say.
func (a *API) view(w http.ResponseWriter, r *request) (*raftstore.State, error) {
	store, err := a.manager()
	if err != nil {
		return nil, err
	}
	state, err := viewFresh(r.Context(), store)
	switch {
	case err == nil:
	case r.Context().Err() == nil && noLeaderAnswered(err):
		state = store.Local()
		markStale(w.Header(), leaderless(store))
	default:
		return nil, err
	}
	if state.Cluster() == nil {
		return nil, unavailable(textManagerNotUp)
	}
	return state, nil
}

// markStale says that an answer comes from a replica that may be behind, and for how long it has been.
func markStale(h http.Header, leaderless time.Duration) {
	reason := "the leader does not answer"
	seconds := int(readWait / time.Second)
	if leaderless > 0 {
		reason = "no leader is known"
		seconds = max(1, int(leaderless/time.Second))
	}
	h.Set("Swarm-Stale", strconv.Itoa(seconds))
	h.Set("Warning", fmt.Sprintf(`110 - "%s: this is the state that this manager last saw, %d seconds ago or more"`, reason, seconds))
}

var errStale = errdefs.ErrUnavailable.WithMessage("no leader confirms that this state is the newest")

// viewFresh returns the newest state. It waits for a leader until there has been none for leaderWait, and for a leader that
// is known to answer until readWait.
func viewFresh(ctx context.Context, store *raftstore.Store) (*raftstore.State, error) {
	for giveUp := time.Now().Add(readWait); leaderless(store) < leaderWait && time.Now().Before(giveUp); {
		attempt, cancel := context.WithTimeout(ctx, leaderWait)
		state, err := store.View(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !noLeaderAnswered(err) {
			return state, err
		}
		// A leader that was only just elected, or lost, is asked again soon.
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(leaderWait / 20):
		}
	}
	return nil, errStale
}

func noLeaderAnswered(err error) bool {
	return errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err)
}

// leaderless is how long no leader has been known; 0 while one is.
func leaderless(store *raftstore.Store) time.Duration {
	since := store.LeaderlessSince()
	if since.IsZero() {
		return 0
	}
	return max(1, time.Since(since))
}

// update commits a change, or fails at once when there has been no leader for leaderWait.
func (a *API) update(ctx context.Context, change func(*raftstore.Tx) error) error {
	store, err := a.manager()
	if err != nil {
		return err
	}
	if leaderless(store) >= leaderWait {
		return store.NoLeader()
	}
	ctx, cancel := context.WithTimeout(ctx, writeWait)
	defer cancel()
	err = store.Update(ctx, change)
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		text := "no answer from the managers within " + writeWait.String() + ": the change may still be made, so look before you repeat it."
		if leaderless(store) > 0 {
			text += " " + messageOf(store.NoLeader())
		}
		return unavailable(text)
	}
	return err
}
