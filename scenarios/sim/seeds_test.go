package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The environment of make sim.
const (
	envSeed    = "SIM_SEED"    // the one seed to play, or the first of several
	envSeeds   = "SIM_SEEDS"   // how many
	envMinutes = "SIM_MINUTES" // … or for how long
	envStep    = "SIM_STEP"    // from one seed to the next: as many as there are processes
	envSize    = "SIM_SIZE"    // small, large or both
	envStory   = "SIM_STORY"   // a file to play instead
	envShrink  = "SIM_SHRINK"  // how often a story that failed may be played again to find a shorter one
	envKeep    = "SIM_KEEP"    // a folder for the reports of stories that failed
	envPatient = "SIM_SEED_SECONDS"
)

func setting(t *testing.T, name string, otherwise float64) float64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// heapMax is what may be left on the heap after all stories, in bytes.
const heapMax = 256 << 20

// historyMax is the real time that judging one object of a history may take.
const historyMax = 20 * time.Second

// seedMax is the real time that one story may take: one that takes longer has stopped virtual time.
const seedMax = 4 * time.Minute

// playStory in a bubble of its own, with its history judged; the report is empty if nothing was wrong.
func playStory(t *testing.T, story *Story) (o *Outcome, report string) {
	return playWith(t, story, nil)
}

func playWith(t *testing.T, story *Story, tamper func(*player)) (o *Outcome, report string) {
	dir, err := scratch()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	stuck := time.AfterFunc(seedLimit(t), func() {
		stacks := make([]byte, 16<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		fmt.Fprintf(os.Stderr, "virtual time stands still in this story:\n%s\n%s\n", story, stacks)
		os.Exit(2)
	})
	defer stuck.Stop()
	synctest.Test(t, func(t *testing.T) { o = play(story, dir, tamper) })
	wrong := o.Err
	if wrong == nil && o.load != nil {
		wrong = o.load.recorder.Check(historyMax)
	}
	if wrong == nil {
		return o, ""
	}
	report = fmt.Sprintf("%v\n\nreplay it with this story:\n\n%s\ntimes:\n", wrong, story)
	for _, s := range o.Steps {
		report += s + "\n"
	}
	return o, report + "\n" + o.Diaries
}

// TestSeeds plays random stories: a hundred of small clusters as part of all tests, as many as there is time in make sim.
func TestSeeds(t *testing.T) {
	if os.Getenv(envSeed)+os.Getenv(envSeeds)+os.Getenv(envMinutes) == "" {
		t.Skip("make sim plays random stories; SIM_SEEDS=100 here does")
	}
	first, step := uint64(setting(t, envSeed, 1)), uint64(setting(t, envStep, 1))
	many := int(setting(t, envSeeds, 1<<30))
	until := time.Now().Add(time.Duration(setting(t, envMinutes, 1<<20) * float64(time.Minute)))
	if os.Getenv(envSeeds)+os.Getenv(envMinutes) == "" {
		many = 1
	}
	began, virtual, played, wrong := time.Now(), time.Duration(0), 0, 0
	for n := 0; n < many && time.Now().Before(until); n++ {
		seed := first + uint64(n)*step
		size := Small()
		if s := os.Getenv(envSize); s == "large" || s == "both" && seed%8 == 0 {
			size = Large()
		}
		story := Generate(seed, size)
		beganSeed := time.Now()
		fmt.Printf("seed %d begins: %s\n", seed, story.Steps[0].Text)
		o, report := playStory(t, story)
		played++
		virtual += o.Elapsed
		fmt.Printf("seed %d: %.0f s virtual, %.1f s real, %+v\n", seed, o.Elapsed.Seconds(), time.Since(beganSeed).Seconds(), o.Looks)
		if report != "" {
			wrong++
			t.Errorf("seed %d: %s", seed, report)
			if tries := int(setting(t, envShrink, 0)); tries > 0 {
				small := shrink(story, tries, func(s *Story) bool { _, r := playStory(t, s); return r != "" })
				t.Logf("seed %d fails also as:\n%s", seed, small)
			}
			if path := os.Getenv(envKeep); path != "" {
				_ = os.WriteFile(fmt.Sprintf("%s/seed-%d.txt", path, seed), []byte(report), 0o644)
			}
		}
	}
	minutes := time.Since(began).Minutes()
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	fmt.Printf("%d seeds, %.2f virtual hours per minute, %d violations, heap %d MB\n", played, virtual.Hours()/minutes, wrong, memory.HeapAlloc>>20)
	if memory.HeapAlloc > heapMax {
		t.Errorf("%d MB are left on the heap when every cluster is gone", memory.HeapAlloc>>20)
	}
}

// TestStory plays a file.
func TestStory(t *testing.T) {
	path := os.Getenv(envStory)
	if path == "" {
		t.Skip("make sim STORY=file plays a story")
	}
	story, err := ReadStory(path)
	if err != nil {
		t.Fatal(err)
	}
	o, report := playStory(t, story)
	for _, s := range o.Steps {
		fmt.Println(s)
	}
	if report != "" {
		t.Error(report)
	}
}

// seedLimit may be set, as with the race detector everything takes longer.
func seedLimit(t *testing.T) time.Duration {
	return time.Duration(setting(t, envPatient, seedMax.Seconds()) * float64(time.Second))
}

// TestStories plays the stories of faults that were found and mended.
func TestStories(t *testing.T) {
	paths, err := filepath.Glob("stories/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			story, err := ReadStory(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, report := playStory(t, story); report != "" {
				t.Error(report)
			}
		})
	}
}
