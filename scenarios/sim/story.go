package sim

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// Story is what happens in one simulation, in the language of scenarios/stories (its verbs that make sense here, see verbs.go), with
//
//	labs: sim
//	sim: seed=7 latency=1ms jitter=1ms snapshots=200    (a header, all optional)
//	? service scale web=5      what fails may fail: a command in the midst of faults
//	wait 1.5s                  virtual time
//
// The same story with the same seed has the same faults at the same times; how goroutines take turns is not repeated.
type Story struct {
	Config Settings
	Steps  []Step
}

// Settings are the header.
type Settings struct {
	Seed            uint64
	Latency, Jitter time.Duration
	Snapshots       uint64
}

// Step is one line.
type Step struct {
	Text    string
	Fails   bool          // !
	May     bool          // ?
	Retry   time.Duration // *; 0: once
	Words   []string
	Pattern string // after =>
}

// retryMax is how long a step marked * is tried.
const retryMax = time.Minute

// ReadStory reads a *.txtar file.
func ReadStory(path string) (*Story, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseStory(string(txtar.Parse(content).Comment))
}

// ParseStory reads a story's text.
func ParseStory(text string) (*Story, error) {
	s := &Story{Config: Settings{Latency: time.Millisecond, Jitter: time.Millisecond, Snapshots: 200}}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "#"), strings.HasPrefix(line, "labs:"):
			continue
		case strings.HasPrefix(line, "sim:"):
			if err := s.Config.read(strings.TrimPrefix(line, "sim:")); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			continue
		}
		step, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", i+1, line, err)
		}
		s.Steps = append(s.Steps, step)
	}
	return s, nil
}

func (s *Settings) read(line string) (err error) {
	for _, setting := range strings.Fields(line) {
		key, value, _ := strings.Cut(setting, "=")
		switch key {
		case "seed":
			_, err = fmt.Sscan(value, &s.Seed)
		case "latency":
			s.Latency, err = time.ParseDuration(value)
		case "jitter":
			s.Jitter, err = time.ParseDuration(value)
		case "snapshots":
			_, err = fmt.Sscan(value, &s.Snapshots)
		default:
			err = fmt.Errorf("unknown setting %q", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func parseStep(line string) (Step, error) {
	s := Step{Text: line}
	rest := line
	for more := true; more; {
		first, tail, _ := strings.Cut(rest, " ")
		switch {
		case first == "!":
			s.Fails = true
		case first == "?":
			s.May = true
		case first == "*":
			s.Retry = retryMax
		case strings.HasPrefix(first, "*"):
			limit, err := time.ParseDuration(first[1:])
			if err != nil {
				return s, err
			}
			s.Retry = limit
		default:
			more = false
			continue
		}
		rest = strings.TrimSpace(tail)
	}
	if command, pattern, ok := strings.Cut(rest, " => "); ok {
		rest, s.Pattern = command, strings.Trim(strings.TrimSpace(pattern), `'"`)
	}
	rest, _, _ = strings.Cut(rest, " < ") // image load < $HELLO
	s.Words = strings.Fields(rest)
	if len(s.Words) == 0 {
		return s, fmt.Errorf("no verb")
	}
	return s, nil
}

// String is the story as a file.
func (s *Story) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "labs: sim\nsim: seed=%d latency=%s jitter=%s snapshots=%d\n", s.Config.Seed, s.Config.Latency, s.Config.Jitter, s.Config.Snapshots)
	for _, step := range s.Steps {
		b.WriteString(step.Text + "\n")
	}
	return b.String()
}
