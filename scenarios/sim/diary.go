package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// diaryLines is how many of an agent's last lines are kept.
const diaryLines = 300

// diary keeps the last lines of a machine's agents without formatting them, and hears who won elections.
type diary struct {
	mu    sync.Mutex // guards the fields below
	lines []line     // a ring
	next  int
	// won is told of each election that an agent of this machine won.
	won func(term uint64)
}

type line struct {
	at      time.Time
	level   slog.Level
	message string
	attrs   []slog.Attr
}

func newDiary(won func(term uint64)) *diary { return &diary{won: won} }

func (d *diary) add(l line) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.lines) < diaryLines {
		d.lines = append(d.lines, l)
		return
	}
	d.lines[d.next] = l
	d.next = (d.next + 1) % diaryLines
}

// tell prints the last n lines, with the time since began.
func (d *diary) tell(began time.Time, n int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := slices.Concat(d.lines[d.next:], d.lines[:d.next])
	var b strings.Builder
	for _, l := range lines[max(0, len(lines)-n):] {
		fmt.Fprintf(&b, "%9.3f %s %s", l.at.Sub(began).Seconds(), l.level, l.message)
		for _, a := range l.attrs {
			fmt.Fprintf(&b, " %s=%.200v", a.Key, a.Value)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// note writes a line of the simulation's own.
func (d *diary) note(message string, attrs ...slog.Attr) {
	d.add(line{at: time.Now(), level: slog.LevelInfo, message: "== " + message, attrs: attrs})
}

// handler is what an agent's log is written to.
type handler struct {
	diary *diary
	attrs []slog.Attr
}

func (h handler) Enabled(context.Context, slog.Level) bool { return true }

// electionWon is raft's own line; its word for what is won is what one leader per term is judged by.
const electionWon = "raft: election won"

func (h handler) Handle(_ context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo && r.Message != electionWon {
		return nil
	}
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		if r.Message == electionWon && a.Key == "term" {
			if term, ok := a.Value.Any().(uint64); ok {
				h.diary.won(term)
			}
		}
		attrs = append(attrs, a)
		return true
	})
	h.diary.add(line{at: time.Now(), level: r.Level, message: r.Message, attrs: attrs})
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = slices.Concat(h.attrs, attrs)
	return h
}

func (h handler) WithGroup(string) slog.Handler { return h }
