package history

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// shownMax calls before the contradiction are printed.
const shownMax = 12

// Check says whether the history can be true, spending at most the limit on each object. The error holds the shortest
// beginning of the history that cannot be true: its last answer contradicts the ones before it.
func (r *Recorder) Check(limit time.Duration) error {
	objects := apart(r.objects())
	for _, object := range slices.Sorted(maps.Keys(objects)) {
		calls := objects[object]
		switch judge(object, calls, limit) {
		case porcupine.Ok:
		case porcupine.Unknown:
			return fmt.Errorf("history of %s: %d calls could not be judged within %s", object, len(calls), limit)
		default:
			return fmt.Errorf("history of %s contradicts itself:\n%s", object, explain(object, calls, limit))
		}
	}
	return nil
}

// apart judges the names of a set without floors one by one: what happens to one of them says nothing of another, and a
// search through changes of all of them that had no answer would not end.
func apart(objects map[string][]Call) map[string][]Call {
	split := map[string][]Call{}
	for object, calls := range objects {
		floored := slices.ContainsFunc(calls, func(c Call) bool {
			in, ok := c.input.(Remove)
			return ok && in.Floor > 0
		})
		if floored || strings.HasPrefix(object, "register ") {
			split[object] = calls
			continue
		}
		for _, name := range namesIn(calls) {
			split[object+", "+name] = about(name, calls)
		}
	}
	return split
}

func namesIn(calls []Call) []string {
	names := map[string]bool{}
	for _, c := range calls {
		switch in := c.input.(type) {
		case Add:
			names[in.Name] = true
		case Remove:
			names[in.Name] = true
		case List:
			for name := range c.output.(Members) {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// sameMax lists that say the same of a name one after the other are kept at each end of such a row: the ones in between add nothing.
const sameMax = 3

// about one name: its changes, and what lists say of it.
func about(name string, calls []Call) []Call {
	var found []Call
	row := 0 // lists at the end of found that say the same
	for _, c := range calls {
		switch in := c.input.(type) {
		case Add:
			if in.Name == name {
				found, row = append(found, c), 0
			}
		case Remove:
			if in.Name == name {
				found, row = append(found, c), 0
			}
		case List:
			says := Members{}
			if id, ok := c.output.(Members)[name]; ok {
				says[name] = id
			}
			c.output = says
			if row > 0 && !maps.Equal(found[len(found)-1].output.(Members), says) {
				row = 0
			}
			if row >= 2*sameMax {
				found = slices.Delete(found, len(found)-sameMax, len(found)-sameMax+1)
			} else {
				row++
			}
			found = append(found, c)
		}
	}
	return found
}

func judge(object string, calls []Call, limit time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(modelOf(object), operations(traced(withVersions(calls))), limit)
}

// unseen is the version of a value that no answer ever showed.
const unseen = math.MaxUint64

// withVersions tells writes the versions that reads of their values showed: values are written once. A write whose value no
// read showed gets the version unseen where no write was based on a version that no read showed, because then nothing but a
// conflict can follow it. Without this a search must try too many ways through changes that had no answer.
func withVersions(calls []Call) []Call {
	shown, versions, gaps := map[string]uint64{}, map[uint64]bool{0: true}, false
	for _, c := range calls {
		if out, ok := c.output.(Value); ok {
			shown[out.Value] = max(shown[out.Value], out.Version)
			versions[out.Version] = true
			gaps = gaps || out.Version == 0 && out.Value != ""
		}
	}
	for i, c := range calls {
		in, ok := c.input.(Write)
		if !ok || i == 0 && len(calls) > 1 && c.end < calls[1].call { // the first write of all
			continue
		}
		gaps = gaps || in.IfVersion == 0 || !versions[in.IfVersion]
	}
	told := slices.Clone(calls)
	for i, c := range told {
		in, isWrite := c.input.(Write)
		version := shown[in.Value]
		if version == 0 && !gaps {
			version = unseen
		}
		if !isWrite || version == 0 {
			continue
		}
		switch c.output {
		case Written{}:
			told[i].output = Written{version}
		case unknown{}:
			told[i].output = unknown{version}
		}
	}
	return told
}

// traced leaves out changes without an answer that no answer gives a trace of: they can be put after the end, and a search
// that tried all their places would not end. Where floors or versions make changes matter to each other, all are kept.
func traced(calls []Call) []Call {
	last := map[string]int64{} // end of the last answer with a trace, by trace
	leave := func(trace string, c Call) { last[trace] = max(last[trace], c.end) }
	for _, c := range calls {
		switch in := c.input.(type) {
		case Write:
			if in.IfVersion != 0 {
				return calls
			}
		case Remove:
			if in.Floor != 0 {
				return calls
			}
			switch c.output.(type) {
			case Removed:
				leave("add "+in.Name, c)
			case Absent:
				leave("remove "+in.Name, c)
			}
		case Add:
			switch c.output.(type) {
			case Added:
				leave("remove "+in.Name, c)
			case Conflict:
				leave("add "+in.Name, c)
			}
		case Read:
			leave("write "+c.output.(Value).Value, c)
		case List:
			leave("list", c)
			for name := range c.output.(Members) {
				leave("add "+name, c)
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(calls), func(c Call) bool {
		switch in := c.input.(type) {
		case Write:
			return c.end == never && last["write "+in.Value] < c.call
		case Add:
			return c.end == never && last["add "+in.Name] < c.call
		case Remove: // any list may lack the name
			return c.end == never && max(last["remove "+in.Name], last["list"]) < c.call
		}
		return false
	})
}

func operations(calls []Call) []porcupine.Operation {
	var last int64
	operations := make([]porcupine.Operation, 0, len(calls)+1)
	for _, c := range calls {
		operations = append(operations, porcupine.Operation{Input: c.input, Output: c.output, Call: c.call, Return: c.end})
		last = max(last, c.call)
		if c.end != never {
			last = max(last, c.end)
		}
	}
	return append(operations, porcupine.Operation{Input: theEnd{}, Call: last + 1, Return: last + 1})
}

func modelOf(object string) porcupine.Model {
	if strings.HasPrefix(object, "register ") {
		return porcupine.Model{
			Init: func() any { return register{told: true} },
			Step: func(state, input, output any) (bool, any) { return state.(register).step(input, output) },
		}
	}
	return porcupine.Model{
		Init: func() any { return set{} },
		Step: func(state, input, output any) (bool, any) { return state.(set).step(input, output) },
	}
}

// before is what was known at a moment: what had not been answered was under way.
func before(calls []Call, moment int64) []Call {
	var known []Call
	for _, c := range calls {
		if c.call > moment {
			continue
		}
		if c.end > moment {
			if isRead(c.input) {
				continue
			}
			c.end, c.output = never, unknown{}
		}
		known = append(known, c)
	}
	return known
}

// explain prints the shortest beginning that cannot be true, its last answer marked.
func explain(object string, calls []Call, limit time.Duration) string {
	var ends []int64
	for _, c := range calls {
		if c.end != never {
			ends = append(ends, c.end)
		}
	}
	slices.Sort(ends)
	first := sort.Search(len(ends), func(i int) bool {
		return judge(object, before(calls, ends[i]), limit) == porcupine.Illegal
	})
	if first == len(ends) {
		return "it cannot be explained within " + limit.String()
	}
	known := before(calls, ends[first])
	slices.SortStableFunc(known, func(a, b Call) int { return int(min(a.end, never-1) - min(b.end, never-1)) })
	at := slices.IndexFunc(known, func(c Call) bool { return c.end == ends[first] })
	pending := known[at+1:]
	known = known[:at+1]
	var b strings.Builder
	if hidden := len(known) - shownMax; hidden > 0 {
		fmt.Fprintf(&b, "    (%d earlier calls)\n", hidden)
		known = known[hidden:]
	}
	for i, c := range known {
		mark := "   "
		if i == len(known)-1 {
			mark = "→→→"
		}
		fmt.Fprintf(&b, "%s %s\n", mark, c)
	}
	for _, c := range pending[max(0, len(pending)-shownMax):] {
		fmt.Fprintf(&b, "  ? %s\n", c)
	}
	b.WriteString("No order of these calls gives the answer marked →→→ (calls marked ? were under way or had no answer).")
	return b.String()
}
