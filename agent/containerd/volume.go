package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"swarm/agent/worker"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	volumeNameMax = 255
	// copyMark stands beside a volume's data once the image's content was copied, or need not be.
	copyMark = "filled"
)

// volumeRecord is kept beside a volume's data.
type volumeRecord struct {
	CreatedAt time.Time
	Labels    map[string]string
}

// mounts makes the container's own mounts, creating volumes on first use.
func (r *Runtime) mounts(ctx context.Context, c worker.Container, info imageInfo) ([]specs.Mount, error) {
	var result []specs.Mount
	covered := make(map[string]bool)
	for i, m := range c.Spec.Mounts {
		made, err := r.mount(ctx, c, info, m, i)
		if err != nil {
			return nil, err
		}
		covered[made.Destination] = true
		result = append(result, made)
	}
	// What the image declares as a volume stays writable and fast, and goes with the container.
	for i, target := range slices.Sorted(maps.Keys(info.config.Volumes)) {
		target = filepath.Join("/", target)
		if covered[target] || target == "/" {
			continue
		}
		made, err := r.anonymousVolume(ctx, c, info, mount.Mount{Target: target}, "image-"+strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		result = append(result, made)
	}
	for _, m := range etcMounts(r.containerDir(c.ID), c.Spec.ReadOnly) {
		if !covered[m.Destination] {
			result = append(result, m)
		}
	}
	sortMounts(result)
	return result, nil
}

func (r *Runtime) mount(ctx context.Context, c worker.Container, info imageInfo, m mount.Mount, i int) (specs.Mount, error) {
	if err := checkTarget(m); err != nil {
		return specs.Mount{}, err
	}
	switch {
	case m.Type == mount.TypeBind:
		return bindMount(m)
	case m.Type == mount.TypeTmpfs:
		return tmpfsMount(m)
	case m.Type == mount.TypeVolume && m.Source == "":
		return r.anonymousVolume(ctx, c, info, m, "mount-"+strconv.Itoa(i))
	case m.Type == mount.TypeVolume:
		return r.namedVolume(ctx, c, info, m)
	}
	return specs.Mount{}, notYet("mounts of type %q are not there yet: use bind, volume or tmpfs", m.Type)
}

func (r *Runtime) anonymousVolume(ctx context.Context, c worker.Container, info imageInfo, m mount.Mount, name string) (specs.Mount, error) {
	return r.volume(ctx, c, info, m, filepath.Join(r.containerDir(c.ID), name))
}

func (r *Runtime) namedVolume(ctx context.Context, c worker.Container, info imageInfo, m mount.Mount) (specs.Mount, error) {
	if err := checkVolumeName(m.Source); err != nil {
		return specs.Mount{}, err
	}
	return r.volume(ctx, c, info, m, filepath.Join(r.volumesDir(), m.Source))
}

func checkVolumeName(name string) error {
	if len(name) > volumeNameMax || !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(name) {
		return invalid("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. "+
			"If you intended to pass a host directory, use absolute path", name)
	}
	return nil
}

// volume makes the directory of a volume, fills it from the image on first use, and binds it.
func (r *Runtime) volume(ctx context.Context, c worker.Container, info imageInfo, m mount.Mount, dir string) (specs.Mount, error) {
	o := m.VolumeOptions
	if o == nil {
		o = &mount.VolumeOptions{}
	}
	if d := o.DriverConfig; d != nil && (d.Name != "" && d.Name != "local" || len(d.Options) > 0) {
		return specs.Mount{}, notYet("volume drivers and their options are not there yet: use the plain local driver for %s", m.Source)
	}
	data := filepath.Join(dir, "_data")
	if err := r.makeVolume(ctx, c, info, m, o, dir); err != nil {
		return specs.Mount{}, err
	}
	if o.Subpath != "" {
		inside, err := subpath(data, o.Subpath)
		if err != nil {
			return specs.Mount{}, err
		}
		data = inside
	}
	return bind(data, m.Target, bindFlags(m.ReadOnly, &mount.BindOptions{}), string(mount.PropagationRPrivate)), nil
}

func (r *Runtime) makeVolume(ctx context.Context, c worker.Container, info imageInfo, m mount.Mount, o *mount.VolumeOptions, dir string) error {
	r.volumesMu.Lock()
	defer r.volumesMu.Unlock()
	data, mark := filepath.Join(dir, "_data"), filepath.Join(dir, copyMark)
	if _, err := os.Stat(mark); err == nil {
		return nil
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return fmt.Errorf("make volume %s: %w", m.Source, err)
	}
	record, err := json.Marshal(volumeRecord{CreatedAt: time.Now().UTC(), Labels: o.Labels})
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "volume.json"), record); err != nil {
		return err
	}
	if !o.NoCopy {
		if err := r.fillVolume(ctx, c.ImageDigest, info, data, m.Target); err != nil {
			return fmt.Errorf("fill volume %s from the image's %s: %w", m.Source, m.Target, err)
		}
	}
	return writeFile(mark, nil)
}

// fillVolume copies what the image has at target into an empty volume, owner and mode of the directory included.
func (r *Runtime) fillVolume(ctx context.Context, digest string, info imageInfo, data, target string) error {
	entries, err := os.ReadDir(data)
	if err != nil || len(entries) > 0 {
		return err
	}
	return r.withImageRoot(ctx, digest, info.chainID, func(root string) error {
		source, err := fs.RootPath(root, target)
		if err != nil {
			return err
		}
		if stat, err := os.Stat(source); err != nil || !stat.IsDir() {
			return nil // the image has nothing there, or a file: the volume starts empty
		}
		return fs.CopyDir(data, source)
	})
}

// subpath is a directory inside of a volume; links cannot lead out of it.
func subpath(data, sub string) (string, error) {
	root, err := os.OpenRoot(data)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(sub); err != nil {
		return "", fmt.Errorf("cannot access path %s of the volume: %w: %w", sub, err, errdefs.ErrInvalidArgument)
	}
	return fs.RootPath(data, sub)
}

// RemoveVolume deletes a named volume and its data. It must not be in use.
func (r *Runtime) RemoveVolume(_ context.Context, name string) error {
	if err := checkVolumeName(name); err != nil {
		return err
	}
	r.volumesMu.Lock()
	defer r.volumesMu.Unlock()
	dir := filepath.Join(r.volumesDir(), name)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("get %s: no such volume: %w", name, errdefs.ErrNotFound)
	}
	return os.RemoveAll(dir)
}
