package containerd

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// shmSize is docker's default size of /dev/shm.
const shmSize = "size=67108864"

func defaultMounts() []specs.Mount {
	cgroup := []string{"ro", "nosuid", "noexec", "nodev"}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shmSize}},
	}
}

// mergeMounts puts the container's own mounts behind the defaults; a default with the same
// destination, and everything below a replaced /dev, gives way.
func mergeMounts(defaults, own []specs.Mount) []specs.Mount {
	replaced := func(m specs.Mount) bool {
		return slices.ContainsFunc(own, func(o specs.Mount) bool {
			return o.Destination == m.Destination || o.Destination == "/dev" && strings.HasPrefix(m.Destination, "/dev/")
		})
	}
	return append(slices.DeleteFunc(defaults, replaced), own...)
}

// sortMounts orders mounts so that a directory is mounted before what lies below it.
func sortMounts(mounts []specs.Mount) {
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
}

// checkTarget refuses destinations that cannot be mounted on.
func checkTarget(m mount.Mount) error {
	if !path.IsAbs(m.Target) {
		return invalid("invalid mount target %q: it must be an absolute path", m.Target)
	}
	if path.Clean(m.Target) == "/" {
		return invalid("invalid mount target, must not be '/'")
	}
	return nil
}

// bindMount makes a bind mount of a path of the host, with the text that docker has when there is none.
func bindMount(m mount.Mount) (specs.Mount, error) {
	o := m.BindOptions
	if o == nil {
		o = &mount.BindOptions{}
	}
	_, err := os.Stat(m.Source)
	if errors.Is(err, os.ErrNotExist) && o.CreateMountpoint {
		err = os.MkdirAll(m.Source, 0o755)
	}
	if errors.Is(err, os.ErrNotExist) {
		return specs.Mount{}, invalid("invalid mount config for type %q: bind source path does not exist: %s", "bind", m.Source)
	}
	if err != nil {
		return specs.Mount{}, fmt.Errorf("invalid mount config for type %q: %w: %w", "bind", err, errdefs.ErrInvalidArgument)
	}
	propagation := o.Propagation
	if propagation == "" {
		propagation = mount.PropagationRPrivate
	}
	if !slices.Contains(mount.Propagations, propagation) {
		return specs.Mount{}, invalid("invalid mount propagation %q", propagation)
	}
	return bind(m.Source, m.Target, bindFlags(m.ReadOnly, o), string(propagation)), nil
}

func bindFlags(readOnly bool, o *mount.BindOptions) []string {
	flags := []string{"rbind"}
	if o.NonRecursive {
		flags = []string{"bind"}
	}
	switch {
	case !readOnly:
		return append(flags, "rw")
	case o.ReadOnlyForceRecursive:
		return append(flags, "rro")
	}
	return append(flags, "ro")
}

func bind(source, target string, flags []string, propagation string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: path.Clean(target), Options: append(flags, propagation)}
}

// rootPropagation is what the root mount must be for these binds to share mounts with the host; "" when none does.
func rootPropagation(mounts []mount.Mount) string {
	result := ""
	for _, m := range mounts {
		if m.BindOptions == nil {
			continue
		}
		switch m.BindOptions.Propagation {
		case mount.PropagationShared, mount.PropagationRShared:
			return "shared"
		case mount.PropagationSlave, mount.PropagationRSlave:
			result = "rslave"
		}
	}
	return result
}

// tmpfsMount makes a tmpfs with docker's defaults (noexec, nosuid, nodev), which options may lift.
func tmpfsMount(m mount.Mount) (specs.Mount, error) {
	if m.Source != "" {
		return specs.Mount{}, invalid("invalid mount config for type %q: field Source must not be specified", "tmpfs")
	}
	options := []string{"noexec", "nosuid", "nodev", "rprivate"}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	if o := m.TmpfsOptions; o != nil {
		if o.Mode != 0 {
			options = append(options, "mode="+strconv.FormatUint(uint64(o.Mode), 8))
		}
		if o.SizeBytes != 0 {
			options = append(options, "size="+strconv.FormatInt(o.SizeBytes, 10))
		}
		for _, option := range o.Options {
			text := strings.Join(option, "=")
			if opposite, ok := strings.CutPrefix("no"+text, "nono"); ok {
				options = slices.DeleteFunc(options, func(have string) bool { return have == opposite })
			}
			options = slices.DeleteFunc(options, func(have string) bool { return have == "no"+text })
			options = append(options, text)
		}
	}
	return specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: path.Clean(m.Target), Options: options}, nil
}
