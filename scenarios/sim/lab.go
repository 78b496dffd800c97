package sim

import (
	"errors"
	"fmt"
	"os"
	"testing/synctest"
	"time"
)

const (
	// snapshotInterval is how often a replica looks whether a snapshot is due.
	snapshotInterval = 5 * time.Second
	// ghostMax is how long the goroutines of an agent that was killed may go on.
	ghostMax = 2 * time.Minute
)

// Lab is machines and cables in one bubble.
type Lab struct {
	Network  *Network
	machines []*Machine
	byName   map[string]*Machine
	checks   *checks
	ghosts   []*life // every agent ever started
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
	if l.byName[name] != nil {
		return nil, fmt.Errorf("there is a machine %s already", name)
	}
	m, err := newMachine(l, len(l.machines), name)
	if err != nil {
		return nil, err
	}
	l.machines = append(l.machines, m)
	l.byName[name] = m
	return m, nil
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
		m.operator.Kill()
		m.client.CloseIdleConnections()
	}
	l.checks.close()
	// What still runs then is left behind for good: the bubble's end would panic over it.
	time.Sleep(ghostMax)
	synctest.Wait()
	return errors.Join(failures...)
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
