package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"swarm/agent/images"
	"swarm/agent/worker"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"
)

// bench is a real private containerd with one image, in a directory that is gone afterwards.
type bench struct {
	*testing.T
	cfg     Config
	runtime *Runtime
	images  *images.Images
	logs    *pipeLogs
	digest  string
	next    int
	end     context.CancelFunc
	running sync.WaitGroup
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("SWARM_ROOT_TESTS") == "" {
		t.Skip("needs root, runc and bin/containerd: set SWARM_ROOT_TESTS=1")
	}
}

func newBench(t *testing.T) *bench {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "swctd")
	check(t, err)
	logs := &pipeLogs{dir: filepath.Join(dir, "logs"), text: make(map[string]*bytes.Buffer)}
	check(t, os.Mkdir(logs.dir, 0o700))
	b := &bench{T: t, logs: logs, cfg: Config{
		BinDir: filepath.Join("..", "..", "bin"), DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		CgroupParent: "/swarm-test-" + filepath.Base(dir), Logs: logs, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	t.Cleanup(func() { b.cleanUp(dir) })
	b.open()
	b.images = images.New(images.Config{Client: b.runtime.Client(), Log: b.cfg.Log})
	archive := testArchive(t)
	check(t, b.images.Load(t.Context(), bytes.NewReader(archive), func(string) {}))
	b.digest, err = b.images.Ensure(t.Context(), "tester", nil, "")
	check(t, err)
	return b
}

// open is an agent that starts; close is one that ends. containerd lives on in between.
func (b *bench) open() {
	var err error
	b.runtime, err = Open(b.Context(), b.cfg)
	check(b.T, err)
	ctx, end := context.WithCancel(context.Background())
	b.end = end
	b.running.Go(func() { b.runtime.Run(ctx) })
}

func (b *bench) close() {
	b.end()
	b.running.Wait()
	b.runtime.Client().Close()
}

// cleanUp removes everything, also after a failure, and reports what the runtime itself left.
func (b *bench) cleanUp(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if b.runtime != nil {
		all, err := b.runtime.List(ctx)
		if err != nil {
			b.Error(err)
		}
		for _, o := range all {
			b.runtime.Stop(ctx, o.ID, "KILL", 0)
			if err := b.runtime.Remove(ctx, o.ID); err != nil {
				b.Error(err)
			}
		}
		b.end()
		b.running.Wait()
		if err := b.runtime.Shutdown(ctx); err != nil {
			b.Error(err)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if strings.Contains(string(mounts), dir+"/") {
		b.Errorf("mounts are left below %s:\n%s", dir, mounts)
	}
	hierarchies, _ := cgroupHierarchies()
	for _, h := range hierarchies {
		if _, err := os.Stat(filepath.Join(h, b.cfg.CgroupParent)); err == nil {
			b.Errorf("cgroup %s is left in %s", b.cfg.CgroupParent, h)
		}
	}
	if out, _ := exec.Command("pgrep", "-f", dir+"/").Output(); len(out) > 0 {
		b.Errorf("processes are left: %s", out)
	}
	b.logs.closeAll()
	if b.Failed() {
		scrub(dir, b.cfg.CgroupParent)
	}
	os.RemoveAll(dir)
}

// scrub takes away what a failed test left: processes, mounts, cgroups.
func scrub(dir, cgroup string) {
	hierarchies, _ := cgroupHierarchies()
	for _, h := range hierarchies {
		filepath.WalkDir(filepath.Join(h, cgroup), func(path string, _ os.DirEntry, err error) error {
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, pid := range strings.Fields(string(text)) {
				var n int
				fmt.Sscan(pid, &n)
				unix.Kill(n, unix.SIGKILL)
			}
			return nil
		})
	}
	pause(context.Background(), time.Second)
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[1], dir+"/") {
			unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
	removeCgroups(cgroup)
}

// container is a container with an id of its own; options change it.
func (b *bench) container(options ...func(*worker.Container)) worker.Container {
	b.next++
	c := worker.Container{
		ID: fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, b.cfg.RunDir, b.next))), Name: "web.1",
		ImageRef: "tester", ImageDigest: b.digest, Network: "none", Spec: &swarm.ContainerSpec{},
		Labels: map[string]string{"com.docker.swarm.task": ""},
	}
	for _, o := range options {
		o(&c)
	}
	return c
}

func args(a ...string) func(*worker.Container) {
	return func(c *worker.Container) { c.Spec.Args = a }
}

func having(change func(*swarm.ContainerSpec)) func(*worker.Container) {
	return func(c *worker.Container) { change(c.Spec) }
}

func (b *bench) start(c worker.Container) int {
	b.Helper()
	check(b.T, b.runtime.Create(b.Context(), c))
	pid, err := b.runtime.Start(b.Context(), c.ID)
	check(b.T, err)
	return pid
}

func (b *bench) wait(id string) worker.Exit {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	exit, err := b.runtime.Wait(ctx, id)
	check(b.T, err)
	return exit
}

// run is a container from create to removal; it returns its output.
func (b *bench) run(options ...func(*worker.Container)) (string, worker.Exit) {
	b.Helper()
	c := b.container(options...)
	b.start(c)
	exit := b.wait(c.ID)
	check(b.T, b.runtime.Remove(b.Context(), c.ID))
	return b.logs.read(c.ID), exit
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

// pipeLogs keeps containers' output in memory.
type pipeLogs struct {
	dir   string
	mu    sync.Mutex
	text  map[string]*bytes.Buffer
	pipes []*os.File
	done  sync.WaitGroup
}

func (p *pipeLogs) OpenLog(_ context.Context, id, _ string, _ map[string]string) (string, string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out, errs := filepath.Join(p.dir, id[:12]+"-out"), filepath.Join(p.dir, id[:12]+"-err")
	if p.text[id] != nil {
		return out, errs, nil
	}
	p.text[id] = &bytes.Buffer{}
	for _, path := range []string{out, errs} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return "", "", err
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return "", "", err
		}
		p.pipes = append(p.pipes, f)
		p.done.Go(func() { p.copy(id, f) })
	}
	return out, errs, nil
}

func (p *pipeLogs) copy(id string, f *os.File) {
	buffer := make([]byte, 4096)
	for {
		n, err := f.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.text[id].Write(buffer[:n])
		p.mu.Unlock()
	}
}

func (p *pipeLogs) CloseLog(_ context.Context, id string) error {
	for _, suffix := range []string{"-out", "-err"} {
		if err := os.Remove(filepath.Join(p.dir, id[:12]+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *pipeLogs) read(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text[id].String()
}

func (p *pipeLogs) closeAll() {
	for _, f := range p.pipes {
		f.Close()
	}
	p.done.Wait()
}

// await polls until a container has written text.
func (b *bench) await(id, text string) {
	b.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(b.logs.read(id), text) {
		if time.Now().After(deadline) {
			b.Fatalf("no %q in the log: %q", text, b.logs.read(id))
		}
		pause(b.Context(), 5*time.Millisecond)
	}
}

// testArchive is a docker-save archive of an image with the tester program.
func testArchive(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "tester")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/tester")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binary, err := os.ReadFile(program)
	check(t, err)
	layer := tarOf(t,
		entry{"bin/tester", string(binary), 0o755}, entry{"data/", "", 0o750}, entry{"data/seed", "from the image\n", 0o640},
		entry{"etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n", 0o644},
		entry{"etc/group", "root:x:0:\nwheel:x:10:root\nweb:x:1001:\naudio:x:29:web\nextra:x:77:\n", 0o644},
		entry{"tmp/", "", 0o1777}, entry{"plain", "no program", 0o644})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/bin/tester"}, "Env": []string{"FROM=image", "BOTH=image"}, "WorkingDir": "/work", "StopSignal": "SIGUSR1"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	check(t, err)
	return tarOf(t, entry{"config.json", string(config), 0o644}, entry{"layer.tar", string(layer), 0o644},
		entry{"manifest.json", `[{"Config":"config.json","RepoTags":["tester:latest"],"Layers":["layer.tar"]}]`, 0o644})
}

type entry struct {
	name, text string
	mode       int64
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.text)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		check(t, w.WriteHeader(h))
		_, err := io.WriteString(w, e.text)
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

func TestContainerRunsAndLeavesNothing(t *testing.T) {
	b := newBench(t)
	out, exit := b.run(args("echo", "hello", "world"))
	if !strings.Contains("\n"+out, "\nhello world\n") || !strings.Contains(out, "err hello world\n") {
		t.Errorf("output: %q", out)
	}
	equal(t, "exit", fmt.Sprint(exit.Code, exit.OOMKilled), "0 false")
	_, exit = b.run(args("exit", "3"))
	equal(t, "exit", fmt.Sprint(exit.Code), "3")
}

func TestContainerIsWhatItsSpecSays(t *testing.T) {
	b := newBench(t)
	out, _ := b.run(args("who"))
	equal(t, "root", out[:strings.LastIndex(out, " ")], "0 0 [0 10] /work")
	out, _ = b.run(args("who"), having(func(s *swarm.ContainerSpec) { s.User, s.Groups, s.Dir = "web", []string{"extra"}, "/tmp" }),
		func(c *worker.Container) { c.Hostname = "web-1" })
	equal(t, "user", out, "1000 1001 [29 77 1001] /tmp web-1\n")
	out, _ = b.run(args("env", "FROM", "BOTH", "SPEC", "HOSTNAME"), having(func(s *swarm.ContainerSpec) { s.Env = []string{"BOTH=spec", "SPEC=spec"} }),
		func(c *worker.Container) { c.Hostname = "h" })
	equal(t, "environment", out, "FROM=image\nBOTH=spec\nSPEC=spec\nHOSTNAME=h\n")
	out, _ = b.run(args("cat", "/etc/hostname"), func(c *worker.Container) { c.Hostname = "h" })
	equal(t, "hostname", out, "h\n")
	out, _ = b.run(args("links"))
	equal(t, "links", out, "lo up|loopback|running\n")
	out, _ = b.run(args("links"), func(c *worker.Container) { c.Network = "host" })
	all, err := net.Interfaces()
	check(t, err)
	equal(t, "links on the host's network", fmt.Sprint(strings.Count(out, "\n")), fmt.Sprint(len(all)))
	out, exit := b.run(args("write", "/plain", "x"), having(func(s *swarm.ContainerSpec) { s.ReadOnly = true }))
	equal(t, "read-only root", out+fmt.Sprint(exit.Code), "open /plain: read-only file system\n1")
	out, _ = b.run(args("cat", "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), func(c *worker.Container) {
		c.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{Pids: 33, NanoCPUs: 500_000_000}}
	})
	if !cgroupUnified() {
		equal(t, "limits", out, "33\n50000\n")
	}
	out, _ = b.run(args("echo", "tty"), having(func(s *swarm.ContainerSpec) { s.TTY = true }))
	equal(t, "terminal", out, "tty\r\nerr tty\r\n")
}

func TestVolumesBindsAndTmpfs(t *testing.T) {
	b := newBench(t)
	with := func(m ...mount.Mount) func(*worker.Container) {
		return having(func(s *swarm.ContainerSpec) { s.Mounts = m })
	}
	volume := mount.Mount{Type: mount.TypeVolume, Source: "data", Target: "/data"}
	out, _ := b.run(args("cat", "/data/seed"), with(volume))
	equal(t, "a new volume has the image's content", out, "from the image\n")
	b.run(args("write", "/data/seed", "kept\n"), with(volume))
	out, _ = b.run(args("cat", "/data/seed"), with(volume))
	equal(t, "a volume keeps what was written", out, "kept\n")
	host := t.TempDir()
	check(t, os.WriteFile(filepath.Join(host, "f"), []byte("host\n"), 0o644))
	bind := mount.Mount{Type: mount.TypeBind, Source: host, Target: "/host", ReadOnly: true}
	out, _ = b.run(args("cat", "/host/f"), with(bind))
	equal(t, "bind", out, "host\n")
	out, _ = b.run(args("write", "/host/f", "x"), with(bind))
	equal(t, "read-only bind", out, "open /host/f: read-only file system\n")
	out, _ = b.run(args("write", "/t/f", "x"), with(mount.Mount{Type: mount.TypeTmpfs, Target: "/t"}), having(func(s *swarm.ContainerSpec) { s.ReadOnly = true }))
	equal(t, "tmpfs", out, "")
	err := b.runtime.Create(t.Context(), b.container(with(mount.Mount{Type: mount.TypeBind, Source: "/no/where", Target: "/x"})))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "bind source path does not exist: /no/where") {
		t.Errorf("missing bind source: %v", err)
	}
}

func TestMissingCommandHasItsText(t *testing.T) {
	b := newBench(t)
	for command, want := range map[string]string{
		"nope":   `exec: "nope": executable file not found in $PATH`,
		"/nope":  `exec: "/nope": stat /nope: no such file or directory`,
		"/plain": `exec: "/plain": permission denied`,
	} {
		c := b.container(having(func(s *swarm.ContainerSpec) { s.Command = []string{command} }))
		check(t, b.runtime.Create(t.Context(), c))
		_, err := b.runtime.Start(t.Context(), c.ID)
		if err == nil || err.Error() != want || errdefs.IsNotFound(err) == errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v, want %s", command, err, want)
		}
		check(t, b.runtime.Remove(t.Context(), c.ID))
	}
}

func TestRefusalsOfTheRuntimeAreReadable(t *testing.T) {
	b := newBench(t)
	for want, change := range map[string]func(*worker.Container){
		"sysctl": func(c *worker.Container) {
			c.Network, c.Spec.Sysctls = "host", map[string]string{"net.core.somaxconn": "99"}
		},
		"not a directory": func(c *worker.Container) {
			c.Spec.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/etc/hosts", Target: "/data"}}
		},
		"working directory": having(func(s *swarm.ContainerSpec) { s.Dir = "/plain" }),
	} {
		c := b.container(change)
		check(t, b.runtime.Create(t.Context(), c))
		_, err := b.runtime.Start(t.Context(), c.ID)
		if !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "runc create failed") {
			t.Errorf("%s: %v", want, err)
		}
		check(t, b.runtime.Remove(t.Context(), c.ID))
	}
}

func TestOutOfMemoryIsTold(t *testing.T) {
	b := newBench(t)
	_, exit := b.run(args("fill"), func(c *worker.Container) {
		c.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 20 << 20}}
	})
	equal(t, "exit", fmt.Sprint(exit.Code, exit.OOMKilled), "137 true")
}
