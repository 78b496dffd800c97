package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

const (
	// parallelMax bounds the blobs of one image that are fetched at once.
	parallelMax = 3
	// leaseMax bounds how long blobs of an interrupted fetch stay, to be gone on with.
	leaseMax = 24 * time.Hour
)

// source is somebody who may have an image: a peer or the registry.
type source interface {
	fmt.Stringer
	// Resolve finds the index or manifest of an image. What it returns is checked against a pinned digest.
	Resolve(ctx context.Context, named reference.Named) (ocispec.Descriptor, error)
	// Fetch opens a blob; the reader may be an io.Seeker, so that what was interrupted goes on.
	Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
}

// fetch brings an image from the first source that has it, keeps it under name and returns its digest.
func (i *Images) fetch(ctx context.Context, name string, named reference.Named, sources []source, progress func(string)) (string, error) {
	var asked []string
	for at, s := range sources {
		target, err := s.Resolve(ctx, named)
		if err == nil {
			err = i.fetchTarget(ctx, name, target, sources[at:], progress)
		}
		if err == nil {
			i.log.Info("image fetched", "image", name, "digest", target.Digest, "from", s.String())
			return target.Digest.String(), nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		asked = append(asked, fmt.Sprintf("%s: %v", s, err))
	}
	return "", nowhere(named.String(), asked)
}

// bare names an image by its digest alone: peers need no more.
func bare(d digest.Digest) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(unnamed + d.String())
	if err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// fetchTarget downloads everything of an image that this platform needs, then names and unpacks it.
func (i *Images) fetchTarget(ctx context.Context, name string, target ocispec.Descriptor, sources []source, progress func(string)) error {
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return invalid("%s is of type %q, not an image", target.Digest, target.MediaType)
	}
	ctx, release, err := i.protect(ctx, target.Digest)
	if err != nil {
		return err
	}
	d := &download{images: i, sources: sources, progress: progress}
	if err := images.Dispatch(ctx, i.fetchHandler(d), semaphore.NewWeighted(parallelMax), target); err != nil {
		return err
	}
	s, err := i.survey(ctx, target)
	if err != nil {
		return err
	}
	if !s.complete {
		return i.incomplete(familiar(name), s)
	}
	target.Annotations, target.Data, target.URLs = nil, nil, nil
	if err := i.keep(ctx, images.Image{Name: name, Target: target}); err != nil {
		return err
	}
	return release()
}

// protect keeps what is fetched of an image from being collected. It lasts through a failure, so that the next attempt
// goes on with what is there, and ends with release or after leaseMax.
func (i *Images) protect(ctx context.Context, d digest.Digest) (protected context.Context, release func() error, err error) {
	id := "fetch-" + d.Encoded()
	manager := i.client.LeasesService()
	_, err = manager.Create(ctx, leases.WithID(id), leases.WithExpiration(leaseMax))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, nil, fmt.Errorf("protect image %s: %w", d, err)
	}
	release = func() error {
		if err := manager.Delete(context.WithoutCancel(ctx), leases.Lease{ID: id}); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release image %s: %w", d, err)
		}
		return nil
	}
	return leases.WithLease(ctx, id), release, nil
}

// fetchHandler downloads a blob, then says which blobs follow from it: those of this platform.
func (i *Images) fetchHandler(d *download) images.Handler {
	children := images.FilterPlatforms(images.ChildrenHandler(i.store()), i.platform)
	children = images.LimitManifests(children, i.platform, 1)
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := checkDescriptor(desc); err != nil {
			return nil, err
		}
		// Neither data nor other servers that a manifest of unknown origin names are trusted.
		desc.Data, desc.URLs = nil, nil
		if err := d.blob(ctx, desc); err != nil {
			return nil, err
		}
		below, err := children(ctx, desc)
		if len(below) > childrenMax {
			return nil, invalid("%s refers to %d blobs, more than %d", desc.Digest, len(below), childrenMax)
		}
		return below, err
	})
}

// checkDescriptor bounds what a manifest may make us fetch.
func checkDescriptor(d ocispec.Descriptor) error {
	limit := int64(manifestMax)
	if images.IsLayerType(d.MediaType) {
		limit = blobMax
	}
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if d.Size <= 0 || d.Size > limit {
		return invalid("%s of type %s has %d bytes, allowed are 1 to %d", d.Digest, d.MediaType, d.Size, limit)
	}
	return nil
}

// download is one fetch of an image: blobs come from the first source that gives them whole.
type download struct {
	images   *Images
	progress func(string)

	mu      sync.Mutex
	sources []source // those that failed are behind
}

// blob fetches one blob into the content store, which verifies it. What an earlier attempt left is gone on with.
func (d *download) blob(ctx context.Context, desc ocispec.Descriptor) error {
	var errs []error
	for _, s := range d.order() {
		err := d.from(ctx, s, desc)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, fmt.Errorf("%s: blob %s: %w", s, desc.Digest, err))
		d.demote(s)
	}
	return errors.Join(errs...)
}

func (d *download) from(ctx context.Context, s source, desc ocispec.Descriptor) error {
	store := d.images.store()
	ref := remotes.MakeRefKey(ctx, desc)
	for {
		before, statusErr := store.Status(ctx, ref)
		err := remotes.Fetch(ctx, store, s, desc)
		if err == nil || errdefs.IsAlreadyExists(err) {
			if err == nil && d.progress != nil {
				d.progress(fmt.Sprintf("%s: Pull complete", desc.Digest.Encoded()[:12]))
			}
			return nil
		}
		if !errdefs.IsFailedPrecondition(err) {
			return err
		}
		// The bytes are not what the digest says: nothing of them may be gone on with.
		if abortErr := store.Abort(ctx, ref); abortErr != nil && !errdefs.IsNotFound(abortErr) {
			return errors.Join(err, abortErr)
		}
		if statusErr != nil || before.Offset == 0 {
			d.images.log.Warn("blob refused", "digest", desc.Digest, "from", s.String(), "err", err)
			return fmt.Errorf("does not match its digest: %w", err)
		}
		// The first part came from somebody else: this source gets a chance of its own.
	}
}

func (d *download) order() []source {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]source(nil), d.sources...)
}

// demote asks a source last from now on.
func (d *download) demote(failed source) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var first []source
	for _, s := range d.sources {
		if s != failed {
			first = append(first, s)
		}
	}
	d.sources = append(first, failed)
}
