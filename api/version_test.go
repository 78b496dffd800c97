package api

import (
	"strings"
	"testing"
)

func TestVersionWindow(t *testing.T) {
	for _, c := range []struct{ path, version, rest, refusal string }{
		{"/services", "1.56", "/services", ""},
		{"/v1.24/services", "1.24", "/services", ""},
		{"/v1.41/_ping", "1.41", "/_ping", ""},
		{"/v1.56/images/a/b/json", "1.56", "/images/a/b/json", ""},
		{"/version", "1.56", "/version", ""},
		{"/volumes", "1.56", "/volumes", ""},
		{"/v1.23/services", "", "", "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"/v1.57/services", "", "", "client version 1.57 is too new. Maximum supported API version is 1.56"},
		{"/v2.0/services", "", "", "client version 2.0 is too new. Maximum supported API version is 1.56"},
		{"/v1/services", "", "", "client version 1 is not a version: send one from 1.24 to 1.56"},
		{"/v1.99999999999999999999/services", "", "", "client version 1.99999999999999999999 is not a version: send one from 1.24 to 1.56"},
	} {
		version, rest, err := negotiate(c.path)
		if c.refusal != "" {
			if err == nil || err.Error() != c.refusal || statusOf(err) != 400 {
				t.Errorf("%s: refused with %v, want %q", c.path, err, c.refusal)
			}
			continue
		}
		if want, _ := parseVersion(c.version); err != nil || version != want || rest != c.rest {
			t.Errorf("%s: got %v %q %v", c.path, version, rest, err)
		}
	}
}

func TestRoutesFindNamesWithSlashes(t *testing.T) {
	m := compile(New(Config{}).routes())
	for _, c := range []struct{ method, path, pattern, value string }{
		{"GET", "/images/hello/json", "/images/{name...}/json", "hello"},
		{"GET", "/images/registry:5000/team/hello:v1/json", "/images/{name...}/json", "registry:5000/team/hello:v1"},
		{"GET", "/images/json", "/images/json", ""},
		{"DELETE", "/images/team/hello@sha256:00", "/images/{name...}", "team/hello@sha256:00"},
		{"GET", "/distribution/docker.io/library/hello:latest/json", "/distribution/{name...}/json", "docker.io/library/hello:latest"},
		{"GET", "/containers//web.1.abc/json", "/containers/{id}/json", "web.1.abc"},
		{"GET", "/services/create", "/services/{id}", "create"},
		{"POST", "/services/create", "/services/create", ""},
		{"PUT", "/services/create", "", ""},
		{"GET", "/", "", ""},
		{"GET", "/nodes/a/b", "", ""},
	} {
		found, vars := m.find(c.method, c.path)
		pattern := ""
		if found != nil {
			pattern = found.pattern
		}
		if pattern != c.pattern || vars["id"]+vars["name"] != c.value {
			t.Errorf("%s %s: got %q %v, want %q %q", c.method, c.path, pattern, vars, c.pattern, c.value)
		}
	}
}

func FuzzRoutes(f *testing.F) {
	for _, path := range []string{"/v1.41/services", "/images/a/b/json", "//", "/v./x", "/containers/x/json", "/v1.56"} {
		f.Add("GET", path)
	}
	m := compile(New(Config{}).routes())
	f.Fuzz(func(t *testing.T, method, path string) {
		_, rest, err := negotiate(path)
		if err != nil {
			return
		}
		found, vars := m.find(method, rest)
		if found == nil {
			return
		}
		for name, value := range vars {
			if value == "" || !strings.Contains(rest, strings.SplitN(value, "/", 2)[0]) {
				t.Fatalf("%s: variable %s is %q", path, name, value)
			}
		}
	})
}
