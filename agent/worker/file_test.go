package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

func TestDamagedFileIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		for n := range 200 {
			l.assign(false, [3]string{fmt.Sprintf("t%d", n), "missing", "running"})
		}
		time.Sleep(time.Minute)
		l.kill()
		path := filepath.Join(l.dir, "tasks.db")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range map[string]func([]byte) []byte{
			"cut":     func(b []byte) []byte { return b[:len(b)/2] },
			"empty":   func(b []byte) []byte { return make([]byte, len(b)) },
			"garbage": func(b []byte) []byte { return []byte(strings.Repeat("garbage ", 5000)) },
			"flipped": func(b []byte) []byte {
				return []byte(strings.ReplaceAll(string(b), "No such image", "Mo such image"))
			},
			"pages": func(b []byte) []byte {
				for i := 3 * 4096; i < len(b); i += 64 {
					b[i] ^= 0xff
				}
				return b
			},
		} {
			if err := os.WriteFile(path, damage(append([]byte(nil), whole...)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Config{Dir: l.dir, Runtime: l.runtime, Images: l.images})
			if err == nil || !strings.Contains(err.Error(), path+" is damaged") || !errdefs.IsDataLoss(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestProgressUpToTheStartIsWrittenWithIt(t *testing.T) {
	inBubble(t, func(t *testing.T, l *lab) {
		l.runtime.createTakes = time.Minute // long enough for every write that is asked for
		synctest.Wait()
		writes := -l.writes()
		l.assign(false, [3]string{"t1", "sleep", "running"})
		time.Sleep(time.Hour)
		l.last()
		l.want("t1 running started")
		if writes += l.writes(); writes > 3 {
			t.Errorf("%d writes; want at most those of the assignment, of STARTING and of RUNNING", writes)
		}
	})
}

// writes is how often the worker wrote its file.
func (l *lab) writes() (n int) {
	if err := l.worker.file.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestNewerFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tasks.db")
	f, _, err := openFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("format"), encode([]byte("2"))) }); err != nil {
		t.Fatal(err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Dir: dir})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path+" was written by a newer version") {
		t.Errorf("got %v", err)
	}
}
