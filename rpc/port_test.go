package rpc

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// manager returns a client of a manager's port for a node.
func (p *port) client(t *testing.T, id Identity) *grpc.ClientConn {
	t.Helper()
	conn, err := p.dialer(id).GRPC(managerAddress)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestCallerIsKnownByItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		answer, err := NewCertificateAuthorityClient(p.client(t, ca.identity("w1", Worker))).IssueCertificate(t.Context(), &IssueCertificateRequest{})
		check(t, err)
		if got := answer.NodeId + " " + answer.ClusterId + " " + answer.Role; got != "w1 c1 worker" {
			t.Errorf("caller was seen as %q", got)
		}
	})
}

func TestJoinNeedsNoCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		for _, roots := range []*testIdentity{{}, ca.identity("", Worker)} {
			conn, err := Join(p.network, managerAddress, roots.pool)
			check(t, err)
			answer, err := NewCertificateAuthorityClient(conn).RootCertificate(t.Context(), &RootCertificateRequest{})
			check(t, err)
			if string(answer.RootPem) != "anonymous" {
				t.Errorf("joiner was seen as %s", answer.RootPem)
			}
			_, err = NewRaftClient(conn).ReadIndex(t.Context(), &ReadIndexRequest{})
			kindOf(t, err, errdefs.ErrUnauthenticated, "join the swarm first")
			check(t, conn.Close())
		}
	})
}

func TestNodeAPIServesAndKeepsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("w2", Worker), asWorker)
		transport := p.dialer(ca.identity("m1", Manager)).NodeAPI()
		defer transport.(*nodeTransport).CloseIdleConnections()
		for range 3 {
			if got := get(t, transport, "/containers/json"); got != "200 manager m1 of c1" {
				t.Errorf("answer %q", got)
			}
		}
		if p.network.dialed != 1 {
			t.Errorf("3 requests took %d connections", p.network.dialed)
		}
	})
}

func get(t *testing.T, transport http.RoundTripper, path string) string {
	t.Helper()
	answer, err := (&http.Client{Transport: transport}).Get("http://" + managerAddress + path)
	check(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(t, err)
	return fmt.Sprint(answer.StatusCode, " ", strings.TrimSpace(string(body)))
}

func TestRaftStreamJoinsManagers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "c1")
		p := serve(t, ca.identity("m1", Manager), asManager)
		accepted := p.Raft()
		conn, err := p.dialer(ca.identity("m2", Manager)).Raft(t.Context(), managerAddress)
		check(t, err)
		defer conn.Close()
		other, err := accepted.Accept()
		check(t, err)
		defer other.Close()
		go func() { _, _ = other.Write([]byte("entries")) }()
		got := make([]byte, 7)
		_, err = io.ReadFull(conn, got)
		check(t, err)
		if string(got) != "entries" {
			t.Errorf("read %q", got)
		}
	})
}
