package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// measuring makes an API whose agent counts as a manager's does.
func measuring(c *cluster) {
	var delay raftstore.Histogram
	delay.Observe(3 * time.Millisecond)
	c.api.cfg.Measure = func() Measured {
		return Measured{WorkerTasks: map[swarm.TaskState]int{swarm.TaskStateRunning: 2}, Manager: &MeasuredManager{
			Sessions: 3, Silences: 1, StatusesWritten: 7, StatusesWaiting: 1,
			Send: delay.Snapshot(), SendsWaiting: 1, SchedulingDelay: delay.Snapshot(), Decide: delay.Snapshot(),
		}}
	}
}

// What dashboards are built on: every name, type, help and label of ours. A change of a line breaks somebody's graph.
func TestMetricsKeepTheirNames(t *testing.T) {
	c := newCluster(t)
	measuring(c)
	created := ask(t, c.socket, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"hello"}}}`)
	if !strings.HasPrefix(created, "201") {
		t.Fatal(created)
	}
	c.addTasks("web", 1, nodeOne, nodeTwo)
	ask(t, c.socket, "GET", "/v1.44/services/web", "")
	ask(t, c.socket, "GET", "/no/such/path", "")
	text := scrape(t, serveMetrics(t, c.api, MetricsListener{}))
	got := shape(text)
	file := "testdata/metrics.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("run go test -update and read the difference:\n%s", firstDifference(string(want), got))
	}
	for _, line := range []string{
		`swarm_api_requests_total{code="200",method="GET",route="/services/{id}"} 1`,
		`swarm_api_requests_total{code="404",method="GET",route="unmatched"} 1`,
		`swarm_tasks{state="running"} 2`, `swarm_nodes{state="ready"} 2`, `swarm_nodes{state="down"} 1`,
		`swarm_dispatcher_sessions 3`, `swarm_store_rows{table="tasks"} 2`, `swarm_worker_tasks{state="running"} 2`,
		`swarm_agent_info{role="manager",version="1.0-test"} 1`, `swarm_scheduling_delay_seconds_count 1`, `swarm_node_agents{presence="never"} 2`, `swarm_node_agents{presence="down"} 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestANodeInNoSwarmHasMetricsToo(t *testing.T) {
	text := scrape(t, serveMetrics(t, newAPI(newFakeNode(Status{State: swarm.LocalNodeStateInactive}), &wires{}), MetricsListener{}))
	for _, line := range []string{`swarm_agent_info{role="none",version="1.0-test"} 1`, "swarm_api_requests_in_flight 0"} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing %s in\n%s", line, text)
		}
	}
	if strings.Contains(text, "swarm_raft") || strings.Contains(text, "swarm_nodes") {
		t.Error("metrics of a manager")
	}
}

// statsCollector shows what a replica would say of itself.
type statsCollector raftstore.Stats

func (statsCollector) Describe(chan<- *prometheus.Desc) {}

func (s statsCollector) Collect(out chan<- prometheus.Metric) { sink{out}.raft(raftstore.Stats(s)) }

func TestALeaderTellsOfItsSnapshotAndItsFollowers(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(statsCollector{
		Leads: true, Leaderless: 1500 * time.Millisecond, DiskFault: "no space left",
		Snapshot:  raftstore.SnapshotStats{Index: 70, SizeBytes: 4096, Time: time.Unix(1_700_000_000, 500_000_000), Took: 250 * time.Millisecond},
		Followers: []raftstore.FollowerStats{{NodeID: "m2", Lag: 5}},
	})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	for _, line := range []string{
		"swarm_raft_leader 1", "swarm_raft_leaderless_seconds 1.5", "swarm_raft_disk_failing 1", `swarm_raft_follower_lag_entries{node="m2"} 5`,
		"swarm_store_snapshot_index 70", "swarm_store_snapshot_size_bytes 4096", "swarm_store_snapshot_timestamp_seconds 1.7000000005e+09", "swarm_store_snapshot_duration_seconds 0.25",
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing %s in\n%s", line, text)
		}
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// sample is a line with a value; shape keeps what does not change from run to run.
var sample = regexp.MustCompile(`(?m)^(swarm_[a-z_]+(?:\{.*\})?) [^ \n]+$`)

func shape(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), "swarm_") && !strings.Contains(line, "_bucket{") {
			out.WriteString(sample.ReplaceAllString(line, "$1"))
		}
	}
	return out.String()
}

func TestMetricsAreReadAndNothingElse(t *testing.T) {
	socket := serveMetrics(t, newAPI(newFakeNode(Status{}), &wires{}), MetricsListener{})
	for request, want := range map[string]string{
		"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                         "200 OK",
		"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                        "200 OK",
		"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":                   "405 Method Not Allowed",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc":                 "400 Bad Request",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n":           "400 Bad Request",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n":          "400 Bad Request",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                                                "404 Not Found",
		"GET /debug/pprof/heap HTTP/1.1\r\nHost: x\r\n\r\n":                                "404 Not Found",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nBig: " + strings.Repeat("x", 70_000) + "\r\n": "431 Request Header Fields Too Large",
		"nonsense\r\n\r\n": "400 Bad Request",
	} {
		if got := talk(t, socket, request); got != want {
			t.Errorf("%.60q got %q, want %q", request, got, want)
		}
	}
	profiles := serveMetrics(t, newAPI(newFakeNode(Status{}), &wires{}), MetricsListener{Profiles: true})
	for path, want := range map[string]string{
		"/debug/pprof/heap": "200 OK", "/debug/pprof/": "200 OK",
		"/debug/pprof/profile?seconds=61": "400 Bad Request", "/debug/pprof/profile?seconds=NaN": "400 Bad Request", "/debug/pprof/heap?seconds=1e9": "400 Bad Request",
	} {
		if got := talk(t, profiles, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); got != want {
			t.Errorf("%s got %q, want %q", path, got, want)
		}
	}
}

func TestScrapesBeyondTheBoundAreRefused(t *testing.T) {
	a := newAPI(newFakeNode(Status{}), &wires{})
	entered, release := make(chan struct{}), make(chan struct{})
	a.cfg.Measure = func() Measured { entered <- struct{}{}; <-release; return Measured{} }
	socket := serveMetrics(t, a, MetricsListener{})
	answers := make(chan string)
	get := func() { answers <- talk(t, socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") }
	for range scrapesMax {
		go get()
		<-entered
	}
	go get()
	if got := <-answers; got != "503 Service Unavailable" {
		t.Error(got)
	}
	close(release)
	for range scrapesMax {
		if got := <-answers; got != "200 OK" {
			t.Error(got)
		}
	}
}

// talk sends raw bytes and returns the status of the answer.
func talk(t *testing.T, socket, request string) string {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, request) }()
	method, _, _ := strings.Cut(request, " ")
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return fmt.Sprint(err)
	}
	_ = answer.Body.Close()
	return answer.Status
}

func serveMetrics(t *testing.T, a *API, l MetricsListener) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	socket = dir + "/m"
	if l.Listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.ServeMetrics(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("serve metrics:", err)
		}
		_ = os.RemoveAll(dir)
	})
	return socket
}

func scrape(t *testing.T, socket string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	answer, err := client.Get("http://swarm/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer.Status, err, string(body))
	}
	return string(body)
}
