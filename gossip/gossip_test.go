package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/memberlist"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// swarm is a number of nodes on one ether.
type swarm struct {
	t     *testing.T
	ether *ether
	nodes map[string]*node
}

type node struct {
	*Gossip
	cancel context.CancelFunc
	ended  chan error
}

func newSwarm(t *testing.T) *swarm {
	s := &swarm{t: t, ether: newEther(), nodes: map[string]*node{}}
	t.Cleanup(func() {
		for name := range s.nodes {
			s.stop(name)
		}
		// The library leaves a probe to its own timeout; a bubble must not end before.
		time.Sleep(time.Minute)
	})
	return s
}

func nameOf(i int) string    { return fmt.Sprintf("n%02d", i) }
func ipOf(i int) string      { return fmt.Sprintf("10.0.0.%d", i) }
func addressOf(i int) string { return net.JoinHostPort(ipOf(i), "7946") }

func config(s *swarm, i int) Config {
	return Config{NodeID: nameOf(i), ClusterID: "c1", BindAddr: ipOf(i), Port: 7946, Key: bytes.Repeat([]byte("k"), 32), Network: s.ether.host(ipOf(i))}
}

func (s *swarm) start(cfg Config, seeds ...string) *node {
	s.t.Helper()
	g, err := New(cfg)
	check(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{Gossip: g, cancel: cancel, ended: make(chan error, 1)}
	n.SetSeeds(seeds)
	go func() { n.ended <- n.Run(ctx) }()
	s.nodes[cfg.NodeID] = n
	return n
}

// stop lets a node leave and returns how long that took.
func (s *swarm) stop(name string) time.Duration {
	s.t.Helper()
	n, begun := s.nodes[name], time.Now()
	delete(s.nodes, name)
	n.cancel()
	check(s.t, <-n.ended)
	return time.Since(begun)
}

// crowd starts n nodes that know the first two.
func (s *swarm) crowd(n int) {
	for i := 1; i <= n; i++ {
		s.start(config(s, i), addressOf(1), addressOf(2))
	}
}

// seen is what a node sees, like "alive 19, dead 1".
func (n *node) seen() string {
	counts := map[string]int{}
	for _, m := range n.Members() {
		counts[m.State]++
	}
	var parts []string
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", state, counts[state]))
	}
	return strings.Join(parts, ", ")
}

func (s *swarm) allSee(want string) bool {
	for _, n := range s.nodes {
		if n.seen() != want {
			return false
		}
	}
	return true
}

// settle is when everyone knows at the latest: news that chance keeps from a member in the packets of the
// first second reaches it with a push/pull, one every 30 s, from a peer that may not have it yet either.
const settle = 2 * time.Minute

// within waits until every node sees want, and says how long it took.
func (s *swarm) within(limit time.Duration, want string) time.Duration {
	s.t.Helper()
	begun := time.Now()
	for !s.allSee(want) {
		if time.Since(begun) > limit {
			for name, n := range s.nodes {
				s.t.Logf("%s sees %s", name, n.seen())
			}
			s.t.Fatalf("not all see %q within %s", want, limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(begun)
}

func TestTwentyNodesFindEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(20)
		t.Logf("joined in %s", s.within(settle, "alive 20"))
		first := s.nodes[nameOf(3)].Members()[0]
		if want := (Member{NodeID: "n01", Address: addressOf(1), State: Alive}); first != want {
			t.Errorf("first member is %v, want %v", first, want)
		}
	})
}

func TestDeathIsSeenAndTheDeadMayReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(20)
		s.within(settle, "alive 20")

		s.ether.setCut(ipOf(20), true)
		s.stop(nameOf(20))
		t.Logf("death seen in %s", s.within(15*time.Second, "alive 19, dead 1"))

		time.Sleep(45 * time.Second)
		if !s.allSee("alive 19, dead 1") {
			t.Error("the dead node was forgotten")
		}
		s.ether.setCut(ipOf(20), false)
		s.start(config(s, 20), addressOf(1))
		s.within(settle, "alive 20")
	})
}

func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		for i := 1; i <= 5; i++ {
			s.start(config(s, i), addressOf(1), addressOf(2), addressOf(3), addressOf(4), addressOf(5))
		}
		s.within(settle, "alive 5")
		s.ether.setCut(ipOf(5), true)
		time.Sleep(time.Minute)
		if got := s.nodes[nameOf(5)].seen(); got != "alive 1, dead 4" {
			t.Errorf("the node that is cut off sees %s", got)
		}
		s.ether.setCut(ipOf(5), false)
		t.Logf("healed in %s", s.within(settle, "alive 5"))
	})
}

func TestLeavingIsNotDying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(5)
		s.within(settle, "alive 5")
		if took := s.stop(nameOf(5)); took > 2*leaveTimeout {
			t.Errorf("leaving took %s", took)
		}
		s.within(3*time.Second, "alive 4, left 1")
	})
}

func TestLeavingIsBoundedWhenCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(3)
		s.within(settle, "alive 3")
		s.ether.setCut(ipOf(3), true)
		s.nodes[nameOf(3)].SetSeeds([]string{addressOf(1), addressOf(2), addressOf(4)})
		time.Sleep(500 * time.Millisecond)
		if took := s.stop(nameOf(3)); took > 2*leaveTimeout {
			t.Errorf("leaving took %s", took)
		}
	})
}

func TestNodeReturnsWithAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(4)
		s.within(settle, "alive 4")
		s.ether.setCut(ipOf(4), true)
		s.stop(nameOf(4))
		s.within(15*time.Second, "alive 3, dead 1")
		moved := config(s, 9)
		moved.NodeID = nameOf(4)
		s.start(moved, addressOf(1))
		// What was refused at first is told again with the exchange of full state, every 30 s.
		s.within(35*time.Second, "alive 4")
		if got := s.nodes[nameOf(1)].Members()[3].Address; got != addressOf(9) {
			t.Errorf("the node is seen at %s", got)
		}
	})
}

func TestForeignNodesAreIgnored(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"another key":     func(c *Config) { c.Key = bytes.Repeat([]byte("x"), 32) },
		"another cluster": func(c *Config) { c.ClusterID = "c2" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t)
				s.crowd(2)
				s.within(settle, "alive 2")
				foreign := config(s, 3)
				change(&foreign)
				stranger := s.start(foreign, addressOf(1), addressOf(2))
				time.Sleep(30 * time.Second)
				if got := s.nodes[nameOf(1)].seen() + "; " + stranger.seen(); got != "alive 2; alive 1" {
					t.Errorf("seen: %s", got)
				}
			})
		})
	}
}

func TestMemberOfAnotherClusterIsRefusedByItsMetadata(t *testing.T) {
	m := newMembers(Config{NodeID: "n1", ClusterID: "c1"}, slog.New(slog.DiscardHandler))
	own, foreign := newMembers(Config{ClusterID: "c1"}, nil), newMembers(Config{ClusterID: "c2"}, nil)
	check(t, m.NotifyAlive(&memberlist.Node{Name: "n2", Meta: own.NodeMeta(0)}))
	for _, refused := range []*memberlist.Node{
		{Name: "n2", Meta: foreign.NodeMeta(0)},
		{Name: "n2"},
		{Name: strings.Repeat("n", nameBytesMax+1), Meta: own.NodeMeta(0)},
	} {
		if m.NotifyAlive(refused) == nil {
			t.Errorf("member %v was accepted", refused)
		}
	}
}

func TestPacketsAreSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		var packets, open int
		s.ether.sniff = func(packet []byte) {
			packets++
			if bytes.Contains(packet, []byte("n01")) {
				open++
			}
		}
		s.crowd(3)
		s.within(settle, "alive 3")
		time.Sleep(10 * time.Second)
		s.ether.mu.Lock()
		defer s.ether.mu.Unlock()
		if packets == 0 || open > 0 {
			t.Errorf("%d of %d packets show a name", open, packets)
		}
	})
}

func TestKeyCanBeRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(3)
		s.within(settle, "alive 3")
		for round := range byte(3) {
			for _, n := range s.nodes {
				// A node that has not heard of the new key yet gossips on with the old one.
				time.Sleep(100 * time.Millisecond)
				check(t, n.SetKey(bytes.Repeat([]byte{round}, 32)))
			}
		}
		time.Sleep(time.Minute)
		if !s.allSee("alive 3") {
			t.Error("members were lost with the rotation")
		}
		for name, n := range s.nodes {
			if kept := len(n.keys.GetKeys()); kept != keysMax {
				t.Errorf("%s keeps %d keys", name, kept)
			}
		}
	})
}

func TestBadConfigurationIsNamed(t *testing.T) {
	good := Config{NodeID: "n1", BindAddr: "10.0.0.1", Port: 7946, Key: make([]byte, 32)}
	for text, change := range map[string]func(*Config){
		"cannot be a gossip name":     func(c *Config) { c.NodeID = "" },
		"has 5 bytes instead of 32":   func(c *Config) { c.Key = []byte("short") },
		"is not a port":               func(c *Config) { c.Port = 70000 },
		"is not an IP address":        func(c *Config) { c.BindAddr = "localhost" },
		"set the advertise address":   func(c *Config) { c.BindAddr = "" },
		"too long for gossip":         func(c *Config) { c.ClusterID = strings.Repeat("c", 300) },
		"others reach this node, not": func(c *Config) { c.AdvertiseAddr = "example.org:2377" },
	} {
		cfg := good
		change(&cfg)
		_, err := New(cfg)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v does not say %q", err, text)
		}
	}
	_, err := New(good)
	check(t, err)
}

func TestTakenPortIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t)
		s.crowd(1)
		synctest.Wait()
		other, err := New(config(s, 1))
		check(t, err)
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "10.0.0.1:7946") {
			t.Errorf("error %v does not name the port", err)
		}
	})
}

func TestRealSockets(t *testing.T) {
	port := freePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var nodes []*Gossip
	for i, ip := range []string{"127.0.1.1", "127.0.1.2"} {
		g, err := New(Config{NodeID: nameOf(i), ClusterID: "c1", BindAddr: ip, AdvertiseAddr: ip, Port: port, Key: make([]byte, 32)})
		check(t, err)
		g.SetSeeds([]string{net.JoinHostPort("127.0.1.1", fmt.Sprint(port))})
		running.Go(func() {
			if err := g.Run(ctx); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
		nodes = append(nodes, g)
	}
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(nodes[0].Members()) < 2 || len(nodes[1].Members()) < 2 {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("members are %v and %v", nodes[0].Members(), nodes[1].Members())
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.1.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func FuzzMetadata(f *testing.F) {
	f.Add(metadata{cluster: clusterTag("c1"), leaving: true}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMetadata(b)
		if err != nil {
			return
		}
		again, err := decodeMetadata(m.encode())
		if err != nil || again != m {
			t.Errorf("%v became %v, %v", m, again, err)
		}
	})
}

func TestWarningsAreLimited(t *testing.T) {
	var out bytes.Buffer
	log := libraryLog(slog.New(slog.NewTextHandler(&out, nil)))
	for range 1000 {
		log.Print("[DEBUG] memberlist: chatter")
		log.Print("[ERR] memberlist: bad packet")
	}
	if lines := strings.Count(out.String(), "bad packet"); lines != warningsBurst || strings.Contains(out.String(), "chatter") {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
}
