package rpc

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestOnlyMembersGetBehindMembersOnly(t *testing.T) {
	ca := newAuthority(t, "c1")
	own := ca.identity("w2", Worker)
	removed := &roster{refused: map[string]error{"gone": errdefs.ErrPermissionDenied.WithMessage("it was removed from the swarm")}}
	var outside error
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	address := listener.Addr().String()
	served := tls.NewListener(listener, MembersOnly(func() (Identity, Authorizer, error) { return own, removed, outside }))
	go func() {
		_ = http.Serve(served, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "numbers") }))
	}()

	elsewhere := ca.certificate(Peer{NodeID: "m1", ClusterID: "c2", Role: Manager}, time.Hour)
	for name, c := range map[string]struct {
		certificate *tls.Certificate
		want        string
	}{
		"worker":          {ca.identity("w1", Worker).Certificate(), "200 OK"},
		"manager":         {ca.identity("m1", Manager).Certificate(), "200 OK"},
		"nobody":          {nil, "certificate required"},
		"stranger":        {newAuthority(t, "c1").identity("m1", Manager).Certificate(), "bad certificate|unknown certificate authority"},
		"another cluster": {elsewhere, "bad certificate"},
		"a removed node":  {ca.identity("gone", Worker).Certificate(), "bad certificate"},
	} {
		if got := getOverTLS(address, c.certificate); !containsOne(got, c.want) {
			t.Errorf("%s got %q, want %q", name, got, c.want)
		}
	}
	if answer, err := http.Get("http://" + address + "/metrics"); err == nil && answer.StatusCode == http.StatusOK {
		t.Error("answered without TLS")
	}
	outside = errors.New("this node is in no swarm")
	if got := getOverTLS(address, ca.identity("w1", Worker).Certificate()); strings.HasPrefix(got, "200") {
		t.Error("answered outside of a swarm")
	}
}

func containsOne(text, alternatives string) bool {
	for _, a := range strings.Split(alternatives, "|") {
		if strings.Contains(text, a) {
			return true
		}
	}
	return false
}

// getOverTLS reads what a scrape gets: a status, or the error.
func getOverTLS(address string, own *tls.Certificate) string {
	// Names and roots are the client's matter; what is tested is whom the server lets in.
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	if own != nil {
		config.Certificates = []tls.Certificate{*own}
	}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err.Error()
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	return answer.Status
}
