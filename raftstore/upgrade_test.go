package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// oldConn makes a stream of this version one of a version from before greetings: nothing of a greeting crosses the network.
// To the replica behind it, everyone else seems to be such a version too.
type oldConn struct {
	net.Conn
	dials bool
	mu    sync.Mutex // guards:
	// swallow is how much of what the replica writes is greeting, feed the greeting that it reads.
	swallow int
	feed    []byte
	begun   bool
}

func outdated(conn net.Conn, dials bool) *oldConn {
	feed := binary.BigEndian.AppendUint64([]byte{greetingMark}, 0)
	feed = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(feed, 1), 1)
	return &oldConn{Conn: conn, dials: dials, swallow: greetingBytes, feed: feed}
}

func (c *oldConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	n := min(c.swallow, len(p))
	c.swallow -= n
	c.mu.Unlock()
	if n == len(p) {
		return n, nil
	}
	m, err := c.Conn.Write(p[n:])
	return n + m, err
}

func (c *oldConn) Read(p []byte) (int, error) {
	if !c.dials && !c.begun {
		// It takes the first byte for a kind of request, and hangs up over one that it does not know.
		c.begun = true
		var kind [1]byte
		if _, err := io.ReadFull(c.Conn, kind[:]); err != nil {
			return 0, err
		}
		if kind[0] >= requestKinds {
			return 0, errors.Join(errors.New("unknown rpc type"), c.Conn.Close())
		}
		c.feed = append(c.feed, kind[0])
	}
	if len(c.feed) > 0 {
		n := copy(p, c.feed)
		c.feed = c.feed[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// aged makes the managers that old names ones of a version that does not greet and reads the first format only.
func aged(c *cluster, old map[string]bool) {
	c.adjust = func(cfg *Config) {
		if !old[cfg.NodeID] {
			return
		}
		dial := cfg.Dial
		cfg.reads = 1
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := dial(ctx, address)
			if err != nil {
				return nil, err
			}
			return outdated(conn, true), nil
		}
		cfg.Listener.(*pipeListener).accepted = func(conn net.Conn) net.Conn { return outdated(conn, false) }
	}
}

// A cluster is upgraded one manager after the other: meanwhile all work together and write what the oldest reads, and once all
// read the new format it is written.
func TestManagersAreUpgradedOneAfterTheOther(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		old := map[string]bool{"n1": true, "n2": true, "n3": true}
		aged(c, old)
		all := c.formAs(3, 1)
		if at := all[0].Local().format(); at != 1 {
			t.Fatalf("it begins with format %d", at)
		}
		for i, m := range all {
			c.kill(m)
			delete(old, m.id)
			all[i] = c.start(m.id, false)
			c.eventually("the upgraded one takes part", func() bool { return c.agree(all) })
			var work errgroup.Group
			for j := range 9 { // through every manager, whoever leads, and several at once
				work.Go(func() error {
					return all[j%3].Update(context.Background(), createService(fmt.Sprint("s", i, j)))
				})
			}
			check(t, work.Wait())
			time.Sleep(10 * time.Second)
			if i < 2 && all[i].Local().format() != 1 {
				t.Fatalf("%d managers are upgraded, and the format is %d", i+1, all[i].Local().format())
			}
		}
		c.eventually("the new format is written", func() bool {
			return !slices.ContainsFunc(all, func(m *manager) bool { return m.Local().format() != FormatVersion })
		})
		row := all[0].Local().Cluster()
		if row.Index <= row.Version {
			t.Error("what nobody declared moved the version of the cluster's row")
		}
		c.update(all[1], createService("after"))
		for _, m := range all {
			c.eventually("all have all", func() bool { return m.Local().Services.Len() == 28 })
		}
	})
}

// formAs is form for a cluster that began with an older format.
func (c *cluster) formAs(n int, format uint32) []*manager {
	c.t.Helper()
	var all []*manager
	for i := range n {
		all = append(all, c.start(fmt.Sprintf("n%d", i+1), i == 0))
	}
	c.update(all[0], func(tx *Tx) error {
		tx.PutCluster(Cluster{Meta: Meta{ID: "cluster"}, MinVersion: format})
		for _, m := range all {
			tx.PutNode(managerNode(m.id))
		}
		return nil
	})
	c.eventually("all know each other as voters", func() bool { return c.agree(all) })
	return all
}

// A cluster of one has nobody to wait for.
func TestOnlyManagerRaisesTheFormatByItself(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		m := c.formAs(1, 1)[0]
		c.eventually("the new format is written", func() bool { return m.Local().format() == FormatVersion })
	})
}

func TestManagerThatReadsTooLittleIsRefused(t *testing.T) {
	for name, greets := range map[string]bool{"a version that greets": true, "a version from before greetings": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				all := c.form(2)
				if greets {
					c.adjust = func(cfg *Config) {
						if cfg.NodeID == "n3" {
							cfg.reads = 1
						}
					}
				} else {
					aged(c, map[string]bool{"n3": true})
				}
				late := c.start("n3", false)
				c.update(all[0], func(tx *Tx) error { tx.PutNode(managerNode("n3")); return nil })
				if greets {
					err := late.work.Wait()
					if err == nil || !strings.Contains(err.Error(), "the cluster's log has format 2, this version of swarm reads up to 1: upgrade swarm on this node") {
						t.Errorf("it ended with: %v", err)
					}
					c.mu.Lock()
					delete(c.managers, "n3")
					c.mu.Unlock()
				}
				time.Sleep(10 * time.Second)
				if late.Local().Cluster() != nil || c.voters(all[0]) != 2 {
					t.Error("it was let in")
				}
				c.update(all[1], createService("web"))
			})
		})
	}
}

func TestAdmission(t *testing.T) {
	s := newState()
	if err := s.Admits(0); err != nil {
		t.Errorf("a state that is empty refuses: %v", err)
	}
	s.clusters.put(&Cluster{Meta: Meta{ID: "cluster"}, MinVersion: 2})
	if err := s.Admits(2); err != nil {
		t.Error(err)
	}
	for _, reads := range []uint32{0, 1} {
		err := s.Admits(reads)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has format 2 and this node's version of swarm reads up to 1") {
			t.Errorf("reads %d: %v", reads, err)
		}
	}
}

// What the first format says of a node's agent is less, but not nothing.
func TestPresenceInTheFirstFormat(t *testing.T) {
	for _, presence := range []Presence{"", PresenceHeard, PresenceAway, PresenceDown} {
		var row, back Node
		row.ID = "n"
		if presence != "" {
			row.Observe(Session{ID: "s", Presence: presence})
		}
		raw, err := marshalAs(1, row.wire)
		check(t, err)
		check(t, unmarshal(raw, back.wire))
		if back.Session.Presence != presence {
			t.Errorf("%q came back as %q", presence, back.Session.Presence)
		}
	}
}
