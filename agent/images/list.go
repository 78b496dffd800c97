package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
)

// notCounted is docker's word for a number that was not worked out.
const notCounted = -1

// List is every image, newest first, one entry per digest.
func (i *Images) List(ctx context.Context) ([]image.Summary, error) {
	records, err := i.records(ctx)
	if err != nil {
		return nil, err
	}
	byDigest := make(map[digest.Digest][]images.Image)
	for _, r := range records {
		byDigest[r.Target.Digest] = append(byDigest[r.Target.Digest], r)
	}
	result := make([]image.Summary, 0, len(byDigest))
	for d, same := range byDigest {
		s, err := i.survey(ctx, same[0].Target)
		if err != nil || s.manifest.Digest == "" {
			continue // nothing of it is here
		}
		tags, digests := repoNames(same)
		target := plain(same[0].Target)
		summary := image.Summary{
			ID: d.String(), RepoTags: tags, RepoDigests: digests, Size: s.size, Labels: s.config.Config.Labels,
			Containers: notCounted, SharedSize: notCounted, Descriptor: &target,
		}
		if s.config.Created != nil {
			summary.Created = s.config.Created.Unix()
		}
		result = append(result, summary)
	}
	slices.SortFunc(result, func(a, b image.Summary) int {
		if a.Created != b.Created {
			return int(b.Created - a.Created)
		}
		return strings.Compare(a.ID, b.ID)
	})
	return result, nil
}

// repoNames are an image's names as users write them: by tag and by digest.
func repoNames(records []images.Image) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for _, r := range records {
		named, err := reference.ParseNormalizedNamed(r.Name)
		if err != nil || isUnnamed(r.Name) {
			continue
		}
		if _, ok := named.(reference.Tagged); ok && pinned(named) == "" {
			tags = append(tags, reference.FamiliarString(named))
		}
		byDigest := reference.FamiliarName(named) + "@" + r.Target.Digest.String()
		if !slices.Contains(digests, byDigest) {
			digests = append(digests, byDigest)
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

// Inspect describes one image. NotFound with docker's text.
func (i *Images) Inspect(ctx context.Context, ref string) (image.InspectResponse, error) {
	found, err := i.find(ctx, ref)
	if err != nil {
		return image.InspectResponse{}, err
	}
	s, err := i.survey(ctx, found[0].Target)
	if err != nil {
		return image.InspectResponse{}, err
	}
	if s.manifest.Digest == "" {
		return image.InspectResponse{}, noSuchImage(ref)
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(s.config.raw, &config); err != nil {
		return image.InspectResponse{}, fmt.Errorf("configuration of image %s: %w: %w", ref, err, errdefs.ErrDataLoss)
	}
	tags, digests := repoNames(found)
	target := plain(found[0].Target)
	response := image.InspectResponse{
		ID: target.Digest.String(), RepoTags: tags, RepoDigests: digests, Author: config.Author, Config: &config.Config,
		Architecture: config.Architecture, Variant: config.Variant, Os: config.OS, OsVersion: config.OSVersion,
		Size: s.size, RootFS: image.RootFS{Type: config.RootFS.Type}, Descriptor: &target,
		GraphDriver: &storage.DriverData{Name: snapshotter},
		Metadata:    image.Metadata{LastTagTime: found[0].UpdatedAt},
	}
	if config.Created != nil {
		response.Created = config.Created.Format(time.RFC3339Nano)
	}
	for _, layer := range config.RootFS.DiffIDs {
		response.RootFS.Layers = append(response.RootFS.Layers, layer.String())
	}
	if n := len(config.History); n > 0 {
		response.Comment = config.History[n-1].Comment
	}
	return response, nil
}

// Pull fetches from holders (host:port of node ports), else the registry, also when a tag is held already: it may have moved.
func (i *Images) Pull(ctx context.Context, ref string, holders []string, auth string, progress func(string)) error {
	named, err := normalize(ref)
	if err != nil {
		return err
	}
	before, localErr := i.local(ctx, named)
	progress("Pulling from " + reference.Path(named))
	d, err := i.flights.do(ctx, "pull\x00"+recordName(named)+"\x00"+auth, func(ctx context.Context) (string, error) {
		return i.fetch(ctx, recordName(named), named, i.sources(named, holders, auth), progress)
	})
	if err != nil {
		return err
	}
	progress("Digest: " + d)
	status := "Downloaded newer image for "
	if localErr == nil && before.Target.Digest.String() == d {
		status = "Image is up to date for "
	}
	progress("Status: " + status + reference.FamiliarString(named))
	return nil
}
