package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"swarm/agent/worker"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// ImageDigestLabel names the image of a container in containerd's own record.
	ImageDigestLabel = "swarm.image.digest"
	// ownerLabel is the data directory of the agent that made a container: several may share a containerd.
	ownerLabel = "swarm.owner"
	// recordName and recordType are the extension of containerd's record that holds the worker.Container.
	recordName = "swarm.container"
	recordType = "swarm/worker.Container"
	runtimeV2  = "io.containerd.runc.v2"
	// preparedMax bounds what is remembered between Create and Start; Start asks again for what was forgotten.
	preparedMax = 4096
)

// prepared is what Start needs of a created container.
type prepared struct {
	rootfs                []mount.Mount
	stdin, stdout, stderr string
	tty                   bool
}

// record is JSON that typeurl carries as it is.
type record []byte

func (r record) GetTypeUrl() string { return recordType }
func (r record) GetValue() []byte   { return r }

// Create prepares a container from an image that is already held. Its log FIFOs are open when it returns.
func (r *Runtime) Create(ctx context.Context, c worker.Container) error {
	return outlast(ctx, func() error { return r.create(ctx, c) })
}

func (r *Runtime) create(ctx context.Context, c worker.Container) error {
	if err := unsupported(c); err != nil {
		return err
	}
	if err := checkID(c.ID); err != nil {
		return err
	}
	if s, err := r.readState(c.ID); err != nil {
		return err
	} else if s.Exit != nil {
		return nil // nothing is made for what ran already, and its log is over
	} else if s.PID != 0 { // a running container keeps its files; its log may need a reader
		_, _, err := r.openLog(ctx, c)
		return err
	}
	info, err := r.image(ctx, c.ImageDigest)
	if err != nil {
		return err
	}
	s, err := r.spec(ctx, c, info)
	if err != nil {
		return err
	}
	stdout, stderr, err := r.openLog(ctx, c)
	if err != nil {
		return err
	}
	p := prepared{stdout: stdout, stderr: stderr, tty: c.Spec.TTY}
	if p.stdin, err = r.openStdin(c); err != nil {
		return err
	}
	if err := r.putRecord(ctx, c, s); err != nil {
		return err
	}
	if p.rootfs, err = r.prepareRoot(ctx, c, info); err != nil {
		return err
	}
	r.remember(c.ID, p)
	return nil
}

// checkID keeps ids usable as file names.
func checkID(id string) error {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return invalid("invalid container id %q", id)
	}
	return nil
}

// spec makes the container's directory, files and volumes, and the OCI spec that refers to them.
func (r *Runtime) spec(ctx context.Context, c worker.Container, info imageInfo) (*specs.Spec, error) {
	dir := r.containerDir(c.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of container %s: %w", c.ID, err)
	}
	if err := writeEtc(dir, c); err != nil {
		return nil, err
	}
	mounts, err := r.mounts(ctx, c, info)
	if err != nil {
		return nil, err
	}
	name := info.config.User
	if c.Spec.User != "" {
		name = c.Spec.User
	}
	user, err := r.user(ctx, c.ImageDigest, info, name, c.Spec.Groups)
	if err != nil {
		return nil, err
	}
	in := specInput{
		container: c, image: info.config, user: user, mounts: mounts, rootPropagation: rootPropagation(c.Spec.Mounts),
		cgroupPath: r.cgroupPath(c.ID), unified: cgroupUnified(), swapLimits: swapLimits(),
	}
	if c.Spec.Init != nil && *c.Spec.Init {
		if in.init, err = findInit(r.cfg.BinDir); err != nil {
			return nil, err
		}
	}
	return buildSpec(in)
}

// findInit is the small init that reaps zombies and passes signals on in a container that asks for one.
func findInit(binDir string) (string, error) {
	for _, name := range []string{"docker-init", "tini-static", "tini"} {
		if path, err := findProgram(binDir, name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("init asked for, but neither docker-init nor tini is on this node: install the package tini: %w", errdefs.ErrFailedPrecondition)
}

func (r *Runtime) openLog(ctx context.Context, c worker.Container) (stdout, stderr string, err error) {
	if r.cfg.Logs == nil {
		return "", "", nil
	}
	var driver string
	var options map[string]string
	if c.LogDriver != nil {
		driver, options = c.LogDriver.Name, c.LogDriver.Options
	}
	stdout, stderr, err = r.cfg.Logs.OpenLog(ctx, c.ID, driver, options)
	if err != nil {
		return "", "", fmt.Errorf("open the log of container %s: %w", c.ID, err)
	}
	return stdout, stderr, nil
}

// openStdin makes a FIFO that nobody writes to: an open standard input never ends.
func (r *Runtime) openStdin(c worker.Container) (string, error) {
	if !c.Spec.OpenStdin {
		return "", nil
	}
	path := filepath.Join(r.containerDir(c.ID), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("make standard input of container %s: %w", c.ID, err)
	}
	return path, nil
}

// putRecord writes containerd's record first: it keeps the snapshot that follows from being collected.
func (r *Runtime) putRecord(ctx context.Context, c worker.Container, s *specs.Spec) error {
	spec, err := typeurl.MarshalAny(s)
	if err != nil {
		return fmt.Errorf("encode the OCI spec of %s: %w", c.ID, err)
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: r.runc, Root: filepath.Join(r.cfg.RunDir, "runc")})
	if err != nil {
		return fmt.Errorf("encode the runtime options of %s: %w", c.ID, err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode container %s: %w", c.ID, err)
	}
	_, err = r.containers().Create(ctx, containers.Container{
		ID:          c.ID,
		Labels:      map[string]string{ImageDigestLabel: c.ImageDigest, ownerLabel: r.cfg.DataDir},
		Image:       c.ImageRef,
		Runtime:     containers.RuntimeInfo{Name: runtimeV2, Options: opts},
		Spec:        spec,
		SnapshotKey: c.ID,
		Snapshotter: snapshotter,
		Extensions:  map[string]typeurl.Any{recordName: record(text)},
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	return nil
}

// prepareRoot makes the container's writable layer. An image whose layers were lost is unpacked again.
func (r *Runtime) prepareRoot(ctx context.Context, c worker.Container, info imageInfo) ([]mount.Mount, error) {
	rootfs, err := r.snapshots().Prepare(ctx, c.ID, info.chainID)
	if errdefs.IsNotFound(err) {
		if err = r.unpack(ctx, c.ImageDigest); err == nil {
			rootfs, err = r.snapshots().Prepare(ctx, c.ID, info.chainID)
		}
	}
	if errdefs.IsAlreadyExists(err) {
		rootfs, err = r.snapshots().Mounts(ctx, c.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("make the root file system of container %s: %w", c.ID, err)
	}
	return rootfs, nil
}

func (r *Runtime) remember(id string, p prepared) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.prepared) >= preparedMax {
		clear(r.prepared)
	}
	r.prepared[id] = p
}

func (r *Runtime) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.prepared, id)
}

// preparedFor is what Create left, found again when this agent did not create the container itself.
func (r *Runtime) preparedFor(ctx context.Context, id string) (prepared, error) {
	r.mu.Lock()
	p, ok := r.prepared[id]
	r.mu.Unlock()
	if ok {
		return p, nil
	}
	info, err := r.containers().Get(ctx, id)
	if err != nil {
		return p, fmt.Errorf("container %s: %w", id, err)
	}
	c, err := decodeRecord(info)
	if err != nil {
		return p, err
	}
	p.tty = c.Spec.TTY
	if p.stdout, p.stderr, err = r.openLog(ctx, c); err != nil {
		return p, err
	}
	if p.stdin, err = r.openStdin(c); err != nil {
		return p, err
	}
	if p.rootfs, err = r.snapshots().Mounts(ctx, id); err != nil {
		return p, fmt.Errorf("root file system of container %s: %w", id, err)
	}
	return p, nil
}

// decodeRecord reads the worker.Container that Create stored.
func decodeRecord(info containers.Container) (worker.Container, error) {
	var c worker.Container
	extension, ok := info.Extensions[recordName]
	if !ok {
		return c, fmt.Errorf("container %s was not made by an agent: %w", info.ID, errdefs.ErrNotFound)
	}
	if err := json.Unmarshal(extension.GetValue(), &c); err != nil {
		return c, fmt.Errorf("record of container %s: %w", info.ID, err)
	}
	if c.Spec == nil {
		return c, fmt.Errorf("record of container %s has no specification: %w", info.ID, errdefs.ErrDataLoss)
	}
	return c, nil
}
