// Package history records what clients asked of a cluster and what they were told, and judges whether one store that does
// one thing at a time could have told them that. The stories and the simulation record their clients with it.
//
// Two kinds of objects are known: registers with versions (a label of a service, with its Version.Index) and sets of unique
// names (services by name, managers with a floor below which none may leave). Histories are judged by porcupine, object by
// object.
package history

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// What a client may ask. Registers are Read and Write, sets take Add, Remove and List.
type (
	// Read a register; answered with Value.
	Read struct{ Key string }
	// Write a register if its version is IfVersion, or whatever it is when that is 0. Answered with Written or Conflict.
	// No two writes to a register may carry the same value.
	Write struct {
		Key       string
		Value     string
		IfVersion uint64
	}
	// Add a name that must not be taken; answered with Added or Conflict.
	Add struct{ Set, Name string }
	// Remove the member of that name, or with a non-empty ID only that very one. A removal that would leave fewer than
	// Floor members must be refused. Answered with Removed, Absent or TooFew.
	Remove struct {
		Set, Name, ID string
		Floor         int
	}
	// List a set; answered with Members.
	List struct{ Set string }
)

// What a client may be told.
type (
	// Value of a register; the zero Value before its first write. Version 0: not told.
	Value struct {
		Value   string
		Version uint64
	}
	// Written, with the register's new version; 0: not told.
	Written struct{ Version uint64 }
	// Conflict: the version is another one, or the name is taken. Nothing was changed.
	Conflict struct{}
	// Added, with the new member's id; empty: not told.
	Added struct{ ID string }
	// Removed.
	Removed struct{}
	// Absent: no such member.
	Absent struct{}
	// TooFew would be left. Nothing was changed.
	TooFew struct{}
	// Members of a set: ids by name; an empty id: not told.
	Members map[string]string
)

// unknown is the answer of a call that had none: it took effect at some time after it began, or never.
// A write may have been told its version by somebody else's read.
type unknown struct{ version uint64 }

// never is when a call without an answer ends.
const never = math.MaxInt64

// Recorder keeps a history. It is safe for concurrent use. Its zero value is ready.
type Recorder struct {
	mu    sync.Mutex
	began time.Time
	turn  int64 // counts beginnings and ends: real order, also where the clock stands still
	calls []*Call
	// marked is when Mark was called last.
	marked time.Duration
}

// Call is one call under way.
type Call struct {
	recorder    *Recorder
	client      string
	input       any
	output      any // nil: under way
	call, end   int64
	began, over time.Duration // since the recorder's first call, for people
	dropped     bool
}

// Begin notes that a client is about to ask. One client asks one thing at a time.
func (r *Recorder) Begin(client string, input any) *Call {
	objectOf(input) // refuses what is no input
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		r.began = time.Now()
	}
	r.turn++
	c := &Call{recorder: r, client: client, input: input, call: r.turn, end: never, began: time.Since(r.began)}
	r.calls = append(r.calls, c)
	return c
}

// Done notes the answer.
func (c *Call) Done(output any) {
	if !answers(c.input, output) {
		panic(fmt.Sprintf("history: %T is no answer to %T", output, c.input))
	}
	c.finish(output)
}

// Unknown notes that no answer came, or one that says that the change may still take effect.
func (c *Call) Unknown() { c.finish(unknown{}) }

// Refused notes an answer that says that nothing was or will be done, or one that promises nothing (a stale read).
func (c *Call) Refused() {
	c.finish(unknown{})
	c.recorder.mu.Lock()
	defer c.recorder.mu.Unlock()
	c.dropped = true
}

// Lost notes a change that was not acknowledged but ended with err: Refused if it never reached anybody, else Unknown.
func (c *Call) Lost(err error) {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		c.Refused()
	} else {
		c.Unknown()
	}
}

func (c *Call) finish(output any) {
	r := c.recorder
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.output != nil {
		panic("history: a call has ended twice")
	}
	r.turn++
	c.output, c.over = output, time.Since(r.began)
	if _, open := output.(unknown); !open {
		c.end = r.turn
	}
}

// Summary counts what was recorded.
func (r *Recorder) Summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var reads, changes, unknowns, refused int
	for _, c := range r.calls {
		switch {
		case c.dropped:
			refused++
		case isRead(c.input):
			reads++
		case c.end == never:
			unknowns++
		default:
			changes++
		}
	}
	return fmt.Sprintf("%d reads, %d changes with and %d without an answer, %d refused", reads, changes, unknowns, refused)
}

// Counts of what was answered, for tests that must not pass because nothing happened.
func (r *Recorder) Counts() (reads, changes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		switch {
		case c.dropped || c.end == never:
		case isRead(c.input):
			reads++
		default:
			changes++
		}
	}
	return reads, changes
}

// Mark begins the stretch that LongestPause looks at.
func (r *Recorder) Mark() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marked = time.Since(r.began)
}

// LongestPause is the longest time since Mark, or since the first change, in which no change was answered.
func (r *Recorder) LongestPause() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ends []time.Duration
	for _, c := range r.calls {
		if c.end != never && !c.dropped && !isRead(c.input) && c.over > r.marked {
			ends = append(ends, c.over)
		}
	}
	slices.Sort(ends)
	last := r.marked
	if last == 0 && len(ends) > 0 {
		last = ends[0]
	}
	var longest time.Duration
	for _, end := range append(ends, time.Since(r.began)) {
		longest = max(longest, end-last)
		last = end
	}
	return longest
}

// objects are the calls that count, by object, in the order in which they began.
func (r *Recorder) objects() map[string][]Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string][]Call{}
	for _, c := range r.calls {
		if c.dropped || isRead(c.input) && c.end == never {
			continue
		}
		call := *c
		if call.output == nil {
			call.output = unknown{}
		}
		found[objectOf(c.input)] = append(found[objectOf(c.input)], call)
	}
	return found
}

func objectOf(input any) string {
	switch in := input.(type) {
	case Read:
		return "register " + in.Key
	case Write:
		return "register " + in.Key
	case Add:
		return "set " + in.Set
	case Remove:
		return "set " + in.Set
	case List:
		return "set " + in.Set
	}
	panic(fmt.Sprintf("history: %T is nothing to ask", input))
}

func isRead(input any) bool {
	switch input.(type) {
	case Read, List:
		return true
	}
	return false
}

func answers(input, output any) bool {
	ok := false
	switch input.(type) {
	case Read:
		_, ok = output.(Value)
	case List:
		_, ok = output.(Members)
	case Write:
		switch output.(type) {
		case Written, Conflict:
			ok = true
		}
	case Add:
		switch output.(type) {
		case Added, Conflict:
			ok = true
		}
	case Remove:
		switch output.(type) {
		case Removed, Absent, TooFew:
			ok = true
		}
	}
	return ok
}

// String is one line for people.
func (c Call) String() string {
	over := "…"
	if c.end != never {
		over = fmt.Sprintf("%.3f", c.over.Seconds())
	}
	return fmt.Sprintf("%9.3f-%-9s %-8s %s → %s", c.began.Seconds(), over, c.client, describeInput(c.input), describeOutput(c.output))
}

func describeInput(input any) string {
	switch in := input.(type) {
	case Read:
		return "read " + in.Key
	case Write:
		if in.IfVersion == 0 {
			return fmt.Sprintf("write %s = %s", in.Key, in.Value)
		}
		return fmt.Sprintf("write %s = %s if version %d", in.Key, in.Value, in.IfVersion)
	case Add:
		return fmt.Sprintf("add %s to %s", in.Name, in.Set)
	case Remove:
		return strings.TrimSpace(fmt.Sprintf("remove %s from %s %s", in.Name, in.Set, in.ID))
	case List:
		return "list " + in.Set
	}
	return "the end"
}

func describeOutput(output any) string {
	switch out := output.(type) {
	case Value:
		return fmt.Sprintf("%q version %d", out.Value, out.Version)
	case Written:
		if out.Version == 0 {
			return "written"
		}
		return fmt.Sprintf("written, version %d", out.Version)
	case Conflict:
		return "conflict"
	case Added:
		return strings.TrimSpace("added " + out.ID)
	case Removed:
		return "removed"
	case Absent:
		return "absent"
	case TooFew:
		return "too few would be left"
	case Members:
		var names []string
		for name, id := range out {
			names = append(names, strings.TrimSpace(name+" "+id))
		}
		slices.Sort(names)
		return "[" + strings.Join(names, ", ") + "]"
	case unknown:
		return "no answer"
	}
	return ""
}
