package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

// alone is an API on a store of one manager, in memory, without a network.
func alone(b *testing.B) http.Handler {
	b.Helper()
	store, stop := openManagerOn(b, nodeOne, listen(b), true, raftstore.NewMemoryDisk())
	b.Cleanup(stop)
	c := &cluster{t: b, store: store}
	c.found()
	return newAPI(newFakeNode(Status{NodeID: nodeOne, State: swarm.LocalNodeStateActive, Store: store}), &wires{}).Handler()
}

// sunk is an answer that nobody reads.
type sunk struct {
	header http.Header
	status int
}

func (s *sunk) Header() http.Header         { return s.header }
func (s *sunk) Write(p []byte) (int, error) { return len(p), nil }
func (s *sunk) WriteHeader(status int)      { s.status = status }

func call(b *testing.B, h http.Handler, method, path, body string, want int) {
	request, err := http.NewRequestWithContext(b.Context(), method, path, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	answer := &sunk{header: http.Header{}}
	h.ServeHTTP(answer, request)
	if answer.status != want {
		b.Fatalf("%s %s: %d, want %d", method, path, answer.status, want)
	}
}

func createBody(i int) string {
	return fmt.Sprintf(`{"Name":"s%06d","Labels":{"made-by":"bench"},"TaskTemplate":{"ContainerSpec":{"Image":"docker.io/library/hello:latest","Args":["sleep"]}},"Mode":{"Replicated":{"Replicas":0}}}`, i)
}

// BenchmarkServiceList renders the list of 320 services, while one of them changes a hundred times a second.
func BenchmarkServiceList(b *testing.B) {
	h := alone(b)
	for i := range 320 {
		call(b, h, "POST", "/v1.44/services/create", createBody(i), http.StatusCreated)
	}
	last := time.Now()
	made := 320
	for b.Loop() {
		if time.Since(last) > 10*time.Millisecond {
			last = time.Now()
			call(b, h, "DELETE", fmt.Sprintf("/v1.44/services/s%06d", made-1), "", http.StatusOK)
			call(b, h, "POST", "/v1.44/services/create", createBody(made), http.StatusCreated)
			made++
		}
		call(b, h, "GET", "/v1.44/services", "", http.StatusOK)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lists/s")
}

// BenchmarkServiceCreate is what a create costs without a disk and without other managers.
func BenchmarkServiceCreate(b *testing.B) {
	h := alone(b)
	i := 0
	for b.Loop() {
		call(b, h, "POST", "/v1.44/services/create", createBody(i), http.StatusCreated)
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}
