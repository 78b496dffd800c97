package sim

import (
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// Host is one machine's kernel as far as the network sees it.
type Host struct {
	network *Network
	address netip.Addr

	// Guarded by network.mu:

	on      bool
	sockets map[string]*socket // by network and port or path
	packets map[string]*packetConn
}

// Address of the host.
func (h *Host) Address() netip.Addr { return h.address }

func sortHosts(all []*Host) {
	slices.SortFunc(all, func(a, b *Host) int { return a.address.Compare(b.address) })
}

// PowerOff silences the host: nobody hears of it again, not even that its connections are gone.
func (h *Host) PowerOff() {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	h.on = false
	for p := range n.pairs {
		p.forgetHost(h)
	}
	for _, s := range h.sockets {
		s.close()
	}
	for _, p := range h.packets {
		p.closeLocked()
	}
	n.stallLocked()
	n.expectGiveUp()
}

// PowerOn brings the host back without any memory of its connections: peers learn of that when their keep-alive asks.
func (h *Host) PowerOn() {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	h.on = true
	for p := range n.pairs {
		for _, e := range p.ends {
			if e.host == h && e.forgotten {
				after := time.Duration(n.random.Int64N(int64(resetAfterMax)))
				time.AfterFunc(after, func() { p.fail(e.peer(), syscall.ECONNRESET) })
			}
		}
	}
	n.flowAgain()
}
