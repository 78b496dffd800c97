package sim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"swarm/agent"
	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// copyTakes is how long an image takes from a holder; varied by nothing.
const copyTakes = 300 * time.Millisecond

// Images is what one machine holds, by normalized name. It survives agents and power.
type Images struct {
	mu      sync.Mutex // guards the fields below
	held    map[string]bool
	changed chan struct{}
}

// NewImages of a machine that holds none.
func NewImages() *Images { return &Images{held: map[string]bool{}, changed: make(chan struct{}, 1)} }

// Hold puts an image on the machine, as "image load" does.
func (i *Images) Hold(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held[name] = true
	select {
	case i.changed <- struct{}{}:
	default:
	}
}

func (i *Images) holds(name string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held[name]
}

func digestOf(name string) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, sum(name))
}

func sum(text string) []byte {
	s := sha256.Sum256([]byte(text))
	return s[:]
}

// withoutDigest is a reference's name and tag.
func withoutDigest(ref string) string {
	name, _, _ := strings.Cut(ref, "@")
	return name
}

// imagesOf is a machine's images as one process sees them.
type imagesOf struct {
	*Images
	process context.Context
	peers   http.RoundTripper
}

var _ agent.Images = imagesOf{}

// blobPath is where a node shows others that it has an image: the simulation's stand-in for its blobs.
const blobPath = "/images/blobs/"

// Ensure copies an image from the first holder that can be reached.
func (i imagesOf) Ensure(ctx context.Context, ref string, holders []string, _ string) (string, error) {
	name := withoutDigest(ref)
	if i.holds(name) {
		return digestOf(name).String(), nil
	}
	for _, holder := range holders {
		if i.copyFrom(ctx, holder, name) == nil {
			i.Hold(name)
			return digestOf(name).String(), nil
		}
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return "", fmt.Errorf("image %s: asked %d nodes: %w", ref, len(holders), errdefs.ErrUnavailable)
}

func (i imagesOf) copyFrom(ctx context.Context, holder, name string) error {
	const answerMax = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+holder+blobPath+digestOf(name).String(), nil)
	if err != nil {
		return err
	}
	answer, err := i.peers.RoundTrip(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %w", answer.Status, errdefs.ErrNotFound)
	}
	timer := time.NewTimer(copyTakes)
	defer timer.Stop()
	select {
	case <-timer.C:
		return i.process.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ServeHTTP answers other nodes.
func (i imagesOf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, name := range i.names() {
		if strings.HasSuffix(r.URL.Path, digestOf(name).String()) {
			w.WriteHeader(http.StatusOK)
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
}

func (i *Images) names() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var names []string
	for name := range i.held {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Held is what the agent reports.
func (i imagesOf) Held(context.Context) ([]*rpc.HeldImage, error) {
	var held []*rpc.HeldImage
	for _, name := range i.names() {
		held = append(held, &rpc.HeldImage{Name: name, Digest: digestOf(name).String(), MediaType: ocispec.MediaTypeImageIndex, SizeBytes: 1 << 20,
			Platforms: []*rpc.Platform{{Os: "linux", Architecture: "amd64"}}})
	}
	return held, nil
}

// Changed receives after Hold.
func (i imagesOf) Changed() <-chan struct{} { return i.changed }

// Load takes any archive for the image hello.
func (i imagesOf) Load(_ context.Context, archive io.Reader, progress func(string)) error {
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return err
	}
	i.Hold(helloImage)
	progress("Loaded image: hello:latest")
	return nil
}

// helloImage is the name under which managers know the image hello.
const helloImage = "docker.io/library/hello:latest"

// List is empty: no story of the simulation looks.
func (i imagesOf) List(context.Context) ([]image.Summary, error) { return nil, nil }

// Inspect finds nothing: no story of the simulation looks.
func (i imagesOf) Inspect(_ context.Context, ref string) (image.InspectResponse, error) {
	return image.InspectResponse{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

// Remove finds nothing to remove.
func (i imagesOf) Remove(_ context.Context, ref string, _ bool) ([]image.DeleteResponse, error) {
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

// Pull finds no registry.
func (i imagesOf) Pull(_ context.Context, ref string, _ []string, _ string, _ func(string)) error {
	return fmt.Errorf("image %s: no registry here: %w", ref, errdefs.ErrNotFound)
}

// Distribution knows what the machine holds.
func (i imagesOf) Distribution(_ context.Context, ref, _ string) (registry.DistributionInspect, error) {
	if name := withoutDigest(ref); i.holds(name) {
		return registry.DistributionInspect{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digestOf(name)}}, nil
	}
	return registry.DistributionInspect{}, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}
