package containerd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
)

const everyCapability = "ALL"

// defaultCapabilities are docker's: what a container has when nothing is added or dropped.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// capabilities applies --cap-add and --cap-drop to the default, by docker's rules: an
// explicit drop wins over "add ALL", an explicit add over "drop ALL".
func capabilities(add, drop []string) ([]string, error) {
	known, err := supportedCapabilities()
	if err != nil {
		return nil, err
	}
	if add, err = normalizeCapabilities(known, add); err != nil {
		return nil, err
	}
	if drop, err = normalizeCapabilities(known, drop); err != nil {
		return nil, err
	}
	var start []string
	switch {
	case slices.Contains(add, everyCapability):
		start = known
	case slices.Contains(drop, everyCapability):
	default:
		start = defaultCapabilities()
	}
	var result []string
	for _, c := range start {
		if !slices.Contains(drop, c) {
			result = append(result, c)
		}
	}
	for _, c := range add {
		if c != everyCapability && !slices.Contains(result, c) {
			result = append(result, c)
		}
	}
	return result, nil
}

func supportedCapabilities() ([]string, error) {
	caps, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list the kernel's capabilities: %w", err)
	}
	names := make([]string, 0, len(caps))
	for _, c := range caps {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names, nil
}

// normalizeCapabilities brings names to the form CAP_X. InvalidArgument names an unknown one.
func normalizeCapabilities(known, names []string) ([]string, error) {
	var result []string
	for _, name := range names {
		c := strings.ToUpper(name)
		if c != everyCapability {
			if c = "CAP_" + strings.TrimPrefix(c, "CAP_"); !slices.Contains(known, c) {
				return nil, invalid("invalid capability: %q", name)
			}
		}
		result = append(result, c)
	}
	return result, nil
}
