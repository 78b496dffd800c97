package scenarios

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"swarm/scenarios/lab"
)

// labPrefix begins the name of every lab that a story runs in; a letter of this run and a number follow.
const labPrefix = "s"

// TestStories tells every story under stories/. SWARM_SLOWNESS multiplies all limits on a slow machine;
// SWARM_BIN is another folder of programs.
func TestStories(t *testing.T) {
	if os.Getenv("SWARM_STORIES") != "1" {
		t.Skip("runs the real binary in network namespaces: make scenarios, as root (SWARM_STORIES=1)")
	}
	settings := Settings{BinDir: "../bin", Slowness: slowness(t)}
	if dir := os.Getenv("SWARM_BIN"); dir != "" {
		settings.BinDir = dir
	}
	settings.BinDir, _ = filepath.Abs(settings.BinDir)
	if err := lab.Sweep(labPrefix); err != nil {
		t.Fatalf("clean up after an earlier run: %v", err)
	}
	prefix, lock, err := lab.Reserve(labPrefix)
	if err != nil {
		t.Fatal(err)
	}
	settings.Prefix = prefix
	t.Cleanup(func() {
		defer lock.Close()
		if left := lab.Leftovers(prefix); left != nil {
			t.Errorf("the stories left behind:\n%s", strings.Join(left, "\n"))
		}
	})
	for _, story := range readStories(t) {
		t.Run(story.Name, func(t *testing.T) {
			if !slices.Contains(story.Labs, "netns") {
				t.Skipf("for labs %v only", story.Labs)
			}
			t.Parallel()
			settings := settings
			settings.Log = t.Output()
			settings.KeepDir = filepath.Join(settings.BinDir, "failed")
			if err := Tell(t.Context(), story, settings); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func readStories(t *testing.T) []*Story {
	paths, _ := filepath.Glob("stories/*.txtar")
	if len(paths) == 0 {
		t.Fatal("no stories")
	}
	var stories []*Story
	for _, path := range paths {
		story, err := ReadStory(path)
		if err != nil {
			t.Fatal(err)
		}
		stories = append(stories, story)
	}
	return stories
}

func slowness(t *testing.T) float64 {
	text := os.Getenv("SWARM_SLOWNESS")
	if text == "" {
		return 1
	}
	factor, err := strconv.ParseFloat(text, 64)
	if err != nil || factor < 1 {
		t.Fatalf("SWARM_SLOWNESS=%q: want a number of at least 1", text)
	}
	return factor
}
