package scenarios

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"swarm/scenarios/lab"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

type verb func(t *teller, ctx context.Context, args []string) (output string, err error)

// allVerbs of the story language; every other first word is a command of swarm itself.
func allVerbs() map[string]verb {
	return map[string]verb{
		// Machines and clusters.
		"cluster":            cluster,          // MANAGERS+WORKERS: machines n1, n2, … made one cluster, all ready
		"machine":            machine,          // NAME [FLAGS]: a new node whose agent runs, in no cluster
		"small-disk-machine": smallDiskMachine, // NAME MEGABYTES: … and whose data directory is no larger
		"join-as":            joinAs,           // ROLE NODE…: with the right token

		// What an operator types.
		"on":      on,      // NODE COMMAND: swarm's (or docker's) command line against that node
		"docker":  docker,  // COMMAND: docker's own command line
		"http":    fetch,   // NODE:PORT[/PATH]: GET from outside the cluster
		"api":     api,     // NODE METHOD PATH [BODY]: a request without any client's help; its output is status and body
		"metrics": metrics, // NODE [PORT WHOSE]: what its own socket says; at a port, read with the certificate of node WHOSE, or "nobody"
		"burst":   burst,   // N: that many changes, one after the other, that leave nothing behind
		"set":     set,     // NAME COMMAND: keep the output for later as $NAME

		// What fate does. NODE may be "leader" or "follower".
		"kill":        strike((*lab.Node).Kill),       // NODE…: SIGKILL to the agent alone
		"stop":        strike((*lab.Node).Stop),       // NODE…: SIGTERM to the agent alone
		"start":       startNodes,                     // [NODE…]: cable in, agent started; without names every one that does not run
		"power-off":   strike((*lab.Node).PowerOff),   // NODE…: cable out, everything killed, run-time files gone
		"unplug":      strike((*lab.Node).Unplug),     // NODE…: cable out
		"plug":        onNodes((*lab.Node).Plug),      // NODE…: cable in
		"freeze":      onNodesCtx(freeze),             // NODE…: SIGSTOP to the agent alone
		"hang":        onNodesCtx(hang),               // NODE…: every process of the machine stands still, as in a paused virtual one
		"thaw":        onNodesCtx(thaw),               // NODE…: SIGCONT; what hangs goes on
		"restart-all": restartAll,                     // kill every agent at once, start them all
		"partition":   partition,                      // NODE… | NODE…: groups that cannot reach each other; "rest" is who is not named
		"block":       block,                          // NODE… > NODE…: packets vanish in that direction alone
		"delay":       delay,                          // NODE DURATION: every packet from or to it is late by that
		"loss":        loss,                           // NODE PERCENT%: that share of packets from and to it is lost
		"heal":        heal,                           // all cables in, no partition, good links
		"readdress":   onNodes((*lab.Node).Readdress), // NODE…: another address for a machine whose agent is stopped
		"occupy":      occupy,                         // NODE PORT: another program listens there
		"vacate":      onNodes((*lab.Node).Vacate),    // NODE…: no more
		"fill-disk":   onNodes((*lab.Node).FillDisk),  // NODE…: to the last byte, of a small-disk-machine
		"free-disk":   onNodes((*lab.Node).FreeDisk),  // NODE…: it has room again
		"damage":      damage,                         // NODE FILE: below the data directory of a stopped agent, in its middle
		"write":       overwrite,                      // NODE FILE CONTENT: … instead of what it holds
		"repair":      onNodes((*lab.Node).Repair),    // NODE…: files are again what they were before damage and write

		// Clients of all managers at once, whose calls and answers are recorded: history start, then …
		//   check CHANGES: end them; what they were told can be true, and that many changes at least were done
		//   mark: here begins what the next lines speak of
		//   pause LIMIT: never since then, or since the start, was no change done for longer
		"history": recordedHistory,

		// What must be true. Usually marked *.
		"within":    within,    // DURATION COMMAND: it ends, well or not, in that time
		"always":    always,    // DURATION COMMAND: true now and for so long
		"ready":     ready,     // N: that many nodes are ready
		"managers":  managers,  // N: that many managers are reachable, and all agree on the leader
		"running":   running,   // SERVICE N: that many tasks run
		"spread":    spread,    // SERVICE A/B/C: … on each node, in the lab's order
		"balanced":  balanced,  // SERVICE N: that many tasks run, and no node has two more than another
		"remember":  remember,  // SERVICE: its running tasks, containers and pids
		"file":      file,      // NODE FILE: below the data directory there is such a one, pattern as in a shell
		"alone":     alone,     // NODE: it has no connection to another node
		"told":      told,      // NODE PRESENCE LIMIT: every other agent was told that, at most so long after the last thing that fate did to it
		"untold":    untold,    // NODE PRESENCE: no agent was told that since then
		"sessions":  sessions,  // LEAST: each awake manager hears that many nodes at least
		"unchanged": unchanged, // SERVICE: they are what was remembered, and those processes live
		"alive":     alive,     // SERVICE: the processes that were remembered live, whether any agent says so or not
		"whole-log": wholeLog,  // SERVICE N: each running task's log is line 1, line 2, … without a hole, at least N
	}
}

func wrongArguments(usage string) error { return fmt.Errorf("usage: %s", usage) }

func cluster(t *teller, ctx context.Context, args []string) (string, error) {
	var managersWanted, workersWanted int
	if _, err := fmt.Sscanf(strings.Join(args, " "), "%d+%d", &managersWanted, &workersWanted); err != nil || managersWanted < 1 {
		return "", wrongArguments("cluster MANAGERS+WORKERS")
	}
	if err := t.Cluster(ctx, managersWanted, workersWanted); err != nil {
		return "", err
	}
	return "", t.again(ctx, t.limit(patience), func(ctx context.Context) error {
		_, err := ready(t, ctx, []string{strconv.Itoa(managersWanted + workersWanted)})
		if err == nil {
			_, err = managers(t, ctx, []string{strconv.Itoa(managersWanted)})
		}
		return err
	})
}

func machine(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		return "", wrongArguments("machine NAME [FLAGS]")
	}
	_, err := t.AddMachine(ctx, args[0], args[1:]...)
	return "", err
}

func joinAs(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", wrongArguments("join-as ROLE NODE…")
	}
	for _, name := range args[1:] {
		n, err := t.Find(ctx, name)
		if err != nil {
			return "", err
		}
		if err := t.Join(ctx, n, args[0]); err != nil {
			return "", err
		}
	}
	return "", nil
}

func on(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", wrongArguments("on NODE COMMAND")
	}
	n, err := t.Find(ctx, args[0])
	if err != nil {
		return "", err
	}
	if args[1] == "docker" {
		return t.RunDocker(ctx, n, t.input(), args[2:]...)
	}
	return t.Swarm(ctx, n, t.input(), args[1:]...)
}

func docker(t *teller, ctx context.Context, args []string) (string, error) {
	seat, err := t.Seat(ctx)
	if err != nil {
		return "", err
	}
	return t.RunDocker(ctx, seat, t.input(), args...)
}

func fetch(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", wrongArguments("http NODE:PORT[/PATH]")
	}
	return t.Fetch(ctx, args[0])
}

func set(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", wrongArguments("set NAME COMMAND")
	}
	output, err := t.run(ctx, args[1:])
	t.variables[args[0]] = output
	return output, err
}

// onNodes is a verb that does the same to each node named.
func onNodes(do func(*lab.Node) error) verb {
	return onNodesCtx(func(_ *teller, _ context.Context, n *lab.Node) error { return do(n) })
}

// strike is onNodes for what ends a node's signs of life.
func strike(do func(*lab.Node) error) verb {
	return onNodesCtx(func(t *teller, _ context.Context, n *lab.Node) error {
		t.setStruck(n)
		return do(n)
	})
}

func onNodesCtx(do func(*teller, context.Context, *lab.Node) error) verb {
	return func(t *teller, ctx context.Context, args []string) (string, error) {
		if len(args) == 0 {
			return "", wrongArguments("VERB NODE…")
		}
		nodes := make([]*lab.Node, len(args))
		for i, name := range args {
			var err error
			if nodes[i], err = t.Find(ctx, name); err != nil {
				return "", err
			}
		}
		return "", each(nodes, func(n *lab.Node) error { return do(t, ctx, n) })
	}
}

func startNodes(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) == 0 {
		for _, n := range t.Lab.Nodes() {
			if !n.Running() {
				args = append(args, n.Name)
			}
		}
	}
	start := func(_ *teller, ctx context.Context, n *lab.Node) error { return errors.Join(n.Plug(), n.Start(ctx)) }
	return onNodesCtx(start)(t, ctx, args)
}

func freeze(t *teller, _ context.Context, n *lab.Node) error {
	t.setFrozen(n, true)
	t.setStruck(n)
	return n.Signal(syscall.SIGSTOP)
}

func thaw(t *teller, _ context.Context, n *lab.Node) error {
	t.setFrozen(n, false)
	return errors.Join(n.Hang(false), n.Signal(syscall.SIGCONT))
}

func hang(t *teller, _ context.Context, n *lab.Node) error {
	t.setFrozen(n, true)
	t.setStruck(n)
	return n.Hang(true)
}

func restartAll(t *teller, ctx context.Context, _ []string) (string, error) {
	return "", t.RestartAll(ctx)
}

func partition(t *teller, ctx context.Context, args []string) (string, error) {
	groups, err := t.groups(ctx, args, "|")
	if err != nil {
		return "", err
	}
	return "", t.Lab.Partition(groups...)
}

func block(t *teller, ctx context.Context, args []string) (string, error) {
	groups, err := t.groups(ctx, args, ">")
	if err != nil || len(groups) != 2 {
		return "", errors.Join(err, wrongArguments("block NODE… > NODE…"))
	}
	for _, from := range groups[0] {
		for _, to := range groups[1] {
			if err := t.Lab.Block(from, to); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

// groups of names between separators; "rest" are all nodes that are not named.
func (t *teller) groups(ctx context.Context, args []string, separator string) ([][]string, error) {
	groups, named, rest := [][]string{nil}, []string{}, -1
	for _, name := range args {
		switch name {
		case separator:
			groups = append(groups, nil)
			continue
		case "rest":
			rest = len(groups) - 1
			continue
		}
		n, err := t.Find(ctx, name)
		if err != nil {
			return nil, err
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], n.Name)
		named = append(named, n.Name)
	}
	for _, n := range t.Lab.Nodes() {
		if rest >= 0 && !slices.Contains(named, n.Name) {
			groups[rest] = append(groups[rest], n.Name)
		}
	}
	return groups, nil
}

func delay(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("delay NODE DURATION")
	}
	late, err := time.ParseDuration(args[1])
	if err != nil {
		return "", err
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error { return n.Delay(late) })
}

func loss(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("loss NODE PERCENT%")
	}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(args[1], "%"), 64)
	if err != nil {
		return "", err
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error { return n.Lose(percent / 100) })
}

func heal(t *teller, _ context.Context, _ []string) (string, error) { return "", t.Lab.Heal() }

func within(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", wrongArguments("within DURATION COMMAND")
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return "", err
	}
	began := time.Now()
	output, err := t.run(ctx, args[1:])
	if took := time.Since(began); took > t.limit(limit) {
		return "", fmt.Errorf("it took %s, want at most %s", took.Round(time.Millisecond), t.limit(limit))
	}
	return output, err
}

func always(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 2 {
		return "", wrongArguments("always DURATION COMMAND")
	}
	during, err := time.ParseDuration(args[0])
	if err != nil {
		return "", err
	}
	for end := time.Now().Add(during); ; {
		output, err := t.run(ctx, args[1:])
		if err != nil || time.Now().After(end) {
			return output, err
		}
		select {
		case <-ctx.Done():
			return output, ctx.Err()
		case <-time.After(againAfterMax):
		}
	}
}

// count reads a last argument.
func count(args []string, words int, usage string) (int, error) {
	if len(args) != words {
		return 0, wrongArguments(usage)
	}
	n, err := strconv.Atoi(args[words-1])
	if err != nil {
		return 0, wrongArguments(usage)
	}
	return n, nil
}

func ready(t *teller, ctx context.Context, args []string) (string, error) {
	want, err := count(args, 1, "ready N")
	if err != nil {
		return "", err
	}
	nodes, err := t.Nodes(ctx)
	if err != nil {
		return "", err
	}
	nodes = slices.DeleteFunc(nodes, func(n swarm.Node) bool { return n.Status.State != swarm.NodeStateReady })
	return "", expect(len(nodes), want, "ready nodes")
}

func expect(got, want int, what string) error {
	if got != want {
		return fmt.Errorf("%d %s, want %d", got, what, want)
	}
	return nil
}

func managers(t *teller, ctx context.Context, args []string) (string, error) {
	want, err := count(args, 1, "managers N")
	if err != nil {
		return "", err
	}
	nodes, err := t.Nodes(ctx)
	if err != nil {
		return "", err
	}
	nodes = slices.DeleteFunc(nodes, func(n swarm.Node) bool {
		return n.ManagerStatus == nil || n.ManagerStatus.Reachability != swarm.ReachabilityReachable
	})
	if err := expect(len(nodes), want, "reachable managers"); err != nil {
		return "", err
	}
	return "", oneLeader(ctx, t.World)
}

func running(t *teller, ctx context.Context, args []string) (string, error) {
	want, err := count(args, 2, "running SERVICE N")
	if err != nil {
		return "", err
	}
	tasks, err := t.Running(ctx, args[0])
	if err != nil {
		return "", err
	}
	return "", expect(len(tasks), want, "tasks of "+args[0]+" run")
}

func spread(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("spread SERVICE A/B/C")
	}
	counts, err := t.Spread(ctx, args[0])
	if err != nil {
		return "", err
	}
	if got := FormatSpread(counts); got != args[1] {
		return "", fmt.Errorf("tasks of %s run %s, want %s", args[0], got, args[1])
	}
	return "", nil
}

func balanced(t *teller, ctx context.Context, args []string) (string, error) {
	want, err := count(args, 2, "balanced SERVICE N")
	if err != nil {
		return "", err
	}
	counts, err := t.Spread(ctx, args[0])
	if err != nil {
		return "", err
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum != want || slices.Max(counts)-slices.Min(counts) > 1 {
		return "", fmt.Errorf("tasks of %s run %s, want %d balanced", args[0], FormatSpread(counts), want)
	}
	return "", nil
}

// FormatSpread writes counts per node as 2/2/2.
func FormatSpread(counts []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(counts), " ", "/"), "[]")
}

// identityFormat is what is remembered of a task: its container and process.
const identityFormat = "container %s pid %d"

// identities of a service's running tasks: what must not change when only an agent dies.
func identities(ctx context.Context, w *World, service string) (map[string]string, error) {
	tasks, err := w.Running(ctx, service)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, task := range tasks {
		status := task.Status.ContainerStatus
		if status == nil || status.PID == 0 {
			return nil, fmt.Errorf("task %s runs, but its status names no container or pid", task.ID)
		}
		if err := syscall.Kill(status.PID, 0); err != nil {
			return nil, fmt.Errorf("process %d of task %s: %w", status.PID, task.ID, err)
		}
		found[task.ID] = fmt.Sprintf(identityFormat, status.ContainerID, status.PID)
	}
	return found, nil
}

func remember(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", wrongArguments("remember SERVICE")
	}
	found, err := identities(ctx, t.World, args[0])
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no task of %s runs", args[0])
	}
	t.memory[args[0]] = found
	return "", err
}

func unchanged(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", wrongArguments("unchanged SERVICE")
	}
	found, err := identities(ctx, t.World, args[0])
	if err == nil && !maps.Equal(found, t.memory[args[0]]) {
		err = fmt.Errorf("tasks of %s were %v, are %v", args[0], t.memory[args[0]], found)
	}
	return "", err
}

// alive looks at the processes themselves, so it needs no manager.
func alive(t *teller, _ context.Context, args []string) (string, error) {
	if len(args) != 1 || len(t.memory[args[0]]) == 0 {
		return "", wrongArguments("alive SERVICE, after remember SERVICE")
	}
	for task, what := range t.memory[args[0]] {
		var container string
		var pid int
		if _, err := fmt.Sscanf(what, identityFormat, &container, &pid); err != nil {
			return "", fmt.Errorf("what was remembered of task %s: %w", task, err)
		}
		if err := syscall.Kill(pid, 0); err != nil {
			return "", fmt.Errorf("process %d of task %s: %w", pid, task, err)
		}
	}
	return "", nil
}

func wholeLog(t *teller, ctx context.Context, args []string) (string, error) {
	want, err := count(args, 2, "whole-log SERVICE N")
	if err != nil {
		return "", err
	}
	tasks, err := t.Running(ctx, args[0])
	if err == nil && len(tasks) == 0 {
		err = fmt.Errorf("no task of %s runs", args[0])
	}
	if err != nil {
		return "", err
	}
	for _, task := range tasks {
		lines, err := taskLog(ctx, t.World, task.ID)
		if err != nil {
			return "", fmt.Errorf("log of task %s: %w", task.ID, err)
		}
		if hole := firstHole(lines); hole != "" {
			return "", fmt.Errorf("log of task %s: %s", task.ID, hole)
		}
		if len(lines) < want {
			return "", fmt.Errorf("log of task %s: %d lines, want at least %d", task.ID, len(lines), want)
		}
	}
	return "", nil
}

// taskLog is the output of one task, in lines.
func taskLog(ctx context.Context, w *World, id string) ([]string, error) {
	seat, err := w.Seat(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := w.Client(seat).TaskLogs(ctx, id, client.TaskLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, stream); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var lines []string
	for scanner := bufio.NewScanner(&out); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	return lines, nil
}

// firstHole in "line 1", "line 2", …; empty when there is none.
func firstHole(lines []string) string {
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", i+1); line != want {
			return fmt.Sprintf("after %d lines comes %q, want %q", i, line, want)
		}
	}
	return ""
}
