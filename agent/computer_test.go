package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"swarm/agent/worker"
	"swarm/api"
	"swarm/raftstore"
	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// computer is a whole agent in a bubble, with a network in memory and containers that only exist in name.
type computer struct {
	t       *testing.T
	ether   *ether
	name    string
	ip      string
	cfg     Config
	runtime *fakeRuntime
	disk    *raftstore.MemoryDisk
	node    *node              // of the latest agent
	stop    context.CancelFunc // nil while the agent does not run
	ended   chan error
	log     *slog.Logger
	// change may make the agent's configuration and edges others.
	change func(*Config, *Edges)
}

// newComputer is switched on; its agent runs.
func newComputer(t *testing.T, e *ether, number int) *computer {
	return newComputerWith(t, e, number, func(*Config, *Edges) {})
}

func newComputerWith(t *testing.T, e *ether, number int, change func(*Config, *Edges)) *computer {
	m := &computer{t: t, ether: e, name: fmt.Sprintf("n%d", number), ip: fmt.Sprintf("10.0.0.%d", number), runtime: newFakeRuntime(), disk: raftstore.NewMemoryDisk(), change: change}
	dir := t.TempDir()
	m.cfg = Config{
		DataDir:       dir,
		RunDir:        "/run/swarm",
		ListenAddr:    m.ip + ":2377",
		AdvertiseAddr: m.ip,
		GossipPort:    7946,
		Version:       "test",
	}
	if os.Getenv("AGENT_LOG") != "" {
		m.log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("on", m.name)
	}
	m.start()
	return m
}

func (m *computer) start() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	m.stop, m.ended = cancel, make(chan error, 1)
	network := m.ether.host(m.ip)
	edges := Edges{
		Network:    network,
		Sockets:    network,
		Runtime:    m.runtime,
		OpenImages: func(http.RoundTripper) Images { return fakeImages{} },
		Containers: fakeContainers{},
		RemoveLog:  func(context.Context, string) error { return nil },
		NoSync:     true,
		Description: swarm.NodeDescription{Hostname: m.name, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
			Resources: swarm.Resources{NanoCPUs: 8e9, MemoryBytes: 8 << 30}},
		Store: raftstore.Config{CheckRows: true, Disk: m.disk},
		Log:   m.log,
	}
	cfg := m.cfg
	m.change(&cfg, &edges)
	var err error
	if m.node, err = build(cfg, edges); err != nil {
		m.t.Fatal(err)
	}
	ended, n := m.ended, m.node
	go func() { ended <- n.run(ctx) }()
	synctest.Wait()
}

// halt stops the agent in order, as SIGTERM does; its sockets stay open and its containers run on.
func (m *computer) halt() {
	m.t.Helper()
	m.stop()
	if err := <-m.ended; err != nil && !errors.Is(err, context.Canceled) {
		m.t.Errorf("agent of %s: %v", m.name, err)
	}
	m.stop = nil
}

// cutOff lets nothing through to the machine and from it any more.
func (m *computer) cutOff()  { m.ether.setCut(m.ip, true) }
func (m *computer) rejoins() { m.ether.setCut(m.ip, false) }

// close ends everything, so that the bubble can end.
func (m *computer) close() {
	if m.stop != nil {
		m.halt()
	}
	m.runtime.killAll()
}

// client speaks the Engine API to the machine's agent.
func (m *computer) client() *client.Client {
	m.t.Helper()
	network := m.ether.host(m.ip)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return network.Dial(ctx, "unix", filepath.Join(m.cfg.RunDir, "swarm.sock"))
	}
	c, err := client.New(client.WithHTTPClient(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}),
		client.WithHost("tcp://"+m.name), client.WithDialContext(dial), client.WithScheme("http"), client.WithAPIVersion("1.52"))
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

func (m *computer) init() string {
	m.t.Helper()
	r, err := m.client().SwarmInit(m.t.Context(), client.SwarmInitOptions{ListenAddr: m.cfg.ListenAddr})
	if err != nil {
		m.t.Fatalf("init on %s: %v", m.name, err)
	}
	return r.NodeID
}

// join makes the machine a member through another one that manages.
func (m *computer) join(through *computer, role swarm.NodeRole) {
	m.t.Helper()
	r, err := through.client().SwarmInspect(m.t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		m.t.Fatalf("tokens of %s: %v", through.name, err)
	}
	token := r.Swarm.JoinTokens.Worker
	if role == swarm.NodeRoleManager {
		token = r.Swarm.JoinTokens.Manager
	}
	if _, err := m.client().SwarmJoin(m.t.Context(), client.SwarmJoinOptions{RemoteAddrs: []string{through.ip}, JoinToken: token}); err != nil {
		m.t.Fatalf("join %s through %s: %v", m.name, through.name, err)
	}
}

// formed makes a cluster of managers and then workers, in the order of their numbers.
func formed(t *testing.T, managers, workers int) []*computer {
	t.Helper()
	e := newEther()
	var all []*computer
	for i := range managers + workers {
		if i == managers {
			time.Sleep(time.Second) // until all of them vote
		}
		m := newComputer(t, e, i+1)
		all = append(all, m)
		switch {
		case i == 0:
			m.init()
		case i < managers:
			m.join(all[0], swarm.NodeRoleManager)
		default:
			m.join(all[0], swarm.NodeRoleWorker)
		}
	}
	return all
}

func closeAll(machines []*computer) {
	for _, m := range machines {
		m.close()
	}
	// The gossip library ends its last probes by timers of its own.
	time.Sleep(10 * time.Second)
}

// store is the machine's replica, nil while it has none that is usable.
func (m *computer) store() *raftstore.Store {
	if m.stop == nil {
		return nil
	}
	return m.node.Status().Store
}

// row is the machine's row as another one's replica has it.
func (m *computer) row(at *computer) raftstore.Node {
	if store := at.store(); store != nil {
		for n := range store.Local().Nodes.All() {
			if n.Description.Hostname == m.name {
				return *n
			}
		}
	}
	return raftstore.Node{}
}

// leader is the machine that leads.
func leader(machines []*computer) *computer {
	for _, m := range machines {
		if store := m.store(); store != nil {
			if id, _ := store.Leader(); id == m.node.id() && m.node.current().manager.Load().serving() {
				return m
			}
		}
	}
	return nil
}

// service creates a replicated service of containers that run until they are stopped.
func (m *computer) service(name string, replicas uint64) string {
	m.t.Helper()
	r, err := m.client().ServiceCreate(m.t.Context(), client.ServiceCreateOptions{Spec: swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "sleep@" + fakeDigest}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}})
	if err != nil {
		m.t.Fatalf("create service on %s: %v", m.name, err)
	}
	return r.ID
}

// running counts the tasks that are to run and do, as the machine's agent tells it.
func (m *computer) running() int {
	r, err := m.client().TaskList(m.t.Context(), client.TaskListOptions{})
	if err != nil {
		return -1
	}
	n := 0
	for _, task := range r.Items {
		if task.DesiredState == swarm.TaskStateRunning && task.Status.State == swarm.TaskStateRunning {
			n++
		}
	}
	return n
}

// nodes is a line per node, in order of the hostnames: "n1 ready manager leader".
func (m *computer) nodes() string {
	r, err := m.client().NodeList(m.t.Context(), client.NodeListOptions{})
	if err != nil {
		return err.Error()
	}
	var lines []string
	for _, n := range r.Items {
		line := fmt.Sprintf("%s %s %s", n.Description.Hostname, n.Status.State, n.Spec.Role)
		if n.ManagerStatus != nil {
			line += " " + string(n.ManagerStatus.Reachability)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// within waits, in virtual time, until true or the limit.
func (m *computer) within(limit time.Duration, what string, holds func() bool) time.Duration {
	m.t.Helper()
	begun := time.Now()
	for !holds() {
		if time.Since(begun) > limit {
			m.t.Fatalf("not within %s: %s\nnodes as %s sees them:\n%s", limit, what, m.name, m.nodes())
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(begun)
}

const fakeDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

// fakeImages has every image.
type fakeImages struct{ api.Images }

func (fakeImages) Ensure(context.Context, string, []string, string) (string, error) {
	return fakeDigest, nil
}
func (fakeImages) Held(context.Context) ([]*rpc.HeldImage, error)   { return nil, nil }
func (fakeImages) Changed() <-chan struct{}                         { return nil }
func (fakeImages) ServeHTTP(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }

func (fakeImages) List(context.Context) ([]image.Summary, error) { return nil, nil }

type fakeContainers struct{ api.Containers }

func (fakeContainers) List(context.Context) ([]container.Summary, error) { return nil, nil }

// fakeRuntime "runs" containers until they are stopped. It outlives agents.
type fakeRuntime struct {
	mu         sync.Mutex
	containers map[string]*fakeContainer
	started    int
}

type fakeContainer struct {
	worker.Container
	pid   int
	exit  *worker.Exit
	ended chan struct{}
}

func newFakeRuntime() *fakeRuntime { return &fakeRuntime{containers: map[string]*fakeContainer{}} }

func (r *fakeRuntime) Create(_ context.Context, c worker.Container) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[c.ID] == nil {
		r.containers[c.ID] = &fakeContainer{Container: c, ended: make(chan struct{})}
	}
	return nil
}

func (r *fakeRuntime) get(id string) (*fakeContainer, error) {
	c := r.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %.12s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (r *fakeRuntime) Start(_ context.Context, id string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.get(id)
	if err != nil {
		return 0, err
	}
	if c.pid == 0 {
		r.started++
		c.pid = r.started
	}
	return c.pid, nil
}

func (r *fakeRuntime) Wait(ctx context.Context, id string) (worker.Exit, error) {
	r.mu.Lock()
	c, err := r.get(id)
	r.mu.Unlock()
	if err != nil {
		return worker.Exit{}, err
	}
	select {
	case <-c.ended:
		return *c.exit, nil
	case <-ctx.Done():
		return worker.Exit{}, ctx.Err()
	}
}

func (r *fakeRuntime) Stop(_ context.Context, id, _ string, _ time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.get(id)
	if err != nil {
		return err
	}
	if c.exit == nil {
		c.exit = &worker.Exit{Code: 143, At: time.Now()}
		close(c.ended)
	}
	return nil
}

func (r *fakeRuntime) Remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
	return nil
}

func (r *fakeRuntime) List(context.Context) ([]worker.Observed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []worker.Observed
	for _, c := range r.containers {
		all = append(all, worker.Observed{ID: c.ID, Labels: c.Labels, Running: c.pid != 0 && c.exit == nil, PID: c.pid, Exit: c.exit})
	}
	return all, nil
}

// runs counts the containers that run.
func (r *fakeRuntime) runs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.containers {
		if c.pid != 0 && c.exit == nil {
			n++
		}
	}
	return n
}

// killAll ends every container, as a power cut does.
func (r *fakeRuntime) killAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.exit == nil {
			c.exit = &worker.Exit{Code: 137, At: time.Now()}
			close(c.ended)
		}
	}
}
