package rpc

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

// Changing this text is a decision about who is trusted with what.
const whoMayCall = `
/swarm.rpc.v1.CertificateAuthority/IssueCertificate anonymous worker manager
/swarm.rpc.v1.CertificateAuthority/RootCertificate  anonymous worker manager
/swarm.rpc.v1.Dispatcher/Session                    worker manager
/swarm.rpc.v1.Raft/Propose                          manager
/swarm.rpc.v1.Raft/ReadIndex                        manager
GET /containers/json                                manager
GET /containers/{id}/json                           manager
GET /containers/{id}/logs                           manager
GET /images/blobs/{digest}                          worker manager
HEAD /images/blobs/{digest}                         worker manager
GET /images/json                                    manager
GET /images/{name...}/json                          worker manager
`

func TestTableOfRoles(t *testing.T) {
	var lines []string
	for method, roles := range methodRoles() {
		lines = append(lines, fmt.Sprintf("%-51s%s", method, namesOf(roles)))
	}
	slices.Sort(lines)
	for _, r := range nodeRoutes() {
		lines = append(lines, fmt.Sprintf("%-51s%s", r.method+" "+r.pattern, namesOf(r.roles)))
	}
	if got := "\n" + strings.Join(lines, "\n") + "\n"; got != whoMayCall {
		t.Errorf("table is%s\nwant%s", got, whoMayCall)
	}
}

func namesOf(roles roleSet) string {
	var names strings.Builder
	for _, r := range []Role{Anonymous, Worker, Manager, "root", ""} {
		if roles.allows(r) {
			names.WriteString(" " + string(r))
		}
	}
	return names.String()
}

func TestEveryMethodIsInTheTable(t *testing.T) {
	table := methodRoles()
	services := File_rpc_node_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			name := fmt.Sprintf("/%s/%s", services.Get(i).FullName(), methods.Get(j).Name())
			if _, ok := table[name]; !ok {
				t.Errorf("%s is not in the table of roles, so nobody may call it", name)
			}
			delete(table, name)
		}
	}
	for name := range table {
		t.Errorf("the table of roles names %s, which does not exist", name)
	}
}

func TestRoutesMatchWholePathsOnly(t *testing.T) {
	for request, want := range map[string]string{
		"GET /containers/json":                          "/containers/json",
		"GET /containers/abc/json":                      "/containers/{id}/json",
		"GET /containers/abc/logs?follow=1":             "/containers/{id}/logs",
		"HEAD /images/blobs/sha256:00":                  "/images/blobs/{digest}",
		"GET /images/docker.io/library/hello:1/json":    "/images/{name...}/json",
		"GET /images/hello@sha256:00/json":              "/images/{name...}/json",
		"GET /images/blobs/json":                        "/images/blobs/{digest}",
		"POST /containers/json":                         "",
		"GET /containers":                               "",
		"GET /containers/json/":                         "",
		"GET /containers//json":                         "",
		"GET /containers/a/b/json":                      "",
		"GET /images/blobs/../../containers/json":       "",
		"GET /images/blobs/..%2f..%2fcontainers%2fjson": "",
		"GET /images/blobs/./x":                         "",
		"GET /images/blobs%2fsha256:00":                 "",
		"DELETE /images/hello":                          "",
		"POST /containers/abc/exec":                     "",
		"GET /v1.54/containers/json":                    "",
		"GET /":                                         "",
		"CONNECT /containers/json":                      "",
	} {
		method, target, _ := strings.Cut(request, " ")
		u, err := url.ParseRequestURI(target)
		check(t, err)
		r, _ := matchRoute(nodeRoutes(), &http.Request{Method: method, URL: u})
		if r.pattern != want {
			t.Errorf("%s matches %q, want %q", request, r.pattern, want)
		}
	}
}

// FuzzRoutes compares the table with the one net/http would make of it: what the table lets through must be what a handler's mux sees.
func FuzzRoutes(f *testing.F) {
	for _, seed := range []string{"/containers/json", "/containers/x/logs", "/images/a/b/json", "/images/blobs/..%2fx", "//", "*", "/images/%62lobs/x"} {
		f.Add("GET", seed)
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		found, ok := matchRoute(nodeRoutes(), &http.Request{Method: method, URL: u})
		if !ok {
			return
		}
		if path.Clean(u.EscapedPath()) != u.EscapedPath() || method != found.method {
			t.Errorf("%s %s was let through as %s", method, target, found.pattern)
		}
		forMembers := strings.HasPrefix(u.Path, "/images/") && u.Path != "/images/json"
		if forMembers != (found.roles == membersCall) {
			t.Errorf("%s has the roles of %s", target, found.pattern)
		}
	})
}
