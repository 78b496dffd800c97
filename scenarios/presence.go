package scenarios

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"swarm/scenarios/lab"
)

// logged is one line of an agent's log.
type logged struct {
	at   time.Time
	text string
}

// logLines of all agents that ran on a node so far that hold every one of the words.
func logLines(n *lab.Node, words ...string) ([]logged, error) {
	file, err := os.Open(filepath.Join(n.Dir, "agent.log"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var found []logged
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		line := scanner.Text()
		if !holdsAll(line, words) {
			continue
		}
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
			found = append(found, logged{at, line})
		}
	}
	return found, nil
}

func holdsAll(line string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(line+" ", word) {
			return false
		}
	}
	return true
}

// idOf a node, as the seat knows it, or knew it once.
func (w *World) idOf(ctx context.Context, n *lab.Node) (string, error) {
	w.mu.Lock()
	id := w.ids[n.Name]
	w.mu.Unlock()
	if id != "" {
		return id, nil
	}
	nodes, err := w.Nodes(ctx)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, known := range nodes {
		w.ids[known.Description.Hostname] = known.ID
	}
	if w.ids[n.Name] == "" {
		return "", fmt.Errorf("%s is in no cluster", n.Name)
	}
	return w.ids[n.Name], nil
}

// toldOf finds when each other awake agent was told that a node has that presence, since fate struck the node last.
func (w *World) toldOf(ctx context.Context, name, presence string) (struck time.Time, at map[string]time.Time, err error) {
	of, err := w.Find(ctx, name)
	if err != nil {
		return struck, nil, err
	}
	id, err := w.idOf(ctx, of)
	if err != nil {
		return struck, nil, err
	}
	struck, at = w.struckAt(of), map[string]time.Time{}
	for _, n := range w.Awake() {
		if n == of {
			continue
		}
		lines, err := logLines(n, `msg="node presence"`, "node="+id, "presence="+presence+" ")
		if err != nil {
			return struck, nil, err
		}
		at[n.Name] = time.Time{}
		for _, line := range lines {
			if line.at.After(struck) {
				at[n.Name] = line.at
				break
			}
		}
	}
	return struck, at, nil
}

func told(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 3 {
		return "", wrongArguments("told NODE PRESENCE LIMIT")
	}
	limit, err := time.ParseDuration(args[2])
	if err != nil {
		return "", err
	}
	var longest time.Duration
	return longest.String(), t.again(ctx, t.limit(limit)+settleAfter, func(ctx context.Context) error {
		struck, at, err := t.toldOf(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		var errs []error
		for name, at := range at {
			switch took := at.Sub(struck); {
			case at.IsZero():
				errs = append(errs, fmt.Errorf("%s was not told that %s is %s", name, args[0], args[1]))
			case took > t.limit(limit):
				errs = append(errs, fmt.Errorf("%s was told only after %s that %s is %s", name, took, args[0], args[1]))
			default:
				longest = max(longest, took)
			}
		}
		if errs == nil {
			fmt.Fprintf(t.settings.Log, "         %d agents were told within %s\n", len(at), longest.Round(time.Millisecond))
		}
		return errors.Join(errs...)
	})
}

// settleAfter is how much later than it must happen something is looked for, to say how late it came.
const settleAfter = 5 * time.Second

func untold(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("untold NODE PRESENCE")
	}
	_, at, err := t.toldOf(ctx, args[0], args[1])
	if err != nil {
		return "", err
	}
	for name, at := range at {
		if !at.IsZero() {
			return "", fmt.Errorf("%s was told at %s that %s is %s", name, at, args[0], args[1])
		}
	}
	return "", nil
}

// sessions counts the nodes that each manager hears, by the last session that each node began anywhere.
func sessions(t *teller, ctx context.Context, args []string) (string, error) {
	least, err := count(args, 1, "sessions LEAST")
	if err != nil {
		return "", err
	}
	type begun struct {
		at      time.Time
		manager string
	}
	last := map[string]begun{}
	for _, n := range t.Lab.Nodes() {
		lines, err := logLines(n, `msg="session begun"`, "component=dispatcher")
		if err != nil {
			return "", err
		}
		for _, line := range lines {
			_, rest, _ := strings.Cut(line.text, " node=")
			id, _, _ := strings.Cut(rest, " ")
			if line.at.After(last[id].at) {
				last[id] = begun{line.at, n.Name}
			}
		}
	}
	heard := map[string]int{}
	for _, b := range last {
		heard[b.manager]++
	}
	for _, n := range t.Managers(ctx) {
		if heard[n.Name] < least {
			return "", fmt.Errorf("%s hears %d nodes, want at least %d: %v", n.Name, heard[n.Name], least, heard)
		}
	}
	return fmt.Sprint(heard), nil
}
