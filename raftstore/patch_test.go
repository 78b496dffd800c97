package raftstore

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// A patch makes of the old row what the whole new one would have made, and leaves the old one alone.
func TestPatchSaysWhatTheWholeRowSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, now := drawRow(t), drawRow(t)
		if tableOf(old) != tableOf(now) {
			t.Skip("rows of two tables")
		}
		now.meta().ID = old.meta().ID
		before := encoded(t, old)
		patch, ok, err := patchBetween(old, now, FormatVersion)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return // written whole
		}
		got, err := patched(old, patch)
		if err != nil {
			t.Fatalf("%v: %x", err, patch)
		}
		if a, b := encoded(t, got), encoded(t, now); !bytes.Equal(a, b) {
			t.Fatalf("patch %x of\n%x makes\n%x, not\n%x", patch, before, a, b)
		}
		if !bytes.Equal(encoded(t, old), before) {
			t.Fatal("the old row was changed")
		}
	})
}

func encoded(t interface{ Fatal(...any) }, r row) []byte {
	raw, err := marshal(r.wire)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// FuzzPatch applies patches from another manager.
func FuzzPatch(f *testing.F) {
	patch, _, _ := patchBetween(&Task{NodeID: "a"}, &Task{NodeID: "b", Status: TaskStatus{State: swarm.TaskStateRunning}}, FormatVersion)
	f.Add(uint32(tableTasks), patch)
	labels := &Node{Spec: swarm.NodeSpec{Annotations: swarm.Annotations{Labels: map[string]string{"a": "b"}}}}
	patch, _, _ = patchBetween(&Node{}, labels, FormatVersion)
	f.Add(uint32(tableNodes), patch)
	f.Add(uint32(tableImages), []byte("\x52\x00"))
	f.Fuzz(func(t *testing.T, table uint32, patch []byte) {
		blank := newRow(table)
		if blank == nil {
			return
		}
		if _, err := patched(blank, patch); err != nil {
			return
		}
		// What a blank row accepts, every row must: it is checked on a blank one before it reaches the log.
		for _, full := range fullRows() {
			if tableOf(full) != table {
				continue
			}
			before := encoded(t, full)
			if _, err := patched(full, patch); err != nil {
				t.Fatalf("%x: %v", patch, err)
			}
			if !bytes.Equal(encoded(t, full), before) {
				t.Fatalf("%x changed the row before", patch)
			}
		}
	})
}

// fullRows has something in every field that refers to memory of its own.
func fullRows() []row {
	labels := map[string]string{"a": "b"}
	return []row{
		&Cluster{Spec: swarm.Spec{Annotations: swarm.Annotations{Labels: labels}}, RootPEM: []byte("x"), DefaultAddrPool: []string{"10.0.0.0/8"}},
		&Node{Spec: swarm.NodeSpec{Annotations: swarm.Annotations{Labels: labels}}, Description: swarm.NodeDescription{Engine: swarm.EngineDescription{Labels: labels}}},
		&Service{Name: "web", UpdateStatus: &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, Message: "x"}},
		&Spec{Spec: swarm.ServiceSpec{Annotations: swarm.Annotations{Labels: labels}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Env: []string{"A=B"}}}}},
		&Task{ServiceID: "s", Status: TaskStatus{State: swarm.TaskStateRunning, Timestamp: time.Unix(1, 0)}},
		&Image{Platforms: []swarm.Platform{{OS: "linux"}}, Holders: []string{"n1"}},
	}
}

// What changes often costs little in the log: the ids of commit and task, 43 bytes, are most of it.
func TestHotChangesAreSmallInTheLog(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		task, node, service := NewID(), NewID(), NewID()
		c.update(m, func(tx *Tx) error {
			worker := managerNode(node)
			worker.Spec.Role = swarm.NodeRoleWorker
			worker.Description = swarm.NodeDescription{Hostname: "worker", Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 16 << 30}}
			tx.PutNode(worker)
			tx.PutTask(Task{Meta: Meta{ID: task}, ServiceID: service, SpecVersion: 12, Slot: 3, DesiredState: swarm.TaskStateRunning,
				Status: TaskStatus{State: swarm.TaskStatePending, Timestamp: time.Now(), Message: "pending task scheduling"}})
			return nil
		})
		for name, want := range map[string]struct {
			bytesMax int
			change   func(*Tx)
		}{
			"status": {100, func(tx *Tx) {
				seen, _ := tx.Tasks.Get(task)
				next := *seen
				next.Status.State, next.Status.Timestamp, next.Status.Message = swarm.TaskStateRunning, time.Now(), "started"
				tx.PutObservedTask(next)
			}},
			"assignment": {130, func(tx *Tx) {
				seen, _ := tx.Tasks.Get(task)
				next := *seen
				next.NodeID, next.Status.State, next.Status.Timestamp, next.Status.Message = node, swarm.TaskStateAssigned, time.Now(), "assigned"
				tx.PutObservedTask(next)
			}},
			"desired state": {80, func(tx *Tx) {
				seen, _ := tx.Tasks.Get(task)
				next := *seen
				next.DesiredState = swarm.TaskStateShutdown
				tx.PutTask(next)
			}},
			"presence": {130, func(tx *Tx) {
				seen, _ := tx.Nodes.Get(node)
				next := *seen
				next.Session.Presence, next.Session.Since = PresenceSuspect, time.Now()
				tx.PutObservedNode(next)
			}},
		} {
			tx, err := m.run(func(tx *Tx) error { want.change(tx); return nil })
			check(t, err)
			raw, err := encodeCommit(tx.commit(time.Now()))
			check(t, err)
			t.Logf("%s: %d bytes", name, len(raw))
			if len(raw) > want.bytesMax {
				t.Errorf("%s: %d bytes in the log, want at most %d", name, len(raw), want.bytesMax)
			}
			c.update(m, func(tx *Tx) error { want.change(tx); return nil })
		}
		got, _ := m.Local().Tasks.Get(task)
		if got.ServiceID != service || got.Slot != 3 || got.NodeID != node || got.DesiredState != swarm.TaskStateShutdown {
			t.Errorf("the task became %+v", got)
		}
	})
}

// A cluster with members that read only whole rows is written to in their format, and their log is read.
func TestOlderFormatIsKeptWhileTheClusterNeedsIt(t *testing.T) {
	f := newFSM(func(err error) { t.Error(err) })
	// A cluster, a node and a task as format 1 wrote them, the node with a flag that is gone since.
	raw, err := hex.DecodeString("" +
		"080112820308011210303132333435363738396162636465661880a8d6b90722c801080110011a07636c75737465722ab8010a07636c757374657232ac017b224c" +
		"6162656c73223a6e756c6c2c224f726368657374726174696f6e223a7b7d2c2252616674223a7b22456c656374696f6e5469636b223a302c224865617274626561" +
		"745469636b223a307d2c2244697370617463686572223a7b7d2c224341436f6e666967223a7b7d2c225461736b44656661756c7473223a7b7d2c22456e63727970" +
		"74696f6e436f6e666967223a7b224175746f4c6f636b4d616e6167657273223a66616c73657d7d226f080210011a026e312a650a026e31320f7b224c6162656c73" +
		"223a6e756c6c7d3a06776f726b657242377b22506c6174666f726d223a7b7d2c225265736f7572636573223a7b7d2c22456e67696e65223a7b7d2c22544c53496e" +
		"666f223a7b7d7d4a027b7d5204616464725a016d6801221e080510011a01742a150a01743201734a026e3150096009720568656c6c6f320a0a086d616e61676572" +
		"73")
	check(t, err)
	applyEntry(t, f, 1, raw)
	state := f.published.Load()
	if task, ok := state.Tasks.Get("t"); !ok || task.Status.Message != "hello" || task.NodeID != "n1" {
		t.Fatalf("task: %+v", task)
	}
	if state.format() != 1 {
		t.Fatalf("format %d", state.format())
	}
	tx := f.begin()
	seen, _ := tx.Tasks.Get("t")
	next := *seen
	next.Status.Message = "bye"
	tx.PutObservedTask(next)
	node, _ := tx.Nodes.Get("n1")
	suspect := *node
	suspect.Session.Presence = PresenceSuspect
	tx.PutObservedNode(suspect)
	c := tx.commit(time.Unix(2, 0))
	raw, err = encodeCommit(c)
	check(t, err)
	back, err := decodeCommit(raw)
	check(t, err)
	if back.format != 1 || back.changes[0].row == nil || back.changes[1].row.(*Node).Session.Presence != "" {
		t.Errorf("written as format %d: %+v", back.format, back.changes)
	}
	p := newProposal(c, raw)
	if p.stamp(7); !bytes.Equal(p.commit, raw) {
		t.Error("a commit of format 1 was stamped")
	}
	entry, err := encodeEntry(p.format, p.commit)
	check(t, err)
	if answer := f.Apply(&raft.Log{Index: 9, Data: entry}).(applied); answer.verdicts[0].refusal != nil {
		t.Errorf("refused: %s", answer.verdicts[0].refusal)
	}
}

func TestNewClusterBeginsWithTheNewestFormat(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.form(1)[0]
		if got := m.Local().Cluster().MinVersion; got != FormatVersion {
			t.Errorf("format %d", got)
		}
	})
}
