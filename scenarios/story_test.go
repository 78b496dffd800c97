package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"swarm/scenarios/lab"

	"github.com/moby/moby/api/types/swarm"
)

// show renders a parsed step: flags, words (literal ones in <>), then pattern and input.
func show(s step) string {
	var b strings.Builder
	if s.fails {
		b.WriteString("fails ")
	}
	if s.retry > 0 {
		fmt.Fprintf(&b, "within %s ", s.retry)
	}
	for _, w := range s.words {
		if w.literal {
			fmt.Fprintf(&b, "<%s>", w.text)
		} else {
			fmt.Fprintf(&b, "[%s]", w.text)
		}
	}
	if s.pattern != nil {
		fmt.Fprintf(&b, " absent=%v /%s/", s.absent, s.pattern.text)
	}
	if s.stdin != nil {
		fmt.Fprintf(&b, " from %s", s.stdin.text)
	}
	return b.String()
}

func TestStepsAreParsed(t *testing.T) {
	for line, want := range map[string]string{
		`service create --name web hello`: `[service][create][--name][web][hello]`,
		`* running web 6`:                 `within 1m0s [running][web][6]`,
		`*5s running web 6`:               `within 5s [running][web][6]`,
		`! join n1`:                       `fails [join][n1]`,
		`* ! join n1`:                     `fails within 1m0s [join][n1]`,
		`! * join n1`:                     `fails within 1m0s [join][n1]`,
		`node ls => 'n3 +Down'`:           `[node][ls] absent=false /n3 +Down/`,
		`node ls !=> Down`:                `[node][ls] absent=true /Down/`,
		`image load < $HELLO`:             `[image][load] from $HELLO`,
		`a "b c" '$d e'`:                  `[a][b c]<$d e>`,
		`partition n1 | n2 n3`:            `[partition][n1][|][n2][n3]`,
	} {
		got, err := parseStep(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if show(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", line, show(got), want)
		}
	}
}

func TestWrongStoriesAreRefusedWithTheirLine(t *testing.T) {
	for story, want := range map[string]string{
		"service ls":                        "labs",
		"labs: netns\n":                     "at least one step",
		"labs: netns\nnode ls => a b":       "line 2: want exactly one word after =>",
		"labs: netns\n\necho 'a":            "line 3: quote ' is not closed",
		"labs: netns\n*5 running web 1":     "line 2: limit after *",
		"labs: netns\n! => x":               "line 2: no verb",
		"labs: netns\nimage load < a b":     "line 2: want exactly one word after <",
		"labs: netns\nservice ls => a => b": "line 2: want exactly one word after =>",
	} {
		if _, err := parseStory("x", []byte(story)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", story, err, want)
		}
	}
}

// tellerOf verbs that need no lab.
func tellerOf(verbs map[string]verb) *teller {
	return &teller{World: NewWorld(new(lab.Lab), ""), settings: Settings{Slowness: 1, Log: new(bytes.Buffer)}, variables: map[string]string{}, verbs: verbs}
}

func TestStepsAreJudged(t *testing.T) {
	tries := 0
	teller := tellerOf(map[string]verb{
		"echo": func(_ *teller, _ context.Context, args []string) (string, error) { return strings.Join(args, " "), nil },
		"fail": func(_ *teller, _ context.Context, args []string) (string, error) {
			return "said so", errors.New(strings.Join(args, " "))
		},
		"third": func(*teller, context.Context, []string) (string, error) {
			if tries++; tries < 3 {
				return "", errors.New("not yet")
			}
			return "", nil
		},
		"set": set,
	})
	for _, c := range []struct{ line, want string }{
		{"echo a => a", ""},
		{"echo a => b", "must match"},
		{"echo a !=> a", "must not match"},
		{"! echo a", "must fail"},
		{"fail why", "why"},
		{"! fail why => why", ""},
		{"! fail why => so", ""},
		{"! fail why => else", "must match"},
		{"* third", ""},
		{"*1ms fail why", "not true within 1ms: why"},
		{"set x echo a b", ""},
		{"echo ${x}c => '^a bc$'", ""},
		{"echo '$x' => '^[$]x$'", ""},
	} {
		s, err := parseStep(c.line)
		if err != nil {
			t.Fatal(err)
		}
		err = teller.do(t.Context(), s)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.line, err, c.want)
		}
	}
}

func TestEveryStoryParses(t *testing.T) { readStories(t) }

func TestTaskStatesMayOnlyGoForward(t *testing.T) {
	for _, c := range []struct {
		before, now swarm.TaskState
		may         bool
	}{
		{"", "running", true},
		{"new", "assigned", true},
		{"running", "running", true},
		{"running", "failed", true},
		{"pending", "rejected", true},
		{"running", "starting", false},
		{"failed", "complete", false},
		{"shutdown", "running", false},
		{"shutdown", "orphaned", true},
	} {
		if got := mayFollow(c.before, c.now); got != c.may {
			t.Errorf("%s to %s: got %v", c.before, c.now, got)
		}
	}
}

func TestRestartsWithoutPauseAreNoticed(t *testing.T) {
	tasks := func(pause time.Duration) []swarm.Task {
		var all []swarm.Task
		for i := range 10 {
			task := swarm.Task{ID: fmt.Sprint(i), ServiceID: "s", Slot: 1}
			task.CreatedAt = time.Unix(0, 0).Add(time.Duration(i) * pause)
			all = append(all, task)
		}
		return all
	}
	for pause, storms := range map[time.Duration]bool{time.Second: false, 20 * time.Millisecond: true} {
		w := &watch{seen: map[string]swarm.TaskState{}, born: map[string][]time.Time{}}
		w.look(tasks(pause))
		if (len(w.wrong) > 0) != storms {
			t.Errorf("tasks every %s: %v", pause, w.wrong)
		}
	}
}

func TestTwoRunningTasksInOneSlotAreNoticed(t *testing.T) {
	replicated := swarm.Service{ID: "s", Spec: swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}}}
	task := func(id string, slot int) swarm.Task {
		return swarm.Task{ID: id, ServiceID: "s", Slot: slot, DesiredState: "running", Status: swarm.TaskStatus{State: "running"}}
	}
	if err := oneTaskPerSlot([]swarm.Service{replicated}, []swarm.Task{task("a", 1), task("b", 2)}); err != nil {
		t.Error(err)
	}
	if err := oneTaskPerSlot([]swarm.Service{replicated}, []swarm.Task{task("a", 1), task("b", 1)}); err == nil {
		t.Error("two tasks in slot 1 went unnoticed")
	}
	if err := oneTaskPerSlot(nil, []swarm.Task{task("a", 1)}); err == nil {
		t.Error("a task without service went unnoticed")
	}
}

func TestHolesInLogsAreFound(t *testing.T) {
	if hole := firstHole([]string{"line 1", "line 2"}); hole != "" {
		t.Error(hole)
	}
	if hole := firstHole([]string{"line 1", "line 3"}); !strings.Contains(hole, `"line 2"`) {
		t.Error(hole)
	}
}
