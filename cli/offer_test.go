package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/pflag"
)

// sampleOf are values for flags of service create whose type alone does not say one.
var sampleOf = map[string]string{
	"cap-add": "NET_ADMIN", "cap-drop": "CHOWN", "config": "there", "constraint": "node.role==worker", "container-label": "a=b",
	"credential-spec": "file://x", "dns": "192.0.2.1", "dns-option": "ndots:1", "dns-search": "example.org", "endpoint-mode": "dnsrr",
	"entrypoint": "/bin/x", "env": "A=b", "env-file": "/dev/null", "generic-resource": "gpu=1", "group": "10", "health-cmd": "true",
	"host": "db:192.0.2.7", "hostname": "h", "isolation": "process", "label": "a=b", "limit-cpu": "1", "limit-memory": "64m",
	"log-driver": "json-file", "log-opt": "max-size=1m", "memory-swap": "128m", "memory-swappiness": "10", "mode": "global",
	"mount": "type=volume,source=data,target=/v", "network": "host", "oom-score-adj": "10", "placement-pref": "spread=node.labels.zone",
	"publish": "80:80", "reserve-cpu": "1", "reserve-memory": "64m", "restart-condition": "any", "rollback-failure-action": "continue",
	"rollback-max-failure-ratio": "0.5", "rollback-order": "start-first", "secret": "there", "stop-signal": "SIGINT", "sysctl": "net.core.somaxconn=1",
	"ulimit": "nofile=100:100", "update-failure-action": "rollback", "update-max-failure-ratio": "0.5", "update-order": "start-first",
	"user": "10", "workdir": "/w", "name": "n",
}

// notOfTheSpec are flags that say how to talk to the agent rather than what to run; needed says what a flag needs beside it.
var (
	notOfTheSpec = map[string]bool{"detach": true, "quiet": true, "no-resolve-image": true, "with-registry-auth": true, "help": true}
	needed       = map[string][]string{
		"memory-swap":    {"--limit-memory", "64m"},
		"log-opt":        {"--log-driver", "json-file"},
		"max-concurrent": {"--mode", "replicated-job"},
	}
)

// What help offers is what the agent takes, so that nobody is led to a refusal, and nothing that works stays unknown.
func TestServiceCreateOffersWhatTheAgentTakes(t *testing.T) {
	host, sent := recordCreates(t)
	create, _, err := testRoot(t).Find([]string{"service", "create"})
	if err != nil {
		t.Fatal(err)
	}
	create.Flags().VisitAll(func(f *pflag.Flag) {
		if notOfTheSpec[f.Name] {
			return
		}
		args := append([]string{"--host", host, "service", "create", "--detach", "--no-resolve-image", "--name", "web"}, needed[f.Name]...)
		args = append(args, "--"+f.Name+"="+sample(f), "debian")
		*sent = nil
		if _, stderr, status := runLine(args...); status != 0 || *sent == nil {
			t.Errorf("--%s: status %d: %s", f.Name, status, stderr)
			return
		}
		if err := spec.Validate(**sent); (err == nil) == f.Hidden {
			t.Errorf("--%s is offered: %v; the agent says: %v", f.Name, !f.Hidden, err)
		}
	})
}

func sample(f *pflag.Flag) string {
	if value, ok := sampleOf[f.Name]; ok {
		return value
	}
	switch f.Value.Type() {
	case "bool":
		return "true"
	case "duration":
		return "2s"
	}
	return "2"
}

// recordCreates serves the few answers that service create asks for, and keeps the spec that it sends.
func recordCreates(t *testing.T) (host string, sent **swarm.ServiceSpec) {
	sent = new(*swarm.ServiceSpec)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch path := versionPrefix.ReplaceAllString(r.URL.Path, ""); {
		case path == "/_ping":
			w.Header().Set("Api-Version", "1.56")
		case path == "/secrets", path == "/configs":
			io.WriteString(w, `[{"ID":"there","Spec":{"Name":"there"}}]`)
		case strings.HasPrefix(path, "/networks/"):
			fmt.Fprintf(w, `{"Name":"host","Id":%q}`, spec.HostNetworkID)
		case path == "/services/create":
			*sent = new(swarm.ServiceSpec)
			json.NewDecoder(r.Body).Decode(*sent)
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, `{"ID":"s1"}`)
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return "unix://" + socket, sent
}
