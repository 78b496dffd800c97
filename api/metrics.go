package api

import (
	"net/http"
	"strconv"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Measured is what parts of the agent that the API does not know count, for GET /metrics.
type Measured struct {
	// WorkerTasks counts the tasks that this node's worker holds, by state.
	WorkerTasks map[swarm.TaskState]int
	// Manager is nil on workers.
	Manager *MeasuredManager
}

// MeasuredManager is what a manager's dispatcher and orchestrator count.
type MeasuredManager struct {
	// Sessions is how many agents this manager hears, Silences how often one missed its beats.
	Sessions int
	Silences uint64
	// StatusesWritten and StatusesWaiting count statuses of tasks that this manager's agents reported.
	StatusesWritten uint64
	StatusesWaiting int
	// Send is from a change that concerns an agent until it was handed to its connection; SendsWaiting is how many agents have something to come.
	Send         raftstore.HistogramSnapshot
	SendsWaiting int
	// SchedulingDelay is how long tasks were there before they had a node, Decide how long rounds of decisions took; both are the leader's.
	SchedulingDelay, Decide raftstore.HistogramSnapshot
}

// metrics counts the API's requests and gathers everything else when it is asked.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
}

// newMetrics makes a registry of its own: nothing that a library registers globally gets in.
func newMetrics(a *API) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "swarm_api_requests_total", Help: "API requests answered, by pattern of the path.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "swarm_api_request_duration_seconds", Help: "Time from a request's headers to the end of its answer; logs, events, loads and pulls, which last as long as clients like, are left out.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 4, 9), // to 16 s
		}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "swarm_api_requests_in_flight", Help: "API requests being answered now."}),
	}
	m.registry.MustRegister(
		m.requests, m.duration, m.inFlight, clusterCollector{a},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// unmatched is the route of requests that have none: their paths are anything that a client can think of.
const unmatched = "unmatched"

// statusGone counts requests whose client had gone before there was an answer, as proxies do.
const statusGone = 499

// finished counts a request that was answered, or given up.
func (m *metrics) finished(w *trackingWriter, r *http.Request, began time.Time) {
	m.inFlight.Dec()
	status := w.status
	switch {
	case w.begun:
	case r.Context().Err() != nil:
		status = statusGone
	default:
		status = http.StatusOK // what a handler that writes nothing answers
	}
	m.observe(w.route, r.Method, status, time.Since(began))
}

// observe counts a request. Labels come from the route table and from fixed words, so that no client can make more of them.
func (m *metrics) observe(r *route, method string, status int, took time.Duration) {
	pattern := unmatched
	if r != nil {
		pattern = r.pattern
	}
	m.requests.WithLabelValues(pattern, knownMethod(method), strconv.Itoa(status)).Inc()
	if r == nil || !r.stream {
		m.duration.WithLabelValues(pattern).Observe(took.Seconds())
	}
}

func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete:
		return method
	}
	return "other"
}
