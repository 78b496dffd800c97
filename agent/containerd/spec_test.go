package containerd

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		check(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	check(t, err)
	if got != string(want) {
		t.Errorf("%s differs (-update writes it):\n%s", path, difference(string(want), got))
	}
}

// difference is the lines that only one side has.
func difference(before, after string) string {
	was, is := strings.SplitAfter(before, "\n"), strings.SplitAfter(after, "\n")
	var out strings.Builder
	for _, line := range was {
		if !slices.Contains(is, line) {
			out.WriteString("- " + line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}

// flat writes a value as lines "path = value", so that a change is one line.
func flat(path string, value any, out *strings.Builder) {
	switch v := value.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			flat(path+"."+k, v[k], out)
		}
	case []any:
		var words []string
		for _, e := range v {
			word, ok := e.(string)
			if !ok {
				break
			}
			words = append(words, word)
		}
		if len(words) == len(v) {
			fmt.Fprintf(out, "%s = %s\n", path, strings.Join(words, " "))
			return
		}
		for i, e := range v {
			if m, ok := e.(map[string]any); ok && m["destination"] != nil {
				fmt.Fprintf(out, "%s[%s] = %v %v %v\n", path, m["destination"], m["type"], m["source"], m["options"])
				continue
			}
			flat(fmt.Sprintf("%s[%d]", path, i), e, out)
		}
	default:
		fmt.Fprintf(out, "%s = %v\n", path, v)
	}
}

func baseInput() specInput {
	return specInput{
		container:  worker.Container{ID: "0123456789abcdef0123", Network: "none", Spec: &swarm.ContainerSpec{}},
		image:      ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"default"}, Env: []string{"A=image"}, WorkingDir: "/srv"},
		user:       specs.User{AdditionalGids: []uint32{0}},
		mounts:     []specs.Mount{bind("/d/hosts", "/etc/hosts", []string{"rbind"}, "rprivate")},
		cgroupPath: "/swarm/0123456789abcdef0123", swapLimits: true,
	}
}

// render is a spec as text. The seccomp profile depends on the kernel: only its presence is told.
func render(t *testing.T, in specInput) string {
	t.Helper()
	s, err := buildSpec(in)
	if err != nil {
		return err.Error() + "\n"
	}
	profile := "none"
	if s.Linux.Seccomp != nil {
		profile = string(s.Linux.Seccomp.DefaultAction)
		s.Linux.Seccomp = nil
	}
	text, err := json.Marshal(s)
	check(t, err)
	var value any
	check(t, json.Unmarshal(text, &value))
	var out strings.Builder
	flat("", value, &out)
	return out.String() + "seccomp " + profile + "\n"
}

func TestSpecHasDockersDefaults(t *testing.T) {
	golden(t, "spec.golden", render(t, baseInput()))
}

func TestEachOptionChangesItsLines(t *testing.T) {
	base := render(t, baseInput())
	limits := func(l swarm.Limit) func(*specInput) {
		return func(in *specInput) { in.container.Resources = &swarm.ResourceRequirements{Limits: &l} }
	}
	with := func(change func(*swarm.ContainerSpec)) func(*specInput) {
		return func(in *specInput) { change(in.container.Spec) }
	}
	var out strings.Builder
	for _, o := range []struct {
		name   string
		change func(*specInput)
	}{
		{"args", with(func(s *swarm.ContainerSpec) { s.Args = []string{"a", "b"} })},
		{"command drops the image's arguments", with(func(s *swarm.ContainerSpec) { s.Command = []string{"/other"} })},
		{"empty command resets the entry point", with(func(s *swarm.ContainerSpec) { s.Command, s.Args = []string{""}, []string{"sh"} })},
		{"no command anywhere", func(in *specInput) { in.image.Entrypoint, in.image.Cmd = nil, nil }},
		{"env", with(func(s *swarm.ContainerSpec) { s.Env = []string{"A=spec", "B=1", "PATH"} })},
		{"hostname", func(in *specInput) { in.container.Hostname = "web" }},
		{"dir", with(func(s *swarm.ContainerSpec) { s.Dir = "/work" })},
		{"user", func(in *specInput) { in.user = specs.User{UID: 1000, GID: 1000} }},
		{"tty", with(func(s *swarm.ContainerSpec) { s.TTY = true })},
		{"read-only", with(func(s *swarm.ContainerSpec) { s.ReadOnly = true })},
		{"init", func(in *specInput) { in.init = "/usr/bin/tini" }},
		{"host network", func(in *specInput) { in.container.Network = "host" }},
		{"cgroup v2", func(in *specInput) { in.unified = true }},
		{"cap-add", with(func(s *swarm.ContainerSpec) { s.CapabilityAdd = []string{"net_admin"} })},
		{"cap-drop", with(func(s *swarm.ContainerSpec) {
			s.CapabilityDrop = []string{"ALL"}
			s.CapabilityAdd = []string{"CAP_CHOWN"}
		})},
		{"cap unknown", with(func(s *swarm.ContainerSpec) { s.CapabilityAdd = []string{"NOPE"} })},
		{"sysctl", with(func(s *swarm.ContainerSpec) { s.Sysctls = map[string]string{"net.core.somaxconn": "99"} })},
		{"ulimit", with(func(s *swarm.ContainerSpec) { s.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}} })},
		{"oom score", with(func(s *swarm.ContainerSpec) { s.OomScoreAdj = -100 })},
		{"no new privileges", with(func(s *swarm.ContainerSpec) { s.Privileges = &swarm.Privileges{NoNewPrivileges: true} })},
		{"seccomp unconfined", with(func(s *swarm.ContainerSpec) {
			s.Privileges = &swarm.Privileges{Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeUnconfined}}
		})},
		{"seccomp custom", with(func(s *swarm.ContainerSpec) {
			s.Privileges = &swarm.Privileges{Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeCustom, Profile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`)}}
		})},
		{"cpu", limits(swarm.Limit{NanoCPUs: 1_500_000_000})},
		{"cpu below the kernel's least", limits(swarm.Limit{NanoCPUs: 1})},
		{"memory", limits(swarm.Limit{MemoryBytes: 1 << 20})},
		{"memory without swap accounting", func(in *specInput) { in.swapLimits = false; limits(swarm.Limit{MemoryBytes: 1 << 20})(in) }},
		{"swap", func(in *specInput) {
			more := int64(5)
			limits(swarm.Limit{MemoryBytes: 1 << 20})(in)
			in.container.Resources.SwapBytes = &more
		}},
		{"pids", limits(swarm.Limit{Pids: 100})},
		{"reservation", func(in *specInput) {
			in.container.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 19, NanoCPUs: 5}}
		}},
		{"mount in the place of a default", func(in *specInput) {
			in.mounts = append(in.mounts, bind("/x", "/dev/shm", []string{"rbind", "rw"}, "rprivate"))
		}},
		{"shared propagation", func(in *specInput) { in.rootPropagation = "shared" }},
	} {
		in := baseInput()
		o.change(&in)
		fmt.Fprintf(&out, "# %s\n", o.name)
		if got := render(t, in); strings.Contains(got, " = ") {
			out.WriteString(difference(base, got))
		} else {
			out.WriteString("! " + got)
		}
	}
	golden(t, "options.golden", out.String())
}

func TestMountsBecomeOptions(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	show := func(name string, m specs.Mount, err error) {
		text := fmt.Sprintf("%s %s %s", m.Type, m.Destination, strings.Join(m.Options, ","))
		if err != nil {
			text = "! " + strings.ReplaceAll(err.Error(), dir, "DIR")
		}
		fmt.Fprintf(&out, "%s: %s\n", name, text)
	}
	for _, b := range []struct {
		name    string
		mount   mount.Mount
		options *mount.BindOptions
	}{
		{"bind", mount.Mount{Source: dir, Target: "/t/"}, nil},
		{"read-only", mount.Mount{Source: dir, Target: "/t", ReadOnly: true}, nil},
		{"recursively read-only", mount.Mount{Source: dir, Target: "/t", ReadOnly: true}, &mount.BindOptions{ReadOnlyForceRecursive: true}},
		{"not recursive, slave", mount.Mount{Source: dir, Target: "/t"}, &mount.BindOptions{NonRecursive: true, Propagation: mount.PropagationRSlave}},
		{"made", mount.Mount{Source: dir + "/new", Target: "/t"}, &mount.BindOptions{CreateMountpoint: true}},
		{"missing", mount.Mount{Source: dir + "/none", Target: "/t"}, nil},
		{"propagation unknown", mount.Mount{Source: dir, Target: "/t"}, &mount.BindOptions{Propagation: "x"}},
	} {
		b.mount.BindOptions = b.options
		m, err := bindMount(b.mount)
		show(b.name, m, err)
	}
	for _, b := range []struct {
		name    string
		options *mount.TmpfsOptions
	}{
		{"tmpfs", nil},
		{"size and mode", &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1770}},
		{"exec", &mount.TmpfsOptions{Options: [][]string{{"exec"}, {"uid", "5"}}}},
	} {
		m, err := tmpfsMount(mount.Mount{Target: "/t", TmpfsOptions: b.options})
		show(b.name, m, err)
	}
	golden(t, "mounts.golden", out.String())
	for _, target := range []string{"", "x", "/", "/.."} {
		if err := checkTarget(mount.Mount{Target: target}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("target %q: %v", target, err)
		}
	}
	for name, good := range map[string]bool{"data": true, "a.b-c_d": true, "a": false, "": false, "../x": false, "/x": false, "-x": false, strings.Repeat("x", 256): false} {
		if err := checkVolumeName(name); (err == nil) != good {
			t.Errorf("volume name %q: %v", name, err)
		}
	}
}

func TestSubpathStaysInTheVolume(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "in"), 0o700))
	check(t, os.Symlink("/etc", filepath.Join(dir, "out")))
	for sub, good := range map[string]bool{"in": true, "out": false, "../x": false, "none": false} {
		if got, err := subpath(dir, sub); (err == nil) != good || good && got != filepath.Join(dir, sub) {
			t.Errorf("subpath %q: %q, %v", sub, got, err)
		}
	}
}

func TestUnsupportedIsNamed(t *testing.T) {
	for want, c := range map[string]worker.Container{
		"task has no container specification":                            {Network: "none"},
		`network "web" is not there yet: use host or none`:               {Network: "web", Spec: &swarm.ContainerSpec{}},
		"secrets are not there yet: remove --secret":                     {Network: "none", Spec: &swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{}}}},
		"configs are not there yet: remove --config":                     {Network: "none", Spec: &swarm.ContainerSpec{Configs: []*swarm.ConfigReference{{}}}},
		`isolation "hyperv" does not exist on Linux: remove --isolation`: {Network: "none", Spec: &swarm.ContainerSpec{Isolation: "hyperv"}},
	} {
		if err := unsupported(c); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestUsersComeFromTheImagesFiles(t *testing.T) {
	const passwd = "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n"
	const group = "root:x:0:\nwheel:x:10:root\nweb:x:1001:\naudio:x:29:web\n"
	for _, c := range []struct{ name, groups, want string }{
		{"", "", "0:0 [0 10]"},
		{"web", "", "1000:1001 [1001 29]"},
		{"1000", "", "1000:1001 [1001 29]"},
		{"web:audio", "", "1000:29 [29]"},
		{"5:6", "wheel 77", "5:6 [6 10 77]"},
		{"nobody", "", "unable to find user nobody: no matching entries in passwd file"},
		{"0", "nope", "unable to find group nope: no matching entries in group file"},
	} {
		u, err := lookUpUser(strings.NewReader(passwd), strings.NewReader(group), strings.NewReader(group), c.name, strings.Fields(c.groups))
		got := fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.AdditionalGids)
		if err != nil {
			got = err.Error()
		}
		equal(t, c.name+" "+c.groups, got, c.want)
	}
}

func TestStartErrorsAreClean(t *testing.T) {
	const runc = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for text, want := range map[string]string{
		runc + `exec: "nope": executable file not found in $PATH: unknown`: `not found: exec: "nope": executable file not found in $PATH`,
		runc + `exec: "/x": permission denied: unknown`:                    `invalid: exec: "/x": permission denied`,
		runc + `error mounting "/x": not a directory: unknown`:             `invalid: error mounting "/x": not a directory`,
		runc + `no space left on device: unknown`:                          `other: no space left on device`,
		"containerd is away": "other: start: containerd is away",
	} {
		err := startError(fmt.Errorf("%s", text))
		kind := "other"
		if errdefs.IsNotFound(err) {
			kind = "not found"
		} else if errdefs.IsInvalidArgument(err) {
			kind = "invalid"
		}
		equal(t, text, kind+": "+err.Error(), want)
	}
}

func TestResolvConfKeepsWhatTheSpecLeavesOpen(t *testing.T) {
	host := hostFile("/etc/resolv.conf", "")
	equal(t, "without", resolvConf(nil), host)
	got := resolvConf(&swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Search: []string{"a", "b"}, Options: []string{"ndots:1"}})
	if !strings.HasPrefix(got, "nameserver 10.0.0.1\nsearch a b\noptions ndots:1\n") || strings.Count(got, "nameserver") != 1 {
		t.Errorf("got %q", got)
	}
}

func TestContainerdConfigIsPrivate(t *testing.T) {
	p, err := privatePaths("/var/lib/swarm/containerd", "/run/swarm/containerd")
	check(t, err)
	golden(t, "config.golden", configTOML(p))
	p, err = privatePaths("/d", "/tmp/a-lab-directory-of-some-length/node-1/run/containerd")
	check(t, err)
	if len(p.shimSockets) > socketDirMax || p.shimSockets == "" {
		t.Errorf("directory of shim sockets: %s", p.shimSockets)
	}
	_, err = privatePaths("/d", "/"+strings.Repeat("x", 120))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "choose a shorter --run-dir") {
		t.Errorf("long directory: %v", err)
	}
}

func TestExitIsRecordedOnce(t *testing.T) {
	r := &Runtime{cfg: Config{DataDir: t.TempDir()}}
	check(t, os.MkdirAll(r.containerDir("x"), 0o700))
	check(t, r.writeState("x", state{PID: 5}))
	_, err := r.recordExit("x", 7, time.Unix(1, 0))
	check(t, err)
	exit, err := r.recordExit("x", 255, time.Unix(1, 0))
	check(t, err)
	equal(t, "exit", fmt.Sprint(exit.Code), "7")
	check(t, os.WriteFile(r.statePath("x"), []byte("{"), 0o600))
	if _, err := r.readState("x"); err == nil {
		t.Error("a damaged state was read")
	}
}
