package images

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archiveMax bounds an archive after decompression, in bytes.
const archiveMax = 64 << 30

// Load imports a docker-save or OCI archive, plain or compressed, and reports each loaded reference.
func (i *Images) Load(ctx context.Context, from io.Reader, progress func(string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	select {
	case i.loading <- struct{}{}:
		defer func() { <-i.loading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// The lease keeps blobs from being collected until records refer to them.
	ctx, done, err := i.client.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer done(context.WithoutCancel(ctx))
	if err := i.abortLeftovers(ctx); err != nil {
		return err
	}
	index, err := i.ingest(ctx, from)
	if err != nil {
		return err
	}
	found, err := i.archived(ctx, index)
	if err != nil {
		return err
	}
	for _, record := range found {
		if err := i.keep(ctx, record); err != nil {
			return err
		}
		if isUnnamed(record.Name) {
			progress("Loaded image ID: " + record.Target.Digest.String())
		} else {
			progress("Loaded image: " + familiar(record.Name))
		}
	}
	return nil
}

// abortLeftovers drops what a load that broke off was writing: entries of archives share their names.
func (i *Images) abortLeftovers(ctx context.Context) error {
	statuses, err := i.store().ListStatuses(ctx, "ref~=^tar-")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, s := range statuses {
		if err := i.store().Abort(ctx, s.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("load: %w", err)
		}
	}
	return nil
}

// ingest writes an archive's blobs to the content store and returns its index.
func (i *Images) ingest(ctx context.Context, from io.Reader) (ocispec.Descriptor, error) {
	plain, err := compression.DecompressStream(bufio.NewReader(from))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read archive: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer plain.Close()
	bounded := &boundedReader{reader: plain, left: archiveMax}
	index, err := archive.ImportIndex(ctx, i.store(), bounded)
	if err != nil {
		if bounded.left <= 0 {
			err = errTooLarge
		}
		// Errors of these kinds come from containerd, for instance because the disk is full: the archive may be good.
		if ctx.Err() != nil || errdefs.IsUnavailable(err) || errdefs.IsUnknown(err) || errdefs.IsInternal(err) {
			return index, fmt.Errorf("load: %w", err)
		}
		return index, fmt.Errorf("not an image archive (docker save or OCI layout): %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// What follows the end of the tar archive is padding: read it, so that whoever sends can finish.
	_, err = io.Copy(io.Discard, bounded)
	return index, err
}

var errTooLarge = fmt.Errorf("archive is larger than %d bytes", int64(archiveMax))

type boundedReader struct {
	reader io.Reader
	left   int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.reader.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// archived chooses the images of an archive that can run here: of several manifests with one name the one for this platform.
func (i *Images) archived(ctx context.Context, target ocispec.Descriptor) ([]images.Image, error) {
	var index ocispec.Index
	if err := i.readJSON(ctx, target, &index); err != nil {
		return nil, fmt.Errorf("index of the archive: %w", err)
	}
	var found []images.Image
	var refused error
	for _, m := range index.Manifests {
		if isAttestation(m) || !images.IsIndexType(m.MediaType) && !images.IsManifestType(m.MediaType) {
			continue
		}
		s, err := i.survey(ctx, m)
		if err != nil {
			return nil, err
		}
		name := archiveName(m.Annotations)
		if name == "" {
			name = unnamed + m.Digest.String()
		}
		if !s.complete {
			refused = errors.Join(refused, i.incomplete(familiar(name), s))
			continue
		}
		m.Annotations, m.Data = nil, nil
		found = append(found, images.Image{Name: name, Target: m})
	}
	if len(found) == 0 {
		if refused == nil {
			refused = invalid("archive holds no image")
		}
		return nil, refused
	}
	return found, nil
}

// incomplete says why an image cannot run here.
func (i *Images) incomplete(name string, s *survey) error {
	here := platforms.Format(platforms.DefaultSpec())
	switch {
	case s.missing != "":
		return invalid("image %s lacks blob %s: save it again", name, s.missing)
	case len(s.platforms) > 0:
		return invalid("image %s is for %s, this node is %s: build it for this platform", name, platforms.Format(s.platforms[0]), here)
	}
	return invalid("image %s has nothing for %s", name, here)
}

// keep makes an image's blobs stay, names it and unpacks it.
func (i *Images) keep(ctx context.Context, record images.Image) error {
	children := images.ChildrenHandler(i.store())
	present := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		below, err := children(ctx, d)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc // another platform's
		}
		return below, err
	})
	if err := images.Walk(ctx, images.SetChildrenLabels(i.store(), present), record.Target); err != nil {
		return fmt.Errorf("keep image %s: %w", familiar(record.Name), err)
	}
	if err := i.name(ctx, record); err != nil {
		return fmt.Errorf("name image %s: %w", familiar(record.Name), err)
	}
	defer i.signal()
	return i.unpack(ctx, record)
}

// name writes an image's record. An image that loses its last name to it stays without one: tasks may be pinned to it.
func (i *Images) name(ctx context.Context, record images.Image) error {
	store := i.client.ImageService()
	_, err := store.Create(ctx, record)
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	before, err := store.Get(ctx, record.Name)
	if err != nil {
		return err
	}
	if before.Target.Digest == record.Target.Digest {
		return nil
	}
	same, err := i.byDigest(ctx, before.Target.Digest)
	if err != nil {
		return err
	}
	if len(same) == 1 {
		_, err = store.Create(ctx, images.Image{Name: unnamed + before.Target.Digest.String(), Target: before.Target})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	_, err = store.Update(ctx, record, "target")
	return err
}
