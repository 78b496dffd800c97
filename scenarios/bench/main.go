// Command bench measures what the project promises in numbers, on the real binary in a lab, and judges each against its target.
// make bench runs it; SIGINT removes the lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"swarm/scenarios"
	"swarm/scenarios/lab"
)

const (
	labName   = "bench"
	patience  = 90 * time.Second
	lookEvery = 5 * time.Millisecond  // resolution of a measured moment
	manyEvery = 20 * time.Millisecond // of one for which the machine has no time to spare
)

func main() {
	bin := flag.String("bin", "bin", "folder of swarm, containerd, hello.tar and bare.test")
	rounds := flag.Int("rounds", 7, "repetitions of what is quick; at least 5")
	only := flag.String("only", "", "what to measure, separated by commas: api, leader, create, sixty, power, size, or a package or benchmark of the first lines")
	profiles := flag.String("profiles", "", "existing folder for CPU profiles of the managers in the part api; its agents then run with --debug")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, &bench{table: &table{machine: machine()}, bin: *bin, rounds: max(5, *rounds), profiles: *profiles}, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// bench is one part of the measurement, in a lab of its own.
type bench struct {
	*scenarios.World
	*table
	bin, profiles string
	rounds        int
}

// labPart measures figures on real agents.
type labPart struct {
	name              string
	managers, workers int
	measure           func(*bench, context.Context) error
	prepare           func(nodes int) error // before any node is there
}

func labParts() []labPart {
	return []labPart{
		{"api", 3, 0, (*bench).api, nil},
		{"leader", 3, 0, (*bench).leader, nil},
		{"create", 1, 2, (*bench).create, memoryRunDirs},
		{"sixty", 1, 2, (*bench).sixty, memoryRunDirs},
		{"power", 1, 2, (*bench).power, nil},
		{"size", 1, 1, (*bench).size, nil},
	}
}

// run measures what is wanted and prints one table in the end, also when some part broke: that is a line too.
func run(ctx context.Context, b *bench, only string) (err error) {
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	wanted := func(names ...string) bool {
		return only == "" || slices.ContainsFunc(strings.Split(only, ","), func(o string) bool { return slices.Contains(names, o) })
	}
	var faults []error
	rows := slices.DeleteFunc(goRows(), func(r goRow) bool { return !wanted(r.pkg, filepath.Base(r.pkg), r.benchmark) })
	faults = append(faults, goFigures(ctx, b.bin, rows, b.table))
	for _, part := range labParts() {
		if !wanted(part.name) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "(lab: %s)\n", part.name)
		if err := b.inLab(ctx, part); err != nil {
			b.put(figure{name: part.name, verdict: failed})
			faults = append(faults, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	faults = append(faults, b.print(os.Stdout))
	return errors.Join(faults...)
}

// inLab gives each part a cluster of its own, so that none inherits another's load.
func (b *bench) inLab(ctx context.Context, part labPart) error {
	nodes := part.managers + part.workers
	cfg := lab.Config{Name: labName, Program: filepath.Join(b.bin, "swarm")}
	if b.profiles != "" {
		cfg.Flags = []string{"--debug"}
	}
	l, err := lab.Open(cfg)
	if err != nil {
		return err
	}
	defer l.Close()
	if part.prepare != nil {
		if err := part.prepare(nodes); err != nil {
			return err
		}
	}
	b.World = scenarios.NewWorld(l, filepath.Join(b.bin, "docker"))
	err = b.Cluster(ctx, part.managers, part.workers)
	if err == nil {
		err = b.until(ctx, func(ctx context.Context) bool { return b.readyNodes(ctx) == nodes })
	}
	if err == nil {
		err = b.load(ctx)
	}
	if err == nil {
		err = part.measure(b, ctx)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, scenarios.Report(ctx, b.World))
	}
	return nil
}

// memoryRunDirs puts the nodes' run directories in memory, where /run is on a real machine: a file made on a disk's file system
// takes up to half a millisecond of CPU. The bare loop's containerds are the same ones, so they gain too. Closing the lab undoes it.
func memoryRunDirs(nodes int) error {
	for i := range nodes {
		dir := filepath.Join(lab.Root, labName, "n"+strconv.Itoa(i+1), "r")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("bench", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount memory on %s: %w", dir, err)
		}
	}
	return nil
}

// load the image on the first node and warm every node with one task of it.
func (b *bench) load(ctx context.Context) error {
	archive, err := os.Open(filepath.Join(b.bin, "hello.tar"))
	if err != nil {
		return err
	}
	defer archive.Close()
	if out, err := b.Swarm(ctx, b.Lab.Nodes()[0], archive, "image", "load"); err != nil {
		return fmt.Errorf("load the image: %w\n%s", err, out)
	}
	if err := b.swarm(ctx, "service", "create", "--detach", "--name", "warm", "--mode", "global", "hello", "sleep"); err != nil {
		return err
	}
	if err := b.untilRunning(ctx, "warm", len(b.Lab.Nodes())); err != nil {
		return err
	}
	return b.removeService(ctx, "warm")
}

func (b *bench) swarm(ctx context.Context, args ...string) error {
	seat, err := b.Seat(ctx)
	if err != nil {
		return err
	}
	if out, err := b.Swarm(ctx, seat, nil, args...); err != nil {
		return fmt.Errorf("swarm %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// removeService and wait until nothing of it is left on any node.
func (b *bench) removeService(ctx context.Context, name string) error {
	if err := b.swarm(ctx, "service", "rm", name); err != nil {
		return err
	}
	return b.until(ctx, func(ctx context.Context) bool {
		for _, n := range b.Awake() {
			containers, err := b.Containers(ctx, n)
			if err != nil || len(containers) > 0 {
				return false
			}
		}
		return true
	})
}

func (b *bench) readyNodes(ctx context.Context) int {
	nodes, err := b.Nodes(ctx)
	if err != nil {
		return 0
	}
	ready := 0
	for _, n := range nodes {
		if n.Status.State == "ready" {
			ready++
		}
	}
	return ready
}

func (b *bench) untilRunning(ctx context.Context, service string, tasks int) error {
	err := b.until(ctx, func(ctx context.Context) bool {
		running, err := b.Running(ctx, service)
		return err == nil && len(running) == tasks
	})
	if err != nil {
		return fmt.Errorf("%d tasks of %s: %w", tasks, service, err)
	}
	return nil
}

func (b *bench) until(ctx context.Context, holds func(context.Context) bool) error {
	return b.untilEvery(ctx, lookEvery, holds)
}

func (b *bench) untilEvery(ctx context.Context, every time.Duration, holds func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !holds(ctx) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not true within %s", patience)
		case <-time.After(every):
		}
	}
	return nil
}

// quantile of measured times, 0 < q ≤ 1: the smallest value that a share of q does not exceed.
func quantile(times []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	at := int(float64(len(sorted))*q+0.999999) - 1
	return sorted[max(0, min(at, len(sorted)-1))]
}

func median(times []time.Duration) time.Duration { return quantile(times, 0.5) }
