package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// imagesCachedMax bounds the configurations that are kept in memory.
	imagesCachedMax = 256
	// imageConfigMax bounds an image's configuration, in bytes.
	imageConfigMax = 4 << 20
	// viewLabel marks the snapshots through which an image is read; leftovers are found by it.
	viewLabel = "swarm.view"
	// gcRootLabel keeps a snapshot from being collected while nothing refers to it yet.
	gcRootLabel = "containerd.io/gc.root"
)

// imageInfo is what creating a container needs of an image. It never changes for a digest.
type imageInfo struct {
	chainID string // of the unpacked layers: the parent of the container's snapshot
	config  ocispec.ImageConfig
}

// imageCache remembers images by digest, so that a second container of an image asks nothing.
type imageCache struct {
	mu       sync.Mutex
	byDigest map[string]imageInfo
}

func (c *imageCache) get(digest string) (imageInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, ok := c.byDigest[digest]
	return info, ok
}

func (c *imageCache) put(digest string, info imageInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byDigest == nil || len(c.byDigest) >= imagesCachedMax {
		c.byDigest = make(map[string]imageInfo)
	}
	c.byDigest[digest] = info
}

// image finds an image by the digest that Images.Ensure returned. NotFound when it is not held.
func (r *Runtime) image(ctx context.Context, digest string) (imageInfo, error) {
	if info, ok := r.images.get(digest); ok {
		return info, nil
	}
	image, err := r.heldImage(ctx, digest)
	if err != nil {
		return imageInfo{}, err
	}
	info, err := readImage(ctx, image)
	if err != nil {
		return imageInfo{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	r.images.put(digest, info)
	return info, nil
}

func (r *Runtime) heldImage(ctx context.Context, digest string) (client.Image, error) {
	found, err := r.client.ListImages(ctx, "target.digest=="+strconv.Quote(digest))
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", digest, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("image %s is not on this node: %w", digest, errdefs.ErrNotFound)
	}
	return client.NewImageWithPlatform(r.client, found[0].Metadata(), platforms.Default()), nil
}

func readImage(ctx context.Context, image client.Image) (imageInfo, error) {
	descriptor, err := image.Config(ctx)
	if err != nil {
		return imageInfo{}, err
	}
	if descriptor.Size > imageConfigMax {
		return imageInfo{}, invalid("its configuration has %d bytes, more than %d", descriptor.Size, imageConfigMax)
	}
	blob, err := content.ReadBlob(ctx, image.ContentStore(), descriptor)
	if err != nil {
		return imageInfo{}, err
	}
	var parsed ocispec.Image
	if err := json.Unmarshal(blob, &parsed); err != nil {
		return imageInfo{}, fmt.Errorf("its configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return imageInfo{chainID: identity.ChainID(parsed.RootFS.DiffIDs).String(), config: parsed.Config}, nil
}

// unpack makes an image's snapshots again, should they be missing.
func (r *Runtime) unpack(ctx context.Context, digest string) error {
	image, err := r.heldImage(ctx, digest)
	if err != nil {
		return err
	}
	if err := image.Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", digest, err)
	}
	return nil
}

// withImageRoot mounts an image read-only for as long as read runs.
func (r *Runtime) withImageRoot(ctx context.Context, digest, chainID string, read func(root string) error) (err error) {
	key := "view-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	labels := snapshots.WithLabels(map[string]string{viewLabel: "1", gcRootLabel: time.Now().UTC().Format(time.RFC3339)})
	mounts, err := r.snapshots().View(ctx, key, chainID, labels)
	if errdefs.IsNotFound(err) {
		if err = r.unpack(ctx, digest); err == nil {
			mounts, err = r.snapshots().View(ctx, key, chainID, labels)
		}
	}
	if err != nil {
		return fmt.Errorf("open image %s: %w", digest, err)
	}
	detached := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, r.snapshots().Remove(detached, key)) }()
	target := filepath.Join(r.mountsDir(), key)
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	defer os.Remove(target)
	if err := mount.All(mounts, target); err != nil {
		return fmt.Errorf("mount image %s: %w", digest, err)
	}
	defer func() { err = errors.Join(err, mount.UnmountAll(target, 0)) }()
	return read(target)
}

// unmountLeftovers undoes what an agent that was killed left mounted. Its snapshots go with the next removal sweep.
func (r *Runtime) unmountLeftovers() {
	entries, err := os.ReadDir(r.mountsDir())
	if err != nil {
		return
	}
	for _, e := range entries {
		target := filepath.Join(r.mountsDir(), e.Name())
		if err := mount.UnmountAll(target, 0); err == nil {
			_ = os.Remove(target)
		}
	}
}

// removeLeftoverViews deletes the snapshots through which a killed agent was reading images.
func (r *Runtime) removeLeftoverViews(ctx context.Context) error {
	var keys []string
	err := r.snapshots().Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}, `labels."`+viewLabel+`"==1`)
	for _, key := range keys {
		err = errors.Join(err, r.snapshots().Remove(ctx, key))
	}
	return err
}
