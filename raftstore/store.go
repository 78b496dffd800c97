// Package raftstore keeps the cluster's state: replicated by raft, sealed on disk, read as immutable snapshots.
// api, service and service/dispatcher change the cluster only through its Update.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"
)

// Sealer encrypts what reaches the disk. Implemented by secrets.
type Sealer interface {
	// Seal returns plain encrypted and authenticated together with context, which Open must be given again.
	Seal(plain, context []byte) ([]byte, error)
	Open(sealed, context []byte) ([]byte, error)
}

// Peers reaches another manager. Implemented by agent on rpc.
type Peers interface {
	// Propose has the manager at address commit encoded commits: its ProposeLocal answers.
	Propose(ctx context.Context, address string, commits [][]byte) ([]Answer, error)
	// ReadIndex asks the leader at address for the index of a linearizable read.
	ReadIndex(ctx context.Context, address string) (uint64, error)
}

// Config is what a store needs. Fields that say so have a default.
type Config struct {
	NodeID string
	// Address is the host:port at which other managers dial this node.
	Address string
	// Dir holds the sealed log and snapshots; with a Disk it only names them.
	Dir string
	// Disk is for simulations: it takes the place of the files below Dir.
	Disk   *MemoryDisk
	Sealer Sealer
	Peers  Peers
	// Listener accepts raft streams, already authenticated; Dial opens one. The store closes Listener when it ends.
	Listener net.Listener
	Dial     func(ctx context.Context, address string) (net.Conn, error)
	// Bootstrap makes a new cluster of one in an empty Dir. With a cluster in Dir it does nothing; without it, a store
	// with an empty Dir waits until a leader contacts it.
	Bootstrap bool
	// Log is silent by default.
	Log *slog.Logger

	// HeartbeatTimeout (500 ms) without contact makes a follower a candidate, ElectionTimeout (500 ms) bounds one vote,
	// LeaderLease (250 ms) is how long a leader without a majority stays one. Slow machines take 1 s, 1 s, 500 ms.
	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration
	LeaderLease      time.Duration
	// SnapshotEntries (2,048) is after how many log entries a snapshot is taken, if they are not small against the last one;
	// SnapshotBytes (64 MiB) after how much of the log, if that is not less than the last one. TrailingEntries (10,000) is
	// how many entries before it are kept for followers that are a little behind: no disk here syncs more than a thousand a
	// second, so they last for the ten seconds of a restart. Less are kept where they would be more to send than the snapshot.
	SnapshotEntries uint64
	SnapshotBytes   int64
	TrailingEntries uint64
	// SnapshotInterval (2 s) is how often it is checked whether a snapshot is due.
	SnapshotInterval time.Duration
	// CheckRows is for tests: it panics when a row that was read from the store was changed by its reader.
	CheckRows bool

	// reads (FormatVersion) is the newest format that the store says it reads; less makes tests of upgrades possible.
	reads uint32
	// noSync makes tests fast where nothing depends on what a crash leaves.
	noSync bool
}

const (
	commitTimeout = 50 * time.Millisecond
	// appendEntriesMax is how many entries one message between managers carries.
	appendEntriesMax = 64
	// logCacheEntries is how many recent entries are kept in memory for followers.
	logCacheEntries = 128
	// shutdownWait bounds how long Run waits for raft to end.
	shutdownWait = 5 * time.Second
	// leadershipQueue holds raft's news about won and lost leadership until they are looked at.
	leadershipQueue = 16
)

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("component", "raftstore")
	setDefault(&c.HeartbeatTimeout, 500*time.Millisecond)
	setDefault(&c.ElectionTimeout, 500*time.Millisecond)
	setDefault(&c.LeaderLease, 250*time.Millisecond)
	setDefault(&c.SnapshotEntries, 2048)
	setDefault(&c.TrailingEntries, 10_000)
	setDefault(&c.SnapshotBytes, 64<<20)
	setDefault(&c.SnapshotInterval, 2*time.Second)
	setDefault(&c.reads, FormatVersion)
	return c
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func (c Config) raft(notify chan bool) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.NodeID)
	conf.HeartbeatTimeout = c.HeartbeatTimeout
	conf.ElectionTimeout = c.ElectionTimeout
	conf.LeaderLeaseTimeout = c.LeaderLease
	conf.CommitTimeout = commitTimeout
	conf.MaxAppendEntries = appendEntriesMax
	conf.TrailingLogs = c.TrailingEntries
	// followLog decides when to take a snapshot: raft counts entries and knows nothing of their size.
	conf.SnapshotThreshold = math.MaxUint64
	// A removed manager is told by its agent to stop; until then it stays a quiet replica.
	conf.ShutdownOnRemove = false
	conf.NotifyCh = notify
	conf.Logger = raftLogger(c.Log)
	return conf
}

// transportTimeout bounds one message to another manager.
func (c Config) transportTimeout() time.Duration { return max(2*time.Second, 4*c.HeartbeatTimeout) }

// Store is one manager's replica.
type Store struct {
	cfg       Config
	log       *slog.Logger
	disk      *disk
	fsm       *fsm
	lineage   *lineage
	raft      *raft.Raft
	transport *heard
	addresses *addresses
	running   atomic.Bool

	verify coalescer // of ReadIndexLocal
	view   coalescer // of View

	// failed is closed, after failure was set, when the replica cannot go on; closing when it ends for any reason.
	failOnce  sync.Once
	failure   error
	failed    chan struct{}
	closeOnce sync.Once
	closing   chan struct{}
	// background waits for the store's own goroutines.
	background sync.WaitGroup
	futures    *futures
	counters   counters
	committer  *committer
	// committing ends when no answer about a commit can come any more.
	committing    context.Context
	endCommitting context.CancelFunc

	mu sync.Mutex // guards:
	// lead is the leadership that is ready for use, nil without one; leadChanged is closed and replaced when it changes.
	lead        *leadership
	leadChanged chan struct{}
	// leaderless is since when no leader is known; zero while one is.
	leaderless time.Time
	// leaderSeen leads as far as raft has told; leaderMoved is closed when that changes.
	leaderSeen  string
	leaderMoved chan struct{}
	// reach is who could be reached when that was last looked at; nil while there is a leader.
	reach *reach
}

// Open reads the log and snapshots of cfg.Dir and takes part in raft until Run ends.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	s := &Store{
		cfg: cfg, log: cfg.Log, failed: make(chan struct{}), closing: make(chan struct{}), futures: newFutures(),
		leadChanged: make(chan struct{}), leaderMoved: make(chan struct{}), leaderless: time.Now(),
	}
	s.committer = newCommitter()
	s.committing, s.endCommitting = context.WithCancel(context.Background())
	s.fsm = newFSM(s.fail)
	s.fsm.sums, s.fsm.onApplied = newRowSums(cfg.CheckRows), s.entryApplied
	var err error
	if s.disk, err = openDisk(cfg, &sealedLog{broken: s.fail, applied: func() uint64 { return s.Local().index }}, s.closing); err != nil {
		return nil, err
	}
	s.disk.snapshots.opened = s.fsm.settled.note
	if err := s.join(); err != nil {
		return nil, errors.Join(err, s.disk.close())
	}
	return s, nil
}

// join starts raft on what is on disk.
func (s *Store) join() error {
	notify := make(chan bool, leadershipQueue)
	conf := s.cfg.raft(notify)
	var err error
	if s.lineage, err = s.readLineage(); err != nil {
		return err
	}
	joined := make(chan struct{}) // closed once s.raft may be read by what raft itself has started
	s.addresses = &addresses{
		self: conf.LocalID, own: raft.ServerAddress(s.cfg.Address), moved: map[raft.ServerID]raft.ServerAddress{}, reads: map[raft.ServerAddress]uint32{},
		configured: func() []raft.Server {
			select {
			case <-joined:
				return s.servers()
			default:
				return nil
			}
		},
	}
	s.transport = &heard{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:                  &streams{Listener: s.cfg.Listener, address: s.cfg.Address, dial: s.cfg.Dial, lineage: s.lineage, addresses: s.addresses, open: map[*stream]struct{}{}},
			ServerAddressProvider:   s.addresses,
			MaxPool:                 connectionsPerPeerMax,
			MaxRPCsInFlight:         requestsInFlightMax,
			Timeout:                 s.cfg.transportTimeout(),
			Logger:                  conf.Logger,
			MsgpackUseNewTimeFormat: true,
		}),
		follows: func(id raft.ServerID, address raft.ServerAddress, term uint64) bool {
			<-joined
			return s.follows(id, address, term)
		}, closing: s.closing,
		peers: map[raft.ServerID]progress{}, awaited: map[raft.ServerID]chan struct{}{}, pipelines: map[*pipeline]struct{}{},
	}
	if err := s.bootstrap(conf); err != nil {
		return errors.Join(err, s.transport.Close())
	}
	err = guarded(s.disk.log.path, func() (err error) {
		s.raft, err = raft.NewRaft(conf, s.fsm, s.disk.cache, s.disk.stable, s.disk.snapshots, s.transport)
		return err
	})
	s.disk.log.live.Store(true)
	if err != nil {
		return errors.Join(fmt.Errorf("start raft on %s: %w", s.cfg.Dir, err), s.transport.Close())
	}
	close(joined)
	observations := make(chan raft.Observation, leadershipQueue)
	s.raft.RegisterObserver(raft.NewObserver(observations, false, func(o *raft.Observation) bool {
		switch data := o.Data.(type) {
		case raft.LeaderObservation:
			return true
		case raft.RequestVoteRequest:
			s.addresses.claimed(raft.ServerID(data.ID), raft.ServerAddress(data.Addr))
		case raft.RequestPreVoteRequest:
			s.addresses.claimed(raft.ServerID(data.ID), raft.ServerAddress(data.Addr))
		}
		return false
	}))
	s.background.Go(func() { s.followLeadership(notify) })
	s.background.Go(func() { s.followLeader(observations) })
	s.background.Go(s.followReach)
	s.background.Go(s.followContact)
	s.background.Go(s.followLog)
	s.background.Go(s.followHeartbeat)
	for range entriesInFlightMax {
		s.background.Go(s.commitWaiting)
	}
	select {
	case <-s.failed:
		s.shutdown()
		return s.failure
	default:
		return nil
	}
}

// readLineage tells which recovery of the cluster the disk belongs to.
func (s *Store) readLineage() (*lineage, error) {
	id, err := readLineage(s.disk.stable)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's lineage: %w", err)
	}
	exists, err := s.disk.hasCluster()
	if err != nil {
		return nil, err
	}
	return &lineage{
		stable: s.disk.stable, reads: s.cfg.reads, needs: func() uint32 { return s.Local().written() }, outdated: s.fail,
		id: id, fresh: !exists && !s.cfg.Bootstrap,
	}, nil
}

func (s *Store) bootstrap(conf *raft.Config) error {
	if !s.cfg.Bootstrap {
		return nil
	}
	if exists, err := s.disk.hasCluster(); err != nil || exists {
		return err
	}
	one := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(s.cfg.Address)}}}
	if err := raft.BootstrapCluster(conf, s.disk.log, s.disk.stable, s.disk.snapshots, s.transport, one); err != nil {
		return fmt.Errorf("make a new cluster in %s: %w", s.cfg.Dir, err)
	}
	return nil
}

// fail stops the replica for good.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.failure = err
		close(s.failed)
	})
}

// Run keeps the replica alive until ctx ends, then shuts raft down; a leader hands over first, so that a planned stop costs
// no election. A corrupted log ends it with an error that names the file.
func (s *Store) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return errors.New("raftstore: Run called twice")
	}
	select {
	case <-ctx.Done():
		if err := s.handOver(); err != nil {
			s.log.Warn("leadership not handed over before the stop", "error", err)
		}
	case <-s.failed:
	}
	s.noteContact()
	if s.shutdown() {
		if err := s.disk.close(); err != nil {
			return fmt.Errorf("close %s: %w", s.cfg.Dir, err)
		}
	}
	select {
	case <-s.failed:
		return s.failure
	default:
		return nil
	}
}

// handOver gives leadership away if this node has it. raft bounds it by an election timeout.
func (s *Store) handOver() error {
	if lead, _ := s.leadership(); lead == nil {
		return nil
	}
	return s.TransferLeadership()
}

// shutdown ends raft and the store's goroutines; false when raft hangs.
func (s *Store) shutdown() bool {
	s.closeOnce.Do(func() { close(s.closing) })
	s.committer.close()
	s.futures.close(shutdownWait)
	s.endCommitting()
	done := make(chan struct{})
	future := s.raft.Shutdown()
	go func() {
		defer close(done)
		_ = future.Error()
	}()
	err := s.transport.Close()
	if err != nil {
		s.log.Warn("raft transport not closed", "error", err)
	}
	s.background.Wait()
	select {
	case <-done:
		return true
	case <-time.After(shutdownWait):
		s.log.Warn("raft did not end in time", "wait", shutdownWait)
		return false
	}
}

func (s *Store) stopping() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// errStopped is what calls answer while or after Run ends.
func errStopped() error { return fmt.Errorf("this manager is stopping: %w", errdefs.ErrUnavailable) }
