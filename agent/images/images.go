// Package images holds this node's images: from an archive, from peers or from a registry; and serves blobs to peers.
// agent gives it to agent/worker and api.
package images

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"swarm/agent/worker"
	"swarm/rpc"

	"github.com/containerd/containerd/v2/client"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
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
type Images struct{}

var _ worker.Images = (*Images)(nil)

func New(cfg Config) *Images { panic("contract") }

// Held lists every complete image; Changed receives when the list may have changed.
func (i *Images) Held(ctx context.Context) ([]*rpc.HeldImage, error) { panic("contract") }
func (i *Images) Changed() <-chan struct{}                           { panic("contract") }

// ServeHTTP serves GET and HEAD /images/blobs/{digest} to peers, with ranges; nothing but blobs of complete images is served.
func (i *Images) ServeHTTP(w http.ResponseWriter, r *http.Request) { panic("contract") }

func (i *Images) Ensure(ctx context.Context, ref string, holders []string, auth string) (string, error) {
	panic("contract")
}
func (i *Images) Load(ctx context.Context, archive io.Reader, progress func(string)) error {
	panic("contract")
}
func (i *Images) List(ctx context.Context) ([]image.Summary, error) { panic("contract") }
func (i *Images) Inspect(ctx context.Context, ref string) (image.InspectResponse, error) {
	panic("contract")
}
func (i *Images) Remove(ctx context.Context, ref string, force bool) ([]image.DeleteResponse, error) {
	panic("contract")
}
func (i *Images) Pull(ctx context.Context, ref string, holders []string, auth string, progress func(string)) error {
	panic("contract")
}
func (i *Images) Distribution(ctx context.Context, ref, auth string) (registry.DistributionInspect, error) {
	panic("contract")
}
