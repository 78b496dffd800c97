package api

import (
	"encoding/json"
	"net/http"
	"slices"

	"swarm/raftstore"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageArchiveBytesMax bounds an archive that is loaded.
const imageArchiveBytesMax = 256 << 30

func (a *API) imageList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("reference", "label", "dangling")
	if err != nil {
		return err
	}
	dangling, danglingAsked, err := f.truth("dangling")
	if err != nil {
		return err
	}
	images, err := a.cfg.Images.List(r.Context())
	if err != nil {
		return err
	}
	list := []image.Summary{}
	for _, i := range images {
		if danglingAsked && dangling != (len(i.RepoTags) == 0) || !f.labels("label", i.Labels) || !matchReference(f["reference"], i) {
			continue
		}
		list = append(list, i)
	}
	return writeJSON(w, http.StatusOK, list)
}

// matchReference compares an image's names with patterns such as hello or registry:5000/*:v1.
func matchReference(patterns []string, i image.Summary) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, name := range slices.Concat(i.RepoTags, i.RepoDigests) {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		for _, pattern := range patterns {
			if ok, err := reference.FamiliarMatch(pattern, ref); err == nil && ok {
				return true
			}
		}
	}
	return false
}

func (a *API) imageInspect(w http.ResponseWriter, r *request) error {
	found, err := a.cfg.Images.Inspect(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, found)
}

func (a *API) imageRemove(w http.ResponseWriter, r *request) error {
	removed, err := a.cfg.Images.Remove(r.Context(), r.vars["name"], r.flag("force"))
	if err != nil {
		return err
	}
	if removed == nil {
		removed = []image.DeleteResponse{}
	}
	return writeJSON(w, http.StatusOK, removed)
}

// progress writes JSON messages while a load or pull goes on. Its first message begins the answer, so what fails before still gets a proper status.
type progress struct {
	w       http.ResponseWriter
	encoder *json.Encoder
}

// streamError is the last message of a stream that failed, in both forms that clients look for.
type streamError struct {
	Detail *jsonstream.Error `json:"errorDetail"`
	Error  string            `json:"error"`
}

func newProgress(w http.ResponseWriter) *progress { return &progress{w: w} }

func (p *progress) send(message any) {
	if p.encoder == nil {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
		p.encoder = json.NewEncoder(p.w)
	}
	_ = p.encoder.Encode(message) // a client that went away ends the request's context
	_ = http.NewResponseController(p.w).Flush()
}

// finish reports how it ended.
func (p *progress) finish(err error) error {
	if err == nil {
		if p.encoder == nil {
			p.w.Header().Set("Content-Type", "application/json")
			p.w.WriteHeader(http.StatusOK)
		}
		return nil
	}
	if p.encoder == nil {
		return err
	}
	text := messageOf(err)
	p.send(streamError{Detail: &jsonstream.Error{Code: statusOf(err), Message: text}, Error: text})
	return nil
}

func (a *API) imageLoad(w http.ResponseWriter, r *request) error {
	p := newProgress(w)
	// Docker's client asks for quiet when it prints to no terminal. That is about progress, and what was loaded is the result.
	err := a.cfg.Images.Load(r.Context(), http.MaxBytesReader(w, r.Body, imageArchiveBytesMax), func(message string) {
		p.send(jsonstream.Message{Stream: message + "\n"})
	})
	return p.finish(err)
}

func (a *API) imagePull(w http.ResponseWriter, r *request) error {
	query := r.URL.Query()
	if query.Get("fromSrc") != "" {
		return notYet("importing a file system as an image is not supported yet; use `swarm image load` with an archive")(w, r)
	}
	ref, err := pullReference(query.Get("fromImage"), query.Get("tag"))
	if err != nil {
		return err
	}
	p := newProgress(w)
	err = a.cfg.Images.Pull(r.Context(), ref.String(), a.holders(ref), r.Header.Get(registry.AuthHeader), func(message string) {
		p.send(jsonstream.Message{Status: message})
	})
	return p.finish(err)
}

// pullReference joins a name with a tag or digest; without either it is latest.
func pullReference(name, tag string) (reference.Named, error) {
	if name == "" {
		return nil, invalid("fromImage is missing: name the image to pull")
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, invalid("invalid reference %q: %s", name, err)
	}
	switch d, digestErr := digest.Parse(tag); {
	case tag == "":
		return reference.TagNameOnly(ref), nil
	case digestErr == nil:
		ref, err = reference.WithDigest(reference.TrimNamed(ref), d)
	default:
		ref, err = reference.WithTag(reference.TrimNamed(ref), tag)
	}
	if err != nil {
		return nil, invalid("invalid tag %q: %s", tag, err)
	}
	return ref, nil
}

// holders are the addresses of the nodes that hold an image, as far as this node can know.
func (a *API) holders(ref reference.Named) []string {
	status := a.cfg.Node.Status()
	if status.Store == nil {
		return nil
	}
	state := status.Store.Local()
	row := newestImage(state, ref)
	if row == nil {
		return nil
	}
	var addresses []string
	for _, id := range row.Holders {
		if node, ok := state.Nodes.Get(id); ok && id != status.NodeID && node.Address != "" && node.Status.State != "down" {
			addresses = append(addresses, node.Address)
		}
	}
	return addresses
}

// newestImage is the image that the cluster holds under a reference: of several with one tag the one that came last.
func newestImage(state *raftstore.State, ref reference.Named) *raftstore.Image {
	rows := state.ImagesNamed(reference.TagNameOnly(ref).String())
	digested, pinned := ref.(reference.Digested)
	if pinned {
		rows = state.ImagesByDigest(digested.Digest().String())
	}
	var newest *raftstore.Image
	for row := range rows {
		if len(row.Holders) > 0 && (newest == nil || row.CreatedAt.After(newest.CreatedAt)) {
			newest = row
		}
	}
	return newest
}

func (a *API) distribution(w http.ResponseWriter, r *request) error {
	found, err := a.resolve(w, r, r.vars["name"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, found)
}

// resolve finds what a reference means now: what the nodes of the cluster hold, else what this node's store or the registry say.
func (a *API) resolve(w http.ResponseWriter, r *request, name string) (registry.DistributionInspect, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return registry.DistributionInspect{}, invalid("invalid reference %q: %s", name, err)
	}
	if a.cfg.Node.Store() != nil {
		state, err := a.view(w, r)
		if err == nil {
			if row := newestImage(state, ref); row != nil {
				return renderDistribution(row), nil
			}
		}
	}
	return a.cfg.Images.Distribution(r.Context(), reference.TagNameOnly(ref).String(), r.Header.Get(registry.AuthHeader))
}

func renderDistribution(row *raftstore.Image) registry.DistributionInspect {
	found := registry.DistributionInspect{
		Descriptor: ocispec.Descriptor{MediaType: row.MediaType, Digest: digest.Digest(row.Digest)},
		Platforms:  []ocispec.Platform{},
	}
	for _, p := range row.Platforms {
		found.Platforms = append(found.Platforms, ocispec.Platform{OS: p.OS, Architecture: p.Architecture})
	}
	return found
}

// pinned is an image reference with the digest it has now.
func (a *API) pinned(w http.ResponseWriter, r *request, name string) (string, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	if _, ok := ref.(reference.Digested); ok {
		return name, nil
	}
	found, err := a.resolve(w, r, name)
	if err != nil {
		return "", err
	}
	withDigest, err := reference.WithDigest(reference.TagNameOnly(ref), found.Descriptor.Digest)
	if err != nil {
		return "", err
	}
	return reference.FamiliarString(withDigest), nil
}
