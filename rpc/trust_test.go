package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func readIndex(t *testing.T, p *port, id Identity) error {
	t.Helper()
	_, err := NewRaftClient(p.client(t, id)).ReadIndex(t.Context(), &ReadIndexRequest{})
	return err
}

func TestWorkersMayNotCallWhatManagersMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		worker := ca.identity("w1", Worker)
		check(t, readIndex(t, p, ca.identity("m2", Manager)))
		kindOf(t, readIndex(t, p, worker), errdefs.ErrPermissionDenied, "a worker may not call /swarm.rpc.v1.Raft/ReadIndex")

		p.Raft()
		_, err := p.dialer(worker).Raft(t.Context(), managerAddress)
		kindOf(t, err, errdefs.ErrPermissionDenied, "a worker may not call swarm-raft")

		transport := p.dialer(worker).NodeAPI()
		defer transport.(*nodeTransport).CloseIdleConnections()
		for path, want := range map[string]string{
			"/images/blobs/sha256:00": "200 worker w1 of c1",
			"/containers/json":        `403 {"message":"a worker may not call GET /containers/json: permission denied"}`,
			"/secrets":                `404 {"message":"GET /secrets is not served between nodes, or not by this version: not found"}`,
		} {
			if got := get(t, transport, path); got != want {
				t.Errorf("GET %s: %s, want %s", path, got, want)
			}
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, foreign := newAuthority(t, "c1"), newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		p.Raft()
		ofOtherCluster := ca.identity("m2", Manager)
		ofOtherCluster.current.Store(ca.certificate(Peer{NodeID: "m2", ClusterID: "c2", Role: Manager}, time.Hour))
		noRole := ca.identity("m2", Manager)
		noRole.current.Store(ca.certificate(Peer{NodeID: "m2", ClusterID: "c1", Role: "root"}, time.Hour))
		expired := ca.identity("m2", Manager)
		expired.current.Store(ca.certificate(Peer{NodeID: "m2", ClusterID: "c1", Role: Manager}, -time.Second))
		foreignButTrusting := foreign.identity("m2", Manager)
		foreignButTrusting.pool = ca.pool

		for name, id := range map[string]*testIdentity{"other cluster": ofOtherCluster, "no role": noRole, "expired": expired, "other root": foreignButTrusting} {
			t.Log(name)
			kindOf(t, readIndex(t, p, id), errdefs.ErrUnauthenticated, "refused this node's certificate")
			_, err := p.dialer(id).Raft(t.Context(), managerAddress)
			kindOf(t, err, errdefs.ErrUnauthenticated, "refused this node's certificate")
			_, err = p.dialer(id).NodeAPI().RoundTrip(request(t, "/containers/json"))
			kindOf(t, err, errdefs.ErrUnauthenticated, "refused this node's certificate")
		}
		kindOf(t, readIndex(t, p, foreign.identity("m2", Manager)), errdefs.ErrUnauthenticated, "belongs to another swarm")
	})
}

func request(t *testing.T, path string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+managerAddress+path, nil)
	check(t, err)
	return r
}

func TestWithoutCertificateOnlyGRPCIsSpoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		p.Raft()
		for _, protocol := range []string{protocolRaft, protocolNode} {
			c := &caller{network: p.network, address: managerAddress, protocol: protocol, roots: ca.identity("", Worker).Roots}
			conn, err := c.dial(t.Context())
			check(t, err)
			_, err = conn.Read(make([]byte, 1))
			kindOf(t, err, errdefs.ErrUnauthenticated, "refused")
			_ = conn.Close()
		}
	})
}

func TestServerMustBeOfTheClusterAndAManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		caller := ca.identity("w1", Worker)

		worker := serve(t, ca.identity("w2", Worker), asManager)
		kindOf(t, readIndex(t, worker, ca.identity("m1", Manager)), errdefs.ErrFailedPrecondition, managerAddress+" is not a manager")
		_, err := worker.dialer(caller).Raft(t.Context(), managerAddress)
		kindOf(t, err, errdefs.ErrFailedPrecondition, "is not a manager")

		elsewhere := ca.identity("m1", Manager)
		elsewhere.cluster = "c2"
		elsewhere.current.Store(ca.certificate(Peer{NodeID: "m1", ClusterID: "c2", Role: Manager}, time.Hour))
		kindOf(t, readIndex(t, serve(t, elsewhere, asManager), caller), errdefs.ErrUnauthenticated, "belongs to another swarm (c2)")

		late := ca.identity("m1", Manager)
		late.current.Store(ca.certificate(Peer{NodeID: "m1", ClusterID: "c1", Role: Manager}, -time.Second))
		kindOf(t, readIndex(t, serve(t, late, asManager), caller), errdefs.ErrUnauthenticated, "compare the clocks")
	})
}

func TestJoinSaysWhatIsWrongWithTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		network := newPipes()
		serveAt(t, network, "10.0.0.2:2377", ca.identity("w1", Worker), asWorker)
		serveAt(t, network, "10.0.0.7:2377", ca.identity("m7", Manager), asWorker)
		answering(t, network, "10.0.0.3:80", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		})
		answering(t, network, "10.0.0.4:443", func(c net.Conn) {
			other := newAuthority(t, "x").identity("x", Manager)
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*other.Certificate()}}).Handshake()
		})
		answering(t, network, "10.0.0.5:443", func(c net.Conn) {
			other := newAuthority(t, "x").identity("x", Manager)
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*other.Certificate()}, NextProtos: []string{"http/1.1"}}).Handshake()
		})
		answering(t, network, "10.0.0.6:22", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		for address, want := range map[string]struct {
			kind error
			text string
		}{
			"10.0.0.1:2377": {errdefs.ErrUnavailable, "10.0.0.1:2377 cannot be reached: connection refused"},
			"10.0.0.2:2377": {errdefs.ErrFailedPrecondition, "10.0.0.2:2377 is not a manager of a swarm; give the address of a manager"},
			"10.0.0.7:2377": {errdefs.ErrFailedPrecondition, "10.0.0.7:2377 is not a manager of a swarm; give the address of a manager"},
			"10.0.0.3:80":   {errdefs.ErrFailedPrecondition, "10.0.0.3:80 is not the port of a swarm node"},
			"10.0.0.4:443":  {errdefs.ErrFailedPrecondition, "10.0.0.4:443 is not the port of a swarm node"},
			"10.0.0.5:443":  {errdefs.ErrFailedPrecondition, "10.0.0.5:443 is not the port of a swarm node"},
			"10.0.0.6:22":   {errdefs.ErrUnavailable, "10.0.0.6:22 does not answer a handshake"},
		} {
			conn, err := Join(network, address, nil)
			check(t, err)
			_, err = NewCertificateAuthorityClient(conn).RootCertificate(t.Context(), &RootCertificateRequest{})
			kindOf(t, err, want.kind, want.text)
			check(t, conn.Close())
		}
		for _, address := range []string{"", "host", "::1:2377"} {
			_, err := Join(network, address, nil)
			kindOf(t, err, errdefs.ErrInvalidArgument, "is not host:port")
		}
	})
}

// answering listens and has answer called for each connection, which is closed afterwards.
func answering(t *testing.T, network *pipes, address string, answer func(net.Conn)) {
	t.Helper()
	l, err := network.Listen(t.Context(), "tcp", address)
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer(c)
			}()
		}
	}()
}

func TestRemovedNodeIsRefusedInWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		p.Raft()
		removed := ca.identity("m2", Manager)
		conn := p.client(t, removed)
		check(t, readIndex(t, p, removed))
		p.roster.refuse("m2", errors.New("it was removed from the swarm; leave and join again"))

		const words = "node m2 is refused: it was removed from the swarm; leave and join again"
		_, err := NewRaftClient(conn).ReadIndex(t.Context(), &ReadIndexRequest{})
		kindOf(t, err, errdefs.ErrPermissionDenied, words)
		_, err = NewCertificateAuthorityClient(conn).IssueCertificate(t.Context(), &IssueCertificateRequest{})
		kindOf(t, err, errdefs.ErrPermissionDenied, words)
		_, err = p.dialer(removed).Raft(t.Context(), managerAddress)
		kindOf(t, err, errdefs.ErrPermissionDenied, words)
		transport := p.dialer(removed).NodeAPI()
		defer transport.(*nodeTransport).CloseIdleConnections()
		if got := get(t, transport, "/containers/json"); !contains(got, words) || !contains(got, "403") {
			t.Errorf("answer %s", got)
		}
	})
}

func TestNodeWithAnOutdatedCertificateMayRenewIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		demoted := ca.identity("m2", Manager)
		p.roster.refuse("m2", errdefs.ErrFailedPrecondition)
		kindOf(t, readIndex(t, p, demoted), errdefs.ErrUnauthenticated, "node m2 is refused")
		_, err := NewCertificateAuthorityClient(p.client(t, demoted)).IssueCertificate(t.Context(), &IssueCertificateRequest{})
		check(t, err)
	})
}

func TestCutEndsStreamsAndRequestsOfOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		accepted := p.Raft()
		open := func(node string) (recv func() error) {
			stream, err := NewDispatcherClient(p.client(t, ca.identity(node, Manager))).Session(t.Context())
			check(t, err)
			return func() error {
				if err := stream.Send(&AgentMessage{}); err != nil {
					return err
				}
				_, err := stream.Recv()
				return err
			}
		}
		cut, kept := open("m2"), open("m3")
		check(t, cut())
		check(t, kept())
		raft, err := p.dialer(ca.identity("m2", Manager)).Raft(t.Context(), managerAddress)
		check(t, err)
		defer raft.Close()
		_, err = accepted.Accept()
		check(t, err)

		begun := time.Now()
		p.Cut("m2")
		synctest.Wait()
		if err := cut(); err == nil {
			t.Error("the stream goes on")
		}
		if _, err := raft.Read(make([]byte, 1)); err == nil {
			t.Error("the raft stream goes on")
		}
		check(t, kept())
		if took := time.Since(begun); took > 0 {
			t.Errorf("the cut took %s", took)
		}
		if live := len(p.of("m2")); live != 0 {
			t.Errorf("%d connections are still counted", live)
		}
	})
}

func TestRenewedIdentityIsUsedOnNewConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		server, caller := ca.identity("m1", Manager), ca.identity("w1", Worker)
		p := serve(t, server, asManager)
		transport := p.dialer(caller).NodeAPI()
		defer transport.(*nodeTransport).CloseIdleConnections()
		ask := func(want string) {
			t.Helper()
			answer, err := NewCertificateAuthorityClient(p.client(t, caller)).IssueCertificate(t.Context(), &IssueCertificateRequest{})
			check(t, err)
			if answer.Role != want {
				t.Errorf("caller was seen as %s", answer.Role)
			}
			if got := get(t, transport, "/images/blobs/x"); got != "200 "+want+" w1 of c1" {
				t.Errorf("requester was seen as %s", got)
			}
		}
		ask("worker")
		caller.current.Store(ca.certificate(Peer{NodeID: "w1", ClusterID: "c1", Role: Manager}, time.Hour))
		ask("manager")

		server.current.Store(ca.certificate(Peer{NodeID: "m1", ClusterID: "c1", Role: Worker}, time.Hour))
		kindOf(t, readIndex(t, p, caller), errdefs.ErrFailedPrecondition, "is not a manager")
	})
}

func TestConnectionEndsWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		caller := ca.identity("w1", Worker)
		caller.current.Store(ca.certificate(Peer{NodeID: "w1", ClusterID: "c1", Role: Worker}, time.Hour))
		stream, err := NewDispatcherClient(p.client(t, caller)).Session(t.Context())
		check(t, err)
		begun := time.Now()
		_, err = stream.Recv()
		if took := time.Since(begun).Round(time.Minute); err == nil || took != time.Hour {
			t.Errorf("stream ended after %s: %v", took, err)
		}
	})
}

func TestRaftStreamToAWorkerSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asWorker)
		_, err := p.dialer(ca.identity("m2", Manager)).Raft(t.Context(), managerAddress)
		kindOf(t, err, errdefs.ErrPermissionDenied, "node is not a manager")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = p.dialer(ca.identity("m2", Manager)).Raft(ctx, managerAddress)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestRaftIsServedAgainAfterADemotion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		dial := func() error {
			conn, err := p.dialer(ca.identity("m2", Manager)).Raft(t.Context(), managerAddress)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}
		first := p.Raft()
		check(t, dial())
		check(t, first.Close())
		kindOf(t, dial(), errdefs.ErrPermissionDenied, "node is not a manager")
		second := p.Raft()
		check(t, dial())
		conn, err := second.Accept()
		check(t, err)
		_ = conn.Close()
	})
}

func TestDialerCutsWhatItOpenedToANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		accepted := p.Raft()
		dialer := p.dialer(ca.identity("m2", Manager))
		raft, err := dialer.Raft(t.Context(), managerAddress)
		check(t, err)
		there, err := accepted.Accept()
		check(t, err)
		defer there.Close()
		ended := make(chan error, 1)
		go func() { _, err := raft.Read(make([]byte, 1)); ended <- err }()
		dialer.Cut("m3")
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("another node's stream was cut too: %v", err)
		default:
		}
		dialer.Cut("m1")
		if err := <-ended; err == nil {
			t.Error("the stream goes on")
		}
		_ = raft.Close() // there is nobody to say good-bye to
		if left := dialer.calls.of("m1"); len(left) > 0 {
			t.Errorf("%d connections are remembered", len(left))
		}
	})
}

type refuseAll struct{}

func (refuseAll) Authorize(p Peer) error {
	return fmt.Errorf("node %s was removed: %w", p.NodeID, errdefs.ErrUnavailable)
}

func TestDialerDoesNotSpeakToNodesThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		dialer := p.dialer(ca.identity("m2", Manager))
		dialer.Authorizer = refuseAll{}
		_, err := dialer.Raft(t.Context(), managerAddress)
		kindOf(t, err, errdefs.ErrUnavailable, "node m1 was removed")
	})
}
