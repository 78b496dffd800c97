package images

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// unnamed is the name of an image that came without one; its digest follows.
const unnamed = "unnamed@"

// normalize brings a reference to its full form, e.g. hello to docker.io/library/hello:latest.
func normalize(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, invalid("invalid reference format: %q", ref)
	}
	return reference.TagNameOnly(named), nil
}

// pinned is the digest in a reference, "" when it has none.
func pinned(named reference.Named) digest.Digest {
	if d, ok := named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

// recordName is the name under which an image is kept: a pinned one without its tag, which may move on.
func recordName(named reference.Named) string {
	if d := pinned(named); d != "" {
		return reference.TrimNamed(named).Name() + "@" + d.String()
	}
	return named.String()
}

// familiar is a name as users write it.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

// noSuchImage is docker's text.
func noSuchImage(ref string) error {
	if named, err := normalize(ref); err == nil {
		ref = reference.FamiliarString(named)
	}
	return notFound("No such image: %s", ref)
}

// find resolves what a user typed: a name, a pinned name, a digest, or the beginning of an id.
// All records of the image are returned, the one that was named first.
func (i *Images) find(ctx context.Context, ref string) ([]images.Image, error) {
	if d := digest.Digest(ref); d.Validate() == nil {
		return i.findDigest(ctx, ref, d)
	}
	named, nameErr := normalize(ref)
	if nameErr == nil {
		if d := pinned(named); d != "" {
			return i.findDigest(ctx, ref, d)
		}
		record, err := i.client.ImageService().Get(ctx, named.String())
		if err == nil {
			return i.withSiblings(ctx, record)
		}
		if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("look up image %s: %w", ref, err)
		}
	}
	found, err := i.findPrefix(ctx, ref)
	if err != nil || len(found) > 0 {
		return found, err
	}
	if nameErr != nil {
		return nil, nameErr
	}
	return nil, noSuchImage(ref)
}

func (i *Images) findDigest(ctx context.Context, ref string, d digest.Digest) ([]images.Image, error) {
	found, err := i.byDigest(ctx, d)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, noSuchImage(ref)
	}
	return found, nil
}

// withSiblings adds the other names of an image behind the one that was asked for.
func (i *Images) withSiblings(ctx context.Context, record images.Image) ([]images.Image, error) {
	all, err := i.byDigest(ctx, record.Target.Digest)
	if err != nil {
		return nil, err
	}
	found := []images.Image{record}
	for _, other := range all {
		if other.Name != record.Name {
			found = append(found, other)
		}
	}
	return found, nil
}

// findPrefix finds an image by the beginning of its id. InvalidArgument when it begins several.
func (i *Images) findPrefix(ctx context.Context, ref string) ([]images.Image, error) {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if !regexp.MustCompile(`^[0-9a-f]{4,64}$`).MatchString(prefix) {
		return nil, nil
	}
	records, err := i.records(ctx)
	if err != nil {
		return nil, err
	}
	var found []images.Image
	for _, r := range records {
		if !strings.HasPrefix(r.Target.Digest.Encoded(), prefix) {
			continue
		}
		if len(found) > 0 && found[0].Target.Digest != r.Target.Digest {
			return nil, invalid("image id %q is ambiguous: use more of it", ref)
		}
		found = append(found, r)
	}
	return found, nil
}

// archiveName is the name that an archive gives an image; "" when it gives none. A bare
// word in the reference annotation is a repository, except latest, which is only a tag.
func archiveName(annotations map[string]string) string {
	for _, key := range []string{images.AnnotationImageName, "org.opencontainers.image.ref.name"} {
		name := annotations[key]
		if name == "" || name == "latest" {
			continue
		}
		if named, err := normalize(name); err == nil && pinned(named) == "" {
			return named.String()
		}
	}
	return ""
}
