package dispatcher

import (
	"cmp"
	"encoding/json"
	"hash/fnv"
	"io"
	"iter"
	"maps"
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
	// tasks are those that were sent; specs and refs count how many of them use a spec and how many still need an image.
	tasks map[string]sentTask
	specs map[string]int
	refs  map[string]int
	// fresh are the refs whose holders the agent was not told yet.
	fresh map[string]bool
	// holders are the addresses that were sent per digest, or reference without one.
	holders map[string]string
	order   *rpc.NodeOrder
	// orderOf and orderWith are what order was made from.
	orderOf   *raftstore.Node
	orderWith *map[string]bool
	roster    rosterPosition
	full      bool

	mu sync.Mutex
	// needs are the digests and names of images in refs.
	needs map[string]bool
}

// sentTask is what an agent knows of a task. ref is the image that it may still have to fetch, empty for none.
type sentTask struct {
	desired     uint32
	specID, ref string
}

func (o *outbox) begin(s *session) {
	o.s = s
	o.tasks, o.specs, o.refs, o.fresh = map[string]sentTask{}, map[string]int{}, map[string]int{}, map[string]bool{}
	o.holders, o.needs = map[string]string{}, map[string]bool{}
}

// sendAll sends the welcome, everything, and then what changes, until the session ends. What changes while a message
// is under way goes together into the next one.
func (s *session) sendAll(welcome *rpc.Welcome) {
	err := s.send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Welcome{Welcome: welcome}})
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
	d, acks, since, some := s.due, s.acks, s.dueSince, s.dueTaskIDs
	s.due, s.acks, s.dueTaskIDs = 0, nil, nil
	s.mu.Unlock()
	s.spoke = false
	if d != 0 || len(acks) > 0 {
		if err := s.sendNews(d, acks, some); err != nil {
			return err
		}
	}
	if d != 0 {
		s.d.counters.send.Observe(time.Since(since))
	}
	if s.beat.Swap(false) && !s.spoke { // any word answers a beat
		return s.send(s.d.beat)
	}
	return nil
}

// send is the only way to the agent, for the sending goroutine alone.
func (s *session) send(m *rpc.ManagerMessage) error {
	s.spoke = true
	return s.stream.Send(m)
}

func (s *session) sendNews(d due, acks []uint64, some []string) error {
	state := s.d.cfg.Store.Local()
	if d&dueMove != 0 {
		if err := s.send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Move{Move: &rpc.Move{}}}); err != nil {
			return err
		}
	}
	for _, sequence := range acks {
		if err := s.send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Ack{Ack: &rpc.StatusAck{Sequence: sequence}}}); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		due  due
		send func(*raftstore.State) error
	}{
		{dueOrder, s.outbox.sendOrder}, {dueRoster, s.outbox.sendRoster}, {dueTasks, s.outbox.sendTasks},
		{dueSomeTasks, func(state *raftstore.State) error { return s.outbox.sendSomeTasks(state, some) }},
	} {
		if d&part.due != 0 {
			if err := part.send(state); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendOrder tells the node what the cluster wants it to be.
func (o *outbox) sendOrder(state *raftstore.State) error {
	row, _ := state.Nodes.Get(o.s.nodeID)
	voters := o.s.d.voters.Load()
	if row != nil && row == o.orderOf && voters == o.orderWith {
		return nil
	}
	o.orderOf, o.orderWith = row, voters
	order := orderFor(state, o.s.nodeID, *voters)
	if !proto.Equal(order, o.order) {
		if err := o.s.send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Order{Order: order}}); err != nil {
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
	for {
		r, at := o.s.d.roster.since(o.roster)
		o.roster = at
		if r == nil {
			return nil
		}
		if err := o.s.send(r); err != nil {
			return err
		}
	}
}

// sendTasks sends the difference between what the node shall have and what it was told. The first set is whole, in one message,
// but for its specs, which go ahead when they are big.
func (o *outbox) sendTasks(state *raftstore.State) error {
	messages := &batch{whole: !o.full, send: o.sendAssignments}
	now := map[string]bool{}
	for t := range state.TasksOn(o.s.nodeID) {
		now[t.ID] = true
		if err := o.addTask(messages, state, t.ID, t); err != nil {
			return err
		}
	}
	for id := range o.tasks {
		if !now[id] {
			if err := o.addTask(messages, state, id, nil); err != nil {
				return err
			}
		}
	}
	for _, h := range o.holdersChanged(maps.Keys(o.refs)) {
		if err := messages.add(&rpc.Assignments{Holders: []*rpc.ImageHolders{h}}); err != nil {
			return err
		}
	}
	o.full = true
	return messages.flush()
}

// sendSomeTasks does the same for tasks of which alone something changed.
func (o *outbox) sendSomeTasks(state *raftstore.State, ids []string) error {
	if !o.full {
		return o.sendTasks(state)
	}
	messages := &batch{send: o.sendAssignments}
	for _, id := range ids {
		t, _ := state.Tasks.Get(id)
		if t != nil && t.NodeID != o.s.nodeID {
			t = nil
		}
		if err := o.addTask(messages, state, id, t); err != nil {
			return err
		}
	}
	if len(o.fresh) > 0 {
		for _, h := range o.holdersChanged(maps.Keys(maps.Clone(o.fresh))) {
			if err := messages.add(&rpc.Assignments{Holders: []*rpc.ImageHolders{h}}); err != nil {
				return err
			}
		}
	}
	return messages.flush()
}

// addTask adds what the agent has to hear of a task, nil for one that the node shall not have (any more).
func (o *outbox) addTask(messages *batch, state *raftstore.State, id string, t *raftstore.Task) error {
	if t == nil || task.Before(t.Status.State, swarm.TaskStateAssigned) {
		sent, known := o.tasks[id]
		if !known {
			return nil
		}
		delete(o.tasks, id)
		o.release(sent)
		return messages.add(&rpc.Assignments{RemovedTaskIds: []string{id}})
	}
	v := state.Spec(t.ServiceID, t.SpecVersion)
	if v == nil {
		o.s.d.log.Error("task has no spec, so it cannot run", "task", t.ID, "service", t.ServiceID, "version", t.SpecVersion)
		return nil
	}
	now := sentTask{desired: task.Number(t.DesiredState), specID: raftstore.SpecID(t.ServiceID, t.SpecVersion)}
	if wantsImage(t) && v.TaskTemplate.ContainerSpec != nil {
		now.ref = v.TaskTemplate.ContainerSpec.Image
	}
	sent, known := o.tasks[id]
	if known && sent == now {
		return nil
	}
	o.tasks[id] = now
	newSpec := o.hold(now)
	if known {
		o.release(sent)
		if sent.desired == now.desired && sent.specID == now.specID {
			return nil // it only has its image now
		}
	}
	a := &rpc.Assignments{Tasks: []*rpc.Assignment{{
		TaskId: t.ID, ServiceId: t.ServiceID, SpecVersion: t.SpecVersion, Slot: t.Slot, DesiredState: now.desired,
	}}}
	if newSpec {
		b, err := o.s.d.specs.encode(v)
		if err != nil {
			return err
		}
		a.Specs = []*rpc.ServiceSpec{{ServiceId: t.ServiceID, Version: t.SpecVersion, SpecJson: b}}
	}
	return messages.add(a)
}

// hold counts what a task uses, and says whether the agent does not have its spec yet.
func (o *outbox) hold(t sentTask) (newSpec bool) {
	o.specs[t.specID]++
	if t.ref != "" {
		if o.refs[t.ref]++; o.refs[t.ref] == 1 {
			o.fresh[t.ref] = true
			o.mu.Lock()
			o.needs[imageKey(t.ref)] = true
			o.mu.Unlock()
		}
	}
	return o.specs[t.specID] == 1
}

// release undoes hold. A spec that no task uses is sent again with the next one that does: the agent may have dropped it too.
func (o *outbox) release(t sentTask) {
	if o.specs[t.specID]--; o.specs[t.specID] == 0 {
		delete(o.specs, t.specID)
	}
	if t.ref == "" {
		return
	}
	if o.refs[t.ref]--; o.refs[t.ref] == 0 {
		delete(o.refs, t.ref)
		delete(o.fresh, t.ref)
		delete(o.holders, subjectOf(t.ref))
		o.mu.Lock()
		delete(o.needs, imageKey(t.ref))
		o.mu.Unlock()
	}
}

// specCache keeps specs as they travel, so that each is encoded once and not for every node.
type specCache struct {
	mu      sync.Mutex
	encoded map[*swarm.ServiceSpec][]byte
	bytes   int
}

// specCacheBytesMax bounds what is kept; it begins anew when it is full.
const specCacheBytesMax = 16 << 20

func (c *specCache) encode(v *swarm.ServiceSpec) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.encoded[v]; ok {
		return b, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if c.bytes += len(b); c.encoded == nil || c.bytes > specCacheBytesMax {
		c.encoded, c.bytes = map[*swarm.ServiceSpec][]byte{}, len(b)
	}
	c.encoded[v] = b
	return b, nil
}

func (o *outbox) sendAssignments(a *rpc.Assignments) error {
	return o.s.send(&rpc.ManagerMessage{Kind: &rpc.ManagerMessage_Assignments{Assignments: a}})
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

// holdersChanged lists the holders of images that are needed, where they differ from what the node was told.
func (o *outbox) holdersChanged(refs iter.Seq[string]) (changed []*rpc.ImageHolders) {
	// Only a state read after the needs are known has every image whose arrival nobody would wake this session for.
	state := o.s.d.cfg.Store.Local()
	for ref := range refs {
		subject := subjectOf(ref)
		addresses := holdersOf(state, imageKey(ref), o.s.nodeID)
		now := strings.Join(addresses, " ")
		if told, known := o.holders[subject]; !known && len(addresses) > 0 || known && told != now {
			changed = append(changed, &rpc.ImageHolders{Digest: subject, Addresses: addresses})
		}
		o.holders[subject] = now
	}
	clear(o.fresh)
	slices.SortFunc(changed, func(a, b *rpc.ImageHolders) int { return cmp.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(changed, func(a, b *rpc.ImageHolders) bool { return a.Digest == b.Digest })
}

// subjectOf is what holders are told by: a digest, or a reference without one in its place.
func subjectOf(ref string) string {
	if _, digest, pinned := strings.Cut(ref, "@"); pinned {
		return digest
	}
	return ref
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
	var seen map[string]bool
	images := state.ImagesNamed(key)
	if strings.HasPrefix(key, digestPrefix) {
		images = state.ImagesByDigest(key)
	}
	for i := range images {
		if seen == nil {
			seen = map[string]bool{nodeID: true}
		}
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
