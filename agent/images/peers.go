package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// peersMax bounds the holders that are asked for one image.
	peersMax = 5
)

// peers are the holders as sources, in random order, so that many nodes that need an image do not ask the same one.
func (i *Images) peers(holders []string) []source {
	if i.cfg.Peers == nil {
		return nil
	}
	var sources []source
	for _, at := range rand.Perm(len(holders)) {
		if len(sources) < peersMax {
			sources = append(sources, &peer{address: holders[at], transport: i.cfg.Peers})
		}
	}
	return sources
}

// peer is another node that says it holds an image.
type peer struct {
	address   string // host:port of its node port
	transport http.RoundTripper
}

func (p *peer) String() string { return "peer " + p.address }

// Resolve reads the image's index or manifest itself: only its bytes prove what it is.
func (p *peer) Resolve(ctx context.Context, named reference.Named) (ocispec.Descriptor, error) {
	d := pinned(named)
	if d == "" {
		var err error
		if d, err = p.digestOf(ctx, named); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	raw, err := p.read(ctx, blobRoute+d.String())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return describe(raw, d)
}

// digestOf asks for the image that a peer has under a name.
func (p *peer) digestOf(ctx context.Context, named reference.Named) (digest.Digest, error) {
	raw, err := p.read(ctx, "/images/"+reference.FamiliarString(named)+"/json")
	if err != nil {
		return "", err
	}
	var inspected struct{ ID string }
	if err := json.Unmarshal(raw, &inspected); err != nil {
		return "", fmt.Errorf("answer about %s: %w", named, err)
	}
	return digest.Parse(inspected.ID)
}

// describe verifies a manifest or index against its digest and finds out which of both it is.
func describe(raw []byte, want digest.Digest) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{Digest: want, Size: int64(len(raw))}
	if want.Validate() != nil || want.Algorithm().FromBytes(raw) != want {
		return d, fmt.Errorf("manifest does not match its digest %s: %w", want, errdefs.ErrFailedPrecondition)
	}
	var parsed struct {
		MediaType string
		Manifests []json.RawMessage
		Config    *ocispec.Descriptor
	}
	if err := json.Unmarshal(raw, &parsed); err != nil {
		return d, fmt.Errorf("manifest %s: %w: %w", want, err, errdefs.ErrInvalidArgument)
	}
	switch {
	case images.IsIndexType(parsed.MediaType), images.IsManifestType(parsed.MediaType):
		d.MediaType = parsed.MediaType
	case parsed.MediaType == "" && parsed.Manifests != nil && parsed.Config == nil:
		d.MediaType = ocispec.MediaTypeImageIndex
	case parsed.MediaType == "" && parsed.Config != nil && parsed.Manifests == nil:
		d.MediaType = ocispec.MediaTypeImageManifest
	default:
		return d, invalid("%s is of type %q, not an image", want, parsed.MediaType)
	}
	return d, nil
}

// read gets a small answer.
func (p *peer) read(ctx context.Context, path string) ([]byte, error) {
	body, err := p.get(ctx, path, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var text bytes.Buffer
	if n, err := io.Copy(&text, io.LimitReader(body, manifestMax+1)); err != nil {
		return nil, err
	} else if n > manifestMax {
		return nil, invalid("answer is longer than %d bytes", manifestMax)
	}
	return text.Bytes(), nil
}

// get opens a path at an offset. The reader fails when the peer falls silent.
func (p *peer) get(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	ctx, quiet := newSilence(ctx)
	fail := func(err error) (io.ReadCloser, error) {
		defer quiet.end()
		return nil, quiet.explain(err)
	}
	target := url.URL{Scheme: "http", Host: p.address, Path: path}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return fail(err)
	}
	want := http.StatusOK
	if offset > 0 {
		request.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
		want = http.StatusPartialContent
	}
	response, err := p.transport.RoundTrip(request)
	if err != nil {
		return fail(err)
	}
	if response.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 256))
		response.Body.Close()
		return fail(fmt.Errorf("%s: %s: %w", response.Status, strings.TrimSpace(string(text)), kindOf(response.StatusCode)))
	}
	if offset > 0 && !strings.HasPrefix(response.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(offset, 10)+"-") {
		response.Body.Close()
		return fail(fmt.Errorf("answered another range than asked for: %w", errdefs.ErrUnknown))
	}
	return &guarded{body: response.Body, silence: quiet}, nil
}

func kindOf(status int) error {
	switch status {
	case http.StatusNotFound:
		return errdefs.ErrNotFound
	case http.StatusForbidden, http.StatusUnauthorized:
		return errdefs.ErrPermissionDenied
	}
	return errdefs.ErrUnavailable
}

// Fetch opens a blob lazily: what is there already is skipped by asking for the rest only.
func (p *peer) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return &peerBlob{ctx: ctx, peer: p, blob: d}, nil
}

// peerBlob reads a blob from wherever it was sought to.
type peerBlob struct {
	ctx    context.Context
	peer   *peer
	blob   ocispec.Descriptor
	offset int64
	body   io.ReadCloser
}

func (b *peerBlob) Read(into []byte) (int, error) {
	if b.body == nil {
		body, err := b.peer.get(b.ctx, blobRoute+b.blob.Digest.String(), b.offset)
		if err != nil {
			return 0, err
		}
		b.body = body
	}
	n, err := b.body.Read(into)
	b.offset += int64(n)
	return n, err
}

// Seek supports what resuming needs: an absolute offset.
func (b *peerBlob) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 || offset > b.blob.Size {
		return b.offset, invalid("seek to %d", offset)
	}
	err := b.Close()
	b.body, b.offset = nil, offset
	return offset, err
}

func (b *peerBlob) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
