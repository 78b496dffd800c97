package agent

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/client"
)

// takenSockets have one address that another program listens on, until it ends.
type takenSockets struct {
	Sockets
	address string
	free    atomic.Bool
}

func (s *takenSockets) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if address == s.address && !s.free.Load() {
		return nil, errors.New("address already in use")
	}
	return s.Sockets.Listen(ctx, network, address)
}

// A port for metrics that another program has keeps no agent from its work: info says so, and the port is served once it is free.
func TestAnAgentWhoseMetricsPortIsTakenWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEther()
		taken := &takenSockets{address: "10.0.0.1:9323"}
		m := newComputerWith(t, e, 1, func(cfg *Config, edges *Edges) {
			cfg.MetricsAddr = taken.address
			taken.Sockets, edges.Sockets = edges.Sockets, taken
		})
		defer m.close()
		m.init()
		warned := func() bool {
			info, err := m.client().Info(t.Context(), client.InfoOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(info.Info.Warnings, func(w string) bool {
				return strings.Contains(w, "--metrics-addr 10.0.0.1:9323") && strings.Contains(w, "in use")
			})
		}
		served := func() bool {
			conn, err := e.host("10.0.0.2").Dial(t.Context(), "tcp", taken.address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}
		if !warned() || served() {
			t.Error("no warning of the port, or it is served")
		}
		taken.free.Store(true)
		m.within(metricsRetry, "the port is served", served)
		if warned() {
			t.Error("a warning of a port that is served")
		}
		m.halt()
		if served() {
			t.Error("the port is open while no agent serves it")
		}
	})
}

func TestMetricsAddrIsAnAddress(t *testing.T) {
	for address, good := range map[string]bool{
		"": true, "0.0.0.0:9323": true, ":9323": true, "[::1]:9323": true, "192.0.2.1:65535": true,
		"9323": false, "0.0.0.0": false, "0.0.0.0:": false, "0.0.0.0:0": false, "0.0.0.0:65536": false, "everywhere:9323": false, "0.0.0.0:http": false,
	} {
		if err := checkMetricsAddr(address); (err == nil) != good {
			t.Errorf("%q: %v", address, err)
		}
	}
}
