package raftstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	logFile    = "raft.db"
	formatFile = "format"
	// contactFile holds a note about the last contact with a leader.
	contactFile = "contact"
	// raftTermKey is where raft keeps its term.
	raftTermKey = "CurrentTerm"
	// diskFormat is the newest layout of the directory that this version reads and the one that it writes.
	diskFormat = 1
	// lockWait is how long to wait for another process to let go of the log.
	lockWait = time.Second
)

// bottom is what a replica's state lies on, below the seals: files in a directory, or a MemoryDisk.
type bottom struct {
	log       raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	// where names the whole in errors, logPath and snapshotDir its parts.
	where       string
	logPath     string
	snapshotDir string
	// newest is the id of the newest snapshot, readable or not; empty without one.
	newest func() (string, error)
	// readContact and writeContact keep the note about the last contact with a leader.
	readContact  func() ([]byte, error)
	writeContact func([]byte) error
	// flushSnapshot starts writing what a snapshot under way has so far; nil where there is nothing to write.
	flushSnapshot func(id string) error
	close         func() error
}

// disk is a replica's state on disk: the log, raft's term and vote, snapshots.
type disk struct {
	*bottom
	log       *sealedLog
	cache     raft.LogStore
	stable    raft.StableStore
	snapshots *sealedSnapshots
}

// openDisk checks all of the state on disk that raft is going to rely on, because raft itself panics over a damaged entry
// and silently falls back to an older snapshot. It completes log, which knows how to stop the replica.
func openDisk(cfg Config, log *sealedLog, closing <-chan struct{}) (*disk, error) {
	var below *bottom
	var err error
	if cfg.Disk != nil {
		below, err = openMemory(cfg.Disk, cfg.NodeID)
	} else {
		below, err = openFiles(cfg)
	}
	if err != nil {
		return nil, err
	}
	d := &disk{bottom: below}
	if err := d.assemble(cfg, log, closing); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// openFiles opens the state in the directory cfg.Dir.
func openFiles(cfg Config) (*bottom, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := checkFormat(cfg.Dir, cfg.NodeID); err != nil {
		return nil, err
	}
	path := filepath.Join(cfg.Dir, logFile)
	if err := guarded(path, func() error { return walkBolt(path) }); err != nil {
		return nil, err
	}
	bolt, err := openBolt(path, cfg.noSync)
	if err != nil {
		return nil, err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, raftLogger(cfg.Log))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots in %s: %w", cfg.Dir, err), bolt.Close())
	}
	snapshots, contact := filepath.Join(cfg.Dir, "snapshots"), filepath.Join(cfg.Dir, contactFile)
	return &bottom{
		log: bolt, stable: bolt, snapshots: files, where: cfg.Dir, logPath: path, snapshotDir: snapshots,
		newest: func() (string, error) { return newestSnapshot(snapshots) },
		readContact: func() ([]byte, error) {
			content, err := os.ReadFile(contact)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			return content, err
		},
		writeContact:  func(content []byte) error { return replaceFile(contact, content) },
		flushSnapshot: func(id string) error { return flushFile(filepath.Join(snapshots, id+".tmp", "state.bin")) },
		close:         bolt.Close,
	}, nil
}

func (d *disk) assemble(cfg Config, log *sealedLog, closing <-chan struct{}) error {
	log.LogStore, log.path, log.sealer = d.bottom.log, d.logPath, cfg.Sealer
	d.log = log
	d.stable = patientStable{StableStore: d.bottom.stable, live: &log.live, closing: closing, report: func(err error) {
		if err != nil {
			cfg.Log.Error("raft's vote cannot be written; this manager waits", "file", d.logPath, "error", err)
			err = fmt.Errorf("write its vote to the cluster log %s: %w", d.logPath, err)
		}
		log.setVoteFault(err)
	}}
	var err error
	if d.cache, err = raft.NewLogCache(logCacheEntries, d.log); err != nil {
		return err
	}
	d.snapshots = &sealedSnapshots{SnapshotStore: d.bottom.snapshots, sealer: cfg.Sealer, dir: d.snapshotDir, flush: d.flushSnapshot, logged: d.log.sizeBytes.Load, closing: closing}
	covered, err := d.checkSnapshots()
	if err != nil {
		return err
	}
	return guarded(d.logPath, func() error { return errors.Join(d.checkLog(covered), d.dropCovered(covered)) })
}

// dropCovered removes a log that ends before what the newest snapshot covers, as when a crash came between the snapshot
// that a leader sent and the removal of what it replaces. What follows would leave a hole.
func (d *disk) dropCovered(covered uint64) error {
	last, err := d.log.LastIndex()
	if err != nil || last == 0 || last >= covered {
		return err
	}
	return d.log.DeleteRange(0, last)
}

// walkBolt visits every page of the log before it is opened for writing: that opening reads them too, but in a goroutine
// of bbolt's, where nothing can stop a damaged page from ending the process.
func walkBolt(path string) error {
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // bbolt is about to make it
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return explainBolt(path, err)
	}
	var sum byte
	walk := func(_ []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(_, value []byte) error {
			for _, c := range value {
				sum ^= c
			}
			return nil
		})
	}
	err = db.View(func(tx *bbolt.Tx) error { return tx.ForEach(walk) })
	return errors.Join(err, db.Close())
}

func openBolt(path string, noSync bool) (*raftboltdb.BoltStore, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path:                    path,
		BoltOptions:             &bbolt.Options{Timeout: lockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		NoSync:                  noSync,
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, explainBolt(path, err)
	}
	return bolt, nil
}

func explainBolt(path string, err error) error {
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return fmt.Errorf("the cluster log %s is in use by another process: stop the other swarm agent, or choose another --data-dir", path)
	case errors.Is(err, fs.ErrPermission), errors.As(err, new(syscall.Errno)):
		return fmt.Errorf("open the cluster log %s: %w", path, err)
	}
	return fmt.Errorf("the cluster log %s is damaged: %w. Nothing was changed. %s", path, err, rejoinAdvice)
}

// guarded turns the panics and memory faults with which bbolt meets damaged pages into an error that names the file.
func guarded(path string, open func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("the cluster log %s is damaged: %v. Nothing was changed. %s", path, fault, rejoinAdvice)
		}
	}()
	return open()
}

// checkFormat reads or writes the file that says what the directory is.
func checkFormat(dir, nodeID string) error {
	path := filepath.Join(dir, formatFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, logFile)); err == nil {
			return fmt.Errorf("%s has a cluster log but no file %q. Nothing was changed. %s", dir, formatFile, rejoinAdvice)
		}
		return replaceFile(path, fmt.Appendf(nil, "swarm state %d\nnode %s\n", diskFormat, nodeID))
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	var format int
	var owner string
	if n, err := fmt.Sscanf(string(content), "swarm state %d\nnode %s\n", &format, &owner); n < 1 {
		return fmt.Errorf("%s is damaged (%w). Nothing was changed. %s", path, err, rejoinAdvice)
	}
	if format > diskFormat {
		return fmt.Errorf("the state directory %s has format %d, this version of swarm reads up to %d: upgrade swarm on this node", dir, format, diskFormat)
	}
	if owner != nodeID {
		return fmt.Errorf("the state directory %s belongs to node %q, not to this node %q: choose another --data-dir, or delete it", dir, owner, nodeID)
	}
	return nil
}

// replaceFile writes a file so that after a crash it has the old content or the new one.
func replaceFile(path string, content []byte) error {
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// flushFile has the kernel write what a file has in memory, and waits for it. Otherwise a large file is written when it is
// closed, and on most file systems the next sync of the log waits for all of it.
func flushFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	err = unix.SyncFileRange(int(file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	return errors.Join(err, file.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// newestSnapshot finds the newest snapshot of a directory; raft's own list leaves out what it cannot read.
func newestSnapshot(dir string) (newest string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("list snapshots: %w", err)
	}
	var newestTerm, newestIndex, newestTime uint64
	for _, e := range entries {
		var term, index, at uint64
		// A name that ends in .tmp is a snapshot that was never finished.
		if n, _ := fmt.Sscanf(e.Name(), "%d-%d-%d", &term, &index, &at); n != 3 || strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		if newest == "" || later([3]uint64{term, index, at}, [3]uint64{newestTerm, newestIndex, newestTime}) {
			newest, newestTerm, newestIndex, newestTime = e.Name(), term, index, at
		}
	}
	return newest, nil
}

// checkSnapshots reads the newest snapshot in full and returns the index that it covers, 0 without one.
func (d *disk) checkSnapshots() (covered uint64, err error) {
	newest, err := d.newest()
	if err != nil || newest == "" {
		return 0, err
	}
	meta, plain, err := d.snapshots.Open(newest)
	if err != nil {
		return 0, err
	}
	d.snapshots.note(SnapshotStats{Index: meta.Index, SizeBytes: meta.Size, Time: time.Now()}, 0)
	return meta.Index, plain.Close()
}

func later(a, b [3]uint64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] > b[i]
		}
	}
	return false
}

// checkLog reads every entry after what the newest snapshot covers, and before it as far as they are kept.
func (d *disk) checkLog(covered uint64) error {
	first, err := d.log.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the cluster log %s: %w", d.log.path, err)
	}
	last, err := d.log.LastIndex()
	if err != nil {
		return fmt.Errorf("read the cluster log %s: %w", d.log.path, err)
	}
	if first > covered+1 {
		return fmt.Errorf("the cluster log %s begins at entry %d, but the newest snapshot in %s ends at %d: entries or a snapshot are missing. Nothing was changed. %s",
			d.log.path, first, d.snapshots.dir, covered, rejoinAdvice)
	}
	for index := first; first > 0 && index <= last; index++ {
		var entry raft.Log
		if err := d.log.read(index, &entry); err != nil {
			if errors.Is(err, raft.ErrLogNotFound) {
				if index <= covered {
					continue // a snapshot came from another manager, and this one ended before it could remove what it replaced
				}
				err = d.log.damaged(index, err)
			}
			return err
		}
		if index > covered {
			d.log.sizeBytes.Add(int64(len(entry.Data)))
		}
	}
	return nil
}

// hasCluster says whether there is a cluster to go on with. Where making one was interrupted after raft had written its first
// term and before its first entry, it clears that term, so that it can be made after all.
func (d *disk) hasCluster() (bool, error) {
	exists, err := raft.HasExistingState(d.log, d.stable, d.snapshots)
	if err != nil || !exists {
		return false, err
	}
	last, err := d.log.LastIndex()
	if err != nil || last > 0 {
		return true, err
	}
	snapshots, err := d.snapshots.List()
	if err != nil || len(snapshots) > 0 {
		return true, err
	}
	return false, d.stable.SetUint64([]byte(raftTermKey), 0)
}
