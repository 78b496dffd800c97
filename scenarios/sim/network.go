package sim

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// The bounds and habits of the simulated network, after Linux's.
const (
	// streamBufferBytes is what one direction of a stream holds before its writer must wait.
	streamBufferBytes = 256 << 10
	// backlogMax is how many connections wait for Accept; the next one's SYN goes unanswered.
	backlogMax = 128
	// packetsMax is how many packets wait for their reader; the next ones are dropped.
	packetsMax = 1024
	// dialMax is how long a dial without an answer is tried: rpc.Kernel's own limit.
	dialMax = 5 * time.Second
	// silenceMax is how long a connection outlives its link: keep-alive and TCP_USER_TIMEOUT of rpc.Kernel.
	silenceMax = 10 * time.Second
	// retransmitMin is TCP's first wait for an acknowledgement, doubled each time.
	retransmitMin = 200 * time.Millisecond
	// resendsMax in a row and the connection is given up.
	resendsMax = 6
	// resetAfterMax is how long a peer that comes back without its old connections takes to reset them: keep-alive.
	resetAfterMax = 4 * time.Second
	// grain is what arrival times are rounded up to: fewer steps of the bubble's clock.
	grain = 200 * time.Microsecond
)

// Network is every cable and switch between the hosts. All of it is guarded by one mutex: there is no parallelism to win
// on the one processor that a bubble gets.
type Network struct {
	mu     sync.Mutex
	random *rand.Rand
	hosts  map[netip.Addr]*Host
	// latency of an ordinary link, and up to how much more a packet may take.
	latency, jitter time.Duration
	links           map[direction]*link
	pairs           map[*pair]struct{}
	nextPort        uint16
	sent, dropped   int // packets
}

// direction is from one host to another.
type direction struct{ from, to *Host }

// link is what differs from an ordinary link in one direction.
type link struct {
	blocked   bool
	blockedAt time.Time
	loss      float64 // 0…1
	bandwidth int     // bytes a second; 0: no limit
	free      time.Time
	delay     time.Duration // beside the network's own
}

// NewNetwork without hosts. Equal seeds give equal luck, as far as goroutines ask for it in the same order.
func NewNetwork(seed uint64, latency, jitter time.Duration) *Network {
	return &Network{
		random: rand.New(rand.NewPCG(seed, 0x6e6574)), hosts: map[netip.Addr]*Host{}, latency: latency, jitter: jitter,
		links: map[direction]*link{}, pairs: map[*pair]struct{}{}, nextPort: 32768,
	}
}

// AddHost plugs in a machine that is switched on.
func (n *Network) AddHost(address netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{network: n, address: address, on: true, sockets: map[string]*socket{}, packets: map[string]*packetConn{}}
	n.hosts[address] = h
	return h
}

// Block makes everything from one host to another vanish.
func (n *Network) Block(from, to *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	if l.blocked {
		return
	}
	l.blocked, l.blockedAt = true, time.Now()
	n.stallLocked()
	n.expectGiveUp()
}

// Mute makes all that a host sends vanish.
func (n *Network) Mute(h *Host) {
	for _, other := range n.Hosts() {
		if other != h {
			n.Block(h, other)
		}
	}
}

// Deafen makes all that is sent to a host vanish.
func (n *Network) Deafen(h *Host) {
	for _, other := range n.Hosts() {
		if other != h {
			n.Block(other, h)
		}
	}
}

// Partition leaves only links within a group; hosts in no group form one together.
func (n *Network) Partition(groups ...[]*Host) {
	of := map[*Host]int{}
	for i, g := range groups {
		for _, h := range g {
			of[h] = i + 1
		}
	}
	for _, a := range n.Hosts() {
		for _, b := range n.Hosts() {
			if a != b && of[a] != of[b] {
				n.Block(a, b)
			}
		}
	}
}

// Heal removes every block, loss, delay and limit of bandwidth.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = map[direction]*link{}
	n.flowAgain()
}

// Slow limits a link in both directions: bytes a second (0: no limit), a delay beside the ordinary one, and how much is lost.
func (n *Network) Slow(a, b *Host, bandwidth int, delay time.Duration, loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range []*link{n.linkLocked(a, b), n.linkLocked(b, a)} {
		l.bandwidth, l.delay, l.loss = bandwidth, delay, loss
	}
}

// Hosts in order of their addresses.
func (n *Network) Hosts() []*Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*Host
	for _, h := range n.hosts {
		all = append(all, h)
	}
	sortHosts(all)
	return all
}

func (n *Network) linkLocked(from, to *Host) *link {
	d := direction{from, to}
	if n.links[d] == nil {
		n.links[d] = &link{}
	}
	return n.links[d]
}

// open says whether packets pass. A host always reaches itself.
func (n *Network) open(from, to *Host) bool {
	if !from.on || !to.on {
		return false
	}
	l := n.links[direction{from, to}]
	return from == to || l == nil || !l.blocked
}

// arrival of a packet that is sent now; lost says that it never comes.
func (n *Network) arrival(from, to *Host, bytes int) (at time.Time, lost bool) {
	now := time.Now()
	if from == to {
		return now, false
	}
	at = now.Add(n.latency)
	if n.jitter > 0 {
		at = at.Add(time.Duration(n.random.Int64N(int64(n.jitter))))
	}
	if l := n.links[direction{from, to}]; l != nil {
		if l.bandwidth > 0 {
			if l.free.Before(now) {
				l.free = now
			}
			l.free = l.free.Add(time.Duration(bytes) * time.Second / time.Duration(l.bandwidth))
			at = at.Add(l.free.Sub(now))
		}
		at = at.Add(l.delay)
		lost = l.loss > 0 && n.random.Float64() < l.loss
	}
	return roundUp(at), lost
}

func roundUp(t time.Time) time.Time {
	if r := t.Truncate(grain); r.Before(t) {
		return r.Add(grain)
	}
	return t
}

// stallLocked stops what is under way on links that are closed now.
func (n *Network) stallLocked() {
	now := time.Now()
	for p := range n.pairs {
		for _, f := range p.flows {
			// Without the way back nothing is acknowledged, but what is sent arrives.
			if !f.stalled && !n.open(f.from, f.to) {
				f.stall(now)
			}
		}
	}
}

// flowAgain has what was stalled sent again on links that are open now.
func (n *Network) flowAgain() {
	for p := range n.pairs {
		for _, f := range p.flows {
			if f.stalled && f.flows() {
				f.resend()
			}
		}
		if p.giveUp != nil && !p.cut() {
			p.giveUp.Stop()
			p.giveUp = nil
		}
	}
}

// expectGiveUp ends, when their time is over, the connections whose link is closed now.
func (n *Network) expectGiveUp() {
	for p := range n.pairs {
		p.expectGiveUp()
	}
}
