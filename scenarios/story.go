package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// patience is how long a step marked * is tried, and a plain step may take, unless the story says otherwise.
const patience = 60 * time.Second

// Story is one script. Its language, one step per line:
//
//	labs: netns                    where it can run (first lines, KEY: VALUE)
//	# why                          comment
//	service create --name web hello    unknown verbs are command lines for a manager
//	on n2 info                     … or for the node named
//	* running web 6                try again until true, for a minute
//	*5s running web 6              … for five seconds
//	! join --token x n1            must fail
//	node ls => 'n3 +Down'          output (or, of a failure, the message) must match
//	node ls !=> Down               … must not match
//	image load < $HELLO            standard input from a file
//	set token join-token -q worker keep the output for later: $token
//	node demote $leader            names that change: $leader, $follower; $n1 is the address of n1
//
// Words are split at blanks; "…" keeps blanks, '…' also keeps $. Verbs are listed in verbs.go. Files of the txtar archive are
// unpacked into $WORK.
type Story struct {
	Name  string
	Labs  []string
	files []txtar.File
	steps []step
}

type step struct {
	line    int
	text    string
	fails   bool          // !
	retry   time.Duration // *; 0: once
	words   []word
	pattern *word // after => or !=>
	absent  bool  // !=>
	stdin   *word // after <
}

// word may still hold variables.
type word struct {
	text    string
	literal bool
}

var stepStart = regexp.MustCompile(`^(!\s+)?(\*(\S*)\s+)?(!\s+)?(.*)$`)

// ReadStory parses a *.txtar file.
func ReadStory(path string) (*Story, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(filepath.Base(path), ".txtar")
	story, err := parseStory(name, content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return story, nil
}

func parseStory(name string, content []byte) (*Story, error) {
	archive := txtar.Parse(content)
	s := &Story{Name: name, files: archive.Files}
	for i, line := range strings.Split(string(archive.Comment), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if labs, ok := strings.CutPrefix(line, "labs:"); ok && len(s.steps) == 0 {
			s.Labs = strings.Fields(labs)
			continue
		}
		step, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		step.line = i + 1
		s.steps = append(s.steps, step)
	}
	if len(s.Labs) == 0 || len(s.steps) == 0 {
		return nil, fmt.Errorf("a story needs a line \"labs: …\" and at least one step")
	}
	return s, nil
}

func parseStep(line string) (step, error) {
	s := step{text: line}
	parts := stepStart.FindStringSubmatch(line)
	s.fails = parts[1] != "" || parts[4] != ""
	if parts[2] != "" {
		s.retry = patience
		if parts[3] != "" {
			limit, err := time.ParseDuration(parts[3])
			if err != nil {
				return s, fmt.Errorf("limit after *: %w", err)
			}
			s.retry = limit
		}
	}
	words, err := splitWords(parts[5])
	if err != nil {
		return s, err
	}
	s.words, s.pattern, err = cutTail(words, "=>", "!=>")
	if err != nil {
		return s, err
	}
	s.absent = s.pattern != nil && words[len(words)-2].text == "!=>"
	s.words, s.stdin, err = cutTail(s.words, "<")
	if err == nil && len(s.words) == 0 {
		err = fmt.Errorf("no verb in %q", line)
	}
	return s, err
}

// cutTail takes "MARK WORD" off the end.
func cutTail(words []word, marks ...string) ([]word, *word, error) {
	at := slices.IndexFunc(words, func(w word) bool { return !w.literal && slices.Contains(marks, w.text) })
	if at < 0 {
		return words, nil, nil
	}
	if at != len(words)-2 {
		return nil, nil, fmt.Errorf("want exactly one word after %s (quote it)", words[at].text)
	}
	return words[:at], &words[at+1], nil
}

// splitWords at blanks. A quote begins and ends a whole word.
func splitWords(line string) ([]word, error) {
	var words []word
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if quote := line[0]; quote == '\'' || quote == '"' {
			end := strings.IndexByte(line[1:], quote)
			if end < 0 {
				return nil, fmt.Errorf("quote %c is not closed", quote)
			}
			words = append(words, word{text: line[1 : end+1], literal: quote == '\''})
			line = line[end+2:]
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		words = append(words, word{text: line[:end]})
		line = line[end:]
	}
	return words, nil
}
