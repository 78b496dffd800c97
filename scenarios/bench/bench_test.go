package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestQuantilesAreMeasuredValues(t *testing.T) {
	var times []time.Duration
	for i := 10; i >= 1; i-- {
		times = append(times, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0.5: 5, 0.9: 9, 1: 10, 0.01: 1} {
		if got := quantile(times, q); got != want {
			t.Errorf("quantile %.2f of 1…10 is %d, want %d", q, got, want)
		}
	}
	if got := median([]time.Duration{3, 1, 2}); got != 2 {
		t.Errorf("median is %d", got)
	}
}

func TestRowsTakeTheirNumbersFromBenchmarkOutput(t *testing.T) {
	got := &goResults{metrics: map[string]map[string]float64{}, broken: map[string]bool{"Broken": true}}
	parseMetrics([]byte(`goos: linux
BenchmarkCommits/managers=3/writers=256-2  	   20000	     61234 ns/op	     16330 commits/s	         0.712 of-fdatasync
BenchmarkView-16    	       1	    100 ns/op	   812.5 reads/s
BenchmarkSkipped
PASS
`), got.metrics)
	var tab table
	for _, r := range []goRow{
		{title: "commits", benchmark: "Commits/managers=3/writers=256", unit: "of-fdatasync", target: atLeast(0.5), also: []string{"commits/s"}},
		{title: "reads", benchmark: "View", unit: "reads/s", target: atLeast(20_000)},
		{title: "time", benchmark: "View", unit: "ns/op", target: atMost(100)},
		{title: "other unit", benchmark: "View", unit: "p50-ms", target: atMost(2)},
		{title: "broke", benchmark: "Broken", unit: "p50-ms", target: atMost(2)},
	} {
		tab.put(r.figure(got))
	}
	var out strings.Builder
	if err := tab.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `figure      measured                 target              verdict
commits     0.712 (16330 commits/s)  ≥ 0.5 of-fdatasync  met
reads       812                      ≥ 20000 reads/s     MISSED
time        100                      ≤ 100 ns/op         met
other unit                           ≤ 2 p50-ms          missing
broke                                ≤ 2 p50-ms          FAILED
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestABenchmarkIsChosenAlone(t *testing.T) {
	if got, want := benchPattern("Commits/writers=1"), "^BenchmarkCommits$/^writers=1$"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A renamed benchmark would only make its line say that it is missing.
func TestRowsNameBenchmarksThatExist(t *testing.T) {
	for _, r := range goRows() {
		files, err := filepath.Glob(filepath.Join("..", "..", r.pkg, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("tests of %s: %v", r.pkg, err)
		}
		name, _, _ := strings.Cut(r.benchmark, "/")
		if !slices.ContainsFunc(files, func(file string) bool {
			b, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(b), "\nfunc Benchmark"+name+"(")
		}) {
			t.Errorf("%s has no benchmark %s", r.pkg, name)
		}
	}
}
