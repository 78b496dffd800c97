package rpc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestSilentConnectionsAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		begun := time.Now()
		conn, err := p.network.Dial(t.Context(), "tcp", managerAddress)
		check(t, err)
		_, err = io.ReadAll(conn)
		check(t, err)
		if took := time.Since(begun); took != handshakeTimeout {
			t.Errorf("a silent connection lived for %s", took)
		}
	})
}

// stranger is a connection without a certificate that has spoken no gRPC yet.
func (p *port) stranger(t *testing.T) (net.Conn, error) {
	t.Helper()
	c := &caller{network: p.network, address: managerAddress, protocol: protocolGRPC, roots: p.cfg.Identity.Roots}
	return c.dial(t.Context())
}

func TestStrangersAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		for range strangersMax {
			conn, err := p.stranger(t)
			check(t, err)
			defer conn.Close()
			// The preface keeps gRPC from ending the connection before we do.
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			check(t, err)
		}
		synctest.Wait()
		_, err := p.stranger(t)
		kindOf(t, err, errdefs.ErrUnavailable, "it may be busy")

		time.Sleep(strangerLifetime)
		synctest.Wait()
		check(t, readIndex(t, p, ca.identity("m2", Manager)))
		conn, err := p.stranger(t)
		check(t, err)
		_ = conn.Close()
	})
}

func TestStrangersAreNotListenedToForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		send := func(roots *testIdentity, bytesSent int) error {
			conn, err := Join(p.network, managerAddress, roots.pool)
			check(t, err)
			defer conn.Close()
			_, err = NewCertificateAuthorityClient(conn).IssueCertificate(t.Context(), &IssueCertificateRequest{CsrPem: make([]byte, bytesSent)})
			return err
		}
		check(t, send(ca.identity("", Worker), strangerBytesMax/2))
		if err := send(ca.identity("", Worker), 2*strangerBytesMax); err == nil {
			t.Error("a large request of a stranger was answered")
		}
		large := &IssueCertificateRequest{CsrPem: make([]byte, 2*strangerBytesMax)}
		_, err := NewCertificateAuthorityClient(p.client(t, ca.identity("w1", Worker))).IssueCertificate(t.Context(), large)
		check(t, err)
	})
}

func TestLargeMessagesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		raft := NewRaftClient(p.client(t, ca.identity("m2", Manager)))
		_, err := raft.Propose(t.Context(), &ProposeRequest{Commits: [][]byte{make([]byte, MessageBytesMax-16)}})
		check(t, err)
		_, err = raft.Propose(t.Context(), &ProposeRequest{Commits: [][]byte{make([]byte, MessageBytesMax)}})
		kindOf(t, err, errdefs.ErrResourceExhausted, "larger than max")
	})
}

func TestDeadPeerIsNoticedByBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		stream, err := NewDispatcherClient(p.client(t, ca.identity("w1", Worker))).Session(t.Context())
		check(t, err)
		check(t, stream.Send(&AgentMessage{}))
		_, err = stream.Recv()
		check(t, err)

		p.network.frozen.Store(true)
		begun := time.Now()
		serverNoticed := make(chan time.Duration)
		go func() {
			for len(p.of("w1")) > 0 {
				time.Sleep(100 * time.Millisecond)
			}
			serverNoticed <- time.Since(begun)
		}()
		if took := <-serverNoticed; took > 10*time.Second {
			t.Errorf("the server noticed after %s", took)
		}
		if _, err = stream.Recv(); err == nil || time.Since(begun) > 2*clientPingEvery {
			t.Errorf("the client noticed after %s: %v", time.Since(begun), err)
		}
		p.network.frozen.Store(false)
	})
}

func TestUpgradedStreamWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("w2", Worker), func(s *Server) { s.cfg.NodeAPI = http.HandlerFunc(echoUpgraded) })
		transport := p.dialer(ca.identity("m1", Manager)).NodeAPI()
		r := request(t, "/containers/x/logs")
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "tcp")
		answer, err := transport.RoundTrip(r)
		check(t, err)
		stream := answer.Body.(io.ReadWriteCloser)
		defer stream.Close()
		_, err = stream.Write([]byte("hello\n"))
		check(t, err)
		line, err := bufio.NewReader(stream).ReadString('\n')
		check(t, err)
		if line != "you said hello\n" {
			t.Errorf("read %q", line)
		}
		p.Cut("m1")
		if _, err := stream.Read(make([]byte, 1)); err == nil {
			t.Error("the upgraded stream goes on after a cut")
		}
	})
}

// What a node opened to others has to end too when they are removed: streams of every kind, and those to others must not.
func TestCutEndsWhatWasDialed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		network := newPipes()
		dialer := &Dialer{Network: network, Identity: ca.identity("m1", Manager)}
		transport := dialer.NodeAPI()
		defer transport.(*nodeTransport).CloseIdleConnections()
		open := func(id, address string) (streams map[string]func() error) {
			p := serveAt(t, network, address, ca.identity(id, Manager), func(s *Server) {
				asManager(s)
				s.cfg.NodeAPI = http.HandlerFunc(echoUpgraded)
			})
			accepted := p.Raft()
			conn, err := dialer.GRPC(address)
			check(t, err)
			t.Cleanup(func() { _ = conn.Close() })
			session, err := NewDispatcherClient(conn).Session(t.Context())
			check(t, err)
			raft, err := dialer.Raft(t.Context(), address)
			check(t, err)
			t.Cleanup(func() { _ = raft.Close() })
			far, err := accepted.Accept()
			check(t, err)
			t.Cleanup(func() { _ = far.Close() })
			go func() { _, _ = io.Copy(far, far) }()
			r := request(t, "/containers/x/logs")
			r.URL.Host = address
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "tcp")
			answer, err := transport.RoundTrip(r)
			check(t, err)
			exec := answer.Body.(io.ReadWriteCloser)
			t.Cleanup(func() { _ = exec.Close() })
			echo := func(stream io.ReadWriter) func() error {
				return func() error {
					_, err := stream.Write([]byte("hello\n"))
					if err == nil {
						_, err = stream.Read(make([]byte, 100))
					}
					return err
				}
			}
			return map[string]func() error{"raft": echo(raft), "exec": echo(exec), "session": func() error {
				if err := session.Send(&AgentMessage{}); err != nil {
					return err
				}
				_, err := session.Recv()
				return err
			}}
		}
		gone, stays := open("m2", "10.0.0.2:2377"), open("m3", "10.0.0.3:2377")
		for _, streams := range []map[string]func() error{gone, stays} {
			for kind, works := range streams {
				if err := works(); err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
			}
		}
		dialer.Cut("m2")
		synctest.Wait()
		for kind, works := range gone {
			if works() == nil {
				t.Errorf("the %s stream goes on after a cut", kind)
			}
		}
		for kind, works := range stays {
			if err := works(); err != nil {
				t.Errorf("the %s stream to another node was cut too: %v", kind, err)
			}
		}
	})
}

func echoUpgraded(w http.ResponseWriter, _ *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"))
	for {
		line, err := buffered.ReadString('\n')
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("you said " + line))
	}
}

func TestRunEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		accepted := p.Raft()
		stream, err := NewDispatcherClient(p.client(t, ca.identity("w1", Worker))).Session(t.Context())
		check(t, err)
		raft, err := p.dialer(ca.identity("m2", Manager)).Raft(t.Context(), managerAddress)
		check(t, err)
		begun := time.Now()
		p.cancel()
		if err := <-p.ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		p.ended <- nil
		if took := time.Since(begun); took > time.Second {
			t.Errorf("Run ended after %s", took)
		}
		if _, err := stream.Recv(); err == nil {
			t.Error("the stream goes on")
		}
		if _, err := raft.Read(make([]byte, 1)); err == nil {
			t.Error("the raft stream goes on")
		}
		if _, err := accepted.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		if len(p.all()) != 0 || p.total != 0 || p.strangersTotal != 0 || len(p.registry.strangers) != 0 {
			t.Errorf("%d connections are still counted, %d in total, strangers %v", len(p.all()), p.total, p.registry.strangers)
		}
	})
}

func TestErrorKindsCrossTheWire(t *testing.T) {
	for _, k := range errorKinds() {
		sent := errors.Join(errors.New("no such task"), k.kind)
		got := fromWire(toWire(sent))
		want := k.kind
		if want == errdefs.ErrAborted {
			want = errdefs.ErrConflict
		}
		kindOf(t, got, want, sent.Error())
		if got.Error() != sent.Error() {
			t.Errorf("text became %q", got)
		}
		if again := toWire(got); status.Code(again) != k.code {
			t.Errorf("%v is sent on as %v", k.kind, status.Code(again))
		}
	}
	kindOf(t, fromWire(toWire(errors.New("odd"))), errdefs.ErrUnknown, "odd")
	kindOf(t, fromWire(status.Error(codes.NotFound, "gone")), errdefs.ErrNotFound, "gone")
	if err := fromWire(io.EOF); err != io.EOF {
		t.Errorf("the end of a stream became %v", err)
	}
	if toWire(nil) != nil || fromWire(nil) != nil {
		t.Error("no error became one")
	}
}

func TestUnknownMethodIsNotImplemented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		conn := p.client(t, ca.identity("m2", Manager))
		err := conn.Invoke(t.Context(), "/swarm.rpc.v9.Raft/Fly", &ReadIndexRequest{}, &ReadIndexResponse{})
		kindOf(t, err, errdefs.ErrNotImplemented, "node does not know the method /swarm.rpc.v9.Raft/Fly, it may run another version")
	})
}

func TestManagerThatIsBackIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		network := newPipes()
		conn, err := (&Dialer{Network: network, Identity: ca.identity("m2", Manager)}).GRPC(managerAddress)
		check(t, err)
		defer conn.Close()
		_, err = NewRaftClient(conn).ReadIndex(t.Context(), &ReadIndexRequest{})
		kindOf(t, err, errdefs.ErrUnavailable, "cannot be reached: connection refused")
		time.Sleep(time.Minute)
		serveAt(t, network, managerAddress, ca.identity("m1", Manager), asManager)
		time.Sleep(2 * redialMax)
		_, err = NewRaftClient(conn).ReadIndex(t.Context(), &ReadIndexRequest{})
		check(t, err)
	})
}

func TestPortOnRealSockets(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		listener, err := Kernel{}.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Logf("%s is not there: %v", address, err)
			continue
		}
		ca := newAuthority(t, "c1")
		s := NewServer(ServerConfig{Listener: listener, Identity: ca.identity("m1", Manager), NodeAPI: http.HandlerFunc(whoAsks)})
		asManager(s)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		conn, err := (&Dialer{Network: Kernel{}, Identity: ca.identity("m2", Manager)}).GRPC(listener.Addr().String())
		check(t, err)
		_, err = NewRaftClient(conn).ReadIndex(t.Context(), &ReadIndexRequest{})
		check(t, err)
		_ = conn.Close()
		cancel()
		check(t, <-ended)

		conn, err = Join(Kernel{}, listener.Addr().String(), nil)
		check(t, err)
		_, err = NewCertificateAuthorityClient(conn).RootCertificate(t.Context(), &RootCertificateRequest{})
		kindOf(t, err, errdefs.ErrUnavailable, listener.Addr().String()+" cannot be reached: connect: connection refused")
		_ = conn.Close()
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add([]byte{greetingVersion, 0, 0})
	f.Add([]byte{greetingVersion, 0, 2, 'n', 'o'})
	f.Add([]byte{9})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := readGreeting(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, []byte{greetingVersion, 0, 0}) {
			t.Errorf("greeting %q was taken for a welcome", b)
		}
	})
}
