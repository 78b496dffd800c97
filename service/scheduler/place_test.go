package scheduler

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write golden files")

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestPlacement runs testdata/place.txt: each paragraph is a cluster, what is placed on it and (indented) where it went.
func TestPlacement(t *testing.T) {
	const file = "testdata/place.txt"
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, story := range strings.Split(strings.TrimSpace(string(golden)), "\n\n") {
		nodes := NewNodes()
		var lines []string
		for line := range strings.Lines(story) {
			if strings.HasPrefix(line, "  ") {
				continue
			}
			line = strings.TrimRight(line, "\n")
			lines = append(lines, line)
			if answer := run(t, nodes, line); answer != "" {
				lines = append(lines, "  "+answer)
			}
		}
		out = append(out, strings.Join(lines, "\n"))
	}
	got := strings.Join(out, "\n\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(golden) {
		t.Errorf("placement changed; run with -update and read the diff.\ngot:\n%s", got)
	}
}

func run(t *testing.T, nodes *Nodes, line string) string {
	t.Helper()
	words := strings.Fields(line)
	switch {
	case words[0] == "#":
		return ""
	case words[0] == "node":
		nodes.Put(parseNode(t, words[1], words[2:]))
		return ""
	case words[0] == "place":
		count, _ := strconv.Atoi(words[2])
		ids, reason := nodes.Place(parseGroup(t, words[1], words[3:]), count, now)
		return strings.TrimSpace(strings.Join(ids, " ") + "  " + reason)
	case words[0] == "on":
		if reason := nodes.PlaceOn(parseGroup(t, words[2], words[3:]), words[1]); reason != "" {
			return reason
		}
		return words[1]
	}
	t.Fatalf("unknown line %q", line)
	return ""
}

func parseNode(t *testing.T, id string, words []string) Node {
	n := Node{Open: true, NanoCPUs: 4e9, MemoryBytes: 1 << 30}
	n.ID, n.Hostname, n.Platform = id, id, swarm.Platform{OS: "linux", Architecture: "x86_64"}
	n.Labels = map[string]string{}
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		count, _ := strconv.Atoi(value)
		switch key {
		case "closed":
			n.Open = false
		case "cpu":
			n.NanoCPUs = int64(count) * 1e9
		case "arch":
			n.Platform.Architecture = value
		case "failed":
			for i := range count {
				n.Fail(Version{"web", 1}, now.Add(-time.Duration(i)*time.Second))
			}
		case "long-failed":
			for range count {
				n.Fail(Version{"web", 1}, now.Add(-time.Hour))
			}
		case "runs":
			for _, service := range strings.Split(value, ",") {
				n.Add(service, 0, 0, true)
			}
		default:
			n.Labels[key] = value
		}
	}
	return n
}

func parseGroup(t *testing.T, service string, words []string) *Group {
	task := swarm.TaskSpec{Placement: &swarm.Placement{}, Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{}}}
	for _, w := range words {
		if strings.Contains(w, "==") || strings.Contains(w, "!=") {
			task.Placement.Constraints = append(task.Placement.Constraints, w)
			continue
		}
		key, value, _ := strings.Cut(w, "=")
		count, _ := strconv.Atoi(value)
		switch key {
		case "cpu":
			task.Resources.Reservations.NanoCPUs = int64(count) * 1e9
		case "max":
			task.Placement.MaxReplicas = uint64(count)
		case "arch":
			task.Placement.Platforms = []swarm.Platform{{OS: "linux", Architecture: value}}
		case "spread":
			task.Placement.Preferences = append(task.Placement.Preferences,
				swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels." + value}})
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	return NewGroup(Version{service, 1}, task)
}

// TestPlacementNeverBreaksItsRules places random groups on random clusters.
func TestPlacementNeverBreaksItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := NewNodes()
		for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
			n := Node{Open: rapid.Bool().Draw(t, "open"), NanoCPUs: rapid.Int64Range(0, 4).Draw(t, "cpu")}
			n.ID = fmt.Sprint("n", i)
			n.Labels = map[string]string{"zone": rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "zone")}
			nodes.Put(n)
		}
		max := rapid.IntRange(0, 3).Draw(t, "max")
		spec := swarm.TaskSpec{
			Placement: &swarm.Placement{MaxReplicas: uint64(max)},
			Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: rapid.Int64Range(0, 2).Draw(t, "reserve")}},
		}
		constrained := rapid.Bool().Draw(t, "constrained")
		if constrained {
			spec.Placement.Constraints = []string{"node.labels.zone==a"}
		}
		if rapid.Bool().Draw(t, "spread") {
			spec.Placement.Preferences = []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}
		}
		g := NewGroup(Version{"web", 1}, spec)
		count := rapid.IntRange(1, 30).Draw(t, "count")
		ids, reason := nodes.Place(g, count, now)
		if (len(ids) < count) != (reason != "") {
			t.Fatalf("%d of %d placed, reason %q", len(ids), count, reason)
		}
		for id, n := range nodes.byID {
			used := n.Services["web"] > 0
			if used && (!n.Open || constrained && n.Labels["zone"] != "a") || n.ReservedNanoCPUs > n.NanoCPUs || max > 0 && n.Services["web"] > max {
				t.Fatalf("%s: %+v", id, n)
			}
			if len(ids) < count && g.check(n) == fits {
				t.Fatalf("%s still has room", id)
			}
		}
	})
}

// One task at a time, for which no heap is made, goes where it would have gone among others.
func TestTasksGoToTheSameNodesOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		together, single := NewNodes(), NewNodes()
		for i := range rapid.IntRange(0, 8).Draw(t, "nodes") {
			n := Node{Open: rapid.Bool().Draw(t, "open"), NanoCPUs: rapid.Int64Range(0, 4).Draw(t, "cpu")}
			n.ID = fmt.Sprint("n", i)
			for range rapid.IntRange(0, 3).Draw(t, "tasks") {
				n.Add(rapid.SampledFrom([]string{"web", "db"}).Draw(t, "service"), 0, 0, true)
			}
			for range rapid.SampledFrom([]int{0, 0, failuresMax, failuresMax + 1}).Draw(t, "failures") {
				n.Fail(Version{"web", 1}, now)
			}
			together.Put(n)
			single.Put(n)
		}
		g := NewGroup(Version{"web", 1}, swarm.TaskSpec{
			Placement: &swarm.Placement{MaxReplicas: uint64(rapid.IntRange(0, 3).Draw(t, "max"))},
			Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: rapid.Int64Range(0, 2).Draw(t, "reserve")}},
		})
		count := rapid.IntRange(2, 12).Draw(t, "count")
		want, wantReason := together.Place(g, count, now)
		var got []string
		reason := ""
		for range count {
			var id []string
			if id, reason = single.Place(g, 1, now); reason != "" {
				break
			}
			got = append(got, id...)
		}
		if !slices.Equal(got, want) || reason != wantReason {
			t.Fatalf("one by one %v %q, together %v %q", got, reason, want, wantReason)
		}
	})
}

func TestPutTellsWhatARememberedNodeGained(t *testing.T) {
	nodes := NewNodes()
	node := func(words string) Node { return parseNode(t, "n1", strings.Fields(words)) }
	for _, c := range []struct {
		node string
		want Change
	}{
		{"", Change{Facts: true, Room: true}},
		{"", Change{}},
		{"runs=web", Change{}},
		{"runs=db", Change{Room: true}},
		{"zone=a runs=db", Change{Facts: true, Room: true}},
		{"zone=a closed runs=db", Change{Facts: true}},
		{"zone=a closed", Change{}},
	} {
		if got := nodes.Put(node(c.node)); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.node, got, c.want)
		}
	}
}

// BenchmarkPlace places services of 100 tasks with a constraint and reservations.
func BenchmarkPlace(b *testing.B) {
	for _, size := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(size, " nodes"), func(b *testing.B) {
			nodes := NewNodes()
			for i := range size {
				n := Node{Open: true, NanoCPUs: 1 << 60, MemoryBytes: 1 << 60}
				n.ID, n.Labels = fmt.Sprint("n", i), map[string]string{"zone": fmt.Sprint(i % 3)}
				nodes.Put(n)
			}
			task := swarm.TaskSpec{
				Placement: &swarm.Placement{Constraints: []string{"node.labels.zone!=1"}},
				Resources: &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e6, MemoryBytes: 1 << 20}},
			}
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				nodes.Place(NewGroup(Version{fmt.Sprint(i % 10_000), 1}, task), 100, now)
			}
			b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
