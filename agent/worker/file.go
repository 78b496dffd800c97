package worker

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// fileFormat is the format that this version writes, and the newest that it reads.
const fileFormat = 1

// lockTimeout is how long an earlier agent may take to let go of the file.
const lockTimeout = 5 * time.Second

// record is what a worker must not forget about a task.
type record struct {
	ServiceID   string
	SpecVersion uint64
	Slot        uint64
	Desired     swarm.TaskState
	Status      status
	Digest      string `json:",omitempty"` // of the image; empty until it is here
	// Stopping is set before the container is stopped, so that its end is not taken for its own.
	Stopping bool `json:",omitempty"`
}

// file is the bbolt file of assigned tasks, specs and image holders. Each value is a checksum and JSON.
type file struct {
	path string
	db   *bolt.DB
}

// saved is what was in the file.
type saved struct {
	tasks   map[string]record
	specs   map[specKey]*swarm.ServiceSpec
	holders map[string][]string
}

func buckets() (meta, tasks, specs []byte) { return []byte("meta"), []byte("tasks"), []byte("specs") }

// openFile never guesses: a file that it does not wholly understand is refused.
func openFile(path string, noSync bool) (f *file, s saved, err error) {
	// bbolt panics, or faults within its memory map, when pages are not what they should be.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var handle *os.File
	defer func() {
		if p := recover(); p != nil {
			// Closing alone would keep the lock as long as the file is mapped.
			_ = unix.Flock(int(handle.Fd()), unix.LOCK_UN)
			handle.Close()
			f, s, err = nil, saved{}, damaged(path, fmt.Errorf("%v", p))
		}
	}()
	// The list of free pages is kept in the file: to find them anew, bbolt walks the pages in a goroutine
	// whose panic over a damaged one could not be caught.
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoSync:  noSync,
		Timeout: lockTimeout, FreelistType: bolt.FreelistMapType,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			handle, err = os.OpenFile(path, flag, mode)
			return handle, err
		},
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, saved{}, fmt.Errorf("%s is in use: another agent runs with this data directory: %w", path, errdefs.ErrConflict)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, saved{}, damaged(path, err)
	case err != nil:
		return nil, saved{}, fmt.Errorf("open %s: %w", path, err)
	}
	f = &file{path: path, db: db}
	if s, err = f.load(); err != nil {
		return nil, saved{}, errors.Join(err, db.Close())
	}
	return f, s, nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged (%w); stop what runs here, move the file away and start again: the managers assign the tasks anew: %w", path, err, errdefs.ErrDataLoss)
}

// check reads every page, so that damage is found now and not in the middle of work.
func (f *file) check() error {
	return f.db.View(func(tx *bolt.Tx) error {
		info, err := os.Stat(f.path)
		if err != nil {
			return err
		}
		if info.Size() < tx.Size() {
			return damaged(f.path, fmt.Errorf("it has %d bytes of %d", info.Size(), tx.Size()))
		}
		var found error
		for err := range tx.Check() {
			if found == nil {
				found = damaged(f.path, err)
			}
		}
		return found
	})
}

func (f *file) load() (saved, error) {
	if err := f.check(); err != nil {
		return saved{}, err
	}
	s := saved{tasks: map[string]record{}, specs: map[specKey]*swarm.ServiceSpec{}, holders: map[string][]string{}}
	err := f.db.Update(func(tx *bolt.Tx) error {
		metaName, tasksName, specsName := buckets()
		meta, err := tx.CreateBucketIfNotExists(metaName)
		if err != nil {
			return err
		}
		if err := f.checkFormat(meta); err != nil {
			return err
		}
		if v := meta.Get([]byte("holders")); v != nil {
			if err := f.decode("holders", v, &s.holders); err != nil {
				return err
			}
		}
		tasks, err := tx.CreateBucketIfNotExists(tasksName)
		if err != nil {
			return err
		}
		if err := tasks.ForEach(func(k, v []byte) error {
			var r record
			err := f.decode("task "+string(k), v, &r)
			s.tasks[string(k)] = r
			return err
		}); err != nil {
			return err
		}
		specs, err := tx.CreateBucketIfNotExists(specsName)
		if err != nil {
			return err
		}
		return specs.ForEach(func(k, v []byte) error { return f.loadSpec(s.specs, k, v) })
	})
	return s, err
}

func (f *file) loadSpec(specs map[specKey]*swarm.ServiceSpec, k, v []byte) error {
	service, number, _ := strings.Cut(string(k), "/")
	version, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return damaged(f.path, fmt.Errorf("spec %q: %w", k, err))
	}
	spec := new(swarm.ServiceSpec)
	specs[specKey{service, version}] = spec
	return f.decode("spec "+string(k), v, spec)
}

func (f *file) checkFormat(meta *bolt.Bucket) error {
	v := meta.Get([]byte("format"))
	if v == nil {
		return meta.Put([]byte("format"), encode([]byte(strconv.Itoa(fileFormat))))
	}
	var format int
	if err := f.decode("format", v, &format); err != nil {
		return err
	}
	if format > fileFormat {
		return fmt.Errorf("%s was written by a newer version (format %d, this program reads up to %d); start that version again: %w", f.path, format, fileFormat, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// encode puts a checksum before a value: bbolt itself would not notice a flipped bit.
func encode(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body)), body...)
}

func (f *file) decode(what string, v []byte, into any) error {
	if len(v) < 4 || crc32.ChecksumIEEE(v[4:]) != binary.BigEndian.Uint32(v) {
		return damaged(f.path, fmt.Errorf("%s: checksum does not fit", what))
	}
	if err := json.Unmarshal(v[4:], into); err != nil {
		return damaged(f.path, fmt.Errorf("%s: %w", what, err))
	}
	return nil
}

// changes are written in one transaction. A nil value deletes.
type changes struct {
	tasks   map[string]*record
	specs   map[specKey][]byte
	holders map[string][]string // nil: unchanged
}

func (f *file) write(c changes) error {
	return f.db.Update(func(tx *bolt.Tx) error {
		metaName, tasksName, specsName := buckets()
		for id, r := range c.tasks {
			if err := putJSON(tx.Bucket(tasksName), id, r, r == nil); err != nil {
				return err
			}
		}
		for key, text := range c.specs {
			if err := put(tx.Bucket(specsName), key.serviceID+"/"+strconv.FormatUint(key.version, 10), text); err != nil {
				return err
			}
		}
		if c.holders == nil {
			return nil
		}
		return putJSON(tx.Bucket(metaName), "holders", c.holders, false)
	})
}

func putJSON(b *bolt.Bucket, key string, v any, remove bool) error {
	if remove {
		return put(b, key, nil)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return put(b, key, body)
}

func put(b *bolt.Bucket, key string, body []byte) error {
	if body == nil {
		return b.Delete([]byte(key))
	}
	return b.Put([]byte(key), encode(body))
}

func (f *file) close() error { return f.db.Close() }
