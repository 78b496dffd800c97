package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"swarm/agent/worker"

	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// etcFileMax bounds what is copied of the host's own files, in bytes.
	etcFileMax = 1 << 20
	localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`
)

// etcNames are the files that every container gets of its own.
func etcNames() []string { return []string{"hostname", "hosts", "resolv.conf"} }

// writeEtc makes a container's own hostname, hosts and resolv.conf. The container may
// write to them without touching the host's.
func writeEtc(dir string, c worker.Container) error {
	text := map[string]string{
		"hostname":    hostname(c) + "\n",
		"hosts":       hostsFile(c),
		"resolv.conf": resolvConf(c.Spec.DNSConfig),
	}
	for _, name := range etcNames() {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text[name]), 0o644); err != nil {
			return fmt.Errorf("write the container's %s: %w", name, err)
		}
		// The file's mode must not depend on the agent's umask: any user of the container reads it.
		if err := os.Chmod(path, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func etcMounts(dir string, readOnly bool) []specs.Mount {
	var mounts []specs.Mount
	for _, name := range etcNames() {
		flags := []string{"rbind"}
		if readOnly {
			flags = append(flags, "ro")
		}
		mounts = append(mounts, bind(filepath.Join(dir, name), "/etc/"+name, flags, "rprivate"))
	}
	return mounts
}

// hostsFile is the host's for network host, local names otherwise, with the spec's lines behind.
func hostsFile(c worker.Container) string {
	text := localHosts
	if c.Network == networkHost {
		text = hostFile("/etc/hosts", localHosts)
	}
	for _, line := range c.Spec.Hosts {
		text += strings.TrimSpace(line) + "\n"
	}
	return text
}

// resolvConf is the host's, line kinds that the spec sets replaced.
func resolvConf(dns *swarm.DNSConfig) string {
	text := hostFile("/etc/resolv.conf", "")
	if dns == nil {
		return text
	}
	var kept, set strings.Builder
	replaced := map[string]bool{"nameserver": len(dns.Nameservers) > 0, "search": len(dns.Search) > 0, "domain": len(dns.Search) > 0, "options": len(dns.Options) > 0}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 0 || !replaced[fields[0]] {
			kept.WriteString(line)
		}
	}
	for _, address := range dns.Nameservers {
		fmt.Fprintf(&set, "nameserver %s\n", address)
	}
	if len(dns.Search) > 0 {
		fmt.Fprintf(&set, "search %s\n", strings.Join(dns.Search, " "))
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&set, "options %s\n", strings.Join(dns.Options, " "))
	}
	return set.String() + kept.String()
}

// hostFile is a file of the host, always with a final newline; otherwise when there is none.
func hostFile(path, otherwise string) string {
	text, err := readBounded(path, etcFileMax)
	if err != nil {
		return otherwise
	}
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(text, '\n')
	}
	return string(text)
}
