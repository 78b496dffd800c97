package sim

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing/synctest"
	"time"
)

const (
	// snapshotInterval is how often a replica looks whether a snapshot is due.
	snapshotInterval = 5 * time.Second
	// ghostMax is how long the goroutines of an agent that was killed may go on.
	ghostMax = 2 * time.Minute
)

// largeMin machines make a cluster large: some checks are made less often there, as their cost grows with nodes times changes.
const (
	largeMin         = 12
	digestEveryLarge = 16
)

func (l *Lab) large() bool { return len(l.machines) >= largeMin }

// Lab is machines and cables in one bubble.
type Lab struct {
	Network  *Network
	machines []*Machine
	mu       sync.Mutex // guards byName, which clients look at, too
	byName   map[string]*Machine
	checks   *checks
	ghosts   []*life // every agent ever started
	given    int     // addresses so far
	began    time.Time
	dir      string
	seed     uint64
	// timing is raft's heartbeat and election timeout.
	timing          time.Duration
	snapshotEntries uint64
}

// LabConfig is what a lab is made of.
type LabConfig struct {
	Seed uint64
	// Dir gets the few real files of the machines; it is the caller's to remove.
	Dir             string
	Latency, Jitter time.Duration
	// SnapshotEntries is after how many entries replicas take snapshots.
	SnapshotEntries uint64
}

// NewLab needs a bubble. Close must be called in it.
func NewLab(cfg LabConfig) *Lab {
	return &Lab{
		Network: NewNetwork(cfg.Seed, cfg.Latency, cfg.Jitter), byName: map[string]*Machine{}, checks: newChecks(), began: time.Now(),
		dir: cfg.Dir, seed: cfg.Seed, timing: 500 * time.Millisecond, snapshotEntries: cfg.SnapshotEntries,
	}
}

// Add plugs in a machine; its agent does not run yet.
func (l *Lab) Add(name string) (*Machine, error) {
	if l.named(name) != nil {
		return nil, fmt.Errorf("there is a machine %s already", name)
	}
	m, err := newMachine(l, len(l.machines), name)
	if err != nil {
		return nil, err
	}
	l.machines = append(l.machines, m)
	l.mu.Lock()
	l.byName[name] = m
	l.mu.Unlock()
	if l.large() {
		l.checks.digestEvery = digestEveryLarge
	}
	return m, nil
}

// named is the machine of that name, nil if there is none.
func (l *Lab) named(name string) *Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byName[name]
}

// newAddress is one that no machine ever had.
func (l *Lab) newAddress() netip.Addr {
	const perNet = 250
	number := l.given
	l.given++
	return netip.AddrFrom4([4]byte{10, 0, byte(number / perNet), byte(number%perNet + 1)})
}

// Close ends everything and says what would not end.
func (l *Lab) Close() error {
	l.Network.Heal()
	var failures []error
	for _, m := range l.machines {
		if m.agent != nil {
			m.Thaw()
			m.agent.stop()
		}
	}
	late := time.NewTimer(ghostMax)
	defer late.Stop()
	for _, g := range l.ghosts {
		select {
		case <-g.done:
		case <-late.C:
			failures = append(failures, errors.New("an agent that was told to end goes on"))
			late.Reset(0)
		}
	}
	for _, m := range l.machines {
		m.runtime.PowerOff()
		m.operator.Load().Kill()
		m.client.CloseIdleConnections()
	}
	l.checks.close()
	time.Sleep(ghostMax)
	synctest.Wait()
	if left := leftovers(); len(left) > 0 {
		failures = append(failures, fmt.Errorf("%d goroutines were left behind, the first one:\n%s", len(left), left[0]))
	}
	return errors.Join(failures...)
}

// leftovers are the stacks of the other goroutines of this bubble, without the two that testing waits in.
func leftovers() []string {
	const stacksBytesMax = 32 << 20
	stacks := make([]byte, stacksBytesMax)
	stacks = stacks[:runtime.Stack(stacks, true)]
	all := strings.Split(string(stacks), "\n\n")
	_, bubble, ok := strings.Cut(strings.SplitN(all[0], "\n", 2)[0], "synctest bubble ")
	if !ok {
		return nil
	}
	var left []string
	for _, g := range all[1:] {
		head, _, _ := strings.Cut(g, "\n")
		if strings.HasSuffix(head, "synctest bubble "+bubble) && !strings.Contains(g, "testing/synctest.") {
			left = append(left, g)
		}
	}
	return left
}

// Elapsed is the virtual time since the lab was made.
func (l *Lab) Elapsed() time.Duration { return time.Since(l.began) }

// scratch is a directory in memory where there is one.
func scratch() (string, error) {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		return os.MkdirTemp(memory, "swarm-sim-")
	}
	return os.MkdirTemp("", "swarm-sim-")
}
