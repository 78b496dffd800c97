package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"swarm/agent/containerd"
	"swarm/agent/worker"

	"github.com/moby/moby/api/types/swarm"
)

func TestLogOptionsAreReadOrRefused(t *testing.T) {
	var got strings.Builder
	for _, c := range []struct {
		driver  string
		options map[string]string
	}{
		{"", nil},
		{"json-file", map[string]string{"max-size": "10m", "max-file": "3"}},
		{"none", nil},
		{"json-file", map[string]string{"max-size": "much"}},
		{"json-file", map[string]string{"max-file": "0"}},
		{"json-file", map[string]string{"compress": "true"}},
		{"syslog", nil},
	} {
		o, err := logOptions(c.driver, c.options)
		if err != nil {
			fmt.Fprintf(&got, "%s %v: %v\n", c.driver, c.options, err)
			continue
		}
		fmt.Fprintf(&got, "%s %v: %d bytes x %d, discard %v\n", c.driver, c.options, o.MaxSizeBytes, o.MaxFiles, o.Discard)
	}
	want := ` map[]: 20971520 bytes x 5, discard false
json-file map[max-file:3 max-size:10m]: 10485760 bytes x 3, discard false
none map[]: 0 bytes x 1, discard true
json-file map[max-size:much]: log option max-size=much is not understood (invalid size: 'much')
json-file map[max-file:0]: log option max-file=0 is not understood (at least 1)
json-file map[compress:true]: log option "compress" is not known: json-file has max-size and max-file
syslog map[]: log driver "syslog" is not known here: use json-file or none
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestContainersAreShownAsDockerShowsThem(t *testing.T) {
	now := time.Now()
	d := containerd.Details{
		Observed:  worker.Observed{ID: strings.Repeat("ab", 32), Running: true, PID: 7, StartedAt: now.Add(-2 * time.Hour)},
		Container: worker.Container{ID: strings.Repeat("ab", 32), Name: "web.1.x", ImageRef: "web:1", Network: "host", Spec: &swarm.ContainerSpec{Command: []string{"serve"}, Args: []string{"-v"}}},
		CreatedAt: now.Add(-3 * time.Hour),
	}
	if s := summary(d); s.Status != "Up 2 hours" || s.Command != "serve -v" || s.Names[0] != "/web.1.x" || s.HostConfig.NetworkMode != "host" {
		t.Errorf("running: %+v", s)
	}
	if r := inspection(d, "/logs"); r.State.Pid != 7 || r.Config.Hostname != "abababababab" || !strings.HasPrefix(r.LogPath, "/logs/abab") {
		t.Errorf("running: %+v", r)
	}
	d.Running, d.Exit = false, &worker.Exit{Code: 137, OOMKilled: true, At: now.Add(-time.Minute)}
	if s := summary(d); s.Status != "Exited (137) About a minute ago" {
		t.Errorf("ended: %q", s.Status)
	}
	if r := inspection(d, "/logs"); !r.State.OOMKilled || r.State.ExitCode != 137 || r.State.Pid != 0 {
		t.Errorf("ended: %+v", r.State)
	}
}
