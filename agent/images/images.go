// Package images holds this node's images: from an archive, from peers or from a registry; and serves blobs to peers.
// agent gives it to agent/worker and api.
package images

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"

	"swarm/agent/worker"
	"swarm/rpc"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
)

const (
	// snapshotter is where images are unpacked; it is the one that containers use.
	snapshotter = "overlayfs"
	// manifestMax bounds an index, manifest or configuration, in bytes.
	manifestMax = 8 << 20
	// blobMax bounds one layer, in bytes.
	blobMax = 64 << 30
	// childrenMax bounds what one index or manifest may refer to.
	childrenMax = 1024
	// surveysCachedMax bounds the images whose blobs are remembered.
	surveysCachedMax = 1024
)

// Config is what the image store needs.
type Config struct {
	Client *client.Client
	// Peers reaches other nodes' blobs over swarm-node; nil while in no cluster.
	Peers http.RoundTripper
	// InsecureRegistries are host:port that may be spoken to over plain HTTP (loopback always may).
	InsecureRegistries []string
	Log                *slog.Logger
}

// Images implements worker.Images and api.Images.
type Images struct {
	cfg      Config
	log      *slog.Logger
	client   *client.Client
	platform platforms.MatchComparer
	changed  chan struct{} // one pending signal at most
	flights  flights
	loading  chan struct{} // a token: archives are read one at a time

	mu sync.Mutex
	// surveys of complete images: while an image's record stands, its blobs do.
	surveys map[digest.Digest]*survey
	// unpacked are images whose layers are known to be ready for containers.
	unpacked map[digest.Digest]bool
}

var _ worker.Images = (*Images)(nil)

func New(cfg Config) *Images {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Images{
		cfg:      cfg,
		log:      cfg.Log.With("component", "images"),
		client:   cfg.Client,
		platform: platforms.Default(),
		changed:  make(chan struct{}, 1),
		flights:  flights{byKey: make(map[string]*flight)},
		loading:  make(chan struct{}, 1),
		surveys:  make(map[digest.Digest]*survey),
		unpacked: make(map[digest.Digest]bool),
	}
}

// Held lists every complete image; Changed receives when the list may have changed.
func (i *Images) Held(ctx context.Context) ([]*rpc.HeldImage, error) {
	records, err := i.records(ctx)
	if err != nil {
		return nil, err
	}
	var held []*rpc.HeldImage
	for _, record := range records {
		s, err := i.survey(ctx, record.Target)
		if err != nil || !s.complete {
			continue // being fetched, or of another platform
		}
		image := &rpc.HeldImage{Name: record.Name, Digest: record.Target.Digest.String(), MediaType: record.Target.MediaType, SizeBytes: s.size}
		for _, p := range s.platforms {
			image.Platforms = append(image.Platforms, &rpc.Platform{Os: p.OS, Architecture: p.Architecture})
		}
		held = append(held, image)
	}
	return held, nil
}

// Changed receives when Held may have changed.
func (i *Images) Changed() <-chan struct{} { return i.changed }

func (i *Images) signal() {
	select {
	case i.changed <- struct{}{}:
	default:
	}
}

func (i *Images) store() content.Store { return i.client.ContentStore() }

func (i *Images) records(ctx context.Context, filters ...string) ([]images.Image, error) {
	records, err := i.client.ImageService().List(ctx, filters...)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return records, nil
}

// byDigest are the names of an image.
func (i *Images) byDigest(ctx context.Context, d digest.Digest) ([]images.Image, error) {
	return i.records(ctx, "target.digest=="+strconv.Quote(d.String()))
}

// unpack makes an image's layers ready for containers, once.
func (i *Images) unpack(ctx context.Context, record images.Image) error {
	i.mu.Lock()
	done := i.unpacked[record.Target.Digest]
	i.mu.Unlock()
	if done {
		return nil
	}
	image := client.NewImageWithPlatform(i.client, record, i.platform)
	if err := image.Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack image %s: %w", familiar(record.Name), err)
	}
	i.mu.Lock()
	i.unpacked[record.Target.Digest] = true
	i.mu.Unlock()
	return nil
}
