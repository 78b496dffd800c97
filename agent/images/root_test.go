package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"swarm/agent/containerd"
	"swarm/agent/images"
	"swarm/agent/worker"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/types/swarm"
)

// node is one image store on a containerd of its own.
type node struct {
	*testing.T
	*images.Images
	runtime *containerd.Runtime
	dir     string
}

func newNode(t *testing.T, peers http.RoundTripper) *node {
	t.Helper()
	if os.Getenv("SWARM_ROOT_TESTS") == "" {
		t.Skip("needs root, runc and bin/containerd: set SWARM_ROOT_TESTS=1")
	}
	dir, err := os.MkdirTemp("/tmp", "swimg")
	check(t, err)
	runtime, err := containerd.Open(t.Context(), containerd.Config{
		BinDir: filepath.Join("..", "..", "bin"), DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		CgroupParent: "/swarm-test-" + filepath.Base(dir), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	check(t, err)
	n := &node{T: t, runtime: runtime, dir: dir}
	n.Images = images.New(images.Config{Client: runtime.Client(), Peers: peers, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	t.Cleanup(func() {
		check(t, runtime.Shutdown(context.Background()))
		check(t, os.RemoveAll(dir))
		if out, _ := exec.Command("pgrep", "-f", dir+"/").Output(); len(out) > 0 {
			t.Errorf("processes are left: %s", out)
		}
	})
	return n
}

// serve is the node's blob route, and the address under which peers reach it.
func (n *node) serve(wrap func(http.Handler) http.Handler) string {
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ref, inspect := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/json")
		if !inspect {
			n.ServeHTTP(w, r)
			return
		}
		found, err := n.Inspect(r.Context(), ref)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"Id":%q}`, found.ID)
	})
	if wrap != nil {
		h = wrap(h)
	}
	server := httptest.NewServer(h)
	n.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func (n *node) load(archive []byte) []string {
	n.Helper()
	var said []string
	check(n.T, n.Load(n.Context(), bytes.NewReader(archive), func(s string) { said = append(said, s) }))
	return said
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}

// testImage has two layers with text.
func testImage(t *testing.T, text string) v1.Image {
	t.Helper()
	image, err := mutate.Config(empty.Image, v1.Config{Cmd: []string{"/bin/x"}, Labels: map[string]string{"made": "here"}})
	check(t, err)
	file, err := image.ConfigFile()
	check(t, err)
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	image, err = mutate.ConfigFile(image, file)
	check(t, err)
	for at, size := range []int{10, 300_000} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		body := []byte(strings.Repeat(text, size))
		check(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint("file", at), Mode: 0o644, Size: int64(len(body))}))
		w.Write(body)
		check(t, w.Close())
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		check(t, err)
		image, err = mutate.AppendLayers(image, layer)
		check(t, err)
	}
	return image
}

// ociArchive packs an image as an OCI layout.
func ociArchive(t *testing.T, image v1.Image, annotations map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	check(t, err)
	check(t, l.AppendImage(image, layout.WithAnnotations(annotations)))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	check(t, w.AddFS(os.DirFS(dir)))
	check(t, w.Close())
	return b.Bytes()
}

func dockerArchive(t *testing.T, image v1.Image, ref string) []byte {
	t.Helper()
	var b bytes.Buffer
	named, err := name.NewTag(ref)
	check(t, err)
	check(t, tarball.Write(named, image, &b))
	return b.Bytes()
}

func digestOf(t *testing.T, image v1.Image) string {
	t.Helper()
	d, err := image.Digest()
	check(t, err)
	return d.String()
}

func compressed(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(text)
	check(t, w.Close())
	return b.Bytes()
}

func TestArchivesOfEveryKindAreLoaded(t *testing.T) {
	n := newNode(t, nil)
	one, two := testImage(t, "one"), testImage(t, "two")
	equal(t, "ref.name", n.load(ociArchive(t, one, map[string]string{"org.opencontainers.image.ref.name": "hello"})), "[Loaded image: hello:latest]")
	equal(t, "full name", n.load(compressed(t, ociArchive(t, two, map[string]string{
		"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": "example.com/a/b:v1"}))), "[Loaded image: example.com/a/b:v1]")
	equal(t, "no name", n.load(ociArchive(t, one, nil)), "[Loaded image ID: "+digestOf(t, one)+"]")
	equal(t, "docker save", n.load(dockerArchive(t, one, "saved:v2")), "[Loaded image: saved:v2]")
	got, err := n.Ensure(t.Context(), "hello", nil, "")
	check(t, err)
	equal(t, "digest", got, digestOf(t, one))
	held, err := n.Held(t.Context())
	check(t, err)
	var names []string
	for _, h := range held {
		names = append(names, h.Name+" "+h.Platforms[0].Os+"/"+h.Platforms[0].Architecture)
	}
	equal(t, "held", strings.Join(names, "\n"), "docker.io/library/hello:latest linux/amd64\ndocker.io/library/saved:v2 linux/amd64\nexample.com/a/b:v1 linux/amd64\nunnamed@"+digestOf(t, one)+" linux/amd64")
	select {
	case <-n.Changed():
	default:
		t.Error("nothing was said of the change")
	}
	for what, broken := range map[string][]byte{"empty": nil, "text": []byte("not a tar"), "cut": ociArchive(t, one, nil)[:4000]} {
		if err := n.Load(t.Context(), bytes.NewReader(broken), func(string) {}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s archive: %v", what, err)
		}
	}
}

func TestForeignPlatformIsRefused(t *testing.T) {
	n := newNode(t, nil)
	image := testImage(t, "x")
	file, err := image.ConfigFile()
	check(t, err)
	file.Architecture = "s390x"
	image, err = mutate.ConfigFile(image, file)
	check(t, err)
	err = n.Load(t.Context(), bytes.NewReader(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "far"})), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "image far:latest is for linux/s390x, this node is linux/amd64") {
		t.Errorf("got %v", err)
	}
	list, err := n.List(t.Context())
	check(t, err)
	equal(t, "images", len(list), 0)
}

func TestInspectListAndRemoveSpeakAsDockerDoes(t *testing.T) {
	n := newNode(t, nil)
	image := testImage(t, "x")
	d := digestOf(t, image)
	n.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "hello"}))
	n.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "hello:v1"}))
	for _, ref := range []string{"hello", "hello:v1", "docker.io/library/hello:latest", d, d[7:19], "hello@" + d} {
		found, err := n.Inspect(t.Context(), ref)
		check(t, err)
		equal(t, ref, fmt.Sprintln(found.ID, found.RepoTags, found.RepoDigests, found.Architecture, found.Config.Cmd, len(found.RootFS.Layers)),
			fmt.Sprintln(d, "[hello:latest hello:v1] [hello@"+d+"] amd64 [/bin/x] 2"))
	}
	other := testImage(t, "newer")
	n.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "moving"}))
	n.load(ociArchive(t, other, map[string]string{"org.opencontainers.image.ref.name": "moving"}))
	n.load(ociArchive(t, testImage(t, "newest"), map[string]string{"org.opencontainers.image.ref.name": "moving"}))
	pinned, err := n.Ensure(t.Context(), "moving@"+digestOf(t, other), nil, "")
	check(t, err)
	equal(t, "an image whose name moved on", pinned, digestOf(t, other))
	for _, ref := range []string{"moving", digestOf(t, other)} {
		_, err = n.Remove(t.Context(), ref, false)
		check(t, err)
	}
	list, err := n.List(t.Context())
	check(t, err)
	equal(t, "list", fmt.Sprintf("%d %v %v", len(list), list[0].RepoTags, list[0].Labels), "1 [hello:latest hello:v1] map[made:here]")
	_, err = n.Inspect(t.Context(), "nope")
	equal(t, "missing", err, "No such image: nope:latest")
	c := worker.Container{ID: strings.Repeat("ab", 32), ImageRef: "hello", ImageDigest: d, Network: "none", Spec: &swarm.ContainerSpec{}}
	check(t, n.runtime.Create(t.Context(), c))
	removed, err := n.Remove(t.Context(), "hello:v1", false)
	check(t, err)
	equal(t, "one of two names", removed, "[{ hello:v1}]")
	_, err = n.Remove(t.Context(), "hello", false)
	equal(t, "last name in use", err, `conflict: unable to remove repository reference "hello" (must force) - container abababababab is using its referenced image `+d[7:19])
	_, err = n.Remove(t.Context(), d[7:19], false)
	equal(t, "id in use", err, "conflict: unable to delete "+d[7:19]+" (must be forced) - image is being used by stopped container abababababab")
	check(t, n.runtime.Remove(t.Context(), c.ID))
	removed, err = n.Remove(t.Context(), d[7:19], false)
	check(t, err)
	equal(t, "by id", removed, "[{ hello:latest} {"+d+" }]")
	blobs, _ := os.ReadDir(filepath.Join(n.dir, "data/root/io.containerd.content.v1.content/blobs/sha256"))
	equal(t, "blobs left", len(blobs), 0)
}

func TestPeersExchangeImages(t *testing.T) {
	has := newNode(t, nil)
	image := testImage(t, "peer")
	d := digestOf(t, image)
	has.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "hello"}))
	var requests atomic.Int64
	address := has.serve(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1); h.ServeHTTP(w, r) })
	})
	wants := newNode(t, http.DefaultTransport)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			got, err := wants.Ensure(t.Context(), "hello:latest@"+d, []string{"127.0.0.1:1", address}, "")
			if err != nil || got != d {
				t.Error(got, err)
			}
		})
	}
	wg.Wait()
	equal(t, "requests of five callers", requests.Load(), 5) // the manifest twice, configuration, two layers
	got, err := wants.Inspect(t.Context(), "hello@"+d)
	check(t, err)
	equal(t, "names", got.RepoDigests, "[hello@"+d+"]")
	got2, err := newNode(t, http.DefaultTransport).Ensure(t.Context(), "hello", []string{address}, "")
	check(t, err)
	equal(t, "by name alone", got2, d)
}

func TestCorruptBlobIsRefusedAndFetchedElsewhere(t *testing.T) {
	has := newNode(t, nil)
	image := testImage(t, "peer")
	d := digestOf(t, image)
	has.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "hello"}))
	layers, err := image.Layers()
	check(t, err)
	big, err := layers[1].Digest()
	check(t, err)
	bad := has.serve(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, big.String()) {
				h.ServeHTTP(w, r)
				return
			}
			recorded := httptest.NewRecorder()
			h.ServeHTTP(recorded, r)
			body := recorded.Body.Bytes()
			body[len(body)/2] ^= 1
			w.WriteHeader(recorded.Code)
			w.Write(body)
		})
	})
	// Another one breaks off in the middle, each time: what it gave is gone on with.
	cut := has.serve(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			recorded := httptest.NewRecorder()
			h.ServeHTTP(recorded, r)
			body := recorded.Body.Bytes()
			if r.Header.Get("Range") == "" && strings.HasSuffix(r.URL.Path, big.String()) {
				body = body[:len(body)/2]
			}
			w.Header().Set("Content-Range", recorded.Header().Get("Content-Range"))
			w.WriteHeader(recorded.Code)
			w.Write(body)
		})
	})
	var resumed atomic.Bool
	good := has.serve(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				resumed.Store(true)
			}
			h.ServeHTTP(w, r)
		})
	})
	wants := newNode(t, http.DefaultTransport)
	_, err = wants.Ensure(t.Context(), "nowhere.invalid/hello:latest@"+d, []string{bad}, "")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "does not match its digest") || !strings.Contains(err.Error(), "not in the local store; peer "+bad) {
		t.Errorf("corrupt: %v", err)
	}
	held, err := wants.Held(t.Context())
	check(t, err)
	equal(t, "held", len(held), 0)
	_, err = wants.Ensure(t.Context(), "nowhere.invalid/hello:latest@"+d, []string{cut}, "")
	if !errdefs.IsNotFound(err) {
		t.Errorf("cut: %v", err)
	}
	got, err := wants.Ensure(t.Context(), "nowhere.invalid/hello:latest@"+d, []string{bad, good}, "")
	check(t, err)
	equal(t, "digest", got, d)
	equal(t, "the next attempt goes on where the last one broke off", resumed.Load(), true)
}

func TestBlobRouteServesImagesAndNothingElse(t *testing.T) {
	n := newNode(t, nil)
	image := testImage(t, "x")
	n.load(ociArchive(t, image, map[string]string{"org.opencontainers.image.ref.name": "hello"}))
	address := n.serve(nil)
	ask := func(method, path, ranges string) string {
		request, _ := http.NewRequest(method, "http://"+address+"/images/blobs/"+path, nil)
		if ranges != "" {
			request.Header.Set("Range", ranges)
		}
		response, err := http.DefaultClient.Do(request)
		check(t, err)
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return fmt.Sprintf("%d %d %d", response.StatusCode, response.ContentLength, len(body))
	}
	raw, err := image.RawManifest()
	check(t, err)
	d := digestOf(t, image)
	equal(t, "whole", ask("GET", d, ""), fmt.Sprintf("200 %d %d", len(raw), len(raw)))
	equal(t, "head", ask("HEAD", d, ""), fmt.Sprintf("200 %d 0", len(raw)))
	equal(t, "range", ask("GET", d, "bytes=5-14"), "206 10 10")
	equal(t, "post", strings.Fields(ask("POST", d, ""))[0], "405")
	equal(t, "unknown", strings.Fields(ask("GET", "sha256:"+strings.Repeat("0", 64), ""))[0], "404")
	equal(t, "no digest", strings.Fields(ask("GET", "sha256:../../x", ""))[0], "404")
}

func TestRegistryServesWhatNobodyHolds(t *testing.T) {
	var authorized atomic.Bool
	handler := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); strings.Contains(r.URL.Path, "private") && r.Method != http.MethodPut && r.Method != http.MethodPost && r.Method != http.MethodPatch {
			if user != "u" || password != "p" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			authorized.Store(true)
		}
		handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	image := testImage(t, "registry")
	d := digestOf(t, image)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	tag, err := name.NewTag(host + "/hello:v1")
	check(t, err)
	check(t, remote.WriteIndex(tag, index))
	private, err := name.NewTag(host + "/private:v1")
	check(t, err)
	check(t, remote.Write(private, image, remote.WithAuth(&authn.Basic{Username: "u", Password: "p"})))
	n := newNode(t, nil)
	found, err := n.Distribution(t.Context(), host+"/hello:v1", "")
	check(t, err)
	want, err := index.Digest()
	check(t, err)
	equal(t, "distribution", fmt.Sprint(found.Descriptor.Digest, found.Platforms[0].Architecture), fmt.Sprint(want, "amd64"))
	got, err := n.Ensure(t.Context(), host+"/hello:v1@"+want.String(), nil, "")
	check(t, err)
	equal(t, "pinned", got, want.String())
	var said []string
	check(t, n.Pull(t.Context(), host+"/hello:v1", nil, "", func(s string) { said = append(said, s) }))
	equal(t, "pull", fmt.Sprint(said[0], "|", said[len(said)-1]), "Pulling from hello|Status: Downloaded newer image for "+host+"/hello:v1")
	_, err = n.Ensure(t.Context(), host+"/hello:v2", nil, "")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "registry "+host) {
		t.Errorf("missing tag: %v", err)
	}
	_, err = n.Ensure(t.Context(), host+"/private:v1", nil, "")
	if !errdefs.IsNotFound(err) {
		t.Errorf("without credentials: %v", err)
	}
	auth := base64.URLEncoding.EncodeToString([]byte(`{"username":"u","password":"p"}`))
	got, err = n.Ensure(t.Context(), host+"/private:v1", nil, auth)
	check(t, err)
	equal(t, "private", fmt.Sprint(got, authorized.Load()), d+"true")
}
