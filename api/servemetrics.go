package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Bounds of what those who read metrics can make this node hold.
const (
	// scrapesMax is how many scrapes are answered at once, scrapeConnectionsMax how many connections are open on one listener.
	scrapesMax           = 4
	scrapeConnectionsMax = 32
	// scrapeTimeMax bounds gathering, scrapeSendMax sending of one answer.
	scrapeTimeMax = 10 * time.Second
	scrapeSendMax = 30 * time.Second
	// profileTimeMax bounds the time that a CPU profile or trace may be recorded.
	profileTimeMax = 60 * time.Second
)

// MetricsListener is where metrics are served.
type MetricsListener struct {
	net.Listener
	// TLS is nil for a local socket; a remote one needs a configuration that asks for client certificates.
	TLS *tls.Config
	// Profiles adds Go's profiles at /debug/pprof/.
	Profiles bool
}

// ServeMetrics answers GET /metrics on l until ctx ends.
func (a *API) ServeMetrics(ctx context.Context, l MetricsListener) error {
	server := &http.Server{
		Handler:           a.metricsHandler(l.Profiles),
		ReadHeaderTimeout: headerTimeMax,
		ReadTimeout:       headerTimeMax,
		WriteTimeout:      scrapeSendMax,
		IdleTimeout:       idleTimeMax,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	var listener net.Listener = &boundedListener{Listener: l.Listener, slots: make(chan struct{}, scrapeConnectionsMax), silent: l.TLS != nil}
	if l.TLS != nil {
		listener = tls.NewListener(listener, l.TLS)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close() // a scrape that is lost comes again
	})
	return g.Wait()
}

func (a *API) metricsHandler(profiles bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", readOnly(promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesMax,
		Timeout:             scrapeTimeMax,
		// What can be gathered is worth more than nothing.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	})))
	mux.Handle("/", readOnly(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "metrics are at /metrics", http.StatusNotFound)
	})))
	if profiles {
		for path, h := range map[string]http.HandlerFunc{"": pprof.Index, "profile": pprof.Profile, "trace": pprof.Trace, "symbol": pprof.Symbol} {
			mux.Handle("/debug/pprof/"+path, readOnly(recording(h)))
		}
	}
	return mux
}

// readOnly refuses what is no plain GET or HEAD, bodies included: nothing here takes one.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
		case r.ContentLength != 0:
			w.Header().Set("Connection", "close") // so that the body need not be read
			http.Error(w, "a request for metrics has no body", http.StatusBadRequest)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// recording bounds how long a profile that is recorded may take; pprof itself moves the time for sending by as much.
func recording(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if raw := r.URL.Query().Get("seconds"); raw != "" {
			if seconds, err := strconv.ParseFloat(raw, 64); err != nil || !(seconds >= 0 && seconds <= profileTimeMax.Seconds()) {
				http.Error(w, fmt.Sprintf("seconds must be a number from 0 to %.0f", profileTimeMax.Seconds()), http.StatusBadRequest)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}
