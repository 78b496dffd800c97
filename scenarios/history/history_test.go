package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const limit = 10 * time.Second

// told is one call; a client's calls in a table follow each other unless with overlaps the one before.
type told struct {
	input, output any // output nil: no answer
}

// tell records calls one after the other.
func tell(calls ...told) *Recorder {
	var r Recorder
	for i, c := range calls {
		call := r.Begin(fmt.Sprint("c", i), c.input)
		if c.output == nil {
			call.Unknown()
		} else {
			call.Done(c.output)
		}
	}
	return &r
}

func write(value string, ifVersion uint64) Write {
	return Write{Key: "web", Value: value, IfVersion: ifVersion}
}

var (
	read = Read{Key: "web"}
	list = List{Set: "services"}
)

func value(v string, version uint64) Value     { return Value{Value: v, Version: version} }
func add(name string) Add                      { return Add{Set: "services", Name: name} }
func remove(name, id string, floor int) Remove { return Remove{"services", name, id, floor} }
func refused(c *Call)                          { c.Refused() }
func members(namesAndIDs ...string) (m Members) {
	m = Members{}
	for i := 0; i < len(namesAndIDs); i += 2 {
		m[namesAndIDs[i]] = namesAndIDs[i+1]
	}
	return m
}

func TestHistoriesThatCanBeTruePass(t *testing.T) {
	for name, calls := range map[string][]told{
		"nothing happened":                   {},
		"read before the first write":        {{read, value("", 0)}},
		"read after write":                   {{write("a", 0), Written{5}}, {read, value("a", 5)}},
		"version told by a read":             {{write("a", 0), Written{}}, {read, value("a", 5)}, {write("b", 5), Written{}}, {read, value("b", 9)}},
		"conflict after another's write":     {{write("a", 0), Written{5}}, {write("b", 5), Written{6}}, {write("c", 5), Conflict{}}, {read, value("b", 6)}},
		"lost write took effect":             {{write("a", 0), Written{5}}, {write("b", 5), nil}, {read, value("b", 6)}},
		"lost write took no effect":          {{write("a", 0), Written{5}}, {write("b", 5), nil}, {read, value("a", 5)}},
		"lost write took effect late":        {{write("a", 0), Written{5}}, {write("b", 5), nil}, {read, value("a", 5)}, {read, value("b", 6)}},
		"lost write explains a conflict":     {{write("a", 0), Written{5}}, {write("b", 5), nil}, {write("c", 5), Conflict{}}},
		"many lost writes, one took effect":  {{write("a", 0), Written{5}}, {write("b", 5), nil}, {write("c", 5), nil}, {write("d", 5), nil}, {read, value("c", 8)}},
		"value without a version":            {{write("a", 0), Written{5}}, {read, value("a", 0)}},
		"name taken, freed and taken again":  {{add("web"), Added{"1"}}, {add("web"), Conflict{}}, {remove("web", "1", 0), Removed{}}, {add("web"), Added{"2"}}, {list, members("web", "2")}},
		"lost add took effect":               {{add("web"), nil}, {add("web"), Conflict{}}, {list, members("web", "7")}, {remove("web", "7", 0), Removed{}}, {list, members()}},
		"lost add took no effect":            {{add("web"), nil}, {list, members()}, {add("web"), Added{"2"}}},
		"lost removal took effect":           {{add("web"), Added{"1"}}, {remove("web", "1", 0), nil}, {list, members()}, {remove("web", "1", 0), Absent{}}},
		"removal of another of that name":    {{add("web"), Added{"1"}}, {remove("web", "0", 0), Absent{}}},
		"last manager is refused":            {{add("n1"), Added{}}, {add("n2"), Added{}}, {remove("n1", "", 1), Removed{}}, {remove("n2", "", 1), TooFew{}}},
		"lost demotion makes the other last": {{add("n1"), Added{}}, {add("n2"), Added{}}, {remove("n1", "", 1), nil}, {remove("n2", "", 1), TooFew{}}, {list, members("n2", "")}},
	} {
		if err := tell(calls...).Check(limit); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHistoriesThatCannotBeTrueAreExplained(t *testing.T) {
	for name, c := range map[string]struct {
		calls []told
		want  string // the answer that contradicts
	}{
		"acknowledged write is lost":      {[]told{{write("a", 0), Written{5}}, {write("b", 5), Written{6}}, {read, value("a", 5)}}, `read web → "a" version 5`},
		"first write is lost":             {[]told{{write("a", 0), Written{}}, {read, value("", 0)}}, `read web → "" version 0`},
		"read goes back":                  {[]told{{write("a", 0), Written{5}}, {write("b", 5), nil}, {read, value("b", 6)}, {read, value("a", 5)}, {read, value("b", 6)}}, `read web → "a" version 5`},
		"version without a write":         {[]told{{write("a", 0), Written{5}}, {read, value("a", 6)}}, `read web → "a" version 6`},
		"value that nobody wrote":         {[]told{{write("a", 0), Written{5}}, {read, value("x", 5)}}, `read web → "x" version 5`},
		"two writes at one version":       {[]told{{write("a", 0), Written{5}}, {write("b", 5), Written{}}, {write("c", 5), Written{}}}, `write web = c if version 5 → written`},
		"version goes back":               {[]told{{write("a", 0), Written{5}}, {write("b", 0), Written{4}}}, `write web = b → written, version 4`},
		"conflict without a cause":        {[]told{{write("a", 0), Written{5}}, {write("b", 5), Conflict{}}}, `if version 5 → conflict`},
		"lost write takes effect twice":   {[]told{{write("a", 0), Written{5}}, {write("b", 5), nil}, {read, value("b", 6)}, {write("c", 6), Written{7}}, {read, value("b", 8)}}, `read web → "b" version 8`},
		"name given twice":                {[]told{{add("web"), Added{"1"}}, {add("web"), Added{"2"}}}, `add web to services → added 2`},
		"conflict over a free name":       {[]told{{add("web"), Conflict{}}}, `add web to services → conflict`},
		"added and not listed":            {[]told{{add("web"), Added{"1"}}, {list, members()}}, `list services → []`},
		"listed under another id":         {[]told{{add("web"), Added{"1"}}, {list, members("web", "2")}}, `list services → [web 2]`},
		"removed and listed":              {[]told{{add("web"), Added{"1"}}, {remove("web", "1", 0), Removed{}}, {list, members("web", "1")}}, `list services → [web 1]`},
		"removed twice":                   {[]told{{add("web"), Added{"1"}}, {remove("web", "1", 0), Removed{}}, {remove("web", "1", 0), Removed{}}}, `remove web from services 1 → removed`},
		"list that is no moment":          {[]told{{add("a"), Added{"1"}}, {add("b"), Added{"2"}}, {list, members("b", "2")}}, `list services → []`},
		"last manager leaves":             {[]told{{add("n1"), Added{}}, {remove("n1", "", 1), Removed{}}}, `remove n1 from services → removed`},
		"refused with enough left":        {[]told{{add("n1"), Added{}}, {add("n2"), Added{}}, {remove("n1", "", 1), TooFew{}}}, `too few would be left`},
		"two demotions empty the quorum":  {[]told{{add("n1"), Added{}}, {add("n2"), Added{}}, {remove("n1", "", 1), Removed{}}, {remove("n2", "", 1), Removed{}}}, `remove n2 from services → removed`},
		"absent though it must be there":  {[]told{{add("web"), Added{"1"}}, {remove("web", "1", 0), Absent{}}}, `remove web from services 1 → absent`},
		"unlisted name removed by its id": {[]told{{add("web"), nil}, {list, members("web", "7")}, {remove("web", "8", 0), Removed{}}}, `remove web from services 8 → removed`},
	} {
		err := tell(c.calls...).Check(limit)
		if err == nil {
			t.Errorf("%s: passed", name)
			continue
		}
		marked := ""
		for line := range strings.Lines(err.Error()) {
			if strings.HasPrefix(line, "→→→") {
				marked = line
			}
		}
		if !strings.Contains(marked, c.want) {
			t.Errorf("%s: want the mark at %q:\n%v", name, c.want, err)
		}
	}
}

func TestCallsThatOverlapMayTakeEffectInAnyOrder(t *testing.T) {
	var r Recorder
	first, second := r.Begin("a", write("a", 0)), r.Begin("b", write("b", 0))
	first.Done(Written{})
	second.Done(Written{})
	for _, v := range []string{"a"} { // a took effect after b
		r.Begin("c", read).Done(value(v, 0))
	}
	if err := r.Check(limit); err != nil {
		t.Error(err)
	}
	r.Begin("c", read).Done(value("b", 0))
	if r.Check(limit) == nil {
		t.Error("a register that changed without a write passed")
	}
}

func TestCallsUnderWayAndRefusedOnesBindNobody(t *testing.T) {
	var r Recorder
	r.Begin("a", write("a", 0)) // under way
	refused(r.Begin("b", write("b", 0)))
	refused(r.Begin("b", read))
	r.Begin("c", read) // under way
	r.Begin("d", read).Done(value("a", 3))
	if err := r.Check(limit); err != nil {
		t.Error(err)
	}
	r.Begin("d", read).Done(value("b", 4))
	if r.Check(limit) == nil {
		t.Error("a refused write took effect, and the history passed")
	}
	if got := r.Summary(); got != "2 reads, 1 changes with and 0 without an answer, 2 refused" && got != "3 reads, 0 changes with and 1 without an answer, 2 refused" {
		t.Error(got)
	}
}

func TestObjectsAreJudgedApart(t *testing.T) {
	r := tell(told{Write{"a", "1", 0}, Written{1}}, told{Read{"b"}, Value{}}, told{Add{"s", "a"}, Added{}}, told{List{"t"}, Members{}})
	if err := r.Check(limit); err != nil {
		t.Error(err)
	}
}

// Changes without an answer must not make the search explode: a partition of a minute leaves hundreds.
func TestHundredsOfLostWritesAreJudgedQuickly(t *testing.T) {
	var r Recorder
	r.Begin("c", write("start", 0)).Done(Written{1})
	version := uint64(1)
	for i := range 300 {
		r.Begin("lost", write(fmt.Sprint("lost", i), version)).Unknown()
		r.Begin("c", write(fmt.Sprint(i), version)).Done(Written{version + 1})
		version++
		r.Begin("c", read).Done(value(fmt.Sprint(i), version))
		r.Begin("c", add(fmt.Sprint(i))).Unknown()
		r.Begin("c", list).Done(members())
	}
	began := time.Now()
	if err := r.Check(limit); err != nil {
		t.Fatal(err)
	}
	t.Logf("judged in %s", time.Since(began))
	r.Begin("c", read).Done(value("17", version))
	if err := r.Check(limit); err == nil || !strings.Contains(err.Error(), `→ "17"`) {
		t.Errorf("got %v", err)
	}
}

// store does one thing at a time, somewhere between a call's beginning and its end, or after it when the answer is lost.
type store struct {
	value string
	at    uint64 // version of value
	index uint64
	names Members
}

func (s *store) do(input any) any {
	s.index += 2
	switch in := input.(type) {
	case Read:
		return Value{s.value, s.at}
	case Write:
		if in.IfVersion != s.at {
			return Conflict{}
		}
		s.value, s.at = in.Value, s.index
		return Written{}
	case List:
		return Members(maps.Clone(s.names))
	case Add:
		if s.names[in.Name] != "" {
			return Conflict{}
		}
		s.names[in.Name] = fmt.Sprint(s.index)
		return Added{s.names[in.Name]}
	case Remove:
		if s.names[in.Name] != in.ID {
			return Absent{}
		}
		delete(s.names, in.Name)
		return Removed{}
	}
	return nil
}

// live plays clients of a store, five at a time, that lose a share of the answers: half before, half after the deed.
func live(random *rand.Rand, calls int, lost float64) (*Recorder, *store) {
	r, s := new(Recorder), &store{names: Members{}}
	type client struct {
		call  *Call
		input any
		based uint64
		names Members
	}
	clients := make([]client, 5)
	var late []any
	r.Begin("make", write("made", 0)).Done(s.do(write("made", 0)))
	for n := range calls {
		c := &clients[random.IntN(len(clients))]
		if c.call != nil {
			if random.Float64() < lost {
				if random.IntN(2) == 0 {
					late = append(late, c.input)
				}
				c.call.Unknown()
			} else {
				output := s.do(c.input)
				switch out := output.(type) {
				case Value:
					c.based = out.Version
				case Members:
					c.names = out
				}
				c.call.Done(output)
			}
			c.call = nil
			continue
		}
		for len(late) > 0 && random.IntN(4) == 0 {
			s.do(late[0])
			late = late[1:]
		}
		switch name := fmt.Sprint("race-", n/8); random.IntN(6) {
		case 0, 1:
			c.input = read
		case 2, 3:
			c.input = write(fmt.Sprint("v", n), max(c.based, 2))
		case 4:
			c.input = add(name)
		case 5:
			c.input = list
			for name, id := range c.names {
				c.input, c.names = remove(name, id, 0), nil
				break
			}
		}
		c.call = r.Begin(fmt.Sprint("c", random.IntN(5)), c.input)
	}
	return r, s
}

func TestWhatAStoreThatLosesAnswersSaidPassesQuickly(t *testing.T) {
	for seed := range uint64(12) {
		lost := []float64{0, 0.05, 0.3}[seed%3]
		r, s := live(rand.New(rand.NewPCG(seed, 0)), 3000, lost)
		began := time.Now()
		if err := r.Check(limit); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Logf("seed %d, %s: %s", seed, r.Summary(), took)
		}
		// The same history with a lie at its end.
		lie := read
		call := r.Begin("liar", lie)
		call.Done(value("made", s.at))
		if r.Check(limit) == nil {
			t.Errorf("seed %d: a lie passed", seed)
		}
	}
}

func TestLongestPauseIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Recorder
		change := func(after time.Duration) {
			time.Sleep(after)
			r.Begin("c", write(fmt.Sprint(time.Now()), 0)).Done(Written{})
		}
		for _, after := range []time.Duration{5 * time.Second, time.Second, 3 * time.Second} {
			change(after)
		}
		for _, want := range []time.Duration{3 * time.Second, 4 * time.Second} {
			if got := r.LongestPause(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			time.Sleep(4 * time.Second)
		}
		r.Mark()
		change(time.Second)
		time.Sleep(2 * time.Second)
		if got := r.LongestPause(); got != 2*time.Second {
			t.Errorf("got %s since the mark", got)
		}
	})
}

func TestWrongUseIsFoundAtOnce(t *testing.T) {
	for name, use := range map[string]func(){
		"an answer to something else": func() { new(Recorder).Begin("c", read).Done(Written{}) },
		"two answers":                 func() { c := new(Recorder).Begin("c", read); c.Unknown(); c.Unknown() },
		"no input":                    func() { new(Recorder).Begin("c", 5) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s went unnoticed", name)
				}
			}()
			use()
		}()
	}
}
