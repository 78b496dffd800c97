package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	switchName = "switch" // namespace of the bridge; node names cannot clash with it, its namespace is not plugged in
	bridgeName = "br0"
	portPrefix = "p-"    // the switch's side of a node's link
	nodeLink   = "eth0"  // the node's side
	nodesMax   = movedBy // each can move once
)

// network is a bridge in a namespace of its own, and one veth pair per node.
type network struct {
	lab     string
	links   *netlink.Handle
	bridge  *netlink.Bridge
	members map[string]*member
}

// member is a node's side of its link.
type member struct {
	number int
	links  *netlink.Handle
	eth    netlink.Link
	bad    *badLink // nil: its cable goes straight to the switch
}

// address of the node with that number; the switch itself has 10.99.0.254.
func address(number int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(number)}) }

func newNetwork(lab string) (*network, error) {
	links, err := newNamespace(namespaceName(lab, switchName))
	if err != nil {
		return nil, err
	}
	s := &network{lab: lab, links: links, members: map[string]*member{}}
	s.bridge = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := links.LinkAdd(s.bridge); err != nil {
		return nil, fmt.Errorf("make the switch's bridge: %w", err)
	}
	if err := configure(links, bridgeName, address(254)); err != nil {
		return nil, err
	}
	return s, nil
}

// configure brings loopback and one link up, with its address.
func configure(links *netlink.Handle, name string, ip netip.Addr) error {
	for _, up := range []string{"lo", name} {
		link, err := links.LinkByName(up)
		if err != nil {
			return fmt.Errorf("find link %s: %w", up, err)
		}
		if up == name {
			if err := links.AddrAdd(link, linkAddress(ip)); err != nil {
				return fmt.Errorf("give %s address %s: %w", up, ip, err)
			}
		}
		if err := links.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up link %s: %w", up, err)
		}
	}
	return nil
}

// linkAddress is an address in the network that all nodes share.
func linkAddress(ip netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(24, 32)}}
}

// plug makes a node's namespace and connects it to the switch.
func (s *network) plug(node string, number int) error {
	if number > nodesMax {
		return fmt.Errorf("a lab has at most %d nodes", nodesMax)
	}
	links, err := newNamespace(namespaceName(s.lab, node))
	if err != nil {
		return err
	}
	at, err := netns.GetFromName(namespaceName(s.lab, node))
	if err != nil {
		return err
	}
	defer at.Close()
	attrs := netlink.LinkAttrs{Name: portPrefix + node, MasterIndex: s.bridge.Index}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nodeLink, PeerNamespace: netlink.NsFd(int(at))}
	if err := s.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link to the switch: %w", err)
	}
	if err := s.links.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring up the switch's port: %w", err)
	}
	if err := configure(links, nodeLink, address(number)); err != nil {
		return err
	}
	eth, err := links.LinkByName(nodeLink)
	if err != nil {
		return err
	}
	s.members[node] = &member{number: number, links: links, eth: eth}
	return nil
}

// setLink pulls (up=false) or plugs the node's cable on the switch's side.
func (s *network) setLink(node string, up bool) error {
	port, err := s.links.LinkByName(portPrefix + node)
	if err != nil {
		return fmt.Errorf("find port of %s: %w", node, err)
	}
	if up {
		return s.links.LinkSetUp(port)
	}
	return s.links.LinkSetDown(port)
}

// block makes packets from one node to another vanish without a word, in that direction alone:
// the sender is given a wrong hardware address for the receiver, and no port of the switch takes it.
func (s *network) block(from, to string) error {
	sender, receiver := s.members[from], s.members[to]
	if sender == nil || receiver == nil {
		return fmt.Errorf("block %s to %s: no such node", from, to)
	}
	return sender.links.NeighSet(wrongNeighbour(sender, receiver))
}

func (s *network) unblock(from, to string) error {
	sender, receiver := s.members[from], s.members[to]
	err := sender.links.NeighDel(wrongNeighbour(sender, receiver))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func wrongNeighbour(sender, receiver *member) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    sender.eth.Attrs().Index,
		Family:       unix.AF_INET,
		State:        netlink.NUD_PERMANENT,
		IP:           address(receiver.number).AsSlice(),
		HardwareAddr: net.HardwareAddr{0x02, 0xde, 0xad, 0, 0, byte(receiver.number)},
	}
}

// Block drops all packets from one node to another, in that direction alone, until Heal.
func (l *Lab) Block(from, to string) error { return l.wires.block(from, to) }

// Partition lets nodes talk only within their group, in place of what was blocked before. A node in no group talks to nobody.
func (l *Lab) Partition(groups ...[]string) error {
	group := func(node string) int {
		return slices.IndexFunc(groups, func(g []string) bool { return slices.Contains(g, node) })
	}
	return l.eachPair(func(from, to string) error {
		if g := group(from); g >= 0 && g == group(to) {
			return l.wires.unblock(from, to)
		}
		return l.wires.block(from, to)
	})
}

// Heal takes every block away, plugs every cable in and makes every link good.
func (l *Lab) Heal() error {
	for _, n := range l.nodes {
		if err := errors.Join(n.Plug(), l.wires.straighten(n.Name)); err != nil {
			return err
		}
	}
	return l.eachPair(l.wires.unblock)
}

func (l *Lab) eachPair(do func(from, to string) error) error {
	for _, from := range l.nodes {
		for _, to := range l.nodes {
			if from == to {
				continue
			}
			if err := do(from.Name, to.Name); err != nil {
				return fmt.Errorf("path from %s to %s: %w", from.Name, to.Name, err)
			}
		}
	}
	return nil
}

// Dial connects as a machine outside the cluster would: from the switch's namespace.
func (l *Lab) Dial(ctx context.Context, protocol, target string) (net.Conn, error) {
	var conn net.Conn
	err := within(namespaceName(l.cfg.Name, switchName), func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, protocol, target)
		return err
	})
	return conn, err
}

// close forgets handles and makes links good, which need this process to be bad; the namespaces stay.
func (s *network) close() {
	for name, m := range s.members {
		s.straighten(name) // fails where the lab is gone
		m.links.Close()
	}
	s.links.Close()
}
