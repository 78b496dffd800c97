package api

import (
	"net/http"
	"strings"
)

// handler answers one request; an error that it returns becomes the answer.
type handler func(w http.ResponseWriter, r *request) error

// route is one line of the route table. In a pattern {x} stands for one segment and {x...} for one or more,
// because image names contain slashes.
type route struct {
	method, pattern string
	handle          handler
	// stream routes may last as long as the client likes and are counted apart.
	stream bool
}

const containersBelong = "containers belong to the tasks of services: change the service instead, with `service update`, `service scale` or `service rm`"

// routes is the whole API.
func (a *API) routes() []route {
	return []route{
		{"HEAD", "/_ping", a.ping, false},
		{"GET", "/_ping", a.ping, false},
		{"GET", "/version", a.version, false},
		{"GET", "/info", a.info, false},
		{"GET", "/events", a.streamEvents, true},
		{"GET", "/system/df", notYet("disk usage is not measured yet; `df` on the data directory of each node shows it"), false},
		{"POST", "/auth", notYet("logging in to a registry is not supported yet; use images that a node holds, or a registry that needs no login"), false},

		{"GET", "/swarm", a.swarmInspect, false},
		{"POST", "/swarm/init", a.swarmInit, false},
		{"GET", "/swarm/recovery", a.swarmRecovery, false},
		{"POST", "/swarm/join", a.swarmJoin, false},
		{"POST", "/swarm/leave", a.swarmLeave, false},
		{"POST", "/swarm/update", a.swarmUpdate, false},
		{"GET", "/swarm/unlockkey", a.swarmUnlockKey, false},
		{"POST", "/swarm/unlock", a.swarmUnlock, false},

		{"GET", "/nodes", a.nodeList, false},
		{"GET", "/nodes/{id}", a.nodeInspect, false},
		{"POST", "/nodes/{id}/update", a.nodeUpdate, false},
		{"DELETE", "/nodes/{id}", a.nodeRemove, false},

		{"GET", "/services", a.serviceList, false},
		{"POST", "/services/create", a.serviceCreate, false},
		{"GET", "/services/{id}", a.serviceInspect, false},
		{"POST", "/services/{id}/update", a.serviceUpdate, false},
		{"DELETE", "/services/{id}", a.serviceRemove, false},
		{"GET", "/services/{id}/logs", a.serviceLogs, true},

		{"GET", "/tasks", a.taskList, false},
		{"GET", "/tasks/{id}", a.taskInspect, false},
		{"GET", "/tasks/{id}/logs", a.taskLogs, true},

		{"GET", "/containers/json", a.containerList, false},
		{"GET", "/containers/{id}/json", a.containerInspect, false},
		{"GET", "/containers/{id}/logs", a.containerLogs, true},
		{"POST", "/containers/create", notYet("plain containers are not run by swarm; use `swarm service create`"), false},
		{"POST", "/containers/{id}/exec", notYet("exec is not supported yet"), false},
		{"GET", "/containers/{id}/{what}", notYet("of a container only its description and its log can be read yet"), false},
		{"POST", "/containers/{id}/{verb}", notYet(containersBelong), false},
		{"DELETE", "/containers/{id}", notYet(containersBelong), false},

		{"GET", "/images/json", a.imageList, false},
		{"GET", "/images/{name...}/json", a.imageInspect, false},
		{"POST", "/images/load", a.imageLoad, true},
		{"POST", "/images/create", a.imagePull, true},
		{"DELETE", "/images/{name...}", a.imageRemove, false},
		{"GET", "/images/{name...}/history", notYet("the history of an image is not supported yet"), false},
		{"POST", "/images/{name...}/tag", notYet("tagging images is not supported yet; give the archive the tag before `swarm image load`"), false},
		{"POST", "/images/{name...}/push", notYet("pushing images is not supported; nodes take them from each other"), false},
		{"POST", "/build", notYet("images are not built by swarm; build elsewhere and `swarm image load` the archive"), false},
		{"GET", "/distribution/{name...}/json", a.distribution, false},

		{"GET", "/networks", a.networkList, false},
		{"POST", "/networks/create", notYet(overlayNotYet), false},
		{"GET", "/networks/{id}", a.networkInspect, false},
		{"DELETE", "/networks/{id}", a.networkRemove, false},
		{"POST", "/networks/{id}/{verb}", notYet(overlayNotYet), false},

		{"GET", "/volumes", a.volumeList, false},
		{"POST", "/volumes/create", notYet("volumes cannot be created by themselves yet; a volume mount of a service makes its volume on the node of each task"), false},
		{"GET", "/secrets", a.emptyClusterList("id", "name", "names", "label"), false},
		{"POST", "/secrets/create", notYet("secrets are not supported yet"), false},
		{"GET", "/configs", a.emptyClusterList("id", "name", "label"), false},
		{"POST", "/configs/create", notYet("configs are not supported yet"), false},
		{"GET", "/plugins", a.emptyList, false},
	}
}

// nodeRoutes is what other nodes may ask.
func (a *API) nodeRoutes() []route {
	return []route{
		{"GET", "/containers/json", a.containerList, false},
		{"GET", "/containers/{id}/json", a.containerInspectLocal, false},
		{"GET", "/containers/{id}/logs", a.containerLogsLocal, true},
		{"GET", "/images/json", a.imageList, false},
		{"GET", "/images/{name...}/json", a.imageInspect, false},
	}
}

// matcher is a route table ready to be searched.
type matcher []compiledRoute

type compiledRoute struct {
	route
	segments []string
	// greedy is the index of the {x...} segment, -1 without one.
	greedy int
}

func compile(routes []route) matcher {
	m := make(matcher, len(routes))
	for i, r := range routes {
		m[i] = compiledRoute{route: r, segments: split(r.pattern), greedy: -1}
		for j, s := range m[i].segments {
			if strings.HasSuffix(s, "...}") {
				m[i].greedy = j
			}
		}
	}
	return m
}

// find returns the route of method and path, with the variables of its pattern; nil when there is none.
func (m matcher) find(method, path string) (*route, map[string]string) {
	segments := split(path)
	for i := range m {
		if m[i].method != method {
			continue
		}
		if vars, ok := m[i].match(segments); ok {
			return &m[i].route, vars
		}
	}
	return nil, nil
}

func (c *compiledRoute) match(segments []string) (map[string]string, bool) {
	width := 1 // segments that the greedy one takes
	if c.greedy >= 0 {
		width = len(segments) - len(c.segments) + 1
	} else if len(segments) != len(c.segments) {
		return nil, false
	}
	if width < 1 {
		return nil, false
	}
	var vars map[string]string
	for i, at := 0, 0; i < len(c.segments); i++ {
		take := 1
		if i == c.greedy {
			take = width
		}
		name, isVar := strings.CutPrefix(c.segments[i], "{")
		switch {
		case !isVar && segments[at] != name:
			return nil, false
		case isVar:
			if vars == nil {
				vars = map[string]string{}
			}
			vars[strings.TrimRight(name, ".}")] = strings.Join(segments[at:at+take], "/")
		}
		at += take
	}
	return vars, true
}

// split cuts a path into its segments. Empty ones vanish, as container names may come with a leading slash.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
