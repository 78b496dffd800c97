package images

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobRoute is where peers ask for blobs; the digest follows.
const blobRoute = "/images/blobs/"

// ServeHTTP serves GET and HEAD /images/blobs/{digest} to peers, with ranges; nothing but blobs of complete images is served.
func (i *Images) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d, status := blobDigest(r)
	if status != 0 {
		http.Error(w, http.StatusText(status), status)
		return
	}
	blob, err := i.servable(r, d)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	reader, err := i.store().ReaderAt(r.Context(), blob)
	if err != nil {
		http.Error(w, "blob "+d.String()+" cannot be read", statusOf(err))
		return
	}
	defer reader.Close()
	// A digest never changes its bytes: it is its own entity tag.
	w.Header().Set("Etag", `"`+d.String()+`"`)
	w.Header().Set("Content-Type", blob.MediaType)
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(reader, 0, reader.Size()))
}

// blobDigest is what a request asks for, or the status that refuses it.
func blobDigest(r *http.Request) (digest.Digest, int) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "", http.StatusMethodNotAllowed
	}
	text, ok := strings.CutPrefix(r.URL.Path, blobRoute)
	d := digest.Digest(text)
	if !ok || d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return "", http.StatusNotFound
	}
	return d, 0
}

// servable finds a blob among those of complete images.
func (i *Images) servable(r *http.Request, d digest.Digest) (ocispec.Descriptor, error) {
	records, err := i.records(r.Context())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, record := range records {
		s, err := i.survey(r.Context(), record.Target)
		if err != nil || !s.complete {
			continue
		}
		if blob, ok := s.blobs[d]; ok {
			blob.Data = nil
			return blob, nil
		}
	}
	return ocispec.Descriptor{}, errNoBlob
}

var errNoBlob = errors.Join(errors.New("no image on this node has this blob"), errdefs.ErrNotFound)

func statusOf(err error) int {
	if errdefs.IsNotFound(err) {
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}
