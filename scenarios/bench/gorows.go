package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// benchMax bounds all benchmarks of one package together.
	benchMax = 15 * time.Minute
	// benchTime is how long one benchmark runs unless its row says otherwise.
	benchTime = "1s"
)

// goRow is a line of the table whose number comes from a Go benchmark: one that calls b.ReportMetric(value, unit).
// Benchmarks report ratios against a physical limit that they measure themselves, so that the machine matters less.
type goRow struct {
	title string
	// pkg is the package's folder; benchmark its name without "Benchmark", with "/" before each sub-benchmark.
	pkg, benchmark string
	// unit is the metric that is judged, also are further ones to be shown.
	unit   string
	target bound
	also   []string
	// time is for -test.benchtime ("" means benchTime); rows of one benchmark share the first one's.
	time string
}

// bound is what a metric is promised to be.
type bound struct {
	least bool
	value float64
}

func atLeast(value float64) bound { return bound{true, value} }
func atMost(value float64) bound  { return bound{false, value} }

func (b bound) holds(value float64) bool {
	if b.least {
		return value >= b.value
	}
	return value <= b.value
}

func (b bound) String() string {
	sign := "≤ "
	if b.least {
		sign = "≥ "
	}
	return sign + number(b.value)
}

// goRows are the figures that need no machines: the control plane alone.
func goRows() []goRow {
	return []goRow{
		{title: "commits, 3 managers, 256 writers, over bare fdatasync", pkg: "raftstore", benchmark: "Commits/managers=3/writers=256", unit: "of-fdatasync", target: atLeast(0.5), also: []string{"commits/s"}, time: "2s"},
		{title: "commits, 1 manager, 1 writer, over bare fdatasync", pkg: "raftstore", benchmark: "Commits/managers=1/writers=1", unit: "of-fdatasync", target: atLeast(0.2), also: []string{"commits/s"}, time: "2s"},
		{title: "commits sealed over unsealed", pkg: "raftstore", benchmark: "Sealing", unit: "of-unsealed", target: atLeast(0.9), time: "2s"},
		{title: "linearizable reads, 64 readers on a follower", pkg: "raftstore", benchmark: "View/readers=64", unit: "reads/s", target: atLeast(20_000), time: "2s"},
		{title: "memory per task at 1,000,000 tasks", pkg: "raftstore", benchmark: "MillionTasks", unit: "B/task", target: atMost(1024), time: "1x"},
		{title: "snapshot of 1,000,000 tasks", pkg: "raftstore", benchmark: "MillionTasks", unit: "snapshot-s", target: atMost(20)},
		{title: "restore of 1,000,000 tasks", pkg: "raftstore", benchmark: "MillionTasks", unit: "restore-s", target: atMost(20)},
		{title: "longest pause of commits meanwhile", pkg: "raftstore", benchmark: "MillionTasks", unit: "pause-ms", target: atMost(100)},
		{title: "change to assignment at the agent, idle, median", pkg: "service/dispatcher", benchmark: "Dispatch/idle", unit: "p50-ms", target: atMost(2), also: []string{"p99-ms"}},
		{title: "the same at 2,000 changes/s, p99", pkg: "service/dispatcher", benchmark: "Dispatch/busy", unit: "p99-ms", target: atMost(25), also: []string{"changes/s"}},
		{title: "1,000 agents join one manager", pkg: "service/dispatcher", benchmark: "ThousandAgents", unit: "join-s", target: atMost(3), also: []string{"cpu-us/join"}, time: "1x"},
		{title: "their assignments through the store", pkg: "service/dispatcher", benchmark: "ThousandAgents", unit: "assignments/s", target: atLeast(10_000), also: []string{"cpu-us/assignment"}},
		{title: "memory per agent session", pkg: "service/dispatcher", benchmark: "ThousandAgents", unit: "KB/session", target: atMost(80)},
		{title: "a beat of an agent, taken and answered: CPU time", pkg: "service/dispatcher", benchmark: "ThousandAgents", unit: "cpu-us/beat", target: atMost(100)},
		{title: "10,000 nodes, 500,000 tasks: placed, committed, delivered", pkg: "service/dispatcher", benchmark: "Scale/nodes=10000/services=500/tasks=500000/statuses=false", unit: "tasks/s", target: atLeast(5_000), also: []string{"cpu-us/task"}, time: "1x"},
		{title: "list of 320 services rendered", pkg: "api", benchmark: "ServiceList", unit: "lists/s", target: atLeast(4_000)},
	}
}

// goFigures runs the benchmarks of rows, one package after the other, and adds a line for each row.
// A benchmark that is not there makes its line say so; a broken one is the error, after all others have run.
func goFigures(ctx context.Context, bin string, rows []goRow, t *table) error {
	results := map[string]*goResults{}
	var broken []string
	for _, r := range rows {
		got := results[r.pkg]
		if got == nil {
			got = measurePackage(ctx, bin, r.pkg, rows)
			results[r.pkg] = got
		}
		f := r.figure(got)
		t.put(f)
		if f.verdict == failed && !slices.Contains(broken, r.pkg) {
			broken = append(broken, r.pkg)
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("benchmarks broke in %s; their output is above", strings.Join(broken, ", "))
	}
	return ctx.Err()
}

// goResults are the metrics of one package: benchmark, then unit.
type goResults struct {
	metrics map[string]map[string]float64
	// broken are benchmarks that exist and did not get to their end.
	broken map[string]bool
}

func (r goRow) figure(got *goResults) figure {
	f := figure{name: r.title, target: r.target.String() + " " + r.unit}
	value, ok := got.metrics[r.benchmark][r.unit]
	switch {
	case got.broken[r.benchmark]:
		f.verdict = failed
	case !ok:
		f.verdict = missing
	default:
		f.verdict = judged(r.target.holds(value))
		f.measured = number(value)
		for _, unit := range r.also {
			if more, ok := got.metrics[r.benchmark][unit]; ok {
				f.measured += fmt.Sprintf(" (%s %s)", number(more), unit)
			}
		}
	}
	return f
}

// number with as many digits as one reads.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// measurePackage compiles a package's tests and runs each wanted benchmark in a process of its own, so that none inherits another's heap.
func measurePackage(ctx context.Context, bin, pkg string, rows []goRow) *goResults {
	ctx, cancel := context.WithTimeout(ctx, benchMax)
	defer cancel()
	got := &goResults{metrics: map[string]map[string]float64{}, broken: map[string]bool{}}
	program := filepath.Join(bin, strings.ReplaceAll(pkg, "/", "-")+".test")
	out, compileErr := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./"+pkg).CombinedOutput()
	if compileErr != nil {
		fmt.Fprintf(os.Stderr, "compile the tests of %s: %v\n%s\n", pkg, compileErr, out)
	}
	done := map[string]bool{}
	for _, r := range rows {
		if r.pkg != pkg || done[r.benchmark] {
			continue
		}
		done[r.benchmark] = true
		if compileErr != nil {
			got.broken[r.benchmark] = true
			continue
		}
		out, err := runBenchmark(ctx, program, r)
		if err != nil {
			got.broken[r.benchmark] = true
			fmt.Fprintf(os.Stderr, "%s, benchmark %s: %v\n%s\n", pkg, r.benchmark, err, out)
			continue
		}
		parseMetrics(out, got.metrics)
	}
	return got
}

func runBenchmark(ctx context.Context, program string, r goRow) ([]byte, error) {
	fmt.Fprintf(os.Stderr, "(%s: %s)\n", r.pkg, r.benchmark)
	runs := r.time
	if runs == "" {
		runs = benchTime
	}
	cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", benchPattern(r.benchmark), "-test.benchtime", runs, "-test.timeout", benchMax.String())
	cmd.Dir = r.pkg // as go test does
	return cmd.CombinedOutput()
}

// benchPattern matches one benchmark and nothing else.
func benchPattern(name string) string {
	parts := strings.Split("Benchmark"+name, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	return strings.Join(parts, "/")
}

// parseMetrics reads lines such as "BenchmarkX/y-2  100  12.5 ns/op  0.71 of-fdatasync".
func parseMetrics(out []byte, into map[string]map[string]float64) {
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		if len(fields) < 4 {
			continue
		}
		name, ok := strings.CutPrefix(fields[0], "Benchmark")
		if !ok {
			continue
		}
		// The number of processors follows the name, unless it is one.
		if dash := strings.LastIndexByte(name, '-'); dash > 0 && strings.Trim(name[dash+1:], "0123456789") == "" {
			name = name[:dash]
		}
		metrics := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if value, err := strconv.ParseFloat(fields[i], 64); err == nil {
				metrics[fields[i+1]] = value
			}
		}
		into[name] = metrics
	}
}
