package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The nodes of the test cluster: a manager that the tests talk to, a worker that answers, one that does not.
const (
	nodeOne   = "one0000000000000000000000"
	nodeTwo   = "two0000000000000000000000"
	nodeThree = "three00000000000000000000"
)

// started is when the test cluster says that it was made.
func started() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// openSealer seals nothing: what the disk holds is another package's test.
type openSealer struct{}

func (openSealer) Seal(plain, _ []byte) ([]byte, error)  { return bytes.Clone(plain), nil }
func (openSealer) Open(sealed, _ []byte) ([]byte, error) { return bytes.Clone(sealed), nil }

// fakeNode is one machine: its place in the cluster, its containers and images.
type fakeNode struct {
	mu      sync.Mutex // guards:
	status  Status
	calls   []string
	logs    map[string]*fakeLog
	images  []image.Summary
	listed  []container.Summary
	pulling error
	// initStarts and initEnds, when set, hold Init up.
	initStarts, initEnds chan struct{}
}

func (n *fakeNode) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

func (n *fakeNode) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, fmt.Sprintf(format, args...))
}

func (n *fakeNode) Init(ctx context.Context, r swarm.InitRequest) (string, error) {
	n.note("init %s %s", r.AdvertiseAddr, r.Spec.Name)
	if n.initStarts != nil {
		close(n.initStarts)
		select {
		case <-n.initEnds:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return nodeOne, nil
}

func (n *fakeNode) Join(_ context.Context, r swarm.JoinRequest) error {
	n.note("join %s", r.RemoteAddrs)
	if r.JoinToken == "wrong" {
		return fmt.Errorf("join token is malformed; copy it whole from `swarm join-token`: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (n *fakeNode) Leave(_ context.Context, force bool) error {
	n.note("leave %v", force)
	return nil
}

func (n *fakeNode) PreviewRecovery(context.Context) (Recovery, error) {
	return Recovery{NodeID: nodeOne, Address: "10.0.0.1:2377", Services: 3, Tasks: 8, LastChange: started(), LeaderlessSince: started(),
		Unconfirmed: 1, Removed: []swarm.Peer{{NodeID: nodeTwo, Addr: "10.0.0.2:2377"}}}, nil
}

func (n *fakeNode) Store() *raftstore.Store { return n.Status().Store }

func describe(host string) swarm.NodeDescription {
	return swarm.NodeDescription{
		Hostname:  host,
		Platform:  swarm.Platform{OS: "linux", Architecture: "x86_64"},
		Resources: swarm.Resources{NanoCPUs: 2e9, MemoryBytes: 4 << 30},
		Engine:    swarm.EngineDescription{EngineVersion: "1.0", Labels: map[string]string{"disk": "ssd"}},
	}
}

// fakeLog is a container's log, to which a test may append.
type fakeLog struct {
	mu    sync.Mutex // guards:
	lines []LogLine
	ended bool
	more  chan struct{}
}

func newFakeLog(lines ...string) *fakeLog {
	l := &fakeLog{more: make(chan struct{})}
	for i, text := range lines {
		l.append(i, text)
	}
	return l
}

// append adds a line that was written so many seconds after the start; one that begins with ! goes to stderr.
func (l *fakeLog) append(second int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := LogLine{Stream: "stdout", Time: started().Add(time.Duration(second) * time.Second), Text: []byte(strings.TrimPrefix(text, "!") + "\n")}
	if strings.HasPrefix(text, "!") {
		line.Stream = "stderr"
	}
	l.lines = append(l.lines, line)
	l.wakeLocked()
}

func (l *fakeLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wakeLocked()
}

func (l *fakeLog) wakeLocked() {
	close(l.more)
	l.more = make(chan struct{})
}

func (l *fakeLog) from(i int) (lines []LogLine, ended bool, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines[min(i, len(l.lines)):], l.ended, l.more
}

func (n *fakeNode) log(id string) *fakeLog {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.logs[id]
}

func (n *fakeNode) setLog(id string, l *fakeLog) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logs[id] = l
}

// fakeContainers and fakeImages are a node's, as the API wants them.
type (
	fakeContainers struct{ *fakeNode }
	fakeImages     struct{ *fakeNode }
)

func (c fakeContainers) List(context.Context) ([]container.Summary, error) { return c.listed, nil }

func (c fakeContainers) Inspect(_ context.Context, id string) (container.InspectResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for full := range c.logs {
		if strings.HasPrefix(full, id) {
			return container.InspectResponse{ID: full, Name: "/on-" + c.status.NodeID, Config: &container.Config{}}, nil
		}
	}
	return container.InspectResponse{}, errdefs.ErrNotFound.WithMessage("No such container: " + id)
}

func (c fakeContainers) Logs(ctx context.Context, id string, o LogOptions, emit func(LogLine) error) error {
	l := c.log(id)
	if l == nil {
		return errdefs.ErrNotFound.WithMessage("No such container: " + id)
	}
	next := 0
	if lines, _, _ := l.from(0); o.Tail >= 0 {
		next = max(0, len(lines)-o.Tail)
	}
	for {
		lines, ended, more := l.from(next)
		next += len(lines)
		for _, line := range lines {
			if line.Time.Before(o.Since) || line.Stream == "stdout" && !o.Stdout || line.Stream == "stderr" && !o.Stderr {
				continue
			}
			if err := emit(line); err != nil {
				return err
			}
		}
		if !o.Follow || ended {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (i fakeImages) Load(_ context.Context, archive io.Reader, progress func(string)) error {
	content, err := io.ReadAll(archive)
	if err != nil {
		return err
	}
	if string(content) == "broken" {
		return fmt.Errorf("archive is neither an OCI nor a docker-save archive: %w", errdefs.ErrInvalidArgument)
	}
	progress("Loaded image: " + string(content))
	if strings.HasPrefix(string(content), "half") {
		return errors.New("archive ends too early")
	}
	return nil
}

func (i fakeImages) List(context.Context) ([]image.Summary, error) { return i.images, nil }

func (i fakeImages) Inspect(_ context.Context, ref string) (image.InspectResponse, error) {
	if ref == "team/hello:v1" {
		return image.InspectResponse{ID: "sha256:aa", RepoTags: []string{ref}}, nil
	}
	return image.InspectResponse{}, errdefs.ErrNotFound.WithMessage("No such image: " + ref)
}

func (i fakeImages) Remove(_ context.Context, ref string, force bool) ([]image.DeleteResponse, error) {
	return []image.DeleteResponse{{Untagged: fmt.Sprint(ref, " forced ", force)}}, nil
}

func (i fakeImages) Pull(_ context.Context, ref string, holders []string, auth string, progress func(string)) error {
	progress(fmt.Sprintf("pulling %s from %v", ref, holders))
	return i.pulling
}

func (i fakeImages) Distribution(_ context.Context, ref, auth string) (registry.DistributionInspect, error) {
	if strings.HasPrefix(ref, "docker.io/library/remote:") {
		return registry.DistributionInspect{Descriptor: ocispec.Descriptor{Digest: digest.FromString(ref)}, Platforms: []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}}, nil
	}
	return registry.DistributionInspect{}, errdefs.ErrNotFound.WithMessage("no node holds " + ref + " and the registry does not know it")
}

// wires is a NodeTransport between the fake nodes.
type wires struct {
	mu    sync.Mutex // guards:
	nodes map[string]*httptest.Server
}

func (n *wires) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	server := n.nodes[r.URL.Host]
	n.mu.Unlock()
	if server == nil {
		return nil, fmt.Errorf("dial tcp %s: connection refused", r.URL.Host)
	}
	out := r.Clone(r.Context())
	out.URL.Host = server.Listener.Addr().String()
	out.RequestURI = ""
	return http.DefaultTransport.RoundTrip(out)
}

func (n *wires) set(address string, server *httptest.Server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[address] = server
}

// cluster is a real store of one manager, served by the API, with fake machines around it.
type cluster struct {
	t       testing.TB
	store   *raftstore.Store
	api     *API
	one     *fakeNode
	two     *fakeNode
	network *wires
	// socket is where the API is served.
	socket string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	t.Parallel()
	c := &cluster{t: t, network: &wires{nodes: map[string]*httptest.Server{}}}
	c.store = openStore(t)
	c.one = newFakeNode(Status{NodeID: nodeOne, Address: "10.0.0.1", State: swarm.LocalNodeStateActive, Store: c.store,
		Managers: []swarm.Peer{{NodeID: nodeOne, Addr: "10.0.0.1:2377"}},
		Heard:    true, Gossip: []GossipMember{{NodeID: nodeOne, Address: "10.0.0.1:7946", State: "alive"}}})
	c.two = newFakeNode(Status{NodeID: nodeTwo, Address: "10.0.0.2", State: swarm.LocalNodeStateActive})
	c.api = newAPI(c.one, c.network)
	two := httptest.NewServer(newAPI(c.two, c.network).NodeLocal())
	t.Cleanup(two.Close)
	c.network.set("10.0.0.2:2377", two)
	c.found()
	c.socket = serve(t, c.api)
	return c
}

func newFakeNode(status Status) *fakeNode {
	return &fakeNode{status: status, logs: map[string]*fakeLog{}}
}

func newAPI(n *fakeNode, transport http.RoundTripper) *API {
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("API_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return New(Config{
		Node: n, Containers: fakeContainers{n}, Images: fakeImages{n}, Nodes: transport, Version: "1.0-test", ContainerdVersion: "2.0-test",
		Description: describe("one"), DataDir: "/var/lib/swarm", StartedAt: started(), Log: log,
		NewJoinToken: func([]byte) (string, error) { return "SWMTKN-1-new-" + raftstore.NewID(), nil },
	})
}

// openStore makes a cluster of one manager.
func openStore(t *testing.T) *raftstore.Store {
	t.Helper()
	store, stop := openManager(t, nodeOne, listen(t), true)
	t.Cleanup(stop)
	return store
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// openManager runs one manager's store until stop is called.
func openManager(t testing.TB, id string, listener net.Listener, bootstrap bool) (store *raftstore.Store, stop func()) {
	t.Helper()
	return openManagerOn(t, id, listener, bootstrap, nil)
}

// openManagerOn keeps the store on a disk in memory, if there is one.
func openManagerOn(t testing.TB, id string, listener net.Listener, bootstrap bool, disk *raftstore.MemoryDisk) (store *raftstore.Store, stop func()) {
	t.Helper()
	store, err := raftstore.Open(raftstore.Config{
		NodeID: id, Address: listener.Addr().String(), Dir: t.TempDir(), Disk: disk, Sealer: openSealer{}, Listener: listener, Bootstrap: bootstrap,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- store.Run(ctx) }()
	go func() { ended <- store.WhileLeader(ctx, store.RunMembership) }()
	return store, func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	}
}

// serve runs an API on a socket of its own.
func serve(t *testing.T, a *API) (socket string) {
	t.Helper()
	socket, stop := serveUntil(t, a)
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error("serve:", err)
		}
	})
	return socket
}

// serveUntil serves until stop is called, which returns what Serve did.
func serveUntil(t *testing.T, a *API) (socket string, stop func() error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	socket = dir + "/s"
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, listener) }()
	return socket, func() error {
		cancel()
		defer os.RemoveAll(dir)
		return <-ended
	}
}

func (c *cluster) update(change func(tx *raftstore.Tx)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.store.Update(ctx, func(tx *raftstore.Tx) error { change(tx); return nil }); err != nil {
		c.t.Fatal(err)
	}
}

// found writes what an agent writes when it makes a cluster, and two workers.
func (c *cluster) found() {
	c.update(func(tx *raftstore.Tx) {
		tx.PutCluster(raftstore.Cluster{
			Meta: raftstore.Meta{ID: "cluster000000000000000000", CreatedAt: started(), UpdatedAt: started()},
			Spec: swarm.Spec{Annotations: swarm.Annotations{Name: "default"}}, RootPEM: []byte("no certificate\n"),
			JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"}, DataPathPort: 4789,
			DefaultAddrPool: []string{"10.0.0.0/8"}, SubnetSize: 24,
		})
		for i, id := range []string{nodeOne, nodeTwo, nodeThree} {
			node := raftstore.Node{
				Meta: raftstore.Meta{ID: id, CreatedAt: started(), UpdatedAt: started()},
				Spec: swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}, Role: swarm.NodeRoleWorker,
				Description: describe([]string{"one", "two", "three"}[i]), Address: fmt.Sprintf("10.0.0.%d:2377", i+1),
				Status: swarm.NodeStatus{State: swarm.NodeStateReady},
			}
			switch id {
			case nodeOne:
				node.Spec.Role, node.Role = swarm.NodeRoleManager, swarm.NodeRoleManager
			case nodeThree:
				node.Status.State = swarm.NodeStateDown
			}
			tx.PutNode(node)
		}
	})
}

// addTasks gives a service a task on each of the named nodes, running; slot numbers begin at from.
func (c *cluster) addTasks(service string, from uint64, nodes ...string) (ids []string) {
	c.update(func(tx *raftstore.Tx) {
		ids = nil
		row, err := findService(&tx.State, service)
		if err != nil {
			c.t.Fatal(err)
		}
		for i, node := range nodes {
			id := fmt.Sprintf("task%d%s", from+uint64(i), strings.Repeat("0", 20))
			ids = append(ids, id)
			tx.PutTask(raftstore.Task{
				Meta:      raftstore.Meta{ID: id, CreatedAt: started().Add(time.Duration(i) * time.Second), UpdatedAt: started()},
				ServiceID: row.ID, SpecVersion: row.SpecVersion, Slot: from + uint64(i), NodeID: node, DesiredState: swarm.TaskStateRunning,
				Status: raftstore.TaskStatus{State: swarm.TaskStateRunning, Timestamp: started(), Message: "started", ContainerID: containerOf(id), PID: 42},
			})
		}
	})
	return ids
}

// containerOf is the id of a task's container in these tests.
func containerOf(taskID string) string { return digest.FromString(taskID).Encoded() }
