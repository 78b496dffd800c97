package api

import (
	"net/http"
	"slices"
	"strings"

	"swarm/service/spec"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
)

// predefinedNetworks exist on every node.
func predefinedNetworks() []network.Network {
	return []network.Network{
		{Name: spec.HostNetwork, ID: spec.HostNetworkID, Driver: "host"},
		{Name: spec.NoneNetwork, ID: spec.NoneNetworkID, Driver: "null"},
	}
}

// scopes of a network
const (
	scopeLocal = "local"
	scopeSwarm = "swarm"
)

// networks renders the predefined networks at a scope: they are local to a node, and a service attaches them by asking for swarm scope.
func (a *API) networks(scope string) []network.Network {
	list := predefinedNetworks()
	for i := range list {
		n := &list[i]
		n.Scope, n.Created, n.EnableIPv4 = scope, a.cfg.StartedAt.UTC(), true
		n.IPAM = network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}
		n.Options, n.Labels = map[string]string{}, map[string]string{}
	}
	return list
}

func (a *API) networkList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	dangling, danglingAsked, err := f.truth("dangling")
	if err != nil {
		return err
	}
	scope := scopeLocal
	if slices.Contains(f["scope"], scopeSwarm) && !slices.Contains(f["scope"], scopeLocal) {
		scope = scopeSwarm
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return invalid("invalid filter: 'type'='%s': use builtin or custom", t)
		}
	}
	list := []network.Summary{}
	for _, n := range a.networks(scope) {
		if f.exact("driver", n.Driver) && f.prefix("id", n.ID) && f.contains("name", n.Name) && f.labels("label", n.Labels) &&
			f.exact("scope", n.Scope) && f.exact("type", "builtin") && !(danglingAsked && dangling) {
			list = append(list, network.Summary{Network: n})
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// findNetwork looks up by id, name or id prefix.
func (a *API) findNetwork(ref, scope string) (network.Network, error) {
	for _, n := range a.networks(scope) {
		if n.Name == ref || strings.HasPrefix(n.ID, ref) {
			return n, nil
		}
	}
	return network.Network{}, notFound("network %s not found", ref)
}

func (a *API) networkInspect(w http.ResponseWriter, r *request) error {
	scope := scopeLocal
	switch asked := r.URL.Query().Get("scope"); asked {
	case "", scopeLocal:
	case scopeSwarm:
		scope = scopeSwarm
	case "global":
		return notFound("network %s not found", r.vars["id"])
	default:
		return invalid("invalid network scope %q: use local or swarm", asked)
	}
	n, err := a.findNetwork(r.vars["id"], scope)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}})
}

func (a *API) networkRemove(w http.ResponseWriter, r *request) error {
	n, err := a.findNetwork(r.vars["id"], scopeLocal)
	if err != nil {
		return err
	}
	return forbidden("%s is a pre-defined network and cannot be removed", n.Name)
}

// volumeList is empty: volumes are made by the mounts of services and are not tracked yet.
func (a *API) volumeList(w http.ResponseWriter, r *request) error {
	if _, err := r.filters("dangling", "driver", "label", "name"); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}})
}

func (a *API) emptyList(w http.ResponseWriter, r *request) error {
	return writeJSON(w, http.StatusOK, []struct{}{})
}

// emptyClusterList answers for a kind of objects that a cluster cannot have yet; its filters are checked all the same.
func (a *API) emptyClusterList(accepted ...string) handler {
	return func(w http.ResponseWriter, r *request) error {
		if _, err := r.filters(accepted...); err != nil {
			return err
		}
		if _, err := a.view(w, r); err != nil {
			return err
		}
		return a.emptyList(w, r)
	}
}
