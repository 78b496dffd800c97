package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"swarm/agent/containerd"
	"swarm/agent/keeper"
	"swarm/agent/worker"
	"swarm/api"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

const (
	// defaultLogSizeBytes and defaultLogFiles bound a container's log when its service says nothing.
	defaultLogSizeBytes = 20 << 20
	defaultLogFiles     = 5
)

// containerLogs gives the keeper's FIFOs to the runtime, in the words of docker's log drivers.
type containerLogs struct{ keeper *keeper.Client }

func (l containerLogs) OpenLog(ctx context.Context, containerID, driver string, options map[string]string) (stdout, stderr string, err error) {
	o, err := logOptions(driver, options)
	if err != nil {
		return "", "", err
	}
	return l.keeper.OpenLog(ctx, containerID, o)
}

func (l containerLogs) CloseLog(ctx context.Context, containerID string) error {
	return l.keeper.CloseLog(ctx, containerID)
}

// logOptions reads a log driver's options; json-file knows max-size and max-file.
func logOptions(driver string, options map[string]string) (keeper.LogOptions, error) {
	o := keeper.LogOptions{MaxSizeBytes: defaultLogSizeBytes, MaxFiles: defaultLogFiles}
	switch driver {
	case "none":
		return keeper.LogOptions{Discard: true, MaxFiles: 1}, nil
	case "", "json-file":
	default:
		return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("log driver %q is not known here: use json-file or none", driver))
	}
	for key, value := range options {
		var err error
		switch key {
		case "max-size":
			o.MaxSizeBytes, err = units.RAMInBytes(value)
		case "max-file":
			o.MaxFiles, err = strconv.Atoi(value)
			if err == nil && o.MaxFiles < 1 {
				err = errors.New("at least 1")
			}
		default:
			return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("log option %q is not known: json-file has max-size and max-file", key))
		}
		if err != nil {
			return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("log option %s=%s is not understood (%v)", key, value, err))
		}
	}
	return o, nil
}

// containers is this node's containers as the Engine API shows them.
type containers struct {
	runtime *containerd.Runtime
	logDir  string
}

// List shows every container, the newest first.
func (c containers) List(ctx context.Context) ([]container.Summary, error) {
	all, err := c.runtime.Details(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b containerd.Details) int { return b.CreatedAt.Compare(a.CreatedAt) })
	list := make([]container.Summary, 0, len(all))
	for _, d := range all {
		list = append(list, summary(d))
	}
	return list, nil
}

// Inspect shows one container by id, name or id prefix.
func (c containers) Inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	d, err := c.find(ctx, id)
	if err != nil {
		return container.InspectResponse{}, err
	}
	return inspection(d, c.logDir), nil
}

func (c containers) find(ctx context.Context, id string) (containerd.Details, error) {
	all, err := c.runtime.Details(ctx)
	if err != nil {
		return containerd.Details{}, err
	}
	name := strings.TrimPrefix(id, "/")
	var found []containerd.Details
	for _, d := range all {
		if d.ID == id || d.Container.Name == name {
			return d, nil
		}
		if id != "" && strings.HasPrefix(d.ID, id) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return containerd.Details{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("No such container: %s", id))
	default:
		return containerd.Details{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("multiple IDs found with provided prefix: %s", id))
	}
}

// Logs reads a container's log, also that of one whose task has ended and whose container is gone.
func (c containers) Logs(ctx context.Context, id string, o api.LogOptions, emit func(api.LogLine) error) error {
	full := id
	if _, err := os.Stat(filepath.Join(c.logDir, filepath.Base(id))); errors.Is(err, fs.ErrNotExist) {
		d, err := c.find(ctx, id)
		if err != nil {
			return err
		}
		full = d.ID
	}
	options := keeper.ReadOptions{Stdout: o.Stdout, Stderr: o.Stderr, Since: o.Since, Until: o.Until, Tail: o.Tail, Follow: o.Follow}
	return keeper.ReadLog(ctx, c.logDir, full, options, func(l keeper.Line) error {
		return emit(api.LogLine{Stream: l.Stream, Time: l.Time, Text: l.Text})
	})
}

func summary(d containerd.Details) container.Summary {
	command, args := commandOf(d.Container)
	s := container.Summary{
		ID:              d.ID,
		Names:           []string{"/" + d.Container.Name},
		Image:           d.Container.ImageRef,
		ImageID:         d.Container.ImageDigest,
		Command:         strings.Join(append([]string{command}, args...), " "),
		Created:         d.CreatedAt.Unix(),
		Ports:           []container.PortSummary{},
		Labels:          d.Labels,
		NetworkSettings: &container.NetworkSettingsSummary{Networks: networksOf(d.Container)},
		Mounts:          mountsOf(d.Container),
	}
	s.HostConfig.NetworkMode = d.Container.Network
	s.State, s.Status = stateOf(d, time.Now())
	return s
}

// stateOf is docker's one-word state and the sentence that "docker ps" shows.
func stateOf(d containerd.Details, now time.Time) (container.ContainerState, string) {
	switch {
	case d.Exit != nil:
		return container.StateExited, fmt.Sprintf("Exited (%d) %s ago", d.Exit.Code, units.HumanDuration(now.Sub(d.Exit.At)))
	case d.Running:
		return container.StateRunning, "Up " + units.HumanDuration(now.Sub(d.StartedAt))
	default:
		return container.StateCreated, "Created"
	}
}

func inspection(d containerd.Details, logDir string) container.InspectResponse {
	command, args := commandOf(d.Container)
	state, _ := stateOf(d, time.Now())
	r := container.InspectResponse{
		ID:      d.ID,
		Created: stamp(d.CreatedAt),
		Path:    command,
		Args:    args,
		State: &container.State{
			Status:     state,
			Running:    state == container.StateRunning,
			StartedAt:  stamp(d.StartedAt),
			FinishedAt: stamp(time.Time{}),
		},
		Image:           d.Container.ImageDigest,
		LogPath:         filepath.Join(logDir, d.ID, d.ID+"-json.log"),
		Name:            "/" + d.Container.Name,
		Driver:          "overlayfs",
		Platform:        "linux",
		Mounts:          mountsOf(d.Container),
		HostConfig:      hostConfigOf(d.Container),
		Config:          configOf(d.Container),
		NetworkSettings: &container.NetworkSettings{Networks: networksOf(d.Container)},
	}
	if r.State.Running {
		r.State.Pid = d.PID
	}
	if d.Exit != nil {
		r.State.ExitCode, r.State.OOMKilled, r.State.FinishedAt = d.Exit.Code, d.Exit.OOMKilled, stamp(d.Exit.At)
	}
	return r
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// commandOf is what the service asked to run; empty when the image decides.
func commandOf(c worker.Container) (command string, args []string) {
	all := slices.Concat(c.Spec.Command, c.Spec.Args)
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], all[1:]
}

func networksOf(c worker.Container) map[string]*network.EndpointSettings {
	return map[string]*network.EndpointSettings{c.Network: {NetworkID: c.Network}}
}

func mountsOf(c worker.Container) []container.MountPoint {
	points := make([]container.MountPoint, 0, len(c.Spec.Mounts))
	for _, m := range c.Spec.Mounts {
		p := container.MountPoint{Type: m.Type, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}
		if m.Type == mount.TypeVolume {
			p.Name, p.Driver = m.Source, "local"
		}
		if m.BindOptions != nil {
			p.Propagation = m.BindOptions.Propagation
		}
		points = append(points, p)
	}
	return points
}

func configOf(c worker.Container) *container.Config {
	return &container.Config{
		Hostname:   cmp.Or(c.Hostname, c.ID[:min(12, len(c.ID))]),
		User:       c.Spec.User,
		Tty:        c.Spec.TTY,
		OpenStdin:  c.Spec.OpenStdin,
		Env:        c.Spec.Env,
		Cmd:        c.Spec.Args,
		Entrypoint: c.Spec.Command,
		Image:      c.ImageRef,
		WorkingDir: c.Spec.Dir,
		Labels:     c.Labels,
		StopSignal: c.Spec.StopSignal,
	}
}

func hostConfigOf(c worker.Container) *container.HostConfig {
	h := &container.HostConfig{
		NetworkMode:    container.NetworkMode(c.Network),
		ReadonlyRootfs: c.Spec.ReadOnly,
		CapAdd:         c.Spec.CapabilityAdd,
		CapDrop:        c.Spec.CapabilityDrop,
		Sysctls:        c.Spec.Sysctls,
		Init:           c.Spec.Init,
		Mounts:         c.Spec.Mounts,
	}
	h.LogConfig.Type = "json-file"
	if c.LogDriver != nil && c.LogDriver.Name != "" {
		h.LogConfig.Type, h.LogConfig.Config = c.LogDriver.Name, c.LogDriver.Options
	}
	if c.Resources != nil && c.Resources.Limits != nil {
		h.NanoCPUs, h.Memory = c.Resources.Limits.NanoCPUs, c.Resources.Limits.MemoryBytes
		if pids := c.Resources.Limits.Pids; pids > 0 {
			h.PidsLimit = &pids
		}
	}
	if c.Resources != nil && c.Resources.Reservations != nil {
		h.MemoryReservation = c.Resources.Reservations.MemoryBytes
	}
	return h
}
