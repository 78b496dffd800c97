package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// The keeper is small and mostly asleep; memory is worth more than speed.
	keeperProcsMax    = 2
	keeperGCPercent   = 50
	keeperMemoryBytes = 64 << 20
	// requestTimeout bounds how long a client may take over one message.
	requestTimeout = 10 * time.Second
)

// keeper is the process's state.
type keeper struct {
	cfg     Config
	log     *slog.Logger
	sockets sockets
	lent    chunks
	stop    context.CancelFunc

	mu   sync.Mutex // guards logs; held while one opens or ends, so that a container has one reader
	logs map[string]*containerLog
}

// Run is the keeper process. It returns when ctx ends or a client asks for it; what the containers
// write stays in their FIFOs for the next keeper.
func Run(ctx context.Context, cfg Config) error {
	defer tune()()
	if err := os.MkdirAll(filepath.Join(cfg.RunDir, "c"), 0o700); err != nil {
		return fmt.Errorf("run keeper: %w", err)
	}
	pidFile, err := lockPID(cfg.pidPath())
	if err != nil {
		return fmt.Errorf("run keeper: %w", err)
	}
	defer pidFile.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &keeper{cfg: cfg, log: cfg.log(), stop: cancel, logs: map[string]*containerLog{}}
	k.resumeLogs()
	defer k.pauseLogs()
	defer k.sockets.closeAll()
	// The lock is ours, so a socket file that is there belongs to a dead keeper.
	if err := os.Remove(cfg.socketPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("run keeper: %w", err)
	}
	listener, err := listen(request{Network: "unix", Address: cfg.socketPath()})
	if err != nil {
		return fmt.Errorf("run keeper: %w", err)
	}
	k.log.Info("keeper runs", "pid", os.Getpid(), "logs", len(k.logs))
	return k.serve(ctx, listener.(*net.UnixListener))
}

func tune() (restore func()) {
	procs := runtime.GOMAXPROCS(min(runtime.NumCPU(), keeperProcsMax))
	percent := debug.SetGCPercent(keeperGCPercent)
	limit := debug.SetMemoryLimit(keeperMemoryBytes)
	// What the packages of the program allocated when it started is garbage here.
	debug.FreeOSMemory()
	return func() {
		runtime.GOMAXPROCS(procs)
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}
}

// lockPID writes the pid file and locks it for the life of the process, so that there is one keeper per RunDir.
func lockPID(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscallNoFollow, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(file); err != nil {
		text, _ := os.ReadFile(path)
		file.Close()
		return nil, fmt.Errorf("another keeper (pid %s) runs: %s is locked: %w", strings.TrimSpace(string(text)), path, errdefs.ErrConflict)
	}
	if err := errors.Join(file.Truncate(0), writePID(file)); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// flock tries for a moment: somebody may just be looking whether the file is locked.
func flock(file *os.File) (err error) {
	for range 20 {
		if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		time.Sleep(startPoll)
	}
	return err
}

func writePID(file *os.File) error {
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func (k *keeper) serve(ctx context.Context, listener *net.UnixListener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(connectionsMax + 2)
	g.Go(func() error {
		<-ctx.Done()
		return listener.Close()
	})
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return g.Wait()
		}
		if err != nil {
			// Out of descriptors, most likely: better to serve late than to end.
			k.log.Warn("connection is not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		g.Go(func() error {
			k.converse(ctx, conn)
			return nil
		})
	}
}

// converse answers the requests of one client.
func (k *keeper) converse(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := checkPeer(conn); err != nil {
		k.log.Warn("client is refused", "error", err)
		return
	}
	for {
		var r request
		file, err := readFrame(conn, &r)
		if err != nil {
			var version errVersion
			if errors.As(err, &version) {
				_ = writeFrame(conn, refuse(err), -1)
			}
			return
		}
		_ = conn.SetDeadline(time.Now().Add(requestTimeout))
		err = k.answer(conn, r, file)
		if file != nil {
			file.Close()
		}
		if err != nil {
			k.log.Warn("client is gone before its answer", "op", r.Op, "error", err)
			return
		}
		if r.Op == opShutdown {
			k.stop()
			return
		}
		// A client may keep a connection to see whether the keeper lives.
		_ = conn.SetDeadline(time.Time{})
	}
}

// checkPeer lets only root and the keeper's own user in.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not speak to the keeper: %w", cred.Uid, errdefs.ErrPermissionDenied)
	}
	return nil
}

func (k *keeper) answer(conn *net.UnixConn, r request, file *os.File) error {
	if r.Op == opListen {
		return k.answerListen(conn, r)
	}
	res, err := k.do(r, file)
	if err != nil {
		res = refuse(err)
	}
	return writeFrame(conn, res, -1)
}

// answerListen sends the socket while its descriptor is pinned.
func (k *keeper) answerListen(conn *net.UnixConn, r request) error {
	held, err := k.sockets.listen(r)
	if err != nil {
		return writeFrame(conn, refuse(err), -1)
	}
	var sent error
	if err := held.raw.Control(func(fd uintptr) { sent = writeFrame(conn, accept(), int(fd)) }); err != nil {
		return writeFrame(conn, refuse(err), -1)
	}
	return sent
}

func (k *keeper) do(r request, file *os.File) (response, error) {
	res := accept()
	var err error
	switch r.Op {
	case opHello, opShutdown:
	case opOpenLog:
		res.Stdout, res.Stderr, err = k.openLog(r.ID, r.Options)
	case opCloseLog:
		err = k.closeLog(r.ID)
	case opRemoveLog:
		err = k.removeLog(r.ID)
	case opHold:
		err = k.sockets.hold(r, file)
	case opRelease:
		err = k.sockets.release(r)
	default:
		err = fmt.Errorf("the keeper does not know %q; it may be older than this program: %w", r.Op, errdefs.ErrNotImplemented)
	}
	return res, err
}

func accept() response { return response{Version: protocolVersion, PID: os.Getpid()} }

func refuse(err error) response {
	r := accept()
	r.Error, r.Kind = err.Error(), kindOf(err)
	return r
}

// resumeLogs opens what an earlier keeper had open. One log that cannot be opened is no reason to let the others wait.
func (k *keeper) resumeLogs() {
	entries, err := os.ReadDir(filepath.Join(k.cfg.RunDir, "c"))
	if err != nil {
		k.log.Error("open logs cannot be listed", "error", err)
		return
	}
	for _, e := range entries {
		if checkID(e.Name()) != nil {
			continue
		}
		options, err := loadOptions(k.cfg.openDir(e.Name()))
		if err != nil {
			k.log.Error("options of a log are lost; it is kept without rotation", "error", err)
		}
		if _, _, err := k.openLog(e.Name(), options); err != nil {
			k.log.Error("log is not resumed", "container", e.Name(), "error", err)
		}
	}
}

func (k *keeper) pauseLogs() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.logs {
		l.pause()
	}
}

func (k *keeper) openLog(id string, o LogOptions) (stdout, stderr string, err error) {
	if err := checkID(id); err != nil {
		return "", "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.logs[id]
	if !ok {
		if len(k.logs) >= logsMax {
			return "", "", fmt.Errorf("open log of %s: the keeper reads %d logs already: %w", id, logsMax, errdefs.ErrResourceExhausted)
		}
		if l, err = openContainerLog(k.cfg, id, o, &k.lent); err != nil {
			return "", "", err
		}
		k.logs[id] = l
	}
	stdout, stderr = l.fifoPaths()
	return stdout, stderr, nil
}

func (k *keeper) closeLog(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.logs[id]
	if !ok {
		return nil
	}
	delete(k.logs, id)
	return l.finish(k.cfg.LogDir)
}

func (k *keeper) removeLog(id string) error {
	if err := k.closeLog(id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(k.cfg.LogDir, id))
}
