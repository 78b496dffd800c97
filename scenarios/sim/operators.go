package sim

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"swarm/scenarios/history"

	"github.com/moby/moby/api/types/swarm"
)

// managersSet is the set of managers in histories: nodes that shall be managers, of which one must stay.
const managersSet = "managers"

// countManagers records who is a manager before anybody changes that.
func (l *load) countManagers(ctx context.Context, p *player) error {
	nodes, err := p.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Spec.Role == swarm.NodeRoleManager {
			l.recorder.Begin("make", history.Add{Set: managersSet, Name: n.ID}).Done(history.Added{})
		}
	}
	return nil
}

func (c *client) listManagers(ctx context.Context, m *Machine) ([]swarm.Node, bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	call := c.begin(m, history.List{Set: managersSet})
	nodes, err := ask[[]swarm.Node](ctx, m, "/nodes")
	if err != nil {
		call.Refused()
		return nil, false
	}
	members := history.Members{}
	for _, n := range nodes {
		if n.Spec.Role == swarm.NodeRoleManager {
			members[n.ID] = ""
		}
	}
	call.Done(members)
	return nodes, true
}

// changeRole makes a manager of a worker or a worker of a manager, on what it has just read: several operators do so at once.
func (c *client) changeRole(ctx context.Context) bool {
	c.turn++
	nodes, ok := c.listManagers(ctx, c.anyone())
	if !ok || len(nodes) == 0 {
		return ok
	}
	slices.SortFunc(nodes, func(a, b swarm.Node) int { return strings.Compare(a.ID, b.ID) })
	n := nodes[c.random.IntN(len(nodes))]
	// Demotions are tried more often: it is the last manager that matters.
	if n.Spec.Role == swarm.NodeRoleWorker && c.random.IntN(2) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m := c.anyone()
	var call *history.Call
	var answer any
	if n.Spec.Role == swarm.NodeRoleManager {
		call, answer = c.begin(m, history.Remove{Set: managersSet, Name: n.ID, Floor: 1}), history.Removed{}
		n.Spec.Role = swarm.NodeRoleWorker
	} else {
		call, answer = c.begin(m, history.Add{Set: managersSet, Name: n.ID}), history.Added{}
		n.Spec.Role = swarm.NodeRoleManager
	}
	query := url.Values{"version": {strconv.FormatUint(n.Version.Index, 10)}}
	err := m.call(ctx, http.MethodPost, "/nodes/"+n.ID+"/update", query, n.Spec, nil)
	switch {
	case err == nil:
		call.Done(answer)
		return true
	case strings.Contains(err.Error(), "last manager"):
		call.Done(history.TooFew{})
		return true
	case strings.Contains(err.Error(), "update out of sequence"), strings.Contains(err.Error(), "loss of quorum"):
		call.Refused()
		return true
	}
	call.Lost(err)
	return false
}
