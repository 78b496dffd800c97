package api

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func TestBodiesAreBounded(t *testing.T) {
	socket := serve(t, newAPI(newFakeNode(Status{State: swarm.LocalNodeStateInactive}), &wires{}))
	got := ask(t, socket, "POST", "/swarm/init", `{"AdvertiseAddr":"`+strings.Repeat("x", bodyBytesMax)+`"}`)
	if want := "400 Bad Request\n{\n \"message\": \"request body is larger than 2097152 bytes\"\n}\n"; got != want {
		t.Error(got)
	}
}

func TestRequestsBeyondTheBoundAreToldSo(t *testing.T) {
	a := newAPI(newFakeNode(Status{}), &wires{})
	entered, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(a.router([]route{
		{"GET", "/slow", func(w http.ResponseWriter, r *request) error { close(entered); <-release; return nil }, false},
		{"GET", "/stream", func(w http.ResponseWriter, r *request) error { return nil }, true},
	}, 1, 1, nil))
	defer server.Close()
	first := make(chan error, 1)
	go func() { _, err := http.Get(server.URL + "/slow"); first <- err }()
	<-entered
	for path, want := range map[string]int{"/slow": 503, "/stream": 200} {
		answer, err := http.Get(server.URL + path)
		if err != nil || answer.StatusCode != want {
			t.Errorf("%s: %v %v", path, answer.StatusCode, err)
		}
		answer.Body.Close()
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestConnectionsBeyondTheBoundAreToldSo(t *testing.T) {
	l := &boundedListener{Listener: listen(t), slots: make(chan struct{}, 1)}
	defer l.Close()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial()
	first := <-accepted
	answer, err := http.ReadResponse(bufio.NewReader(dial()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(answer.Body); answer.StatusCode != 503 || err != nil || string(body) != `{"message":"this node has too many open connections"}`+"\n" {
		t.Errorf("%d %s %v", answer.StatusCode, body, err)
	}
	first.Close()
	first.Close()
	dial()
	<-accepted
}

func TestAPanicIsAnsweredAndDoesNotEndTheServer(t *testing.T) {
	a := newAPI(newFakeNode(Status{}), &wires{})
	h := a.router([]route{{"GET", "/bug", func(http.ResponseWriter, *request) error { panic("bug") }, false}}, 1, 1, nil)
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), "GET", "/bug", nil))
		if w.Code != 500 || !strings.Contains(w.Body.String(), "internal error") {
			t.Error(w.Code, w.Body)
		}
	}
}

func TestAStopEndsStreamsAndLetsOtherRequestsFinish(t *testing.T) {
	n := newFakeNode(Status{State: swarm.LocalNodeStateInactive})
	n.initStarts, n.initEnds = make(chan struct{}), make(chan struct{})
	a := newAPI(n, &wires{})
	socket, stop := serveUntil(t, a)
	events, init := make(chan string, 1), make(chan string, 1)
	go func() { events <- ask(t, socket, "GET", "/events", "") }()
	go func() { init <- ask(t, socket, "POST", "/swarm/init", "{}") }()
	<-n.initStarts
	waitUntil(t, "the listener", func() bool { return a.events.listeners() == 1 })
	stopped := make(chan error)
	go func() { stopped <- stop() }()
	if got := <-events; got != "200 OK\n" {
		t.Error(got)
	}
	close(n.initEnds)
	if got := <-init; !strings.HasPrefix(got, "200 ") {
		t.Error(got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
