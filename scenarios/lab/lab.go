// Package lab makes a small data centre out of one Linux machine: nodes are network namespaces that run the real program,
// joined by a switch whose links can be cut. scenarios runs its stories in it, and the demo and the benchmark live in it.
//
// All of a lab bears its name: namespaces lab-NAME-NODE, control groups /swarm-lab/NAME/NODE, files /tmp/swarmlab/NAME/NODE.
// So what a killed run leaves behind is found by name alone, and the machine's own network is never touched.
package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root holds every lab's files. It and all names are short because containerd takes at most 38 bytes for the folder of its
// shims' sockets: /tmp/swarmlab/LAB/NODE/r/containerd/s.
const Root = "/tmp/swarmlab"

// ErrInUse says that another process works with the lab of that name.
var ErrInUse = errors.New("lab is in use by another process")

var (
	labSyntax  = regexp.MustCompile(`^[a-z][a-z0-9]{0,4}$`)
	nodeSyntax = regexp.MustCompile(`^[a-z][a-z0-9]{0,2}$`)
)

// Config is what a lab is made of.
type Config struct {
	Name    string // a small letter, then at most 4 letters or digits
	Program string // the swarm binary; containerd and its shim lie beside it
	// Flags are added to every agent's command line.
	Flags []string
}

// Lab is a switch and the nodes plugged into it. It is not safe for concurrent changes; nodes are.
type Lab struct {
	cfg   Config
	lock  net.Listener
	wires *network
	nodes []*Node
}

// Open makes an empty lab, after removing what an earlier one of this name left behind.
func Open(cfg Config) (*Lab, error) {
	if !labSyntax.MatchString(cfg.Name) {
		return nil, fmt.Errorf("lab name %q: want a small letter, then at most 4 letters or digits", cfg.Name)
	}
	program, err := filepath.Abs(cfg.Program)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("program of lab %s: %w; run make build", cfg.Name, err)
	}
	cfg.Program = program
	lock, err := acquire(cfg.Name)
	if err != nil {
		return nil, err
	}
	if err := remove(cfg.Name); err != nil {
		lock.Close()
		return nil, err
	}
	wires, err := newNetwork(cfg.Name)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &Lab{cfg: cfg, lock: lock, wires: wires}, nil
}

// Add plugs a new node in, without starting its agent. Flags are added to its agent's command line.
func (l *Lab) Add(name string, flags ...string) (*Node, error) {
	if !nodeSyntax.MatchString(name) || l.Node(name) != nil {
		return nil, fmt.Errorf("node name %q is taken, or not a small letter with at most 2 letters or digits after it", name)
	}
	number := len(l.nodes) + 1
	if err := l.wires.plug(name, number); err != nil {
		return nil, fmt.Errorf("plug in node %s: %w", name, err)
	}
	n := &Node{
		Name:    name,
		Address: address(number).String(),
		Dir:     filepath.Join(Root, l.cfg.Name, name),
		lab:     l,
		flags:   slices.Concat(l.cfg.Flags, flags),
	}
	if err := makeDirs(n.Dir, 0o755); err != nil {
		return nil, err
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

// Name of the lab.
func (l *Lab) Name() string { return l.cfg.Name }

// Program is the absolute path of the swarm binary.
func (l *Lab) Program() string { return l.cfg.Program }

// Nodes in the order in which they were added.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Node of that name, or nil.
func (l *Lab) Node(name string) *Node {
	i := slices.IndexFunc(l.nodes, func(n *Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return l.nodes[i]
}

// Close kills every process of the lab and removes all of it.
func (l *Lab) Close() error {
	err := remove(l.cfg.Name)
	for _, n := range l.nodes {
		n.reap()
		err = errors.Join(err, n.Vacate())
	}
	return errors.Join(err, l.Detach())
}

// Detach lets the lab run on without this process: it ends by Remove or by the next Open of its name.
func (l *Lab) Detach() error {
	l.wires.close()
	if err := l.lock.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Remove ends whatever runs of the lab of this name and removes all of it.
func Remove(name string) error {
	lock, err := acquire(name)
	if err != nil {
		return err
	}
	defer lock.Close()
	return remove(name)
}

// Sweep removes all labs whose names begin with prefix and that no process works with.
func Sweep(prefix string) error {
	var errs []error
	for _, name := range names() {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if err := Remove(name); err != nil && !errors.Is(err, ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Reserve takes the first of prefix+"a" … prefix+"z" that no process holds, so that two runs at once neither sweep each
// other's labs nor blame each other for them. Closing it, or the end of this process, gives it back.
func Reserve(prefix string) (string, io.Closer, error) {
	for letter := 'a'; letter <= 'z'; letter++ {
		own := prefix + string(letter)
		lock, err := acquire("run-" + own)
		if !errors.Is(err, ErrInUse) {
			return own, lock, err
		}
	}
	return "", nil, fmt.Errorf("%w: all of %[2]sa to %[2]sz", ErrInUse, prefix)
}

// acquire takes a lab's name as that of an abstract socket: the kernel frees it when this process ends, and no file is left.
func acquire(name string) (net.Listener, error) {
	lock, err := net.Listen("unix", "@swarm-lab-"+name)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %s", ErrInUse, name)
	}
	return lock, err
}

// names of all labs that have left any trace: files, namespaces or control groups.
func names() []string {
	var found []string
	for _, path := range glob(append(controlGroups("*"), Root+"/*")...) {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			found = append(found, filepath.Base(path))
		}
	}
	for _, path := range glob(namespacePath("*", "*")) {
		if parts := strings.SplitN(filepath.Base(path), "-", 3); len(parts) == 3 {
			found = append(found, parts[1])
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// remove is idempotent: processes first, because they hold everything else.
func remove(name string) error {
	if err := killAll(name, ""); err != nil {
		return err
	}
	dir := filepath.Join(Root, name)
	errs := []error{unmountBelow(dir)}
	for _, path := range glob(namespacePath(name, "*")) {
		errs = append(errs, removeNamespace(path))
	}
	errs = append(errs, removeControlGroups(name, ""), os.RemoveAll(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", name, err)
	}
	if len(names()) == 0 {
		for _, shared := range append(controlGroups(), Root) {
			os.Remove(shared) // stays while a lab that began meanwhile is in it
		}
	}
	return nil
}

// makeDirs tries again when another lab's removal takes the folder above all labs away in between.
func makeDirs(dir string, mode fs.FileMode) (err error) {
	const triesMax = 5
	for range triesMax {
		if err = os.MkdirAll(dir, mode); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

func glob(patterns ...string) []string {
	var paths []string
	for _, pattern := range patterns {
		found, _ := filepath.Glob(pattern) // the only error is a bad pattern, and these are ours
		paths = append(paths, found...)
	}
	return paths
}

// Leftovers names what exists of labs whose names begin with prefix, for tests that must leave nothing behind.
func Leftovers(prefix string) []string {
	var left []string
	for _, name := range names() {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		for _, pid := range processes(name, "") {
			left = append(left, fmt.Sprintf("process %d: %s", pid, commandLine(pid)))
		}
		left = append(left, glob(append(controlGroups(name), namespacePath(name, "*"))...)...)
		dir := filepath.Join(Root, name)
		left = append(left, mountsBelow(dir)...)
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, dir)
		}
	}
	return left
}
