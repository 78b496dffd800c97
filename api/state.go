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
	if store := a.cfg.Node.Store(); store != nil {
		return store, nil
	}
	status := a.cfg.Node.Status()
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
	ctx, cancel := context.WithTimeout(r.Context(), readWait)
	defer cancel()
	state, stale, err := store.ViewOrStale(ctx)
	if err != nil {
		return nil, err
	}
	if stale > 0 {
		markStale(w.Header(), stale, leaderless(store) > 0)
	}
	if state.Cluster() == nil {
		return nil, unavailable(textManagerNotUp)
	}
	return state, nil
}

// markStale says that an answer comes from a replica that may be behind, and for how long it has been.
func markStale(h http.Header, stale time.Duration, noLeader bool) {
	reason := "the leader does not answer"
	if noLeader {
		reason = "no leader is known"
	}
	seconds := max(1, int(stale/time.Second))
	h.Set("Swarm-Stale", strconv.Itoa(seconds))
	h.Set("Warning", fmt.Sprintf(`110 - "%s: this is the state that this manager last saw, at least %d s ago"`, reason, seconds))
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
