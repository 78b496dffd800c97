// Package scenarios tells stories about clusters of the real program and checks that they come true.
// Its tests run the stories under stories/ (make scenarios); the demo and the benchmark drive the same World.
package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"swarm/scenarios/lab"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

const (
	askMax = 5 * time.Second // one look at a node, which may hang
	// NodePort is the port on which the lab's nodes talk to each other.
	NodePort = "2377"
)

// World is a lab seen with an operator's eyes: command lines and API requests to its nodes.
type World struct {
	Lab *lab.Lab
	// Docker is the real docker command line.
	Docker string

	mu      sync.Mutex
	clients map[string]*client.Client
	frozen  map[string]bool
	struck  map[string]time.Time // when fate did something to a node last
	ids     map[string]string    // of nodes, by name
}

// NewWorld looks at a lab. Programs of the project are expected in one folder.
func NewWorld(l *lab.Lab, docker string) *World {
	return &World{Lab: l, Docker: docker, clients: map[string]*client.Client{}, frozen: map[string]bool{}, struck: map[string]time.Time{}, ids: map[string]string{}}
}

// Client speaks to one node's API.
func (w *World) Client(n *lab.Node) *client.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.clients[n.Name]; c != nil {
		return c
	}
	c, err := client.New(client.WithHost("unix://" + n.Socket()))
	if err != nil {
		panic(err) // a socket's path is always a good host
	}
	w.clients[n.Name] = c
	return c
}

// Find the node of that name; "leader" is whoever leads now, "follower" the first reachable manager that does not.
func (w *World) Find(ctx context.Context, name string) (*lab.Node, error) {
	switch name {
	case "leader":
		return w.Manager(ctx, true)
	case "follower":
		return w.Manager(ctx, false)
	}
	if n := w.Lab.Node(name); n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("no node is called %q", name)
}

// Awake are the nodes whose agents run and are not frozen.
func (w *World) Awake() []*lab.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.Lab.Nodes()), func(n *lab.Node) bool { return !n.Running() || w.frozen[n.Name] })
}

// Freeze remembers that a node's agent hangs, so that nothing waits for it.
func (w *World) setFrozen(n *lab.Node, frozen bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen[n.Name] = frozen
}

func (w *World) setStruck(n *lab.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.struck[n.Name] = time.Now()
}

func (w *World) struckAt(n *lab.Node) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.struck[n.Name]
}

// Info is what a node says about itself.
func (w *World) Info(ctx context.Context, n *lab.Node) (system.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	got, err := w.Client(n).Info(ctx, client.InfoOptions{})
	return got.Info, err
}

// Managers are the awake nodes that answer for the cluster.
func (w *World) Managers(ctx context.Context) []*lab.Node {
	return slices.DeleteFunc(w.Awake(), func(n *lab.Node) bool {
		info, err := w.Info(ctx, n)
		return err != nil || !info.Swarm.ControlAvailable
	})
}

// Seat is where an operator's commands go: the first manager that answers, or the first node while there is no cluster.
func (w *World) Seat(ctx context.Context) (*lab.Node, error) {
	awake := w.Awake()
	for _, n := range awake {
		if info, err := w.Info(ctx, n); err == nil && info.Swarm.ControlAvailable {
			return n, nil
		}
	}
	if len(awake) == 0 {
		return nil, errors.New("no agent runs")
	}
	return awake[0], nil
}

// Manager of the cluster that leads, or the first reachable one that does not, as the seat sees it.
func (w *World) Manager(ctx context.Context, leads bool) (*lab.Node, error) {
	nodes, err := w.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if m := n.ManagerStatus; m != nil && m.Leader == leads && m.Reachability == swarm.ReachabilityReachable {
			return w.Find(ctx, n.Description.Hostname)
		}
	}
	return nil, fmt.Errorf("no reachable manager whose leading is %v", leads)
}

// Nodes of the cluster, as the seat sees them.
func (w *World) Nodes(ctx context.Context) ([]swarm.Node, error) {
	seat, err := w.Seat(ctx)
	if err != nil {
		return nil, err
	}
	got, err := w.Client(seat).NodeList(ctx, client.NodeListOptions{})
	return got.Items, err
}

// Services of the cluster, as the seat sees them.
func (w *World) Services(ctx context.Context) ([]swarm.Service, error) {
	seat, err := w.Seat(ctx)
	if err != nil {
		return nil, err
	}
	got, err := w.Client(seat).ServiceList(ctx, client.ServiceListOptions{})
	return got.Items, err
}

// Tasks of a service, or of all with an empty name, as the seat sees them.
func (w *World) Tasks(ctx context.Context, service string) ([]swarm.Task, error) {
	seat, err := w.Seat(ctx)
	if err != nil {
		return nil, err
	}
	options := client.TaskListOptions{}
	if service != "" {
		options.Filters = client.Filters{}.Add("service", service)
	}
	got, err := w.Client(seat).TaskList(ctx, options)
	return got.Items, err
}

// Running tasks of a service: those that run and shall.
func (w *World) Running(ctx context.Context, service string) ([]swarm.Task, error) {
	tasks, err := w.Tasks(ctx, service)
	return slices.DeleteFunc(tasks, func(t swarm.Task) bool { return !runs(t) }), err
}

func runs(t swarm.Task) bool {
	return t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning
}

// Spread is how many tasks of a service run on each node of the lab, in the lab's order.
func (w *World) Spread(ctx context.Context, service string) ([]int, error) {
	tasks, err := w.Running(ctx, service)
	if err != nil {
		return nil, err
	}
	nodes, err := w.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range nodes {
		names[n.ID] = n.Description.Hostname
	}
	counts := make([]int, len(w.Lab.Nodes()))
	for _, t := range tasks {
		for i, n := range w.Lab.Nodes() {
			if names[t.NodeID] == n.Name {
				counts[i]++
			}
		}
	}
	return counts, nil
}

// Containers that run on a node, by the id of their task.
func (w *World) Containers(ctx context.Context, n *lab.Node) (map[string]container.Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	got, err := w.Client(n).ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, err
	}
	byTask := map[string]container.Summary{}
	for _, c := range got.Items {
		byTask[c.Labels["com.docker.swarm.task.id"]] = c
	}
	return byTask, nil
}

// Swarm runs our command line against a node and returns what it printed.
func (w *World) Swarm(ctx context.Context, n *lab.Node, stdin io.Reader, args ...string) (string, error) {
	return w.command(ctx, n, stdin, w.Lab.Program(), args)
}

// RunDocker runs docker's own command line against a node and returns what it printed.
func (w *World) RunDocker(ctx context.Context, n *lab.Node, stdin io.Reader, args ...string) (string, error) {
	return w.command(ctx, n, stdin, w.Docker, args)
}

func (w *World) command(ctx context.Context, n *lab.Node, stdin io.Reader, program string, args []string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, append([]string{"--host", "unix://" + n.Socket()}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	// Nothing of the machine's own docker settings may matter.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.Dir, "DOCKER_CLI_HINTS=false"}
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("did not end in time: %w", ctx.Err())
	}
	return out.String(), err
}

// AddMachine plugs in a node and starts its agent; it is in no cluster yet.
func (w *World) AddMachine(ctx context.Context, name string, flags ...string) (*lab.Node, error) {
	n, err := w.Lab.Add(name, flags...)
	if err != nil {
		return nil, err
	}
	return n, n.Start(ctx)
}

// Token for joining as worker or manager.
func (w *World) Token(ctx context.Context, role string) (string, error) {
	seat, err := w.Seat(ctx)
	if err != nil {
		return "", err
	}
	out, err := w.Swarm(ctx, seat, nil, "join-token", "--quiet", role)
	if err != nil {
		return "", fmt.Errorf("join-token %s: %w\n%s", role, err, out)
	}
	return strings.TrimSpace(out), nil
}

// Join a machine to the seat's cluster.
func (w *World) Join(ctx context.Context, n *lab.Node, role string) error {
	token, err := w.Token(ctx, role)
	if err != nil {
		return err
	}
	seat, err := w.Seat(ctx)
	if err != nil {
		return err
	}
	if out, err := w.Swarm(ctx, n, nil, "join", "--token", token, seat.Address+":"+NodePort); err != nil {
		return fmt.Errorf("join %s as %s: %w\n%s", n.Name, role, err, out)
	}
	return nil
}

// Cluster adds machines n1, n2, … and makes one cluster of them: managers first, then workers.
func (w *World) Cluster(ctx context.Context, managers, workers int) error {
	first := len(w.Lab.Nodes())
	for i := range managers + workers {
		if _, err := w.Lab.Add("n" + strconv.Itoa(first+i+1)); err != nil {
			return err
		}
	}
	nodes := w.Lab.Nodes()[first:]
	if err := each(nodes, func(n *lab.Node) error { return n.Start(ctx) }); err != nil {
		return err
	}
	if out, err := w.Swarm(ctx, nodes[0], nil, "init"); err != nil {
		return fmt.Errorf("init on %s: %w\n%s", nodes[0].Name, err, out)
	}
	for _, n := range nodes[1:managers] {
		if err := w.Join(ctx, n, "manager"); err != nil {
			return err
		}
	}
	return each(nodes[managers:], func(n *lab.Node) error { return w.Join(ctx, n, "worker") })
}

// RestartAll kills every agent at once and starts them all again; containers live on.
func (w *World) RestartAll(ctx context.Context) error {
	nodes := w.Awake()
	if err := each(nodes, (*lab.Node).Kill); err != nil {
		return err
	}
	return each(nodes, func(n *lab.Node) error { return n.Start(ctx) })
}

func each(nodes []*lab.Node, do func(*lab.Node) error) error {
	var group errgroup.Group
	for _, n := range nodes {
		group.Go(func() error { return do(n) })
	}
	return group.Wait()
}

// Fetch asks a node's address over HTTP from outside the cluster. Target is NODE:PORT[/PATH].
func (w *World) Fetch(ctx context.Context, target string) (string, error) {
	name, rest, _ := strings.Cut(target, ":")
	n, err := w.Find(ctx, name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Address+":"+rest, nil)
	if err != nil {
		return "", err
	}
	outside := &http.Client{Transport: &http.Transport{DialContext: w.Lab.Dial, DisableKeepAlives: true}}
	response, err := outside.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}
