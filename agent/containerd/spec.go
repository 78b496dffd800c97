package containerd

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"swarm/agent/worker"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	defaultPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	initInside    = "/sbin/docker-init"
	cpuPeriod     = 100_000 // µs, the kernel's default
	nanosPerCPU   = 1_000_000_000
	networkHost   = "host"
	shortIDLength = 12
	swapUnlimited = -1
)

// specInput is everything that an OCI spec is made of; the spec is a pure function of it.
type specInput struct {
	container worker.Container
	image     ocispec.ImageConfig
	user      specs.User
	mounts    []specs.Mount // the container's own, ordered so that parents come first
	// rootPropagation is needed by binds that share their mounts with the host; "" is private.
	rootPropagation string
	cgroupPath      string
	init            string // of the host; "" when the container wants none
	unified         bool   // cgroup v2 alone
	swapLimits      bool   // the kernel can limit swap
}

// buildSpec turns a container into an OCI spec with docker's defaults.
func buildSpec(in specInput) (*specs.Spec, error) {
	c := in.container.Spec
	args, err := commandLine(c, in.image)
	if err != nil {
		return nil, err
	}
	if in.init != "" {
		args = append([]string{initInside, "--"}, args...)
	}
	process, err := buildProcess(in, args)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: "rootfs", Readonly: c.ReadOnly},
		Process:  process,
		Hostname: hostname(in.container),
		Mounts:   mergeMounts(defaultMounts(), in.mounts),
		Linux:    buildLinux(in),
	}
	if in.init != "" {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: initInside, Type: "bind", Source: in.init, Options: []string{"bind", "ro"}})
	}
	if s.Linux.Seccomp, err = seccompProfile(c.Privileges, s); err != nil {
		return nil, err
	}
	return s, nil
}

// commandLine follows docker: a spec's command replaces the image's entry point and its
// command; a spec's arguments replace the image's command.
func commandLine(c *swarm.ContainerSpec, image ocispec.ImageConfig) ([]string, error) {
	entrypoint, args := c.Command, c.Args
	if len(entrypoint) == 0 {
		entrypoint = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil
	}
	line := append(slices.Clone(entrypoint), args...)
	if len(line) == 0 {
		return nil, invalid("no command specified")
	}
	return line, nil
}

func buildProcess(in specInput, args []string) (*specs.Process, error) {
	c := in.container.Spec
	caps, err := capabilities(c.CapabilityAdd, c.CapabilityDrop)
	if err != nil {
		return nil, err
	}
	score := int(c.OomScoreAdj)
	return &specs.Process{
		Terminal:        c.TTY,
		User:            in.user,
		Args:            args,
		Env:             environment(in),
		Cwd:             workingDir(c, in.image),
		Capabilities:    grant(caps, in.user),
		Rlimits:         rlimits(c),
		NoNewPrivileges: c.Privileges != nil && c.Privileges.NoNewPrivileges,
		OOMScoreAdj:     &score, // always written: the shim's own must not be inherited
	}, nil
}

// grant gives capabilities the way execve would: a user other than root only keeps the bound.
func grant(caps []string, user specs.User) *specs.LinuxCapabilities {
	if user.UID != 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// environment merges docker's defaults, the image's and the spec's variables; the later wins,
// and a spec's name without a value removes the variable.
func environment(in specInput) []string {
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + hostname(in.container)}
	if in.container.Spec.TTY {
		env = append(env, "TERM=xterm")
	}
	for _, v := range append(slices.Clone(in.image.Env), in.container.Spec.Env...) {
		name, _, valued := strings.Cut(v, "=")
		at := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		switch {
		case !valued && at >= 0:
			env = slices.Delete(env, at, at+1)
		case !valued:
		case at >= 0:
			env[at] = v
		default:
			env = append(env, v)
		}
	}
	return env
}

func hostname(c worker.Container) string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return c.ID[:min(shortIDLength, len(c.ID))]
}

func workingDir(c *swarm.ContainerSpec, image ocispec.ImageConfig) string {
	dir := image.WorkingDir
	if c.Dir != "" {
		dir = c.Dir
	}
	return path.Join("/", dir)
}

func rlimits(c *swarm.ContainerSpec) []specs.POSIXRlimit {
	var limits []specs.POSIXRlimit
	for _, u := range c.Ulimits {
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Hard: uint64(u.Hard), Soft: uint64(u.Soft)})
	}
	return limits
}

func buildLinux(in specInput) *specs.Linux {
	c := in.container
	linux := &specs.Linux{
		CgroupsPath:       in.cgroupPath,
		RootfsPropagation: in.rootPropagation,
		Resources:         resources(in),
		Sysctl:            make(map[string]string),
		MaskedPaths:       maskedPaths(),
		ReadonlyPaths:     []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.UTSNamespace, specs.PIDNamespace, specs.IPCNamespace} {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: kind})
	}
	if c.Network != networkHost {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
		linux.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	if in.unified {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	maps.Copy(linux.Sysctl, c.Spec.Sysctls)
	return linux
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// resources are the limits of the container's cgroup. No device but runc's harmless ones is allowed.
func resources(in specInput) *specs.LinuxResources {
	result := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	wanted := in.container.Resources
	if wanted == nil {
		return result
	}
	if l := wanted.Limits; l != nil {
		if l.NanoCPUs > 0 {
			quota, period := max(l.NanoCPUs*cpuPeriod/nanosPerCPU, 1000), uint64(cpuPeriod) // the kernel takes no less than 1 ms
			result.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
		}
		if l.Pids > 0 {
			pids := l.Pids
			result.Pids = &specs.LinuxPids{Limit: &pids}
		}
	}
	result.Memory = memory(in, wanted)
	return result
}

// memory limits memory and, where the kernel can, memory and swap together to the same amount.
func memory(in specInput, wanted *swarm.ResourceRequirements) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	if l := wanted.Limits; l != nil && l.MemoryBytes > 0 {
		limit, swap := l.MemoryBytes, l.MemoryBytes
		if s := wanted.SwapBytes; s != nil {
			if swap += *s; *s < 0 {
				swap = swapUnlimited
			}
		}
		m.Limit = &limit
		if in.swapLimits {
			m.Swap = &swap
		}
	}
	if r := wanted.Reservations; r != nil && r.MemoryBytes > 0 {
		reservation := r.MemoryBytes
		m.Reservation = &reservation
	}
	if s := wanted.MemorySwappiness; s != nil && *s >= 0 && !in.unified {
		swappiness := uint64(*s)
		m.Swappiness = &swappiness
	}
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

// seccompProfile is docker's default profile for the capabilities that the spec grants, the spec's own profile, or none.
func seccompProfile(p *swarm.Privileges, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	mode := swarm.SeccompModeDefault
	if p != nil && p.Seccomp != nil && p.Seccomp.Mode != "" {
		mode = p.Seccomp.Mode
	}
	switch mode {
	case swarm.SeccompModeUnconfined:
		return nil, nil
	case swarm.SeccompModeDefault:
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("make the default seccomp profile: %w", err)
		}
		return profile, nil
	case swarm.SeccompModeCustom:
		profile, err := seccomp.LoadProfile(string(p.Seccomp.Profile), s)
		if err != nil {
			return nil, fmt.Errorf("custom seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		return profile, nil
	}
	return nil, invalid("unknown seccomp mode %q: use default, unconfined or custom", mode)
}

// unsupported names the first thing of a spec that this runtime cannot give. Nothing is silently left out.
func unsupported(c worker.Container) error {
	s := c.Spec
	switch {
	case s == nil:
		return invalid("task has no container specification")
	case c.Network != networkHost && c.Network != "none":
		return notYet("network %q is not there yet: use host or none", c.Network)
	case len(s.Secrets) > 0:
		return notYet("secrets are not there yet: remove --secret")
	case len(s.Configs) > 0:
		return notYet("configs are not there yet: remove --config")
	case s.Isolation != "" && s.Isolation != "default":
		return notYet("isolation %q does not exist on Linux: remove --isolation", s.Isolation)
	}
	if p := s.Privileges; p != nil {
		if p.CredentialSpec != nil {
			return notYet("credential specs do not exist on Linux: remove --credential-spec")
		}
		if se := p.SELinuxContext; se != nil && *se != (swarm.SELinuxContext{}) && !se.Disable {
			return notYet("SELinux contexts are not there yet")
		}
	}
	return nil
}
