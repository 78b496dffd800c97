package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	registryDialMax   = 10 * time.Second // to reach a registry
	registryAnswerMax = 30 * time.Second // for it to begin an answer
)

// sources are all who may have an image: holders first, its registry last.
func (i *Images) sources(named reference.Named, holders []string, auth string) []source {
	return append(i.peers(holders), i.registry(named, auth))
}

// hub is the registry of one reference.
type hub struct {
	named    reference.Named
	resolver remotes.Resolver
	err      error // of the credentials
}

// registry prepares to ask a reference's registry; credentials go to nobody else.
func (i *Images) registry(named reference.Named, auth string) *hub {
	credentials, err := authconfig.Decode(auth)
	if err != nil {
		return &hub{named: named, err: fmt.Errorf("credentials: %w: %w", err, errdefs.ErrInvalidArgument)}
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: registryDialMax}).DialContext,
		TLSHandshakeTimeout:   registryDialMax,
		ResponseHeaderTimeout: registryAnswerMax,
		IdleConnTimeout:       registryAnswerMax,
		MaxIdleConnsPerHost:   parallelMax,
	}
	web := &http.Client{Transport: transport}
	headers := http.Header{}
	if credentials.RegistryToken != "" {
		headers.Set("Authorization", "Bearer "+credentials.RegistryToken)
	}
	authorizer := docker.NewDockerAuthorizer(docker.WithAuthClient(web), docker.WithAuthCreds(func(string) (string, string, error) {
		return login(credentials)
	}))
	hosts := docker.ConfigureDefaultRegistries(docker.WithClient(web), docker.WithPlainHTTP(i.plainHTTP), docker.WithAuthorizer(authorizer))
	return &hub{named: named, resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: headers})}
}

// login is a user and password, or an identity token without user.
func login(c *registry.AuthConfig) (user, secret string, err error) {
	if c.IdentityToken != "" {
		return "", c.IdentityToken, nil
	}
	return c.Username, c.Password, nil
}

func (i *Images) plainHTTP(host string) (bool, error) {
	if slices.Contains(i.cfg.InsecureRegistries, host) {
		return true, nil
	}
	return docker.MatchLocalhost(host)
}

func (h *hub) String() string { return "registry " + reference.Domain(h.named) }

// Resolve asks for a pinned digest, or for what the tag stands for now.
func (h *hub) Resolve(ctx context.Context, named reference.Named) (ocispec.Descriptor, error) {
	if h.err != nil {
		return ocispec.Descriptor{}, h.err
	}
	_, d, err := h.resolver.Resolve(ctx, recordName(named))
	if err != nil {
		return d, err
	}
	if want := pinned(named); want != "" && d.Digest != want {
		return d, fmt.Errorf("answered %s instead of %s: %w", d.Digest, want, errdefs.ErrFailedPrecondition)
	}
	return d, nil
}

func (h *hub) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if h.err != nil {
		return nil, h.err
	}
	fetcher, err := h.resolver.Fetcher(ctx, recordName(h.named))
	if err != nil {
		return nil, err
	}
	ctx, quiet := newSilence(ctx)
	body, err := fetcher.Fetch(ctx, d)
	if err != nil {
		defer quiet.end()
		return nil, quiet.explain(err)
	}
	return &guarded{body: body, silence: quiet}, nil
}

// readJSON fetches a small blob and verifies it.
func (h *hub) readJSON(ctx context.Context, d ocispec.Descriptor, into any) error {
	if d.Size > manifestMax {
		return invalid("%s has %d bytes, more than %d", d.Digest, d.Size, manifestMax)
	}
	body, err := h.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, manifestMax))
	if err != nil {
		return err
	}
	if d.Digest.Validate() != nil || digest.FromBytes(raw) != d.Digest {
		return fmt.Errorf("%s does not match its digest: %w", d.Digest, errdefs.ErrFailedPrecondition)
	}
	return json.Unmarshal(raw, into)
}

// platforms reads for which platforms an image of the registry is.
func (h *hub) platforms(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Platform, error) {
	if images.IsIndexType(d.MediaType) {
		var index ocispec.Index
		if err := h.readJSON(ctx, d, &index); err != nil {
			return nil, err
		}
		return indexPlatforms(index), nil
	}
	var manifest ocispec.Manifest
	if err := h.readJSON(ctx, d, &manifest); err != nil {
		return nil, err
	}
	var config ocispec.Image
	if err := h.readJSON(ctx, manifest.Config, &config); err != nil {
		return nil, err
	}
	return []ocispec.Platform{config.Platform}, nil
}

func indexPlatforms(index ocispec.Index) []ocispec.Platform {
	var all []ocispec.Platform
	for _, m := range index.Manifests {
		if m.Platform != nil && !isAttestation(m) {
			all = append(all, *m.Platform)
		}
	}
	return all
}

// Distribution resolves a reference to its digest and platforms: locally, else in the registry.
func (i *Images) Distribution(ctx context.Context, ref, auth string) (registry.DistributionInspect, error) {
	named, err := normalize(ref)
	if err != nil {
		return registry.DistributionInspect{}, err
	}
	record, err := i.local(ctx, named)
	if err == nil {
		return i.localDistribution(ctx, record)
	}
	if !errdefs.IsNotFound(err) {
		return registry.DistributionInspect{}, err
	}
	h := i.registry(named, auth)
	d, err := h.Resolve(ctx, named)
	if err != nil {
		return registry.DistributionInspect{}, fmt.Errorf("ask %s for %s: %w", h, reference.FamiliarString(named), err)
	}
	platforms, err := h.platforms(ctx, d)
	if err != nil {
		return registry.DistributionInspect{}, fmt.Errorf("ask %s for the platforms of %s: %w", h, reference.FamiliarString(named), err)
	}
	return registry.DistributionInspect{Descriptor: plain(d), Platforms: platforms}, nil
}

func (i *Images) localDistribution(ctx context.Context, record images.Image) (registry.DistributionInspect, error) {
	s, err := i.survey(ctx, record.Target)
	if err != nil {
		return registry.DistributionInspect{}, err
	}
	return registry.DistributionInspect{Descriptor: plain(record.Target), Platforms: s.platforms}, nil
}

// plain is a descriptor without what only this node knows.
func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
