package rpc

import (
	"net/http"
	"path"
	"strings"
)

// roleSet says which roles may call something.
type roleSet uint8

const (
	anonymousCalls roleSet = 1 << iota
	workerCalls
	managerCalls

	membersCall = workerCalls | managerCalls
	anyoneCalls = anonymousCalls | membersCall
)

// methodRoles is the table of who may call which RPC. What is not listed is refused.
func methodRoles() map[string]roleSet {
	return map[string]roleSet{
		CertificateAuthority_RootCertificate_FullMethodName:  anyoneCalls,
		CertificateAuthority_IssueCertificate_FullMethodName: anyoneCalls,

		Raft_Propose_FullMethodName:   managerCalls,
		Raft_ReadIndex_FullMethodName: managerCalls,

		Dispatcher_Session_FullMethodName: membersCall,
	}
}

// route is a swarm-node request that may be made. In its pattern {name} stands for one segment of a
// path and {name...} for one or more, since names of images contain slashes.
type route struct {
	method  string
	pattern string
	roles   roleSet
}

// nodeRoutes is the table of who may make which swarm-node request; the first match counts. What is not listed is refused.
func nodeRoutes() []route {
	return []route{
		{http.MethodGet, "/containers/json", managerCalls},
		{http.MethodGet, "/containers/{id}/json", managerCalls},
		{http.MethodGet, "/containers/{id}/logs", managerCalls},

		{http.MethodGet, "/images/blobs/{digest}", membersCall},
		{http.MethodHead, "/images/blobs/{digest}", membersCall},
		{http.MethodGet, "/images/json", managerCalls},
		{http.MethodGet, "/images/{name...}/json", membersCall}, // a tag is looked up at its holders before its blobs are fetched
	}
}

func (s roleSet) allows(r Role) bool {
	switch r {
	case Anonymous:
		return s&anonymousCalls != 0
	case Worker:
		return s&workerCalls != 0
	case Manager:
		return s&managerCalls != 0
	}
	return false
}

// matchRoute finds the route of a request. A path that is not in its plain form (dots, doubled or encoded slashes)
// has none, so that this table and the handler behind it cannot read it differently.
func matchRoute(routes []route, r *http.Request) (route, bool) {
	p := r.URL.Path
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || r.URL.RawPath != "" {
		return route{}, false
	}
	segments := strings.Split(p[1:], "/")
	for _, candidate := range routes {
		if candidate.method == r.Method && matchSegments(strings.Split(candidate.pattern[1:], "/"), segments) {
			return candidate, true
		}
	}
	return route{}, false
}

func matchSegments(pattern, segments []string) bool {
	for i, want := range pattern {
		if strings.HasSuffix(want, "...}") {
			rest := pattern[i+1:]
			taken := len(segments) - i - len(rest)
			return taken >= 1 && matchSegments(rest, segments[i+taken:])
		}
		if i >= len(segments) || (want != segments[i] && !strings.HasPrefix(want, "{")) {
			return false
		}
	}
	return len(pattern) == len(segments)
}
