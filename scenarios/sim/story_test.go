package sim

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStoriesSurvivePrintingAndReading(t *testing.T) {
	for seed := range uint64(200) {
		for _, size := range []Size{Small(), Large()} {
			story := Generate(seed, size)
			if again := Generate(seed, size); again.String() != story.String() {
				t.Fatalf("seed %d has two stories:\n%s\n%s", seed, story, again)
			}
			read, err := ParseStory(story.String())
			if err != nil || read.String() != story.String() || read.Config != story.Config {
				t.Fatalf("seed %d reads differently, %v:\n%s\n%s", seed, err, story, read)
			}
			for _, s := range story.Steps {
				if allVerbs()[s.Words[0]] == nil {
					t.Errorf("seed %d: nobody knows %q", seed, s.Text)
				}
			}
			if n := len(story.Steps); story.Steps[n-1].Text != "settle" && story.Steps[n-2].Text != "settle" {
				t.Errorf("seed %d is never judged:\n%s", seed, story)
			}
		}
	}
}

func TestStepsAreReadAsInOtherStories(t *testing.T) {
	story, err := ParseStory(`
labs: sim
sim: seed=9 latency=2ms
# why
* running web 3
*5s ready 2
! node demote n1 => 'last manager'
? service scale --detach web=5
image load < $HELLO
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Text: "* running web 3", Retry: retryMax, Words: []string{"running", "web", "3"}},
		{Text: "*5s ready 2", Retry: 5 * time.Second, Words: []string{"ready", "2"}},
		{Text: "! node demote n1 => 'last manager'", Fails: true, Words: []string{"node", "demote", "n1"}, Pattern: "last manager"},
		{Text: "? service scale --detach web=5", May: true, Words: []string{"service", "scale", "--detach", "web=5"}},
		{Text: "image load < $HELLO", Words: []string{"image", "load"}},
	}
	if !slices.EqualFunc(story.Steps, want, func(a, b Step) bool {
		return a.Text == b.Text && a.Retry == b.Retry && a.Fails == b.Fails && a.May == b.May && a.Pattern == b.Pattern && slices.Equal(a.Words, b.Words)
	}) {
		t.Errorf("got %+v", story.Steps)
	}
	if c := story.Config; c.Seed != 9 || c.Latency != 2*time.Millisecond {
		t.Errorf("got %+v", c)
	}
	for _, bad := range []string{"*soon ready 2", "*", "sim: speed=9", "sim: seed=x"} {
		if _, err := ParseStory(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestShrinkingKeepsWhatTheFaultNeeds(t *testing.T) {
	story, err := ParseStory("cluster 3+0\na\nb\nc\nd\ne\nf\ng\nh\nsettle")
	if err != nil {
		t.Fatal(err)
	}
	plays := 0
	small := shrink(story, 100, func(s *Story) bool {
		plays++
		return strings.Contains(s.String(), "\nc\n") && strings.Contains(s.String(), "\ng\n")
	})
	var texts []string
	for _, s := range small.Steps {
		texts = append(texts, s.Text)
	}
	if got := strings.Join(texts, " "); got != "cluster 3+0 c g settle" || plays > 40 {
		t.Errorf("got %q after %d plays", got, plays)
	}
	if same := shrink(story, 0, func(*Story) bool { return true }); len(same.Steps) != len(story.Steps) {
		t.Error("it played beyond its limit")
	}
}
