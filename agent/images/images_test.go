package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}

func TestArchivesNameTheirImages(t *testing.T) {
	const ref, full = "org.opencontainers.image.ref.name", "io.containerd.image.name"
	for _, c := range []struct{ full, ref, want string }{
		{"", "hello", "docker.io/library/hello:latest"},
		{"", "hello:v1", "docker.io/library/hello:v1"},
		{"", "localhost:5000/a/b", "localhost:5000/a/b:latest"},
		{"docker.io/library/x:v2", "v2", "docker.io/library/x:v2"},
		{"", "latest", ""},
		{"", "", ""},
		{"", "NOT A NAME", ""},
		{"", "hello@sha256:" + strings.Repeat("0", 64), ""},
	} {
		annotations := map[string]string{}
		if c.full != "" {
			annotations[full] = c.full
		}
		if c.ref != "" {
			annotations[ref] = c.ref
		}
		equal(t, c.full+" "+c.ref, archiveName(annotations), c.want)
	}
}

func TestPinnedNamesAreKeptWithoutTheirTag(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{
		"hello":                     "docker.io/library/hello:latest",
		"hello:v1@" + d:             "docker.io/library/hello@" + d,
		"registry.example/x/y@" + d: "registry.example/x/y@" + d,
	} {
		named, err := normalize(ref)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, ref, recordName(named), want)
	}
	_, err := normalize("Not A Name")
	equal(t, "bad", err, `invalid reference format: "Not A Name"`)
}

func TestLastTagTakesPinnedNamesAlong(t *testing.T) {
	d := "@sha256:" + strings.Repeat("a", 64)
	records := func(names ...string) (all []images.Image) {
		for _, n := range names {
			all = append(all, images.Image{Name: "docker.io/library/" + n})
		}
		return all
	}
	named, _ := normalize("hello:v1")
	equal(t, "last tag", len(sameName(records("hello:v1", "hello"+d, "other:v1"), named)), 2)
	equal(t, "another tag", len(sameName(records("hello:v1", "hello"+d, "hello:v2"), named)), 1)
}

func TestCallersShareOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flights{byKey: make(map[string]*flight)}
		runs := 0
		work := func(ctx context.Context) (string, error) {
			runs++
			select {
			case <-time.After(time.Second):
				return "done", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
		var wg sync.WaitGroup
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		wg.Go(func() { // the first to come leaves first: the others still get their result
			if _, err := f.do(impatient, "x", work); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if got, err := f.do(t.Context(), "x", work); got != "done" || err != nil {
					t.Error(got, err)
				}
			})
		}
		wg.Wait()
		equal(t, "runs", runs, 1)
		alone, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		began := time.Now()
		f.do(alone, "y", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
		synctest.Wait()
		equal(t, "work without callers ends after", time.Since(began), time.Millisecond)
		equal(t, "left", len(f.byKey), 0)
	})
}

func TestSilentPeersAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{address: "silent", transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})}
		began := time.Now()
		_, err := p.Resolve(t.Context(), mustBare(t))
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nothing came for 30s") {
			t.Error(err)
		}
		equal(t, "after", time.Since(began), silenceMax)
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func mustBare(t *testing.T) interface {
	String() string
	Name() string
} {
	named, err := bare(digest.FromString("x"))
	if err != nil {
		t.Fatal(err)
	}
	return named
}

func TestDescriptorsAreBounded(t *testing.T) {
	d := digest.FromString("x")
	for _, c := range []struct {
		d    ocispec.Descriptor
		good bool
	}{
		{ocispec.Descriptor{Digest: d, Size: 10, MediaType: ocispec.MediaTypeImageManifest}, true},
		{ocispec.Descriptor{Digest: d, Size: manifestMax + 1, MediaType: ocispec.MediaTypeImageManifest}, false},
		{ocispec.Descriptor{Digest: d, Size: manifestMax + 1, MediaType: ocispec.MediaTypeImageLayerGzip}, true},
		{ocispec.Descriptor{Digest: d, Size: blobMax + 1, MediaType: ocispec.MediaTypeImageLayerGzip}, false},
		{ocispec.Descriptor{Digest: d, MediaType: ocispec.MediaTypeImageConfig}, false},
		{ocispec.Descriptor{Digest: "sha256:x", Size: 1}, false},
	} {
		if err := checkDescriptor(c.d); (err == nil) != c.good {
			t.Errorf("%+v: %v", c.d, err)
		}
	}
}

// FuzzManifest: whatever a peer answers, only bytes that match the digest and are an image come through.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), true)
	f.Add([]byte(`{"config":{"digest":"sha256:00"}}`), true)
	f.Add([]byte(`{"manifests":[]}`), false)
	f.Add([]byte(`{`), true)
	f.Fuzz(func(t *testing.T, raw []byte, honest bool) {
		want := digest.FromBytes(raw)
		if !honest {
			want = digest.FromString("something else")
		}
		d, err := describe(raw, want)
		if err == nil && (!honest || !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType)) {
			t.Errorf("accepted as %+v", d)
		}
	})
}

// FuzzBlobRoute: no path leads to anything but a well-formed digest.
func FuzzBlobRoute(f *testing.F) {
	f.Add("GET", "/images/blobs/sha256:"+strings.Repeat("a", 64))
	f.Add("POST", "/images/blobs/x")
	f.Add("HEAD", "/images/blobs/../../etc/passwd")
	f.Fuzz(func(t *testing.T, method, path string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL.Path = method, path
		d, status := blobDigest(r)
		if status == 0 && (len(d) != len("sha256:")+64 || strings.ContainsAny(string(d), "/.")) {
			t.Errorf("%s %q gives %q", method, path, d)
		}
	})
}

// FuzzArchive: no archive makes the loader fail in another way than with an error of the right kind.
func FuzzArchive(f *testing.F) {
	layout := ocispec.ImageLayoutFile
	for _, files := range [][]string{
		{layout, `{"imageLayoutVersion":"1.0.0"}`, "index.json", `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `","size":5}]}`},
		{layout, `{"imageLayoutVersion":"1.0.0"}`, "index.json", `{`},
		{"manifest.json", `[{"Config":"c","RepoTags":["x:y"],"Layers":["l"]}]`, "c", `{"os":"linux"}`, "l", "layer"},
		{"manifest.json", `[]`},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))})
			w.Write([]byte(files[i+1]))
		}
		w.Close()
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, archive []byte) {
		store, err := local.NewStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New("", client.WithServices(client.WithContentStore(store)))
		if err != nil {
			t.Fatal(err)
		}
		i := New(Config{Client: c})
		index, err := i.ingest(t.Context(), bytes.NewReader(archive))
		if err == nil {
			_, err = i.archived(t.Context(), index)
		}
		if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			t.Errorf("kind of %v", err)
		}
	})
}
