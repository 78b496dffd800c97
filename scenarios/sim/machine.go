package sim

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing/synctest"
	"time"

	"swarm/agent"
	"swarm/raftstore"

	"github.com/moby/moby/api/types/swarm"
)

const (
	nodePort   = "2377"
	gossipPort = 7946
	// stopMax is how long an agent may take to end in order.
	stopMax = 30 * time.Second
)

// Machine is a host with what survives on it: files, containers, images; and at most one agent that runs.
type Machine struct {
	Name    string
	lab     *Lab
	host    *Host
	runtime *Runtime
	images  *Images
	disk    *raftstore.MemoryDisk
	diary   *diary
	// operator is whoever sits at the machine; it is no part of the agent.
	operator atomic.Pointer[Process]
	client   *http.Client

	// The fields below belong to the one goroutine that tells the story.

	dir   string // the data directory as it is now
	lives int    // agents so far
	agent *life  // nil: none runs
}

// life is one run of an agent.
type life struct {
	process *Process
	// stop ends it in order; kill makes it a ghost, whose goroutines end without touching anything of the machine.
	stop, kill context.CancelFunc
	done       chan struct{}
	err        error
	frozen     bool
}

func newMachine(l *Lab, number int, name string) (*Machine, error) {
	m := &Machine{
		Name: name, lab: l, host: l.Network.AddHost(l.newAddress()),
		runtime: NewRuntime(l.seed + uint64(number)), images: NewImages(), disk: raftstore.NewMemoryDisk(),
		dir: filepath.Join(l.dir, name, "0"),
	}
	m.diary = newDiary(func(term uint64) { l.checks.elected(term, name) })
	m.operator.Store(m.host.NewProcess())
	m.client = &http.Client{Transport: &http.Transport{DialContext: m.dialAPI, DisableKeepAlives: true}}
	return m, os.MkdirAll(m.dir, 0o700)
}

// Address is where other nodes reach this one.
func (m *Machine) Address() string { return m.host.address.String() + ":" + nodePort }

// Runs says whether an agent runs, frozen or not.
func (m *Machine) Runs() bool { return m.agent != nil }

// Awake says whether an agent runs and is not frozen.
func (m *Machine) Awake() bool { return m.agent != nil && !m.agent.frozen }

// On says whether the machine has power.
func (m *Machine) On() bool { return m.host.on }

// Start starts an agent on what the last one left.
func (m *Machine) Start() {
	if m.agent != nil {
		return
	}
	if !m.host.on {
		m.host.PowerOn()
	}
	m.lives++
	ctx, stop := context.WithCancel(context.Background())
	alive, kill := context.WithCancel(context.Background())
	a := &life{process: m.host.NewProcess(), stop: stop, kill: kill, done: make(chan struct{})}
	m.agent = a
	m.diary.note("agent starts")
	go func() {
		defer close(a.done)
		a.err = agent.RunOn(ctx, m.config(), m.edges(a, alive))
		if ctx.Err() == nil && alive.Err() == nil {
			m.lab.checks.wrong("the agent on %s ended by itself: %v", m.Name, a.err)
		}
	}()
	m.lab.ghosts = append(m.lab.ghosts, a)
}

func (m *Machine) config() agent.Config {
	return agent.Config{
		DataDir: m.dir, RunDir: "/run/swarm", ListenAddr: "0.0.0.0:" + nodePort, AdvertiseAddr: m.Address(),
		GossipPort: gossipPort, Hostname: m.Name, Version: "sim",
	}
}

func (m *Machine) edges(a *life, alive context.Context) agent.Edges {
	runtime := runtimeOf{m.runtime, alive}
	return agent.Edges{
		Network: a.process,
		Sockets: Keeper{a.process},
		Runtime: runtime,
		OpenImages: func(peers http.RoundTripper) agent.Images {
			return imagesOf{m.images, alive, peers}
		},
		Containers: containersOf{runtime},
		RemoveLog:  func(context.Context, string) error { return alive.Err() },
		Store: raftstore.Config{
			Disk: m.disk, HeartbeatTimeout: m.lab.timing, ElectionTimeout: m.lab.timing, LeaderLease: m.lab.timing / 2,
			SnapshotEntries: m.lab.snapshotEntries, TrailingEntries: m.lab.snapshotEntries, SnapshotInterval: snapshotInterval,
			CheckRows: !m.lab.large(),
		},
		Replica:     func(s *raftstore.Store) func() { return m.lab.checks.replica(m.Name, s, alive) },
		NoSync:      true,
		Description: m.description(),
		Log:         slog.New(handler{diary: m.diary}),
	}
}

func (m *Machine) description() swarm.NodeDescription {
	return swarm.NodeDescription{
		Hostname: m.Name,
		Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
		Engine:   swarm.EngineDescription{EngineVersion: "sim", Labels: map[string]string{}},
		Resources: swarm.Resources{
			NanoCPUs: 4e9, MemoryBytes: 8 << 30,
		},
	}
}

// Kill is SIGKILL to the agent: the kernel closes its connections, the keeper holds its sockets, containers run on, and
// what it had written stays.
func (m *Machine) Kill() error { return m.kill(false) }

// PowerOff takes the machine away: no packet says so, containers end, and a write under way may be half there.
func (m *Machine) PowerOff(torn bool) error {
	synctest.Wait()
	if m.agent != nil {
		m.agent.kill()
	}
	m.host.PowerOff()
	err := m.kill(torn)
	m.runtime.PowerOff()
	return err
}

// Move gives the machine another address, at which a new agent starts; at the former one nobody answers. Containers run on.
func (m *Machine) Move() error {
	synctest.Wait()
	if m.agent != nil {
		m.agent.kill()
	}
	m.host.PowerOff()
	err := m.kill(false)
	m.operator.Load().Kill()
	m.host = m.lab.Network.AddHost(m.lab.newAddress())
	m.operator.Store(m.host.NewProcess())
	m.diary.note("machine moved to " + m.Address())
	m.Start()
	return err
}

// kill makes the agent a ghost. In a bubble that has come to rest no write to a file is under way, so the copy is what a
// new agent would find.
func (m *Machine) kill(torn bool) error {
	a := m.agent
	if a == nil {
		return nil
	}
	synctest.Wait()
	m.diary.note("agent killed")
	m.agent = nil
	next := filepath.Join(m.lab.dir, m.Name, strconv.Itoa(m.lives))
	err := copyTree(m.dir, next)
	m.dir = next
	m.disk.Crash(torn)
	m.lab.checks.gone(m.Name)
	a.kill()
	a.process.Kill()
	a.stop()
	if err != nil {
		return fmt.Errorf("copy the data directory of %s: %w", m.Name, err)
	}
	return nil
}

// Stop is SIGTERM: the agent ends in order, containers run on.
func (m *Machine) Stop() error {
	a := m.agent
	if a == nil {
		return nil
	}
	m.Thaw()
	m.diary.note("agent asked to stop")
	a.stop()
	select {
	case <-a.done:
	case <-time.After(stopMax):
		err := fmt.Errorf("the agent on %s did not stop within %s", m.Name, stopMax)
		m.lab.checks.wrong("%v", err)
		return m.kill(false)
	}
	m.agent = nil
	a.process.Kill()
	m.disk.Crash(false)
	return nil
}

// Freeze is SIGSTOP as others see it.
func (m *Machine) Freeze() {
	if m.agent != nil {
		m.agent.frozen = true
		m.agent.process.Freeze()
	}
}

// Thaw is SIGCONT.
func (m *Machine) Thaw() {
	if m.agent != nil && m.agent.frozen {
		m.agent.frozen = false
		m.agent.process.Thaw()
	}
}

// serves waits until the agent answers on its API socket, or gives up.
func (m *Machine) serves(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopMax)
	defer cancel()
	for {
		_, err := m.info(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the agent on %s does not serve its API: %w", m.Name, err)
		}
	}
}

// copyTree copies directories and files, which are the agent's alone.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o600)
	})
}
