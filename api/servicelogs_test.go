package api

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// logsOf reads all of a log at once.
func (c *cluster) logsOf(service string, o client.ServiceLogsOptions) (stdout, stderr string) {
	c.t.Helper()
	stream, err := c.client().ServiceLogs(c.t.Context(), service, o)
	if err != nil {
		c.t.Fatal(err)
	}
	defer stream.Close()
	content, err := io.ReadAll(stream)
	if err != nil {
		c.t.Fatal(err)
	}
	return demux(c.t, content)
}

func TestServiceLogsOfAllNodesAreMergedByTime(t *testing.T) {
	c := newCluster(t)
	tasks := c.serviceOn("web", nodeOne, nodeTwo)
	one, two := newFakeLog("one at 0"), newFakeLog()
	two.append(1, "two at 1")
	one.append(2, "!one at 2")
	two.append(3, "two at 3")
	c.one.setLog(containerOf(tasks[0]), one)
	c.two.setLog(containerOf(tasks[1]), two)
	both := client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true}
	if stdout, stderr := c.logsOf("web", both); stdout != "one at 0\ntwo at 1\ntwo at 3\n" || stderr != "one at 2\n" {
		t.Errorf("got %q and %q", stdout, stderr)
	}
	tail := client.ServiceLogsOptions{ShowStdout: true, Tail: "1", Timestamps: true, Details: true}
	service, _ := findService(c.store.Local(), "web")
	want := "2026-01-02T03:04:08.000000000Z com.docker.swarm.node.id=" + nodeTwo + ",com.docker.swarm.service.id=" + service.ID + ",com.docker.swarm.task.id=" + tasks[1] + " two at 3\n"
	if stdout, _ := c.logsOf("web", tail); stdout != want {
		t.Errorf("got %q\nwant %q", stdout, want)
	}
	since := client.ServiceLogsOptions{ShowStdout: true, Since: started().Add(2 * time.Second).Format(time.RFC3339)}
	if stdout, _ := c.logsOf("web", since); stdout != "two at 3\n" {
		t.Errorf("since: got %q", stdout)
	}
	stream, err := c.client().TaskLogs(t.Context(), tasks[1], client.TaskLogsOptions{ShowStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	content, _ := io.ReadAll(stream)
	if stdout, _ := demux(t, content); stdout != "two at 1\ntwo at 3\n" {
		t.Errorf("task log: got %q", stdout)
	}
}

func TestMissingPartsOfALogAreNamed(t *testing.T) {
	c := newCluster(t)
	tasks := c.serviceOn("web", nodeOne, nodeThree, nodeThree)
	c.one.setLog(containerOf(tasks[0]), newFakeLog("one"))
	stdout, stderr := c.logsOf("web", client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true})
	if want := "swarm: lines of node three (10.0.0.3:2377) are missing: dial tcp 10.0.0.3:2377: connection refused\n"; stdout != "one\n" || stderr != want {
		t.Errorf("got %q and %q", stdout, stderr)
	}
}

func TestATasksContainerWithoutALogIsSilent(t *testing.T) {
	c := newCluster(t)
	c.serviceOn("web", nodeOne, nodeTwo)
	if stdout, stderr := c.logsOf("web", client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true}); stdout+stderr != "" {
		t.Errorf("got %q and %q", stdout, stderr)
	}
}

// followed reads a followed log line by line.
type followed struct {
	t     testing.TB
	lines chan string
	close func()
}

func (c *cluster) follow(path string) *followed {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	f := &followed{t: c.t, lines: make(chan string, 100), close: cancel}
	stream, err := c.client().ServiceLogs(ctx, path, client.ServiceLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
	if err != nil {
		c.t.Fatal(err)
	}
	pipe, writer := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(writer, writer, stream)
		writer.CloseWithError(err)
	}()
	go func() {
		defer close(f.lines)
		for scan := bufio.NewScanner(pipe); scan.Scan(); {
			f.lines <- scan.Text()
		}
	}()
	c.t.Cleanup(cancel)
	return f
}

func (f *followed) expect(want ...string) {
	f.t.Helper()
	for _, line := range want {
		select {
		case got := <-f.lines:
			if got != line {
				f.t.Fatalf("got %q, want %q", got, line)
			}
		case <-time.After(20 * time.Second):
			f.t.Fatalf("%q did not come", line)
		}
	}
}

func (f *followed) expectEnd() {
	f.t.Helper()
	select {
	case line, more := <-f.lines:
		if more {
			f.t.Fatalf("got %q after the end", line)
		}
	case <-time.After(20 * time.Second):
		f.t.Fatal("the log did not end")
	}
}

func TestAFollowedServicePicksUpNewTasks(t *testing.T) {
	c := newCluster(t)
	tasks := c.serviceOn("web", nodeTwo)
	first := newFakeLog("old")
	c.two.setLog(containerOf(tasks[0]), first)
	f := c.follow("web")
	f.expect("old")
	first.append(1, "new")
	f.expect("new")
	second := newFakeLog("of the second task")
	c.one.setLog(containerOf("task2"+strings.Repeat("0", 20)), second)
	c.addTasks("web", 2, nodeOne)
	f.expect("of the second task")
	first.end()
	second.end()
	if answer := ask(t, c.socket, "DELETE", "/services/web", ""); !strings.HasPrefix(answer, "200") {
		t.Fatal(answer)
	}
	f.expectEnd()
}

func TestAFollowedLogSurvivesABrokenConnection(t *testing.T) {
	c := newCluster(t)
	tasks := c.serviceOn("web", nodeTwo)
	log := newFakeLog("first")
	c.two.setLog(containerOf(tasks[0]), log)
	f := c.follow("web")
	f.expect("first")
	log.append(1, "second")
	f.expect("second") // it comes over the connection that breaks now
	// The node's agent restarts: its connections break, and it is back at the same address.
	broken := c.network.nodes["10.0.0.2:2377"]
	c.network.set("10.0.0.2:2377", httptest.NewServer(newAPI(c.two, c.network).NodeLocal()))
	t.Cleanup(c.network.nodes["10.0.0.2:2377"].Close)
	broken.CloseClientConnections()
	select {
	case got := <-f.lines:
		if !strings.HasPrefix(got, "swarm: lines of node two (10.0.0.2:2377) are missing: ") {
			t.Fatalf("got %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the outage was not named")
	}
	log.append(2, "third")
	f.expect("third")
	f.close()
}

func TestAFollowedTaskEndsWithItsLog(t *testing.T) {
	c := newCluster(t)
	tasks := c.serviceOn("web", nodeTwo)
	log := newFakeLog("only")
	c.two.setLog(containerOf(tasks[0]), log)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := c.client().TaskLogs(ctx, tasks[0], client.TaskLogsOptions{ShowStdout: true, Follow: true, Tail: "all"})
	if err != nil {
		t.Fatal(err)
	}
	log.end()
	content, err := io.ReadAll(stream)
	if stdout, _ := demux(t, content); stdout != "only\n" || err != nil {
		t.Errorf("got %q %v", stdout, err)
	}
}

func TestTerminalLogsAreBare(t *testing.T) {
	c := newCluster(t)
	c.update(func(tx *raftstore.Tx) {
		spec := webSpec("tty")
		spec.TaskTemplate.ContainerSpec.TTY = true
		if err := createService(tx, raftstore.NewID(), spec); err != nil {
			t.Fatal(err)
		}
	})
	tasks := c.addTasks("tty", 1, nodeTwo)
	c.two.setLog(containerOf(tasks[0]), newFakeLog("bare"))
	for _, path := range []string{"/services/tty/logs?stdout=1", "/tasks/" + tasks[0] + "/logs?stdout=1", "/containers/" + containerOf(tasks[0]) + "/logs?stdout=1"} {
		if got := ask(t, c.socket, "GET", path, ""); got != "200 OK\nContent-Type: application/vnd.docker.raw-stream\nbare\n" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestNodesThatAreNoManagersSaySo(t *testing.T) {
	n := newFakeNode(Status{State: swarm.LocalNodeStateInactive})
	socket := serve(t, newAPI(n, &wires{}))
	for _, c := range []struct {
		status    Status
		ping, why string
	}{
		{Status{State: swarm.LocalNodeStateInactive}, "inactive", textNotInSwarm},
		{Status{State: swarm.LocalNodeStatePending, Error: "no manager answers"}, "pending", textNotInSwarm + " (no manager answers)"},
		{Status{State: swarm.LocalNodeStateLocked}, "locked", textSwarmLocked},
		{Status{State: swarm.LocalNodeStateActive, NodeID: nodeTwo}, "active/worker", textNotManager},
		{Status{State: swarm.LocalNodeStateActive, NodeID: nodeTwo, Managers: []swarm.Peer{{NodeID: nodeTwo}}}, "active/worker", textManagerNotUp},
	} {
		n.mu.Lock()
		n.status = c.status
		n.mu.Unlock()
		if got := ask(t, socket, "GET", "/_ping", ""); !strings.Contains(got, "\nSwarm: "+c.ping+"\n") {
			t.Errorf("%s: %s", c.ping, got)
		}
		for _, path := range []string{"GET /services", "GET /nodes/x", "GET /tasks", "GET /swarm", "POST /services/create", "POST /nodes/x/update?version=1", "DELETE /services/x", "POST /swarm/update?version=1", "GET /swarm/unlockkey", "GET /services/x/logs?stdout=1"} {
			method, path, _ := strings.Cut(path, " ")
			want := "503 Service Unavailable\n{\n \"message\": \"" + strings.ReplaceAll(c.why, `"`, `\"`) + "\"\n}\n"
			if got := ask(t, socket, method, path, "{}"); got != want {
				t.Errorf("%s as %s:\n got %s\nwant %s", path, c.ping, got, want)
			}
		}
		if got := ask(t, socket, "GET", "/info", ""); !strings.HasPrefix(got, "200 OK") || !strings.Contains(got, `"ControlAvailable": false`) {
			t.Error(got)
		}
	}
}

func TestInitAndJoinReachTheNode(t *testing.T) {
	n := newFakeNode(Status{State: swarm.LocalNodeStateInactive})
	socket := serve(t, newAPI(n, &wires{}))
	if got := ask(t, socket, "POST", "/swarm/init", `{"AdvertiseAddr":"10.0.0.1","ListenAddr":"0.0.0.0:2377"}`); got != "200 OK\n\""+nodeOne+"\"\n" {
		t.Error(got)
	}
	if got := ask(t, socket, "POST", "/swarm/join", `{"RemoteAddrs":["10.0.0.1:2377"],"JoinToken":"wrong"}`); !strings.HasPrefix(got, "400 ") || !strings.Contains(got, "join token is malformed") {
		t.Error(got)
	}
	if got := ask(t, socket, "POST", "/swarm/join", `{"JoinToken":"x"}`); !strings.HasPrefix(got, "400 ") {
		t.Error(got)
	}
	if got := ask(t, socket, "POST", "/swarm/leave", ``); !strings.Contains(got, textNoSwarm) {
		t.Error(got)
	}
	if got := ask(t, socket, "POST", "/swarm/init", `{"AutoLockManagers":true}`); !strings.HasPrefix(got, "501 ") {
		t.Error(got)
	}
	if got := strings.Join(n.calls, "; "); got != "init 10.0.0.1 default; join [10.0.0.1:2377]" {
		t.Error(got)
	}
}

// Without a leader a read is answered from the replica, and says so; a write fails at once.
func TestWithoutALeaderReadsAreStaleAndWritesFail(t *testing.T) {
	c := newCluster(t)
	c.serviceOn("web", nodeOne)
	stop := c.addManager()
	stop()
	waitUntil(t, "the leader to step down", func() bool { leader, _ := c.store.Leader(); return leader == "" })
	get := func(path string) *http.Response {
		w := httptest.NewRecorder()
		c.api.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Result()
	}
	answer := get("/services/web")
	if answer.StatusCode != 200 || answer.Header.Get("Swarm-Stale") == "" || !strings.HasPrefix(answer.Header.Get("Warning"), `110 - "no leader is known: `) {
		t.Errorf("%d %v", answer.StatusCode, answer.Header)
	}
	// By now there has been no leader for long enough, so nothing waits any more.
	noLeader := "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online. (1 of 2 managers can be reached from here, this one included.)"
	began := time.Now()
	if got := ask(t, c.socket, "GET", "/info", ""); !strings.Contains(got, noLeader) {
		t.Error(got)
	}
	if got := ask(t, c.socket, "DELETE", "/services/web", ""); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, noLeader) {
		t.Error(got)
	}
	if got := ask(t, c.socket, "GET", "/nodes/three", ""); !strings.Contains(got, `"Reachability": "unreachable"`) {
		t.Error(got)
	}
	if took := time.Since(began); took > leaderWait {
		t.Errorf("three answers took %s", took)
	}
}

// addManager makes node three a manager and returns how to stop it.
func (c *cluster) addManager() (stop func()) {
	c.t.Helper()
	listener := listen(c.t)
	_, stop = openManager(c.t, nodeThree, listener, false)
	c.update(func(tx *raftstore.Tx) {
		row, _ := tx.Nodes.Get(nodeThree)
		next := *row
		next.Spec.Role, next.Role, next.Address = swarm.NodeRoleManager, swarm.NodeRoleManager, listener.Addr().String()
		next.Status.State = swarm.NodeStateReady
		tx.PutNode(next)
	})
	waitUntil(c.t, "the second manager to vote", func() bool {
		voters := 0
		for _, m := range c.store.Members() {
			if m.Voter {
				voters++
			}
		}
		return voters == 2
	})
	return stop
}

// waitUntil looks again and again, for what no channel tells.
func waitUntil(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatal("gave up waiting for " + what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestTwoManagersAreCountedAndGuarded(t *testing.T) {
	c := newCluster(t)
	stop := c.addManager()
	defer stop()
	if got := ask(t, c.socket, "GET", "/info", ""); !strings.Contains(got, "two-manager configuration") || !strings.Contains(got, `"Managers": 2`) {
		t.Error(got)
	}
	if got := ask(t, c.socket, "POST", "/swarm/leave", ""); !strings.Contains(got, "Removing this node leaves 1 managers out of 2") {
		t.Error(got)
	}
	list, err := c.client().NodeList(t.Context(), client.NodeListOptions{Filters: client.Filters{}.Add("role", "manager")})
	if err != nil || len(list.Items) != 2 || !list.Items[0].ManagerStatus.Leader || list.Items[1].ManagerStatus.Reachability != swarm.ReachabilityReachable {
		t.Errorf("%+v %v", list.Items, err)
	}
	// Demoting the second one leaves a majority of one: allowed.
	three := list.Items[1]
	three.Spec.Role = swarm.NodeRoleWorker
	if _, err := c.client().NodeUpdate(t.Context(), three.ID, client.NodeUpdateOptions{Version: three.Version, Spec: three.Spec}); err != nil {
		t.Error(err)
	}
}

func TestADemotionThatCostsTheMajorityIsRefused(t *testing.T) {
	c := newCluster(t)
	stop := c.addManager()
	defer stop()
	c.update(func(tx *raftstore.Tx) {
		row, _ := tx.Nodes.Get(nodeThree)
		next := *row
		next.Status.State = swarm.NodeStateDown
		tx.PutObservedNode(next)
	})
	one, err := c.client().NodeInspect(t.Context(), nodeOne, client.NodeInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	one.Node.Spec.Role = swarm.NodeRoleWorker
	if _, err := c.client().NodeUpdate(t.Context(), nodeOne, client.NodeUpdateOptions{Version: one.Node.Version, Spec: one.Node.Spec}); err == nil || !strings.Contains(err.Error(), "loss of quorum") {
		t.Error(err)
	}
}
