package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
)

// Verdicts on a figure.
const (
	met     = "met"
	missed  = "MISSED"
	missing = "missing" // nothing measures it yet
	failed  = "FAILED"  // the measurement itself broke
	noted   = ""        // a figure without a target
)

// figure is one line of the table.
type figure struct{ name, measured, target, verdict string }

// judged is the verdict on a figure with a target.
func judged(ok bool) string {
	if ok {
		return met
	}
	return missed
}

// table collects figures in the order in which they shall be printed.
type table struct {
	// machine says what the figures were measured on; what others did there meanwhile counts as much as the processors.
	machine string
	figures []figure
}

// machine describes this one, as busy as it was before the first measurement.
func machine() string {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	busy, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("on %d processors, load %s before the start", runtime.NumCPU(), busy)
}

func (t *table) add(name string, ok bool, target, measured string, args ...any) {
	t.put(figure{name: name, measured: fmt.Sprintf(measured, args...), target: target, verdict: judged(ok)})
}

// note adds a figure that nothing is promised of.
func (t *table) note(name, measured string, args ...any) {
	t.put(figure{name: name, measured: fmt.Sprintf(measured, args...), verdict: noted})
}

func (t *table) put(f figure) { t.figures = append(t.figures, f) }

func (t *table) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if t.machine != "" {
		fmt.Fprintln(out, t.machine)
	}
	fmt.Fprintln(w, "figure\tmeasured\ttarget\tverdict")
	for _, f := range t.figures {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.name, f.measured, f.target, f.verdict)
	}
	return w.Flush()
}
