package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"swarm/scenarios/lab"

	"golang.org/x/sync/errgroup"
)

const (
	apiCallers  = 16
	apiServices = 320 // in the list
	apiFor      = 5 * time.Second
	apiAlone    = 1000 // creates by one caller
	apiWarmUp   = time.Second
	// apiOnce bounds one request.
	apiOnce = 20 * time.Second
)

// api: the HTTP API of a leader with two followers, over connections that are kept, as a program would use it. Services have no
// tasks, so that it is the way of a request to its commit that is measured.
func (b *bench) api(ctx context.Context) error {
	leader, err := b.Find(ctx, "leader")
	if err != nil {
		return err
	}
	var names counter
	create := func(c *apiConn) error {
		return c.ask(ctx, "POST", "/v1.44/services/create", spec(names.next()), http.StatusCreated)
	}
	list := func(c *apiConn) error { return c.ask(ctx, "GET", "/v1.44/services", "", http.StatusOK) }

	if _, err := timeCalls(ctx, leader, 1, names.reaches(apiServices), create); err != nil {
		return err
	}
	var lists, creates calls
	err = b.profiled(ctx, "list", func() (err error) {
		lists, err = timeCalls(ctx, leader, apiCallers, after(apiFor), list)
		return err
	})
	if err != nil {
		return err
	}
	if _, err := timeCalls(ctx, leader, apiCallers, after(apiWarmUp), create); err != nil {
		return err
	}
	alone, err := timeCalls(ctx, leader, 1, names.grows(apiAlone), create)
	if err != nil {
		return err
	}
	synced, err := syncsPerSecond(filepath.Join(b.Lab.Node("n1").DataDir(), "bare"))
	if err != nil {
		return err
	}
	before, err := b.spent(ctx, leader)
	if err != nil {
		return err
	}
	err = b.profiled(ctx, "create", func() (err error) {
		creates, err = timeCalls(ctx, leader, apiCallers, after(apiFor), create)
		return err
	})
	if err != nil {
		return err
	}
	spent, err := b.spent(ctx, leader)
	if err != nil {
		return err
	}
	spent = spent.since(before)
	made := float64(len(creates.times))
	b.add("API, 3 managers: creates by 16 callers", creates.perSecond() >= 2500, "≥ 2500/s", "%.0f/s (median %s)", creates.perSecond(), µs(creates.p(0.5)))
	b.note("  CPU time of the 3 agents for one", "%.2f ms", 1000*spent.cpuSeconds/made)
	b.note("  commits, log entries for one", "%.2f, %.2f", spent.commits/made, spent.entries/made)
	b.note("  of its time, in the leader's store", "%.2f ms", 1000*spent.commitSeconds/spent.commits)
	b.note("  bare fdatasync of 4 KB on that disk", "%.0f/s", synced)
	b.add("API, 3 managers: create by one caller, median", alone.p(0.5) <= 1500*time.Microsecond, "≤ 1.5 ms", "%s (p99 %s)", µs(alone.p(0.5)), µs(alone.p(0.99)))
	b.add("API, 3 managers: lists of 320 services by 16 callers", lists.perSecond() >= 2000, "≥ 2000/s", "%.0f/s (%.0f KB each)", lists.perSecond(), float64(lists.bytes)/1024/float64(len(lists.times)))
	return nil
}

func spec(name string) string {
	return `{"Name":"` + name + `","Labels":{"made-by":"bench"},"TaskTemplate":{"ContainerSpec":{"Image":"docker.io/library/hello:latest","Args":["sleep"]}},"Mode":{"Replicated":{"Replicas":0}}}`
}

func µs(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

// counter gives names that were not used before.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return fmt.Sprintf("api%06d", c.n)
}

func (c *counter) reaches(n int) func() bool {
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.n >= n
	}
}

func (c *counter) grows(by int) func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reaches(c.n + by)
}

func after(d time.Duration) func() bool {
	end := time.Now().Add(d)
	return func() bool { return time.Now().After(end) }
}

// calls are what one run of calls took.
type calls struct {
	times []time.Duration
	took  time.Duration
	bytes int64
}

func (c calls) perSecond() float64        { return float64(len(c.times)) / c.took.Seconds() }
func (c calls) p(q float64) time.Duration { return quantile(c.times, q) }

// profiled runs measure and, if profiles are wanted, keeps what each manager's agent did meanwhile as DIR/NAME-NODE.pprof.
func (b *bench) profiled(ctx context.Context, name string, measure func() error) error {
	if b.profiles == "" {
		return measure()
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range b.Lab.Nodes() {
		g.Go(func() error { return b.profile(ctx, n, filepath.Join(b.profiles, name+"-"+n.Name+".pprof")) })
	}
	g.Go(measure)
	return g.Wait()
}

func (b *bench) profile(ctx context.Context, n *lab.Node, file string) error {
	content, err := ofAgent(ctx, n, fmt.Sprintf("/debug/pprof/profile?seconds=%.0f", apiFor.Seconds()-1))
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

// timeCalls has so many callers make one call after the other, each on a connection of its own, until it is over.
func timeCalls(ctx context.Context, n *lab.Node, callers int, over func() bool, call func(*apiConn) error) (calls, error) {
	var all calls
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for range callers {
		g.Go(func() error {
			conn, err := n.DialAPI(ctx, "", "")
			if err != nil {
				return err
			}
			defer conn.Close()
			c := &apiConn{conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}
			var times []time.Duration
			for !over() && ctx.Err() == nil {
				start := time.Now()
				if err := call(c); err != nil {
					return err
				}
				times = append(times, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all.times = append(all.times, times...)
			all.bytes += c.read
			return nil
		})
	}
	err := g.Wait()
	all.took = time.Since(began)
	if err == nil && len(all.times) == 0 {
		err = errors.New("no call was made")
	}
	return all, err
}

// apiConn is one connection that is used again and again. Go's client would take a good part of the two cores that the managers need.
type apiConn struct {
	conn net.Conn
	in   *bufio.Reader
	read int64
}

func (c *apiConn) ask(ctx context.Context, method, path, body string, want int) error {
	_ = c.conn.SetDeadline(time.Now().Add(apiOnce))
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: swarm\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, path, len(body))
	if _, err := io.WriteString(c.conn, head+body); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
		return fmt.Errorf("%s %s: %s %s", method, path, answer.Status, strings.TrimSpace(string(text)))
	}
	n, err := io.Copy(io.Discard, answer.Body)
	c.read += n
	return err
}
