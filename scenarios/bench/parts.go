package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"swarm/scenarios/lab"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

const (
	grace      = 5 * time.Second // default of --dispatcher-heartbeat
	sixtyRuns  = 5
	leaderRuns = 15
	powerRuns  = 6
	restAfter  = 60 * time.Second // memory is measured so long after the start
	mega       = 1 << 20
)

// create: one task from the request to RUNNING, against a bare create and start of the same image.
func (b *bench) create(ctx context.Context) error {
	bare, err := b.bare(ctx, b.Lab.Nodes()[:1], 1, b.rounds)
	if err != nil {
		return err
	}
	var ours []time.Duration
	for range b.rounds {
		took, err := b.timeService(ctx, 1)
		if err != nil {
			return err
		}
		ours = append(ours, took)
	}
	limit := median(bare)*3/2 + 50*time.Millisecond
	b.add("service create to RUNNING, median", median(ours) <= limit, fmt.Sprintf("≤ 1.5 × bare + 50 ms = %s", ms(limit)),
		"%s (bare %s, ratio %.2f)", ms(median(ours)), ms(median(bare)), ratio(median(ours), median(bare)))
	return nil
}

// sixty tasks on three nodes, against a bare loop on the same three containerds that starts all at once, in containers confined alike.
func (b *bench) sixty(ctx context.Context) error {
	const tasks = 60
	bare, err := b.bare(ctx, b.Lab.Nodes(), tasks, sixtyRuns)
	if err != nil {
		return err
	}
	var ours []time.Duration
	for range sixtyRuns {
		took, err := b.timeService(ctx, tasks)
		if err != nil {
			return err
		}
		ours = append(ours, took)
	}
	got := ratio(median(ours), median(bare))
	b.add("60 tasks on 3 nodes to RUNNING, median", got <= 1.3, "≤ 1.3 × bare", "%s (bare %s, ratio %.2f)", ms(median(ours)), ms(median(bare)), got)
	return nil
}

// timeService creates a service, waits until all its tasks run, and removes it.
func (b *bench) timeService(ctx context.Context, replicas uint64) (time.Duration, error) {
	seat, err := b.Seat(ctx)
	if err != nil {
		return 0, err
	}
	spec := swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "timed"},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "docker.io/library/hello:latest", Args: []string{"sleep"}}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
	api := b.Client(seat)
	began := time.Now()
	if _, err := api.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec}); err != nil {
		return 0, fmt.Errorf("create service: %w", err)
	}
	// The count alone is asked for: listing every task each time would keep a good part of a core busy that the tasks need.
	filters := client.ServiceListOptions{Filters: client.Filters{}.Add("name", "timed"), Status: true}
	every := lookEvery
	if replicas > 1 {
		every = manyEvery
	}
	err = b.untilEvery(ctx, every, func(ctx context.Context) bool {
		got, err := api.ServiceList(ctx, filters)
		return err == nil && len(got.Items) == 1 && got.Items[0].ServiceStatus.RunningTasks == replicas
	})
	if err != nil {
		return 0, fmt.Errorf("%d tasks: %w", replicas, err)
	}
	took := time.Since(began)
	return took, b.removeService(ctx, "timed")
}

// bare runs the loop that only talks to containerd, on the containerds of these nodes.
func (b *bench) bare(ctx context.Context, nodes []*lab.Node, tasks, rounds int) ([]time.Duration, error) {
	var sockets, groups []string
	for _, n := range nodes {
		socket, err := containerdSocket(n)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, socket)
		groups = append(groups, n.CgroupParent())
	}
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "bare.test"), "-test.run", "TestBareLoop", "-test.timeout", "5m")
	cmd.Env = append(os.Environ(),
		"SWARM_BENCH_SOCKETS="+strings.Join(sockets, ","),
		"SWARM_BENCH_CGROUPS="+strings.Join(groups, ","),
		"SWARM_BENCH_ARCHIVE="+filepath.Join(b.bin, "hello.tar"),
		"SWARM_BENCH_TASKS="+strconv.Itoa(tasks),
		"SWARM_BENCH_ROUNDS="+strconv.Itoa(rounds))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("bare loop: %w\n%s", err, out)
	}
	var times []time.Duration
	for line := range bytes.Lines(out) {
		if text, ok := bytes.CutPrefix(line, []byte("bare-seconds: ")); ok {
			seconds, err := strconv.ParseFloat(string(bytes.TrimSpace(text)), 64)
			if err != nil {
				return nil, err
			}
			times = append(times, time.Duration(seconds*float64(time.Second)))
		}
	}
	if len(times) != rounds {
		return nil, fmt.Errorf("bare loop gave %d times, want %d:\n%s", len(times), rounds, out)
	}
	return times, nil
}

// containerdSocket is where the node's private containerd listens.
func containerdSocket(n *lab.Node) (string, error) {
	for _, pattern := range []string{"c.sock", "containerd/c.sock"} {
		path := filepath.Join(n.RunDir(), pattern)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no socket of containerd below %s", n.RunDir())
}

// leader: from the kill of the leader to the first commit that another manager acknowledges.
func (b *bench) leader(ctx context.Context) error {
	var times []time.Duration
	for round := range max(leaderRuns, b.rounds) {
		leader, err := b.Manager(ctx, true)
		if err != nil {
			return err
		}
		var other *lab.Node
		for _, n := range b.Lab.Nodes() {
			if n != leader {
				other = n
			}
		}
		began := time.Now()
		if err := leader.Kill(); err != nil {
			return err
		}
		if err := b.firstCommit(ctx, other, round); err != nil {
			return err
		}
		times = append(times, time.Since(began))
		if err := leader.Start(ctx); err != nil {
			return err
		}
		if err := b.until(ctx, b.allReachable); err != nil {
			return err
		}
	}
	p90 := quantile(times, 0.9)
	b.add("leader killed to first commit, median", median(times) <= 1100*time.Millisecond, "≤ 1.1 s", "%s (%d rounds)", ms(median(times)), len(times))
	b.add("leader killed to first commit, p90", p90 <= 1500*time.Millisecond, "≤ 1.5 s", "%s", ms(p90))
	return nil
}

// firstCommit tries to write through one manager until it is acknowledged.
func (b *bench) firstCommit(ctx context.Context, n *lab.Node, round int) error {
	none := uint64(0)
	spec := swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "commit" + strconv.Itoa(round)},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "docker.io/library/hello:latest"}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &none}},
	}
	var last error
	err := b.until(ctx, func(ctx context.Context) bool {
		_, last = b.Client(n).ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec})
		// A commit whose answer was lost shows as a taken name.
		return last == nil || strings.Contains(last.Error(), "in use") || strings.Contains(last.Error(), "conflict")
	})
	return errors.Join(err, ifFailed(err, last))
}

func ifFailed(err, last error) error {
	if err == nil {
		return nil
	}
	return last
}

func (b *bench) allReachable(ctx context.Context) bool {
	nodes, err := b.Nodes(ctx)
	reachable, leads := 0, false
	for _, n := range nodes {
		if n.ManagerStatus != nil && n.ManagerStatus.Reachability == swarm.ReachabilityReachable && n.Status.State == swarm.NodeStateReady {
			reachable++
			leads = leads || n.ManagerStatus.Leader
		}
	}
	return err == nil && leads && reachable == len(b.Lab.Nodes())
}

// power: from the loss of a node to its tasks RUNNING elsewhere.
func (b *bench) power(ctx context.Context) error {
	var times []time.Duration
	lost := b.Lab.Node("n3")
	for range powerRuns {
		if err := b.swarm(ctx, "service", "create", "--detach", "--name", "web", "--replicas", "6", "hello", "sleep"); err != nil {
			return err
		}
		spread := func(want string) func(context.Context) bool {
			return func(ctx context.Context) bool {
				counts, err := b.Spread(ctx, "web")
				return err == nil && fmt.Sprint(counts) == want
			}
		}
		if err := b.until(ctx, spread("[2 2 2]")); err != nil {
			return err
		}
		began := time.Now()
		if err := lost.PowerOff(); err != nil {
			return err
		}
		if err := b.until(ctx, spread("[3 3 0]")); err != nil {
			return err
		}
		times = append(times, time.Since(began))
		if err := b.removeService(ctx, "web"); err != nil {
			return err
		}
		if err := errors.Join(lost.Plug(), lost.Start(ctx)); err != nil {
			return err
		}
		if err := b.until(ctx, func(ctx context.Context) bool { return b.readyNodes(ctx) == 3 }); err != nil {
			return err
		}
	}
	limit := grace + 2500*time.Millisecond
	p90 := quantile(times, 0.9)
	b.add("power-off to replacements RUNNING, p90", p90 <= limit, "≤ grace + 2.5 s = "+ms(limit), "%s (median %s, %d rounds)", ms(p90), ms(median(times)), len(times))
	return nil
}

// size: memory at rest with a few tasks on every node, and the binary.
func (b *bench) size(ctx context.Context) error {
	if err := b.swarm(ctx, "service", "create", "--detach", "--name", "web", "--replicas", "6", "hello", "sleep"); err != nil {
		return err
	}
	if err := b.untilRunning(ctx, "web", 6); err != nil {
		return err
	}
	fmt.Printf("(waiting %s for memory at rest)\n", restAfter)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(restAfter):
	}
	for i, n := range b.Lab.Nodes() {
		role, limit := "manager", 80
		if i > 0 {
			role, limit = "worker", 60
		}
		b.memory(n, role, limit)
	}
	file, err := os.Stat(filepath.Join(b.bin, "swarm"))
	if err != nil {
		return err
	}
	b.add("size of bin/swarm", file.Size() <= 60*mega, "≤ 60 MB", "%.1f MB", float64(file.Size())/mega)
	return nil
}

// memory of one node's processes: the agent is judged, its helpers are listed.
func (b *bench) memory(n *lab.Node, role string, limitMega int) {
	sums, counts := map[string]int{}, map[string]int{}
	for _, p := range n.Processes() {
		kind := kindOf(p, n)
		sums[kind] += residentKB(p.PID)
		counts[kind]++
	}
	b.add(role+" agent, RSS at rest", sums["agent"] <= limitMega*1024, fmt.Sprintf("≤ %d MB", limitMega), "%.1f MB", float64(sums["agent"])/1024)
	for _, kind := range []string{"containerd", "keeper", "shim"} {
		b.note(fmt.Sprintf("  its %s ×%d", kind, counts[kind]), "%.1f MB", float64(sums[kind])/1024)
	}
}

func kindOf(p lab.Process, n *lab.Node) string {
	program, rest, _ := strings.Cut(p.Command, " ")
	switch filepath.Base(program) {
	case "containerd":
		return "containerd"
	case "containerd-shim-runc-v2":
		return "shim"
	case "swarm":
		if strings.HasPrefix(rest, "keeper") {
			return "keeper"
		}
	}
	if p.PID == n.PID() {
		return "agent"
	}
	return "container"
}

// residentKB of a process, as the kernel counts it; 0 when it has gone.
func residentKB(pid int) int {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(value)[0])
			return kb
		}
	}
	return 0
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond)) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
