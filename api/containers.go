package api

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// containerList lists this node's containers, as Docker does.
func (a *API) containerList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network", "since", "status", "volume")
	if err != nil {
		return err
	}
	limit := 0
	if raw := r.URL.Query().Get("limit"); raw != "" {
		if limit, err = strconv.Atoi(raw); err != nil {
			return invalid("invalid limit %q: send a number", raw)
		}
	}
	containers, err := a.cfg.Containers.List(r.Context())
	if err != nil {
		return err
	}
	match, err := containerMatcher(f, containers)
	if err != nil {
		return err
	}
	all := r.flag("all") || limit > 0 || len(f["status"]) > 0 || len(f["exited"]) > 0 || len(f["since"]) > 0 || len(f["before"]) > 0
	// Newest first, as clients expect.
	slices.SortStableFunc(containers, func(x, y container.Summary) int { return int(y.Created - x.Created) })
	list := []container.Summary{}
	for _, c := range containers {
		if limit > 0 && len(list) == limit {
			break
		}
		if (all || c.State == container.StateRunning || c.State == container.StatePaused) && match(c) {
			list = append(list, c)
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// containerMatcher makes the test that a list's filters describe.
func containerMatcher(f filters, containers []container.Summary) (func(container.Summary) bool, error) {
	task, taskAsked, err := f.truth("is-task")
	if err != nil {
		return nil, err
	}
	before, since, err := createdBounds(f, containers)
	if err != nil {
		return nil, err
	}
	return func(c container.Summary) bool {
		_, isTask := c.Labels["com.docker.swarm.task.id"]
		return (!taskAsked || task == isTask) &&
			(before == nil || c.Created < before.Created) && (since == nil || c.Created > since.Created) &&
			f.prefix("id", c.ID) && matchContainerName(f, c) && f.labels("label", c.Labels) && f.exact("status", string(c.State)) &&
			(f.exact("ancestor", c.Image) || f.exact("ancestor", c.ImageID)) && f.exact("network", c.HostConfig.NetworkMode) &&
			matchExit(f, c) && matchHealth(f, c) && matchVolume(f, c)
	}, nil
}

// createdBounds resolves the containers that the before and since filters name.
func createdBounds(f filters, containers []container.Summary) (before, since *container.Summary, err error) {
	find := func(key string) (*container.Summary, error) {
		if len(f[key]) == 0 {
			return nil, nil
		}
		for i, c := range containers {
			if strings.HasPrefix(c.ID, f[key][0]) || slices.Contains(c.Names, "/"+strings.TrimPrefix(f[key][0], "/")) {
				return &containers[i], nil
			}
		}
		return nil, noSuchContainer(f[key][0])
	}
	if before, err = find("before"); err != nil {
		return nil, nil, err
	}
	since, err = find("since")
	return before, since, err
}

func matchContainerName(f filters, c container.Summary) bool {
	return len(f["name"]) == 0 || slices.ContainsFunc(c.Names, func(name string) bool {
		return f.contains("name", name) || f.contains("name", strings.TrimPrefix(name, "/"))
	})
}

func matchExit(f filters, c container.Summary) bool {
	return len(f["exited"]) == 0 || slices.ContainsFunc(f["exited"], func(code string) bool {
		return strings.HasPrefix(c.Status, "Exited ("+code+")")
	})
}

func matchHealth(f filters, c container.Summary) bool {
	health := string(container.NoHealthcheck)
	if c.Health != nil {
		health = string(c.Health.Status)
	}
	return f.exact("health", health)
}

func matchVolume(f filters, c container.Summary) bool {
	return len(f["volume"]) == 0 || slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool {
		return f.exact("volume", m.Name) || f.exact("volume", m.Destination)
	})
}

func noSuchContainer(ref string) error { return notFound("No such container: %s", ref) }

func (a *API) containerInspectLocal(w http.ResponseWriter, r *request) error {
	found, err := a.cfg.Containers.Inspect(r.Context(), r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, found)
}

// containerInspect answers for this node's containers and, on a manager, for those of every task of the cluster.
func (a *API) containerInspect(w http.ResponseWriter, r *request) error {
	err := a.containerInspectLocal(w, r)
	if !errdefs.IsNotFound(err) {
		return err
	}
	row, node := a.locate(r.vars["id"])
	if node == nil {
		return err
	}
	return a.forward(w, r, node, "/containers/"+row.Status.ContainerID+"/json")
}

// locate finds the task of a container that another node runs, by container id, id prefix or task name. Node is nil when
// there is none or this node cannot know.
func (a *API) locate(ref string) (*raftstore.Task, *raftstore.Node) {
	status := a.cfg.Node.Status()
	if status.Store == nil {
		return nil, nil
	}
	state := status.Store.Local()
	row := a.containers.find(state, ref)
	if row == nil && strings.Contains(ref, ".") {
		row, _ = findTask(state, ref) // by name alone: a bare task id means the task, also to clients that try containers first
	}
	if row == nil || row.Status.ContainerID == "" || row.NodeID == status.NodeID {
		return nil, nil
	}
	node, ok := state.Nodes.Get(row.NodeID)
	if !ok || node.Address == "" {
		return nil, nil
	}
	return row, node
}

// containerPrefixMin is the shortest prefix of a container id that is searched for in the cluster.
const containerPrefixMin = 6

// containerIndex remembers task ids by container id, so that a client which inspects every container does not cost a walk
// over all tasks for each. It is a cache: what it says is checked against the state.
type containerIndex struct {
	mu    sync.Mutex
	tasks map[string]string
}

// find returns the one task whose container id is ref or begins with it; nil when there is none or several.
func (x *containerIndex) find(state *raftstore.State, ref string) *raftstore.Task {
	if len(ref) < containerPrefixMin {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if row, ok := state.Tasks.Get(x.tasks[ref]); ok && row.Status.ContainerID == ref {
		return row
	}
	tasks := make(map[string]string, len(x.tasks))
	var found *raftstore.Task
	several := false
	for row := range state.Tasks.All() {
		id := row.Status.ContainerID
		if id == "" {
			continue
		}
		tasks[id] = row.ID
		if strings.HasPrefix(id, ref) {
			several = found != nil
			found = row
		}
	}
	x.tasks = tasks
	if several {
		return nil
	}
	return found
}

// forward has another node answer a request, at a path of its node-local API.
func (a *API) forward(w http.ResponseWriter, r *request, node *raftstore.Node, path string) error {
	var failure error
	proxy := httputil.ReverseProxy{
		Transport: a.cfg.Nodes,
		Rewrite: func(out *httputil.ProxyRequest) {
			out.Out.URL = &url.URL{Scheme: "http", Host: node.Address, Path: path, RawQuery: out.In.URL.RawQuery}
			out.Out.Host = node.Address
		},
		ModifyResponse: func(answer *http.Response) error {
			own := http.Header{}
			a.setIdentity(own)
			for name := range own {
				answer.Header.Del(name)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failure = err },
	}
	proxy.ServeHTTP(w, r.Request)
	return describeUnreachable(r.Context(), node, failure)
}

// describeUnreachable says which node did not answer.
func describeUnreachable(ctx context.Context, node *raftstore.Node, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("node %s (%s) cannot be reached: %w (%w)", nodeName(node), node.Address, err, errdefs.ErrUnavailable)
}
