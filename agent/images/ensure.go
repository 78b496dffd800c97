package images

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Ensure makes ref available and ready for containers: from the local store, else from a holder
// (host:port of node ports), else from the registry. It returns the image's digest.
// NotFound when nobody has it; the text says who was asked.
func (i *Images) Ensure(ctx context.Context, ref string, holders []string, auth string) (string, error) {
	if d := digest.Digest(ref); d.Validate() == nil {
		return i.ensureDigest(ctx, d, holders)
	}
	named, err := normalize(ref)
	if err != nil {
		return "", err
	}
	record, err := i.local(ctx, named)
	if err == nil {
		return i.ready(ctx, record)
	}
	if !errdefs.IsNotFound(err) {
		return "", err
	}
	return i.flights.do(ctx, recordName(named)+"\x00"+auth, func(ctx context.Context) (string, error) {
		return i.fetch(ctx, recordName(named), named, i.sources(named, holders, auth), nil)
	})
}

// ensureDigest serves a bare digest, for which there is no registry to ask.
func (i *Images) ensureDigest(ctx context.Context, d digest.Digest, holders []string) (string, error) {
	found, err := i.byDigest(ctx, d)
	if err != nil {
		return "", err
	}
	for _, record := range found {
		if s, err := i.survey(ctx, record.Target); err == nil && s.complete {
			return i.ready(ctx, record)
		}
	}
	named, err := bare(d)
	if err != nil {
		return "", err
	}
	return i.flights.do(ctx, d.String(), func(ctx context.Context) (string, error) {
		return i.fetch(ctx, unnamed+d.String(), named, i.peers(holders), nil)
	})
}

func (i *Images) ready(ctx context.Context, record images.Image) (string, error) {
	return record.Target.Digest.String(), i.unpack(ctx, record)
}

// local finds a complete image in this node's store. NotFound when it is not there or lacks blobs.
func (i *Images) local(ctx context.Context, named reference.Named) (images.Image, error) {
	var found []images.Image
	if d := pinned(named); d != "" {
		var err error
		if found, err = i.byDigest(ctx, d); err != nil {
			return images.Image{}, err
		}
	} else {
		record, err := i.client.ImageService().Get(ctx, named.String())
		if err != nil {
			return images.Image{}, err
		}
		found = append(found, record)
	}
	for _, record := range found {
		if s, err := i.survey(ctx, record.Target); err == nil && s.complete {
			return record, nil
		}
	}
	return images.Image{}, noSuchImage(named.String())
}

// isUnnamed tells images that have only a digest.
func isUnnamed(name string) bool { return strings.HasPrefix(name, unnamed) }

// nowhere says who was asked in vain.
func nowhere(name string, asked []string) error {
	return notFound("image %s is nowhere: not in the local store%s: load it on any node with \"swarm image load\", or check its name",
		familiar(name), strings.Join(append([]string{""}, asked...), "; "))
}
