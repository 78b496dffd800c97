package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groupRoot is the control group above all labs.
const groupRoot = "swarm-lab"

// mount is one line of /proc/self/mountinfo.
type mount struct{ point, kind string }

func mounts() []mount {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []mount
	for lines := bufio.NewScanner(file); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 {
			continue
		}
		kind, _, _ := strings.Cut(after, " ")
		found = append(found, mount{point: unescape.Replace(fields[4]), kind: kind})
	}
	return found
}

func mountsBelow(dir string) []string {
	var points []string
	for _, m := range mounts() {
		if strings.HasPrefix(m.point, dir+"/") {
			points = append(points, m.point)
		}
	}
	return points
}

func unmountBelow(dir string) error {
	points := mountsBelow(dir)
	slices.Reverse(points) // the last one mounted may lie on the others
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// hierarchies are the mount points of all control group trees: one on a unified machine, a dozen on a hybrid one.
func hierarchies() (all []string, unified string) {
	for _, m := range mounts() {
		switch m.kind {
		case "cgroup2":
			unified = m.point
			all = append(all, m.point)
		case "cgroup":
			all = append(all, m.point)
		}
	}
	return all, unified
}

// controlGroups are the paths of a lab's groups in every hierarchy, whether they exist or not.
func controlGroups(path ...string) []string {
	all, _ := hierarchies()
	for i, root := range all {
		all[i] = filepath.Join(append([]string{root, groupRoot}, path...)...)
	}
	return all
}

// makeControlGroup makes a group in the unified hierarchy and opens it, for a process to be started in.
func makeControlGroup(path string) (*os.File, error) {
	_, unified := hierarchies()
	if unified == "" {
		return nil, errors.New("no unified control group hierarchy is mounted on this machine")
	}
	dir := filepath.Join(unified, groupRoot, path)
	if err := makeDirs(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make control group: %w", err)
	}
	return os.Open(dir)
}

// removeControlGroups of a lab, or of one of its nodes. Their processes must be gone.
func removeControlGroups(lab, node string) error {
	var errs []error
	for _, top := range controlGroups(lab, node) {
		var dirs []string
		filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // a group may vanish during the walk
		})
		slices.Reverse(dirs) // children first
		for _, dir := range dirs {
			errs = append(errs, removeControlGroup(dir))
		}
	}
	return errors.Join(errs...)
}

// removeControlGroup tries again while the kernel still counts a dead process in.
func removeControlGroup(dir string) error {
	for deadline := time.Now().Add(stopMax); ; time.Sleep(settle) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
}

// killAll ends every process of a lab, or of one of its nodes, and returns when none is left.
func killAll(lab, node string) error {
	_, unified := hierarchies()
	if unified != "" {
		// The kernel kills a whole group at once, so that nothing restarts what has just died. Absent group: nothing to kill.
		os.WriteFile(filepath.Join(unified, groupRoot, lab, node, "cgroup.kill"), []byte("1"), 0)
	}
	for deadline := time.Now().Add(stopMax); ; time.Sleep(settle) {
		left := processes(lab, node)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not die, among them %d: %s", len(left), left[0], commandLine(left[0]))
		}
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// processes of a lab or node: those in one of its control groups or network namespaces. Zombies do not count.
func processes(lab, node string) []int {
	pattern := node
	if node == "" {
		pattern = "*"
	}
	namespaces := map[identity]bool{}
	for _, path := range glob(namespacePath(lab, pattern)) {
		namespaces[identify(path)] = true
	}
	group := "/" + filepath.Join(groupRoot, lab, node)
	var found []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		namespace := identify(fmt.Sprintf("/proc/%d/ns/net", pid))
		if namespace == (identity{}) { // gone, or a zombie
			continue
		}
		if namespaces[namespace] || inGroup(pid, group) {
			found = append(found, pid)
		}
	}
	return found
}

// identity tells one file from all others; zero for a file that is not there.
type identity struct{ device, inode uint64 }

func identify(path string) identity {
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return identity{}
	}
	return identity{uint64(stat.Dev), stat.Ino}
}

func inGroup(pid int, group string) bool {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(content)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.HasPrefix(parts[2]+"/", group+"/") {
			return true
		}
	}
	return false
}

func commandLine(pid int) string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(strings.TrimRight(string(content), "\x00"), "\x00", " ")
}

// Process is one process of a node.
type Process struct {
	PID     int
	Command string // its command line
}

// Processes of the node: the agent, what it started, and the containers.
func (n *Node) Processes() []Process {
	var found []Process
	for _, pid := range processes(n.lab.cfg.Name, n.Name) {
		found = append(found, Process{PID: pid, Command: commandLine(pid)})
	}
	return found
}
