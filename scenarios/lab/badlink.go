package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A bad link is a detour: the node's port leaves the switch, and this process carries every frame between it and a new port,
// late or not at all. (Common kernels for virtual machines have no netem.) Ethernet offloads pass through untouched, because
// each frame travels with the header in which the kernel notes what the hardware would still have had to do.
const (
	innerPrefix   = "i-"      // this process's end of the detour
	outerPrefix   = "o-"      // the switch's end
	lateFramesMax = 8192      // under way in one direction; what comes on top is lost, as in any router
	frameBytesMax = 128 << 10 // a frame that the hardware would still have to cut
	tapBytesMax   = 8 << 20   // waiting in the kernel for this process
)

// badLink carries frames between a node's port and the switch.
type badLink struct {
	port, outer netlink.Link
	taps        [2]*os.File
	done        sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration
	loss  float64 // 0 to 1
}

// Delay makes every packet from and to the node late by that much; 0: no longer.
func (n *Node) Delay(late time.Duration) error {
	return n.worsen(func(l *badLink) { l.delay = late })
}

// Lose drops that share of the packets from and to the node, 0 to 1.
func (n *Node) Lose(share float64) error {
	if !(share >= 0 && share <= 1) {
		return fmt.Errorf("lose %v of the packets of %s: want a share from 0 to 1", share, n.Name)
	}
	return n.worsen(func(l *badLink) { l.loss = share })
}

func (n *Node) worsen(change func(*badLink)) error {
	s := n.lab.wires
	m := s.members[n.Name]
	if m.bad == nil {
		bad, err := s.detour(n.Name)
		if err != nil {
			return fmt.Errorf("make a bad link of %s's: %w", n.Name, err)
		}
		m.bad = bad
	}
	m.bad.mu.Lock()
	change(m.bad)
	good := m.bad.delay == 0 && m.bad.loss == 0
	m.bad.mu.Unlock()
	if good {
		return s.straighten(n.Name)
	}
	return nil
}

// detour takes the node's port off the bridge and puts a bad link in between, which does no harm yet.
func (s *network) detour(node string) (*badLink, error) {
	port, err := s.links.LinkByName(portPrefix + node)
	if err != nil {
		return nil, err
	}
	bad := &badLink{port: port}
	bad.outer = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: outerPrefix + node, MasterIndex: s.bridge.Index}, PeerName: innerPrefix + node}
	if err := s.links.LinkAdd(bad.outer); err != nil {
		return nil, err
	}
	inner, err := s.links.LinkByName(innerPrefix + node)
	if err != nil {
		return nil, err
	}
	for _, end := range []netlink.Link{port, inner} {
		// The switch's own kernel must not answer for it.
		if err := s.links.LinkSetARPOff(end); err != nil {
			return nil, err
		}
	}
	err = errors.Join(s.links.LinkSetUp(inner), s.links.LinkSetUp(bad.outer))
	if err != nil {
		return nil, err
	}
	err = within(namespaceName(s.lab, switchName), func() (err error) {
		for i, end := range []netlink.Link{port, inner} {
			if bad.taps[i], err = tap(end.Attrs().Index); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = s.links.LinkSetNoMaster(port)
	}
	if err != nil {
		return nil, errors.Join(err, bad.close(s))
	}
	bad.done.Go(func() { bad.carry(bad.taps[0], bad.taps[1]) })
	bad.done.Go(func() { bad.carry(bad.taps[1], bad.taps[0]) })
	return bad, nil
}

// straighten puts the node's port back on the bridge.
func (s *network) straighten(node string) error {
	bad := s.members[node].bad
	if bad == nil {
		return nil
	}
	s.members[node].bad = nil
	return errors.Join(bad.close(s), s.links.LinkSetMaster(bad.port, s.bridge))
}

// close ends the carrying; frames under way are lost.
func (l *badLink) close(s *network) error {
	for _, tap := range l.taps {
		if tap != nil {
			tap.Close()
		}
	}
	l.done.Wait()
	return errors.Join(s.links.LinkDel(l.outer), s.links.LinkSetARPOn(l.port))
}

// tap opens a link for whole frames with their offload headers. What this kernel sends there itself is not seen.
func tap(index int) (*os.File, error) {
	protocol := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "tap")
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBytesMax),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}),
	)
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

type lateFrame struct {
	due  time.Time
	data []byte
}

// carry frames in one direction, in their order, until the taps are closed.
func (l *badLink) carry(from, to *os.File) {
	late := make(chan lateFrame, lateFramesMax)
	l.done.Go(func() {
		for frame := range late {
			time.Sleep(time.Until(frame.due))
			to.Write(frame.data) // a link that is down or full loses it
		}
	})
	defer close(late)
	for buffer := make([]byte, frameBytesMax); ; {
		n, err := from.Read(buffer)
		if errors.Is(err, fs.ErrClosed) {
			return
		}
		if err != nil { // the link went down: the next read waits until it is up
			continue
		}
		l.mu.Lock()
		delay, lost := l.delay, rand.Float64() < l.loss
		l.mu.Unlock()
		if lost {
			continue
		}
		select {
		case late <- lateFrame{due: time.Now().Add(delay), data: append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}
