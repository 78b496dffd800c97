package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// twoHosts in a bubble: a server process that listens on port 1 of b, and a client process on a.
func twoHosts(t *testing.T, test func(t *testing.T, n *Network, client, server *Process, l net.Listener)) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, 10*time.Millisecond, 0)
		a, b := n.AddHost(netip.MustParseAddr("10.0.0.1")), n.AddHost(netip.MustParseAddr("10.0.0.2"))
		client, server := a.NewProcess(), b.NewProcess()
		l, err := Keeper{server}.Listen(t.Context(), "tcp", "0.0.0.0:1")
		if err != nil {
			t.Fatal(err)
		}
		defer client.Kill()
		defer server.Kill()
		test(t, n, client, server, l)
	})
}

const toServer = "10.0.0.2:1"

// connected is both ends of a stream.
func connected(t *testing.T, client *Process, l net.Listener) (near, far net.Conn) {
	t.Helper()
	near, err := client.Dial(t.Context(), "tcp", toServer)
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// hear wants text, so long after now.
func hear(t *testing.T, c net.Conn, text string, after time.Duration) {
	t.Helper()
	began := time.Now()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("heard %q, %v; want %q", got, err, text)
	}
	if took := time.Since(began); took != after {
		t.Fatalf("heard %q after %s, want %s", text, took, after)
	}
}

// broken wants the next read to fail with an error, so long after now.
func broken(t *testing.T, c net.Conn, want error, after time.Duration) {
	t.Helper()
	began := time.Now()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
		t.Fatalf("read %d, %v; want %v", n, err, want)
	}
	if took := time.Since(began); took != after {
		t.Fatalf("broken after %s, want %s", took, after)
	}
}

func TestStreamsTakeTheirTime(t *testing.T) {
	twoHosts(t, func(t *testing.T, _ *Network, client, _ *Process, l net.Listener) {
		began := time.Now()
		near, far := connected(t, client, l)
		if took := time.Since(began).Round(time.Millisecond); took != 20*time.Millisecond {
			t.Errorf("connected after %s, want a round trip", took)
		}
		time.Sleep(time.Millisecond - time.Since(began)%time.Millisecond) // on the grain
		say(t, near, "hello ")
		say(t, near, "you")
		hear(t, far, "hello you", 10*time.Millisecond)
		say(t, far, "bye")
		_ = far.Close()
		hear(t, near, "bye", 10*time.Millisecond)
		broken(t, near, io.EOF, 0)
		if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("wrote to a closed stream: %v", err)
		}
	})
}

func TestDialsAreRefusedByHostsAndUnansweredByNobody(t *testing.T) {
	twoHosts(t, func(t *testing.T, n *Network, client, server *Process, _ net.Listener) {
		for address, want := range map[string]struct {
			err   error
			after time.Duration
		}{
			"10.0.0.2:9": {syscall.ECONNREFUSED, 20 * time.Millisecond},
			"10.0.0.9:1": {syscall.ETIMEDOUT, dialMax},
		} {
			began := time.Now()
			_, err := client.Dial(t.Context(), "tcp", address)
			if took := time.Since(began).Round(time.Millisecond); !errors.Is(err, want.err) || took != want.after {
				t.Errorf("%s: %v after %s, want %v after %s", address, err, took, want.err, want.after)
			}
		}
		server.host.PowerOff()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Dial(ctx, "tcp", toServer); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a machine without power: %v", err)
		}
		_ = n
	})
}

func TestWhatACutHeldBackArrivesAfterIt(t *testing.T) {
	twoHosts(t, func(t *testing.T, n *Network, client, server *Process, l net.Listener) {
		near, far := connected(t, client, l)
		n.Partition([]*Host{client.host}, []*Host{server.host})
		say(t, near, "late")
		_ = far.SetReadDeadline(time.Now().Add(2 * time.Second))
		broken(t, far, os.ErrDeadlineExceeded, 2*time.Second)
		n.Heal()
		_ = far.SetReadDeadline(time.Now().Add(silenceMax))
		got := make([]byte, 4)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "late" {
			t.Errorf("after the cut: %q, %v", got, err)
		}
	})
}

func TestACutThatLastsBreaksStreams(t *testing.T) {
	twoHosts(t, func(t *testing.T, n *Network, client, server *Process, l net.Listener) {
		near, far := connected(t, client, l)
		// One direction is enough: nothing is acknowledged any more.
		n.Block(server.host, client.host)
		say(t, near, "one way")
		got := make([]byte, 7)
		if _, err := io.ReadFull(far, got); err != nil {
			t.Errorf("the open direction: %v", err)
		}
		began := time.Now()
		if _, err := near.Read(got); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > silenceMax {
			t.Errorf("broken after %s", took)
		}
	})
}

func TestAKilledProcessIsHeardOf(t *testing.T) {
	twoHosts(t, func(t *testing.T, _ *Network, client, server *Process, l net.Listener) {
		near, _ := connected(t, client, l)
		time.Sleep(time.Millisecond - time.Duration(time.Now().Nanosecond())%time.Millisecond)
		server.Kill()
		broken(t, near, io.EOF, 10*time.Millisecond)
		// The keeper holds the socket: connections are made, and wait for the next process.
		waiting, err := client.Dial(t.Context(), "tcp", toServer)
		if err != nil {
			t.Fatal(err)
		}
		say(t, waiting, "anyone?")
		next := server.host.NewProcess()
		defer next.Kill()
		l2, err := Keeper{next}.Listen(t.Context(), "tcp", "0.0.0.0:1")
		if err != nil {
			t.Fatal(err)
		}
		far, err := l2.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 7)
		if _, err := io.ReadFull(far, got); err != nil || string(got) != "anyone?" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := (Keeper{next}).Release(t.Context(), "tcp", "0.0.0.0:1"); err != nil {
			t.Error(err)
		}
		if _, err := client.Dial(t.Context(), "tcp", toServer); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after its release: %v", err)
		}
	})
}

func TestAMachineWithoutPowerIsNotHeardOf(t *testing.T) {
	twoHosts(t, func(t *testing.T, _ *Network, client, server *Process, l net.Listener) {
		near, far := connected(t, client, l)
		server.host.PowerOff()
		if _, err := far.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("its own end: %v", err)
		}
		broken(t, near, syscall.ETIMEDOUT, silenceMax)
	})
	twoHosts(t, func(t *testing.T, _ *Network, client, server *Process, l net.Listener) {
		near, _ := connected(t, client, l)
		server.host.PowerOff()
		time.Sleep(time.Second)
		server.host.PowerOn()
		began := time.Now()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || time.Since(began) > resetAfterMax {
			t.Errorf("a machine that came back: %v after %s", err, time.Since(began))
		}
	})
}

func TestWritersWaitForReaders(t *testing.T) {
	twoHosts(t, func(t *testing.T, _ *Network, client, _ *Process, l net.Listener) {
		near, far := connected(t, client, l)
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := near.Write(make([]byte, 2*streamBufferBytes))
		if n != streamBufferBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d, %v", n, err)
		}
		_ = near.SetWriteDeadline(time.Time{})
		go func() { _, _ = io.Copy(io.Discard, far) }()
		if n, err := near.Write(make([]byte, streamBufferBytes)); n != streamBufferBytes || err != nil {
			t.Errorf("with a reader: %d, %v", n, err)
		}
		_ = near.Close()
	})
}

func TestSlowLinksAndLosses(t *testing.T) {
	twoHosts(t, func(t *testing.T, n *Network, client, server *Process, l net.Listener) {
		near, far := connected(t, client, l)
		n.Slow(client.host, server.host, 1000, 0, 0)
		time.Sleep(time.Millisecond - time.Duration(time.Now().Nanosecond())%time.Millisecond)
		say(t, near, string(bytes.Repeat([]byte("x"), 500)))
		hear(t, far, string(bytes.Repeat([]byte("x"), 500)), 510*time.Millisecond)
		n.Slow(client.host, server.host, 0, 0, 1)
		say(t, near, "lost")
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("a link that loses all: %v", err)
		}
	})
}

func TestAFrozenProcessHearsAndSaysNothing(t *testing.T) {
	twoHosts(t, func(t *testing.T, _ *Network, client, server *Process, l net.Listener) {
		near, far := connected(t, client, l)
		server.Freeze()
		say(t, near, "wake up")
		say(t, far, "i am awake")
		heard := make(chan time.Time, 1)
		go func() {
			_, _ = io.ReadFull(far, make([]byte, 7))
			heard <- time.Now()
		}()
		_ = near.SetReadDeadline(time.Now().Add(3 * time.Second))
		broken(t, near, os.ErrDeadlineExceeded, 3*time.Second)
		_ = near.SetReadDeadline(time.Time{})
		thawed := time.Now()
		server.Thaw()
		if at := <-heard; at.Before(thawed) {
			t.Error("it heard while it was frozen")
		}
		if _, err := io.ReadFull(near, make([]byte, 10)); err != nil {
			t.Error(err)
		}
	})
}

func TestPacketsArriveOrDoNot(t *testing.T) {
	twoHosts(t, func(t *testing.T, n *Network, client, server *Process, _ net.Listener) {
		from, err := client.ListenPacket(t.Context(), "udp", "0.0.0.0:7")
		if err != nil {
			t.Fatal(err)
		}
		to, err := server.ListenPacket(t.Context(), "udp", "0.0.0.0:7")
		if err != nil {
			t.Fatal(err)
		}
		send := func(text string) {
			if _, err := from.WriteTo([]byte(text), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 7}); err != nil {
				t.Fatal(err)
			}
		}
		send("one")
		n.Block(client.host, server.host)
		send("two")
		n.Heal()
		send("three")
		for _, want := range []string{"one", "three"} {
			got := make([]byte, 10)
			k, sender, err := to.ReadFrom(got)
			if err != nil || string(got[:k]) != want || sender.String() != "10.0.0.1:7" {
				t.Errorf("got %q from %v, %v; want %q", got[:k], sender, err, want)
			}
		}
		for range packetsMax + 5 {
			send("flood")
		}
		if n.dropped != 1+5 {
			t.Errorf("%d packets were dropped", n.dropped)
		}
		_ = to.Close()
		if _, _, err := to.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}
