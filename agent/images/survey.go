package images

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// survey is what this node holds of an image.
type survey struct {
	// complete: everything to run the image on this node's platform is here.
	complete bool
	// platforms that are here in whole.
	platforms []ocispec.Platform
	// blobs that belong to those platforms, with their media types.
	blobs map[digest.Digest]ocispec.Descriptor
	size  int64 // of blobs together, in bytes
	// manifest and config are those of this node's platform, or of the first that is whole.
	manifest ocispec.Descriptor
	config   imageConfig
	// missing names a blob that is not here, for messages.
	missing digest.Digest
}

// imageConfig is an image's configuration, docker's additions included.
type imageConfig struct {
	ocispec.Image
	raw []byte
}

// survey looks at every blob of an image; of a complete image only once.
func (i *Images) survey(ctx context.Context, target ocispec.Descriptor) (*survey, error) {
	i.mu.Lock()
	s := i.surveys[target.Digest]
	i.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s = &survey{blobs: make(map[digest.Digest]ocispec.Descriptor)}
	if err := i.surveyTarget(ctx, s, target); err != nil {
		return nil, fmt.Errorf("survey image %s: %w", target.Digest, err)
	}
	for _, blob := range s.blobs {
		s.size += blob.Size
	}
	if s.complete {
		i.mu.Lock()
		if len(i.surveys) >= surveysCachedMax {
			clear(i.surveys)
		}
		i.surveys[target.Digest] = s
		i.mu.Unlock()
	}
	return s, nil
}

func (i *Images) surveyTarget(ctx context.Context, s *survey, target ocispec.Descriptor) error {
	if !images.IsIndexType(target.MediaType) {
		return i.surveyManifest(ctx, s, target)
	}
	var index ocispec.Index
	if err := i.readJSON(ctx, target, &index); err != nil {
		return noteMissing(s, target, err)
	}
	if len(index.Manifests) > childrenMax {
		return invalid("index refers to %d manifests, more than %d", len(index.Manifests), childrenMax)
	}
	for _, m := range index.Manifests {
		if images.IsManifestType(m.MediaType) && !isAttestation(m) {
			if err := i.surveyManifest(ctx, s, m); err != nil {
				return err
			}
		}
	}
	s.blobs[target.Digest] = target
	return nil
}

// isAttestation tells descriptors that describe another manifest instead of an image.
func isAttestation(m ocispec.Descriptor) bool {
	return m.Platform != nil && m.Platform.OS == "unknown" || m.Annotations["vnd.docker.reference.type"] != ""
}

func (i *Images) surveyManifest(ctx context.Context, s *survey, target ocispec.Descriptor) error {
	var manifest ocispec.Manifest
	if err := i.readJSON(ctx, target, &manifest); err != nil {
		return noteMissing(s, target, err)
	}
	if len(manifest.Layers) > childrenMax {
		return invalid("manifest refers to %d layers, more than %d", len(manifest.Layers), childrenMax)
	}
	config := imageConfig{}
	raw, err := i.readBlob(ctx, manifest.Config)
	if err != nil {
		return noteMissing(s, manifest.Config, err)
	}
	if err := json.Unmarshal(raw, &config.Image); err != nil {
		return fmt.Errorf("configuration %s: %w: %w", manifest.Config.Digest, err, errdefs.ErrInvalidArgument)
	}
	config.raw = raw
	for _, layer := range manifest.Layers {
		if _, err := i.store().Info(ctx, layer.Digest); err != nil {
			return noteMissing(s, layer, err)
		}
	}
	platform := config.Platform
	if target.Platform != nil {
		platform = *target.Platform
	}
	runsHere := i.platform.Match(platform)
	if s.manifest.Digest == "" || runsHere && !s.complete {
		s.manifest, s.config = target, config
	}
	s.complete = s.complete || runsHere
	s.platforms = append(s.platforms, platform)
	for _, d := range append([]ocispec.Descriptor{target, manifest.Config}, manifest.Layers...) {
		s.blobs[d.Digest] = d
	}
	return nil
}

// noteMissing remembers an absent blob; any other error is passed on.
func noteMissing(s *survey, d ocispec.Descriptor, err error) error {
	if !errdefs.IsNotFound(err) {
		return err
	}
	s.missing = d.Digest
	return nil
}

func (i *Images) readJSON(ctx context.Context, d ocispec.Descriptor, into any) error {
	raw, err := i.readBlob(ctx, d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s %s: %w: %w", d.MediaType, d.Digest, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// readBlob reads a small blob from the local store.
func (i *Images) readBlob(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > manifestMax {
		return nil, invalid("%s has %d bytes, more than %d", d.Digest, d.Size, manifestMax)
	}
	d.Data = nil // believed only after verification, which the store has done
	return content.ReadBlob(ctx, i.store(), d)
}

// forget drops what was remembered of an image whose record goes or changes.
func (i *Images) forget(d digest.Digest) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.surveys, d)
	delete(i.unpacked, d)
}
