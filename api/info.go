package api

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"
)

// Info is the answer of GET /info: Docker's, and what this node knows of others by itself.
type Info struct {
	system.Info
	// SwarmMembers are the members that gossip sees.
	SwarmMembers []GossipMember `json:",omitempty"`
	// SwarmSuspects are ids of nodes that new connections avoid.
	SwarmSuspects []string `json:",omitempty"`
}

func (a *API) info(w http.ResponseWriter, r *request) error {
	status := a.cfg.Node.Status()
	description := a.cfg.Description
	info := Info{Info: a.hostInfo(description), SwarmMembers: status.Gossip, SwarmSuspects: status.Suspects}
	info.ID = status.NodeID
	info.Swarm = a.swarmInfo(status)
	info.Warnings = append(info.Swarm.Warnings, status.Warnings...)
	ctx, cancel := context.WithTimeout(r.Context(), infoWait)
	defer cancel()
	a.countContents(ctx, &info)
	return writeJSON(w, http.StatusOK, info)
}

// countContents adds what this node holds. A runtime that does not answer makes a warning, not a failure: /info is how people look for causes.
func (a *API) countContents(ctx context.Context, info *Info) {
	containers, err := a.cfg.Containers.List(ctx)
	if err != nil {
		info.Warnings = append(info.Warnings, "containers cannot be listed: "+messageOf(err))
	}
	info.Containers = len(containers)
	for _, c := range containers {
		switch c.State {
		case container.StateRunning:
			info.ContainersRunning++
		case container.StatePaused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
	images, err := a.cfg.Images.List(ctx)
	if err != nil {
		info.Warnings = append(info.Warnings, "images cannot be listed: "+messageOf(err))
	}
	info.Images = len(images)
}

func (a *API) hostInfo(d swarm.NodeDescription) system.Info {
	name, version := operatingSystem()
	info := system.Info{
		Driver:             "overlayfs",
		DriverStatus:       [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins:            system.PluginsInfo{Volume: []string{"local"}, Network: []string{"host", "null"}, Authorization: []string{}, Log: []string{"json-file"}},
		MemoryLimit:        true,
		CPUCfsPeriod:       true,
		CPUCfsQuota:        true,
		PidsLimit:          true,
		NFd:                openFiles(),
		NGoroutines:        runtime.NumGoroutine(),
		SystemTime:         time.Now().Format(time.RFC3339Nano),
		LoggingDriver:      "json-file",
		CgroupDriver:       "cgroupfs",
		CgroupVersion:      cgroupVersion(),
		NEventsListener:    a.events.listeners(),
		KernelVersion:      kernelVersion(),
		OperatingSystem:    name,
		OSVersion:          version,
		OSType:             runtime.GOOS,
		Architecture:       machine(),
		NCPU:               runtime.NumCPU(),
		MemTotal:           d.Resources.MemoryBytes,
		GenericResources:   d.Resources.GenericResources,
		DockerRootDir:      a.cfg.DataDir,
		Name:               d.Hostname,
		Labels:             []string{},
		ServerVersion:      a.cfg.Version,
		Runtimes:           map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "runc"}}},
		DefaultRuntime:     "runc",
		LiveRestoreEnabled: true, // containers outlive the agent
		ContainerdCommit:   system.Commit{ID: a.cfg.ContainerdVersion},
		SecurityOptions:    []string{"name=seccomp,profile=builtin"},
		IPv4Forwarding:     readTrimmed("/proc/sys/net/ipv4/ip_forward") == "1",
	}
	if d.Resources.NanoCPUs > 0 {
		info.NCPU = int(d.Resources.NanoCPUs / 1e9)
	}
	if info.Name == "" {
		info.Name, _ = os.Hostname()
	}
	for key, value := range d.Engine.Labels {
		info.Labels = append(info.Labels, key+"="+value)
	}
	return info
}

// swarmInfo answers from what this node knows already: /info must work when nothing else does.
func (a *API) swarmInfo(status Status) swarm.Info {
	info := swarm.Info{
		NodeID: status.NodeID, NodeAddr: status.Address, LocalNodeState: status.State, Error: status.Error,
		ControlAvailable: status.Store != nil, RemoteManagers: status.Managers,
	}
	if info.LocalNodeState == "" {
		info.LocalNodeState = swarm.LocalNodeStateInactive
	}
	if status.State == swarm.LocalNodeStateActive && !status.Heard {
		info.Warnings = append(info.Warnings, "no manager hears this node now: what runs here runs on, nothing new is taken; the others are avoided by what gossip sees")
	}
	if status.Store == nil {
		return info
	}
	state := status.Store.Local()
	members := a.members()
	up, all := managerCounts(state, members)
	info.Nodes, info.Managers = state.Nodes.Len(), all
	if cluster := state.Cluster(); cluster != nil {
		rendered := renderCluster(cluster)
		info.Cluster = &rendered
	}
	if warning := evenManagersWarning(all); warning != "" {
		info.Warnings = append(info.Warnings, warning)
	}
	if leaderless(status.Store) > 0 {
		info.Warnings = append(info.Warnings, messageOf(status.Store.NoLeader()))
	} else if fault := status.Store.DiskFault(); fault != "" {
		info.Warnings = append(info.Warnings, fault)
	} else if up < all {
		info.Warnings = append(info.Warnings, strconv.Itoa(all-up)+" of "+strconv.Itoa(all)+" managers cannot be reached; `node ls` shows which")
	}
	return info
}

func kernelVersion() string { return uname(func(u *unix.Utsname) []byte { return u.Release[:] }) }
func machine() string       { return uname(func(u *unix.Utsname) []byte { return u.Machine[:] }) }

func uname(field func(*unix.Utsname) []byte) string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(field(&u))
}

func operatingSystem() (name, version string) {
	file, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS, ""
	}
	defer file.Close()
	name = runtime.GOOS
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "PRETTY_NAME":
			name = strings.Trim(value, `"`)
		case "VERSION_ID":
			version = strings.Trim(value, `"`)
		}
	}
	return name, version
}

func cgroupVersion() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "2"
	}
	return "1"
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

func readTrimmed(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}
