package task

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, got string) {
	t.Helper()
	path := filepath.Join("testdata", t.Name()+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

func TestNumbersGoThereAndBack(t *testing.T) {
	var b strings.Builder
	for _, s := range States() {
		n := Number(s)
		if back, ok := FromNumber(n); !ok || back != s {
			t.Errorf("FromNumber(%d) = %q, %v; want %q", n, back, ok, s)
		}
		fmt.Fprintf(&b, "%3d %s ended=%v desirable=%v\n", n, s, Ended(s), Desirable(s))
	}
	golden(t, b.String())
	if _, ok := FromNumber(65); ok {
		t.Error("65 names a state")
	}
}

func TestLegalSteps(t *testing.T) {
	var b strings.Builder
	name := func(s swarm.TaskState) string {
		if s == Absent {
			return "absent"
		}
		return string(s)
	}
	all := append([]swarm.TaskState{Absent}, States()...)
	for _, by := range []Actor{Orchestrator, Scheduler, Agent, Reaper} {
		for _, from := range all {
			var to []string
			for _, s := range all {
				if Legal(from, s, by) {
					to = append(to, name(s))
				}
			}
			if len(to) > 0 {
				fmt.Fprintf(&b, "%s: %s -> %s\n", by, name(from), strings.Join(to, " "))
			}
		}
	}
	golden(t, b.String())
}

func TestStatesNeverGoBack(t *testing.T) {
	for _, by := range []Actor{Orchestrator, Scheduler, Agent, Reaper} {
		for _, from := range States() {
			for _, to := range States() {
				if Legal(from, to, by) && Before(to, from) {
					t.Errorf("%s may go back from %s to %s", by, from, to)
				}
			}
		}
	}
}

func TestNextStep(t *testing.T) {
	var b strings.Builder
	for _, desired := range []swarm.TaskState{Unassigned, swarm.TaskStateReady, swarm.TaskStateRunning, swarm.TaskStateShutdown} {
		fmt.Fprintf(&b, "desired %q\n", desired)
		for _, c := range []Phase{NoContainer, Created, Running, Exited} {
			for _, image := range []bool{false, true} {
				fmt.Fprintf(&b, "  container %s, image %v:%s\n", c, image, stepsByState(desired, c, image))
			}
		}
	}
	golden(t, b.String())
}

// stepsByState writes one step for each run of states that have it.
func stepsByState(desired swarm.TaskState, c Phase, image bool) string {
	var b strings.Builder
	var last Step
	for _, s := range States()[2:] {
		step := Next(desired, Progress{State: s, Image: image, Container: c})
		if step != last {
			fmt.Fprintf(&b, " | %s:", step)
			last = step
		}
		fmt.Fprintf(&b, " %s", s)
	}
	return b.String()
}

// Whatever the start, taking the steps one after the other comes to rest within a few.
func TestNextComesToRest(t *testing.T) {
	for _, desired := range []swarm.TaskState{Unassigned, swarm.TaskStateReady, swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateRemove} {
		for _, c := range []Phase{NoContainer, Created, Running, Exited} {
			for _, s := range States() {
				p := Progress{State: s, Container: c}
				for n := 0; !atRest(take(desired, &p)); n++ {
					if n > 10 {
						t.Fatalf("desired %q from %s with container %s: still moving at %+v", desired, s, c, p)
					}
				}
			}
		}
	}
}

func atRest(s Step) bool { return s == Idle || s == Watch || s == Forget }

func take(desired swarm.TaskState, p *Progress) Step {
	step := Next(desired, *p)
	switch step {
	case Accept:
		p.State = swarm.TaskStateAccepted
	case PullImage:
		p.State, p.Image = swarm.TaskStatePreparing, true
	case Create:
		p.State, p.Container = swarm.TaskStateReady, Created
	case Start:
		p.State, p.Container = swarm.TaskStateRunning, Running
	case Finish:
		p.State = swarm.TaskStateComplete
	case Lose:
		p.State = swarm.TaskStateFailed
	case Stop:
		p.Container = Exited
		if !Ended(p.State) {
			p.State = swarm.TaskStateShutdown
		}
	case ReportShutdown:
		p.State = swarm.TaskStateShutdown
	case RemoveContainer:
		p.Container = NoContainer
	}
	return step
}

func TestNames(t *testing.T) {
	if got := Name("web", 3, "n1", "t1"); got != "web.3.t1" {
		t.Error(got)
	}
	if got := Name("web", 0, "n1", "t1"); got != "web.n1.t1" {
		t.Error(got)
	}
}
