package raftstore

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// A table with snapshots taken at any time behaves like a map that is copied.
func TestTableBehavesLikeAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newState()
		model := map[string]Task{}
		type pair struct {
			state *State
			model map[string]Task
		}
		var snapshots []pair
		last := &State{}
		id := rapid.SampledFrom(strings.Split("a b c d e f aa ab", " "))
		key := rapid.SampledFrom([]string{"", "x", "y"})
		state := rapid.SampledFrom([]swarm.TaskState{"", swarm.TaskStateRunning, swarm.TaskStateFailed})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				r := Task{Meta: Meta{ID: id.Draw(t, "id")}, ServiceID: key.Draw(t, "service"), NodeID: key.Draw(t, "node"), Slot: rapid.Uint64Range(0, 2).Draw(t, "slot"), Status: TaskStatus{State: state.Draw(t, "state")}}
				model[r.ID] = r
				s.Tasks.put(&r)
			},
			"remove": func(t *rapid.T) {
				gone := id.Draw(t, "id")
				_, want := model[gone]
				if got := s.Tasks.remove(gone); (got != nil) != want {
					t.Fatalf("remove %s: %v", gone, got)
				}
				delete(model, gone)
			},
			"snapshot": func(t *rapid.T) {
				last = s.publish(last)
				snapshots = append(snapshots, pair{last, maps.Clone(model)})
			},
			"fork": func(t *rapid.T) { // a closure that is thrown away
				f := last
				if f.Tasks.rows == nil {
					return
				}
				tx := newTx(f, new(sync.Mutex))
				for r := range tx.Tasks.All() {
					tx.DeleteTask(r.ID)
				}
			},
			"": func(t *rapid.T) {
				compare(t, s, model)
				for _, p := range snapshots {
					compare(t, p.state, p.model)
				}
			},
		})
	})
}

func compare(t *rapid.T, s *State, model map[string]Task) {
	if s.Tasks.Len() != len(model) {
		t.Fatalf("%d rows, want %d", s.Tasks.Len(), len(model))
	}
	all := slices.Sorted(maps.Keys(model))
	if got := ids(s.Tasks.All()); got != strings.Join(all, " ") {
		t.Fatalf("all: %s, want %s", got, all)
	}
	for _, key := range []string{"", "x", "y"} {
		of := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return model[id].ServiceID != key })
		slices.SortStableFunc(of, func(a, b string) int { return cmp.Compare(model[a].Slot, model[b].Slot) })
		for slot := range uint64(4) {
			in := slices.DeleteFunc(slices.Clone(of), func(id string) bool { return model[id].Slot != slot })
			if got := ids(s.TasksOfSlot(key, slot)); got != strings.Join(in, " ") {
				t.Fatalf("of %s slot %d: %s, want %s", key, slot, got, in)
			}
		}
		on := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return model[id].NodeID != key })
		if got := ids(s.TasksOf(key)); got != strings.Join(of, " ") {
			t.Fatalf("of %s: %s, want %s", key, got, of)
		}
		if got := ids(s.TasksOn(key)); got != strings.Join(on, " ") {
			t.Fatalf("on %s: %s, want %s", key, got, on)
		}
	}
	counts := map[swarm.TaskState]int{}
	for _, r := range model {
		counts[r.Status.State]++
	}
	for _, state := range taskStates() {
		if got := s.TasksInState(state); got != counts[state] {
			t.Fatalf("%d tasks in state %q, want %d", got, state, counts[state])
		}
	}
	for id, want := range model {
		if got, ok := s.Tasks.Get(id); !ok || *got != want {
			t.Fatalf("get %s: %v", id, got)
		}
	}
}

func TestFindTakesIdThenNameThenPrefix(t *testing.T) {
	s := newState()
	for _, r := range []Service{
		{Meta: Meta{ID: "abc"}, Name: "web"}, {Meta: Meta{ID: "abd"}, Name: "abc"}, {Meta: Meta{ID: "xyz"}, Name: "db"},
	} {
		s.Services.put(&r)
	}
	for _, r := range []Node{{Meta: Meta{ID: "n1"}}, {Meta: Meta{ID: "n2"}}} {
		r.Description.Hostname = "twin"
		s.Nodes.put(&r)
	}
	for ref, want := range map[string]string{
		"abc": "abc", "web": "abc", "xy": "xyz", "abd": "abd",
		"ab": "service ab is ambiguous (2 matches found)", "q": "service q not found", "": "not found",
	} {
		got, err := s.Services.Find(ref)
		if err == nil && got.ID != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v", ref, got, err)
		}
	}
	if _, err := s.Nodes.Find("twin"); !errdefs.IsInvalidArgument(err) || err.Error() != "node twin is ambiguous (2 matches found)" {
		t.Errorf("twins: %v", err)
	}
	if _, err := s.Nodes.Find("other"); !errdefs.IsNotFound(err) {
		t.Errorf("none: %v", err)
	}
	var empty State
	if _, err := empty.Tasks.Find("x"); !errdefs.IsNotFound(err) || empty.Tasks.Len() != 0 || empty.Cluster() != nil || ids(empty.TasksOf("x")) != "" {
		t.Error("the zero State is not an empty cluster")
	}
}

// Whatever a commit holds comes out of the log as it went in, and out of a snapshot as it was.
func TestRowsSurviveLogAndSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCommit(t)
		raw, err := encodeCommit(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeCommit(raw)
		if err != nil {
			t.Fatal(err)
		}
		again, err := encodeCommit(back)
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%v\n%x\n%x", err, raw, again)
		}
		f := newFSM(func(err error) { t.Error(err) })
		entry, err := encodeEntry(FormatVersion, raw, raw)
		if err != nil {
			t.Fatal(err)
		}
		answer, ok := f.Apply(&raft.Log{Index: 7, Data: entry}).(applied)
		verdicts := answer.verdicts
		if !ok || verdicts[0] != verdicts[1] && verdicts[0].refusal == nil {
			t.Fatalf("%v", verdicts)
		}
		var written bytes.Buffer
		if err := (&image{state: f.published.Load(), recent: f.recent.oldestFirst()}).write(&written); err != nil {
			t.Fatal(err)
		}
		restored := newFSM(func(err error) { t.Error(err) })
		if err := restored.Restore(io.NopCloser(bytes.NewReader(written.Bytes()))); err != nil {
			t.Fatal(err)
		}
		if a, b := dump(f.published.Load()), dump(restored.published.Load()); a != b || restored.published.Load().index != 7 {
			t.Fatalf("restored\n%s as\n%s", a, b)
		}
		if answer := restored.Apply(&raft.Log{Index: 8, Data: entry}).(applied).verdicts; verdicts[0].refusal == nil && answer[0].index != 7 {
			t.Fatalf("the restored one does not remember the commit: %v", answer)
		}
	})
}

func drawCommit(t *rapid.T) *commit {
	c := &commit{format: FormatVersion, id: newCommitID(), time: drawTime(t)}
	seen := map[string]bool{}
	for range rapid.IntRange(1, 6).Draw(t, "changes") {
		r := drawRow(t)
		table, id := tableOf(r), r.meta().ID
		if seen[id] {
			continue
		}
		seen[id] = true
		c.changes = append(c.changes, change{
			table: table, op: rapid.SampledFrom([]op{opPut, opObserve}).Draw(t, "op"), id: id,
			expected: rapid.SampledFrom([]uint64{0, 0, 0, 3}).Draw(t, "expected"), row: r,
		})
	}
	if rapid.Bool().Draw(t, "assert") {
		c.asserts = append(c.asserts, assertion{table: tableNodes, id: "none"})
	}
	if rapid.Bool().Draw(t, "guard") {
		c.guards = append(c.guards, guard{name: "managers"})
	}
	return c
}

func tableOf(r row) tableID {
	for _, t := range tableIDs() {
		if fmt.Sprintf("%T", newRow(t)) == fmt.Sprintf("%T", r) {
			return t
		}
	}
	return 0
}

func drawTime(t *rapid.T) time.Time {
	if rapid.Bool().Draw(t, "zero time") {
		return time.Time{}
	}
	return time.Unix(0, rapid.Int64Range(-1<<60, math.MaxInt64).Draw(t, "time")).UTC()
}

func drawRow(t *rapid.T) row {
	text, n := rapid.String(), rapid.Uint64()
	meta := Meta{ID: rapid.StringMatching("[a-z0-9]{1,25}").Draw(t, "id")}
	state := rapid.SampledFrom(func() []swarm.TaskState { s := taskStates(); return s[:] }())
	switch rapid.IntRange(0, 5).Draw(t, "table") {
	case 0:
		return &Cluster{Meta: meta, RootPEM: rapid.SliceOf(rapid.Byte()).Draw(t, "pem"), DefaultAddrPool: rapid.SliceOf(text).Draw(t, "pools"),
			DataPathPort: rapid.Uint32().Draw(t, "port"), Spec: swarm.Spec{Annotations: swarm.Annotations{Name: "default"}}}
	case 1:
		return &Node{Meta: meta, Role: swarm.NodeRoleWorker, Address: text.Draw(t, "address"),
			Description: swarm.NodeDescription{Hostname: "h", Engine: swarm.EngineDescription{Labels: map[string]string{"a": "b"}}},
			Session:     Session{Manager: "m", Presence: Presence(text.Draw(t, "presence")), Since: drawTime(t), Silence: time.Duration(rapid.Int64().Draw(t, "silence"))}}
	case 2:
		s := &Service{Meta: meta, Name: text.Draw(t, "name"), SpecVersion: n.Draw(t, "version"), Removing: rapid.Bool().Draw(t, "removing")}
		if rapid.Bool().Draw(t, "updating") {
			s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateCompleted, Message: "done"}
		}
		return s
	case 3:
		return &Spec{Meta: meta, ServiceID: "s", Spec: swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{
			Image: "img", Env: rapid.SliceOf(rapid.StringMatching("[A-Z]+=.*")).Draw(t, "env"),
			Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "v", Target: "/v"}},
		}}}}
	case 4:
		return &Task{Meta: meta, ServiceID: text.Draw(t, "service"), NodeID: text.Draw(t, "node"), Slot: n.Draw(t, "slot"),
			DesiredState: state.Draw(t, "desired"), NotBefore: drawTime(t), Status: TaskStatus{
				State: state.Draw(t, "state"), Timestamp: drawTime(t), Err: text.Draw(t, "err"),
				PID: rapid.Int().Draw(t, "pid"), ExitCode: rapid.Int().Draw(t, "exit"),
			}}
	default:
		return &Image{Meta: meta, Name: text.Draw(t, "name"), Digest: "sha256:0", SizeBytes: rapid.Int64().Draw(t, "size"),
			Platforms: []swarm.Platform{{Architecture: "amd64", OS: "linux"}, {}}, Holders: rapid.SliceOf(text).Draw(t, "holders")}
	}
}

func TestRowChangedByItsReaderIsNoticed(t *testing.T) {
	f := newFSM(func(err error) { t.Error(err) })
	f.sums = newRowSums(true)
	put := func(index uint64, id string) {
		raw, err := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), changes: []change{{table: tableTasks, op: opPut, id: id, row: &Task{Meta: Meta{ID: id}}}}})
		if err != nil {
			t.Fatal(err)
		}
		entry, err := encodeEntry(FormatVersion, raw)
		if err != nil {
			t.Fatal(err)
		}
		applyEntry(t, f, index, entry)
	}
	put(1, "a")
	put(2, "b")
	a, _ := f.published.Load().Tasks.Get("a")
	a.NodeID = "n1"
	defer func() {
		if fault := recover(); fault == nil || !strings.Contains(fmt.Sprint(fault), "*raftstore.Task a was changed by a reader") {
			t.Errorf("got %v", fault)
		}
	}()
	put(3, "c")
}

func TestRememberedCommitsAreBounded(t *testing.T) {
	var r recentCommits
	var all []commitID
	for i := range commitIDsMax + 10 {
		all = append(all, newCommitID())
		r.add(doneCommit{id: all[i], index: uint64(i)})
	}
	if _, ok := r.find(all[9]); ok || len(r.byID) != commitIDsMax {
		t.Errorf("remembers %d", len(r.byID))
	}
	if done, ok := r.find(all[10]); !ok || done.index != 10 {
		t.Error("forgot too early")
	}
	if oldest := r.oldestFirst(); oldest[0].index != 10 || oldest[commitIDsMax-1].index != commitIDsMax+9 {
		t.Errorf("from %d to %d", oldest[0].index, oldest[commitIDsMax-1].index)
	}
}

// FuzzApply feeds the state machine: whatever decodes must apply without a panic, the same on two replicas, and survive a snapshot.
func FuzzApply(f *testing.F) {
	task, _ := encodeCommit(&commit{format: FormatVersion, changes: []change{{table: tableTasks, op: opPut, id: "t", row: &Task{Meta: Meta{ID: "t"}, Slot: 1}}}})
	service, _ := encodeCommit(&commit{format: FormatVersion, id: newCommitID(), guards: []guard{{name: "g"}}, changes: []change{
		{table: tableServices, op: opPut, id: "s", row: &Service{Meta: Meta{ID: "s"}, Name: "web"}},
		{table: tableSpecs, op: opPut, id: "s/1", row: &Spec{Meta: Meta{ID: "s/1"}}},
		{table: tableTasks, op: opDelete, id: "t", expected: 1},
	}})
	entry, _ := encodeEntry(FormatVersion, task, service)
	f.Add(entry)
	f.Add(entry[:len(entry)/2])
	f.Add([]byte("\x08\x03"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := newFSM(func(error) {}), newFSM(func(error) {})
		for i := range 2 {
			a.Apply(&raft.Log{Index: uint64(i + 1), Data: data})
			b.Apply(&raft.Log{Index: uint64(i + 1), Data: data})
		}
		if dump(a.published.Load()) != dump(b.published.Load()) {
			t.Fatal("replicas differ")
		}
		var written bytes.Buffer
		if err := (&image{state: a.published.Load()}).write(&written); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readImage(&written); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzReadImage feeds a snapshot from another manager.
func FuzzReadImage(f *testing.F) {
	s := newState()
	s.Tasks.put(&Task{Meta: Meta{ID: "t"}})
	var written bytes.Buffer
	if err := (&image{state: s, recent: []doneCommit{{id: newCommitID(), index: 3}}}).write(&written); err != nil {
		f.Fatal(err)
	}
	f.Add(written.Bytes())
	f.Add(written.Bytes()[:10])
	f.Fuzz(func(t *testing.T, data []byte) {
		state, _, err := readImage(bytes.NewReader(data))
		if err == nil {
			_ = dump(state)
		}
	})
}

func applyEntry(t testing.TB, f *fsm, index uint64, entry []byte) {
	answer, ok := f.Apply(&raft.Log{Index: index, Data: entry}).(applied)
	for _, v := range answer.verdicts {
		ok = ok && v.refusal == nil
	}
	if !ok {
		t.Fatalf("entry %d: %v", index, answer)
	}
}
