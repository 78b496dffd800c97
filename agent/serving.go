package agent

import (
	"context"
	"sync"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	// leaderlessMax is how long a manager keeps its agents without knowing a leader: longer than an election,
	// shorter than the grace time. A manager that was cut off, or taken out of raft's configuration
	// without hearing of it, would otherwise hold them, and itself, for ever.
	leaderlessMax = 2 * time.Second
	// servingCheck is how often that is looked at; raft's contact is no row, so nothing announces it.
	servingCheck = 200 * time.Millisecond
)

var errNotServing = errdefs.ErrUnavailable.WithMessage("this manager was demoted, or has lost contact with the leader: use another one")

// serving says whether agents are in good hands here.
func (mg *manager) serving() bool {
	return mg.usable() && !mg.demoted() && mg.inContact()
}

// inContact says whether a leader was known lately.
func (mg *manager) inContact() bool {
	since := mg.store.LeaderlessSince()
	return since.IsZero() || time.Since(since) < leaderlessMax
}

// demoted says whether this manager shall be one no more and has handed over what it led. Raft goes on without it and does
// not tell it; by another manager it is told that it is a worker now.
func (mg *manager) demoted() bool {
	row, ok := mg.store.Local().Nodes.Get(mg.nodeID)
	leader, _ := mg.store.Leader()
	return ok && row.Spec.Role == swarm.NodeRoleWorker && leader != mg.nodeID
}

// tenure is the time during which a manager serves agents.
type tenure struct {
	mu  sync.Mutex // guards:
	ctx context.Context
	end context.CancelCauseFunc
	// since is when it began.
	since time.Time
}

// current is done once this time is over; nil while the manager does not serve.
func (t *tenure) current() context.Context {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ctx
}

// lasted is for how long the manager has been serving, 0 while it does not.
func (t *tenure) lasted() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx == nil {
		return 0
	}
	return time.Since(t.since)
}

func (t *tenure) set(serving bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case serving && t.ctx == nil:
		t.ctx, t.end = context.WithCancelCause(context.Background())
		t.since = time.Now()
	case !serving && t.ctx != nil:
		t.end(errNotServing)
		t.ctx = nil
	}
}

// followTenure begins and ends the manager's tenure by its contact with a leader.
func (mg *manager) followTenure(ctx context.Context) error {
	defer mg.tenure.set(false)
	check := time.NewTicker(servingCheck)
	defer check.Stop()
	for {
		mg.tenure.set(mg.serving())
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
		}
	}
}

// servedStream is a session's stream that ends with the manager's tenure.
type servedStream struct {
	rpc.Dispatcher_SessionServer
	ctx context.Context
}

func (s servedStream) Context() context.Context { return s.ctx }

// Session hands an agent to the dispatcher for as long as this manager serves.
func (s *services) Session(stream rpc.Dispatcher_SessionServer) error {
	mg, err := s.servingManager()
	if err != nil {
		return err
	}
	tenure := mg.tenure.current()
	if tenure == nil {
		return errNotServing
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := context.AfterFunc(tenure, func() { cancel(context.Cause(tenure)) })
	defer stop()
	return mg.dispatcher.Session(servedStream{stream, ctx})
}

// servingManager is this node's manager part if it has contact with a leader: what must not be done by one that lost it.
func (s *services) servingManager() (*manager, error) {
	mg, err := s.manager()
	if err != nil {
		return nil, err
	}
	if !mg.serving() {
		return nil, errNotServing
	}
	return mg, nil
}
