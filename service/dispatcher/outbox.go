package dispatcher

import (
	"cmp"
	"encoding/json"
	"hash/fnv"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"swarm/raftstore"
	"swarm/rpc"
	"swarm/service/task"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
)

// outbox is what an agent was sent, so that only differences follow. The sending goroutine owns it, but for needs.
type outbox struct {
	s *session
	// tasks holds the desired state that was sent, specs how many of these tasks use one.
	tasks map[string]sentTask
	specs map[string]bool
	// holders are the addresses that were sent per digest, or reference without one.
	holders map[string]string
	order   *rpc.NodeOrder
	roster  rosterPosition
	full    bool

	mu sync.Mutex
	// needs are the digests and names of images that tasks of the node do not run with yet.
	needs map[string]bool
}

type sentTask struct {
	desired uint32
	specID  string
}

func (o *outbox) begin(s *session) {
	o.s = s
	o.tasks, o.specs, o.holders, o.needs = map[string]sentTask{}, map[string]bool{}, map[string]string{}, map[string]bool{}
}

// sendAll sends the welcome, everything, and then what changes, until the session ends. What changes while a message
// is under way goes together into the next one.
func (s *session) sendAll(welcome *rpc.Welcome) {
	err := s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Welcome{Welcome: welcome}})
	s.poke(dueAll)
	for err == nil {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wakeUp:
			err = s.sendDue()
		}
	}
	s.end(err)
}

func (s *session) sendDue() error {
	s.mu.Lock()
	d, acks, since := s.due, s.acks, s.dueSince
	s.due, s.acks = 0, nil
	s.mu.Unlock()
	state := s.d.cfg.Store.Local()
	if d&dueBeat != 0 {
		if err := s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Beat{Beat: &rpc.Beat{}}}); err != nil {
			return err
		}
	}
	if d&dueMove != 0 {
		if err := s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Move{Move: &rpc.Move{}}}); err != nil {
			return err
		}
	}
	for _, sequence := range acks {
		if err := s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Ack{Ack: &rpc.StatusAck{Sequence: sequence}}}); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		due  due
		send func(*raftstore.State) error
	}{{dueOrder, s.outbox.sendOrder}, {dueRoster, s.outbox.sendRoster}, {dueTasks, s.outbox.sendTasks}} {
		if d&part.due != 0 {
			if err := part.send(state); err != nil {
				return err
			}
		}
	}
	if d != 0 {
		s.d.counters.send.Observe(time.Since(since))
	}
	return nil
}

// sendOrder tells the node what the cluster wants it to be.
func (o *outbox) sendOrder(state *raftstore.State) error {
	order := orderFor(state, o.s.nodeID, *o.s.d.voters.Load())
	if !proto.Equal(order, o.order) {
		if err := o.s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Order{Order: order}}); err != nil {
			return err
		}
		o.order = order
	}
	if order.Removed {
		return errRemoved
	}
	return nil
}

// orderFor is a node's order. A demoted manager stays one until raft goes on without it.
func orderFor(state *raftstore.State, nodeID string, voters map[string]bool) *rpc.NodeOrder {
	n, ok := state.Nodes.Get(nodeID)
	if !ok {
		return &rpc.NodeOrder{Removed: true}
	}
	role := n.Spec.Role
	if _, member := voters[nodeID]; member {
		role = swarm.NodeRoleManager
	}
	return &rpc.NodeOrder{Role: string(role), Availability: string(n.Spec.Availability)}
}

func (o *outbox) sendRoster(*raftstore.State) error {
	r, at := o.s.d.roster.since(o.roster)
	o.roster = at
	if r == nil {
		return nil
	}
	return o.s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Roster{Roster: r}})
}

// sendTasks sends the difference between what the node shall have and what it was told. The first set is whole, in one message,
// but for its specs, which go ahead when they are big.
func (o *outbox) sendTasks(state *raftstore.State) error {
	now := map[string]bool{}
	needs := map[string]bool{}
	messages := &batch{whole: !o.full, send: o.sendAssignments}
	for t := range state.TasksOn(o.s.nodeID) {
		if task.Before(t.Status.State, swarm.TaskStateAssigned) {
			continue
		}
		now[t.ID] = true
		v := state.Spec(t.ServiceID, t.SpecVersion)
		if v == nil {
			o.s.d.log.Error("task has no spec, so it cannot run", "task", t.ID, "service", t.ServiceID, "version", t.SpecVersion)
			continue
		}
		if wantsImage(t) && v.TaskTemplate.ContainerSpec != nil {
			needs[v.TaskTemplate.ContainerSpec.Image] = true
		}
		if err := o.addTask(messages, t, v); err != nil {
			return err
		}
	}
	for id := range o.tasks {
		if !now[id] {
			delete(o.tasks, id)
			if err := messages.add(&rpc.Assignments{RemovedTaskIds: []string{id}}); err != nil {
				return err
			}
		}
	}
	o.forgetSpecs()
	for _, h := range o.holdersChanged(needs) {
		if err := messages.add(&rpc.Assignments{Holders: []*rpc.ImageHolders{h}}); err != nil {
			return err
		}
	}
	o.full = true
	return messages.flush()
}

func (o *outbox) addTask(messages *batch, t *raftstore.Task, v *swarm.ServiceSpec) error {
	sent := sentTask{desired: task.Number(t.DesiredState), specID: raftstore.SpecID(t.ServiceID, t.SpecVersion)}
	if o.tasks[t.ID] == sent {
		return nil
	}
	o.tasks[t.ID] = sent
	a := &rpc.Assignments{Tasks: []*rpc.Assignment{{
		TaskId: t.ID, ServiceId: t.ServiceID, SpecVersion: t.SpecVersion, Slot: t.Slot, DesiredState: sent.desired,
	}}}
	if !o.specs[sent.specID] {
		o.specs[sent.specID] = true
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		a.Specs = []*rpc.ServiceSpec{{ServiceId: t.ServiceID, Version: t.SpecVersion, SpecJson: b}}
	}
	return messages.add(a)
}

// forgetSpecs lets specs be sent again once no task uses them: the agent may have dropped them too.
func (o *outbox) forgetSpecs() {
	used := map[string]bool{}
	for _, t := range o.tasks {
		used[t.specID] = true
	}
	for id := range o.specs {
		if !used[id] {
			delete(o.specs, id)
		}
	}
}

func (o *outbox) sendAssignments(a *rpc.Assignments) error {
	return o.s.stream.Send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Assignments{Assignments: a}})
}

// wantsImage says whether a task may still have to fetch its image.
func wantsImage(t *raftstore.Task) bool {
	return !task.Before(swarm.TaskStateRunning, t.DesiredState) && task.Before(t.Status.State, swarm.TaskStateReady)
}

// wantsImage says whether a session's node waits for one of the images, given by row ids, or for any.
func (s *session) wantsImage(images map[string]struct{}, any bool) bool {
	s.outbox.mu.Lock()
	defer s.outbox.mu.Unlock()
	if any && len(s.outbox.needs) > 0 {
		return true
	}
	if len(s.outbox.needs) == 0 {
		return false
	}
	for id := range images {
		name, digest, _ := strings.Cut(id, "@")
		if s.outbox.needs[digest] || s.outbox.needs[name] {
			return true
		}
	}
	return false
}

// holdersChanged lists the holders of the images that are needed, where they differ from what the node was told. A reference
// without a digest stands in a digest's place.
func (o *outbox) holdersChanged(refs map[string]bool) (changed []*rpc.ImageHolders) {
	needs := map[string]bool{}
	for ref := range refs {
		needs[imageKey(ref)] = true
	}
	o.mu.Lock()
	o.needs = needs
	o.mu.Unlock()
	// Only a state read after the needs are known has every image whose arrival nobody would wake this session for.
	state := o.s.d.cfg.Store.Local()
	now := map[string]string{}
	for ref := range refs {
		subject := ref
		if _, digest, pinned := strings.Cut(ref, "@"); pinned {
			subject = digest
		}
		addresses := holdersOf(state, imageKey(ref), o.s.nodeID)
		now[subject] = strings.Join(addresses, " ")
		if told, known := o.holders[subject]; !known && len(addresses) > 0 || known && told != now[subject] {
			changed = append(changed, &rpc.ImageHolders{Digest: subject, Addresses: addresses})
		}
	}
	o.holders = now
	slices.SortFunc(changed, func(a, b *rpc.ImageHolders) int { return cmp.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(changed, func(a, b *rpc.ImageHolders) bool { return a.Digest == b.Digest })
}

const digestPrefix = "sha256:"

// imageKey is what rows of the images table have in common with a reference of a spec: its digest if it is pinned, else its full name.
func imageKey(ref string) string {
	if _, digest, pinned := strings.Cut(ref, "@"); pinned {
		return digest
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

// holdersOf are the addresses of ready nodes that hold an image, given as imageKey does. Each node gets its own choice of them,
// the same each time.
func holdersOf(state *raftstore.State, key, nodeID string) []string {
	type holder struct {
		rank    uint64
		address string
	}
	var found []holder
	seen := map[string]bool{nodeID: true}
	images := state.ImagesNamed(key)
	if strings.HasPrefix(key, digestPrefix) {
		images = state.ImagesByDigest(key)
	}
	for i := range images {
		for _, id := range i.Holders {
			n, ok := state.Nodes.Get(id)
			if !ok || seen[id] || n.Status.State != swarm.NodeStateReady || n.Address == "" {
				continue
			}
			seen[id] = true
			h := fnv.New64a()
			_, _ = io.WriteString(h, nodeID+" "+id)
			found = append(found, holder{h.Sum64(), n.Address})
		}
	}
	slices.SortFunc(found, func(a, b holder) int { return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.address, b.address)) })
	var addresses []string
	for _, h := range found[:min(len(found), holdersMax)] {
		addresses = append(addresses, h.address)
	}
	return addresses
}

// batch cuts assignments into messages of bounded size.
type batch struct {
	// whole keeps everything for one message, which replaces the agent's set.
	whole bool
	send  func(*rpc.Assignments) error
	next  *rpc.Assignments
	bytes int
}

func (b *batch) add(a *rpc.Assignments) error {
	size := proto.Size(a)
	if b.whole && b.bytes+size > assignmentBytesMax && len(a.Specs) > 0 {
		// Specs are what is big: they go ahead.
		if err := b.send(&rpc.Assignments{Specs: a.Specs}); err != nil {
			return err
		}
		a.Specs = nil
		size = proto.Size(a)
	}
	if n := b.next; n != nil && !b.whole && (len(n.Tasks)+len(n.RemovedTaskIds) >= assignmentsMax || b.bytes+size > assignmentBytesMax) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	if b.next == nil {
		b.next = &rpc.Assignments{Full: b.whole}
	}
	b.next.Tasks = append(b.next.Tasks, a.Tasks...)
	b.next.RemovedTaskIds = append(b.next.RemovedTaskIds, a.RemovedTaskIds...)
	b.next.Specs = append(b.next.Specs, a.Specs...)
	b.next.Holders = append(b.next.Holders, a.Holders...)
	b.bytes += size
	return nil
}

// flush sends what was added; a whole set also when it is empty.
func (b *batch) flush() error {
	if b.next == nil && !b.whole {
		return nil
	}
	a := b.next
	if a == nil {
		a = &rpc.Assignments{Full: true}
	}
	b.whole, b.next, b.bytes = false, nil, 0
	return b.send(a)
}
