package api

import (
	"net/http"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

// The window of API versions that this server speaks.
const (
	apiNewest = "1.56"
	apiOldest = "1.24"
)

// apiVersion is major and minor, such as 1.41.
type apiVersion struct{ major, minor int }

func (v apiVersion) before(o apiVersion) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// parseVersion reads "1.41"; ok is false for anything else.
func parseVersion(s string) (v apiVersion, ok bool) {
	major, minor, found := strings.Cut(s, ".")
	if !found || len(major) > 4 || len(minor) > 4 {
		return v, false
	}
	var err1, err2 error
	v.major, err1 = strconv.Atoi(major)
	v.minor, err2 = strconv.Atoi(minor)
	return v, err1 == nil && err2 == nil
}

func mustParse(s string) apiVersion {
	v, ok := parseVersion(s)
	if !ok {
		panic("api: bad version constant " + s)
	}
	return v
}

// negotiate takes the optional /v1.NN prefix off a path; without one the client speaks the newest version.
func negotiate(path string) (apiVersion, string, error) {
	newest := mustParse(apiNewest)
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	raw, prefixed := strings.CutPrefix(first, "v")
	if !prefixed || raw == "" || strings.Trim(raw, "0123456789.") != "" {
		return newest, path, nil
	}
	version, ok := parseVersion(raw)
	switch {
	case !ok:
		return newest, "", invalid("client version %s is not a version: send one from %s to %s", raw, apiOldest, apiNewest)
	case version.before(mustParse(apiOldest)):
		return newest, "", invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", raw, apiOldest)
	case newest.before(version):
		return newest, "", invalid("client version %s is too new. Maximum supported API version is %s", raw, apiNewest)
	}
	return version, "/" + rest, nil
}

// setIdentity adds the headers by which clients learn what they talk to.
func (a *API) setIdentity(h http.Header) {
	h.Set("Server", "Swarm/"+a.cfg.Version+" ("+runtime.GOOS+")")
	h.Set("Api-Version", apiNewest)
	h.Set("Ostype", runtime.GOOS)
	h.Set("Docker-Experimental", "false")
}

// ping is what every client asks first. Its Swarm header makes the CLI show or hide commands.
func (a *API) ping(w http.ResponseWriter, r *request) error {
	h := w.Header()
	h.Set("Builder-Version", "1")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", a.swarmHeader())
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", "2")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, _ = w.Write([]byte("OK"))
	return nil
}

func (a *API) swarmHeader() string {
	status := a.cfg.Node.Status()
	if status.State != swarm.LocalNodeStateActive {
		return string(status.State)
	}
	if status.Store != nil {
		return "active/manager"
	}
	return "active/worker"
}

func (a *API) version(w http.ResponseWriter, r *request) error {
	kernel := kernelVersion()
	return writeJSON(w, http.StatusOK, system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "Swarm"},
		Version:       a.cfg.Version,
		APIVersion:    apiNewest,
		MinAPIVersion: apiOldest,
		Os:            runtime.GOOS,
		Arch:          runtime.GOARCH,
		GoVersion:     runtime.Version(),
		KernelVersion: kernel,
		Components: []system.ComponentVersion{
			{Name: "Engine", Version: a.cfg.Version, Details: map[string]string{
				"ApiVersion": apiNewest, "MinAPIVersion": apiOldest, "Os": runtime.GOOS, "Arch": runtime.GOARCH,
				"GoVersion": runtime.Version(), "KernelVersion": kernel, "Experimental": "false",
			}},
			{Name: "containerd", Version: a.cfg.ContainerdVersion},
		},
	})
}
