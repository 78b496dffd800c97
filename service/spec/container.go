package spec

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"
)

const volumeNameMax = 255

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func validateContainer(c *swarm.ContainerSpec) error {
	if c == nil {
		return invalid("ContainerSpec: missing in service spec")
	}
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	if negative(c.StopGracePeriod) {
		return invalid("ContainerSpec: stop-grace-period cannot be negative")
	}
	if err := validateSignal(c.StopSignal); err != nil {
		return err
	}
	if err := validateEnv(c.Env); err != nil {
		return err
	}
	if err := validateMounts(c.Mounts); err != nil {
		return err
	}
	if err := refuseTemplates(c); err != nil {
		return err
	}
	return refuseUnsupported(c)
}

func validateSignal(s string) error {
	if s == "" {
		return nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n >= 1 && n <= 64 {
			return nil
		}
		return invalid("ContainerSpec: invalid stop signal %q: numbers go from 1 to 64", s)
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum("SIG"+name) != 0 || strings.HasPrefix(name, "RTMIN") || strings.HasPrefix(name, "RTMAX") {
		return nil
	}
	return invalid("ContainerSpec: invalid stop signal %q: use a name such as SIGINT or a number", s)
}

func validateEnv(env []string) error {
	for _, e := range env {
		if e == "" || e[0] == '=' || strings.ContainsRune(e, 0) {
			return invalid("invalid environment variable: %q; write NAME=value", e)
		}
	}
	return nil
}

func validateMounts(mounts []mount.Mount) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		if err := validateMount(m); err != nil {
			return err
		}
		target := path.Clean(m.Target)
		if seen[target] {
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		}
		seen[target] = true
	}
	return nil
}

func validateMount(m mount.Mount) error {
	if m.Target == "" {
		return invalid("ContainerSpec: mount target must not be empty")
	}
	if !path.IsAbs(m.Target) {
		return invalid("invalid mount target, must be an absolute path: %s", m.Target)
	}
	if path.Clean(m.Target) == "/" {
		return invalid("invalid mount target: destination can't be '/'")
	}
	switch m.Type {
	case mount.TypeBind:
		if !path.IsAbs(m.Source) {
			return invalid("invalid bind mount source, must be an absolute path: %s", m.Source)
		}
		if o := m.BindOptions; o != nil && o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
			return invalid("invalid mount propagation %q for %s: use one of %v", o.Propagation, m.Target, mount.Propagations)
		}
	case mount.TypeVolume:
		return validateVolume(m)
	case mount.TypeTmpfs:
		return validateTmpfs(m)
	case mount.TypeImage, mount.TypeCluster, mount.TypeNamedPipe:
		return missing("mounts of type %s are not there: use bind, volume or tmpfs for %s", m.Type, m.Target)
	default:
		return invalid("invalid mount type: %q; use bind, volume or tmpfs for %s", m.Type, m.Target)
	}
	return refuseForeignOptions(m)
}

func validateVolume(m mount.Mount) error {
	if path.IsAbs(m.Source) {
		return invalid("invalid volume mount source, must not be an absolute path: %s", m.Source)
	}
	if m.Source != "" && (!volumeName.MatchString(m.Source) || len(m.Source) > volumeNameMax) {
		return invalid("%q includes invalid characters for a local volume name: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at least 2 and at most %d", m.Source, volumeNameMax)
	}
	if o := m.VolumeOptions; o != nil {
		if o.DriverConfig != nil && o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" {
			return missing("volume driver %q is not there: use the driver local for %s", o.DriverConfig.Name, m.Target)
		}
		if o.DriverConfig != nil && len(o.DriverConfig.Options) > 0 {
			return missing("options of volume drivers are not there yet: remove those of %s, or bind a path that the node has mounted", m.Target)
		}
		if o.Subpath != "" {
			return missing("volume subpaths are not there yet: mount the whole volume at %s", m.Target)
		}
	}
	return refuseForeignOptions(m)
}

func validateTmpfs(m mount.Mount) error {
	if m.Source != "" {
		return invalid("invalid tmpfs source, source must be empty: %s", m.Source)
	}
	if o := m.TmpfsOptions; o != nil && o.SizeBytes < 0 {
		return invalid("invalid tmpfs size %d for %s: must not be negative", o.SizeBytes, m.Target)
	}
	return refuseForeignOptions(m)
}

// refuseForeignOptions refuses options that belong to another type of mount.
func refuseForeignOptions(m mount.Mount) error {
	foreign := ""
	switch {
	case m.BindOptions != nil && m.Type != mount.TypeBind:
		foreign = "BindOptions"
	case m.VolumeOptions != nil && m.Type != mount.TypeVolume:
		foreign = "VolumeOptions"
	case m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs:
		foreign = "TmpfsOptions"
	case m.ImageOptions != nil:
		foreign = "ImageOptions"
	case m.ClusterOptions != nil:
		foreign = "ClusterOptions"
	default:
		return nil
	}
	return invalid("%s do not fit a mount of type %s at %s; remove them", foreign, m.Type, m.Target)
}

// refuseTemplates refuses what docker would expand: taken literally it would surprise.
func refuseTemplates(c *swarm.ContainerSpec) error {
	fields := append([]string{c.Hostname}, c.Env...)
	for _, m := range c.Mounts {
		fields = append(fields, m.Source, m.Target)
	}
	for _, f := range fields {
		if strings.Contains(f, "{{") {
			return missing("templates are not there yet: remove {{…}} from %q", f)
		}
	}
	return nil
}

// refuseUnsupported refuses settings of a container that nothing here acts on yet.
func refuseUnsupported(c *swarm.ContainerSpec) error {
	if err := refusePrivileges(c.Privileges); err != nil {
		return err
	}
	for _, u := range []struct {
		given  bool
		what   string
		remedy string
	}{
		{len(c.Secrets) > 0, "secrets", "remove --secret and mount a file instead"},
		{len(c.Configs) > 0, "configs", "remove --config and mount a file instead"},
		{hasHealthcheck(c.Healthcheck), "health checks", "remove the health check, or use --no-healthcheck"},
		{c.Isolation != "" && c.Isolation != container.IsolationDefault, "isolation modes", "remove --isolation"},
	} {
		if u.given {
			return missing("%s are not there yet: %s", u.what, u.remedy)
		}
	}
	return nil
}

func hasHealthcheck(h *container.HealthConfig) bool {
	return h != nil && !(len(h.Test) == 1 && h.Test[0] == "NONE")
}

func refusePrivileges(p *swarm.Privileges) error {
	if p == nil {
		return nil
	}
	switch {
	case p.CredentialSpec != nil:
		return missing("credential specs are for Windows nodes, which are not there: remove --credential-spec")
	case p.SELinuxContext != nil && !p.SELinuxContext.Disable:
		return missing("SELinux contexts are not there yet: remove them")
	case p.AppArmor != nil && p.AppArmor.Mode != "" && p.AppArmor.Mode != swarm.AppArmorModeDisabled:
		return missing("AppArmor profiles are not there yet: remove the mode %s", p.AppArmor.Mode)
	case p.Seccomp == nil:
		return nil
	}
	switch p.Seccomp.Mode {
	case "", swarm.SeccompModeDefault, swarm.SeccompModeUnconfined, swarm.SeccompModeCustom:
	default:
		return invalid("unknown seccomp mode %q: use default, unconfined or custom", p.Seccomp.Mode)
	}
	if (p.Seccomp.Mode == swarm.SeccompModeCustom) != (len(p.Seccomp.Profile) > 0) {
		return invalid("a seccomp profile comes with the mode custom, and only with it")
	}
	return nil
}
