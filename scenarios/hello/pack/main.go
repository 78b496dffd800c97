// Command pack makes an OCI archive of one static program, byte for byte the same each time.
// The Makefile calls it for the image that stories and the demo load.
package main

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	program := flag.String("program", "bin/hello", "static program to pack")
	name := flag.String("name", "hello", "name of the image, without tag")
	out := flag.String("out", "bin/hello.tar", "archive to write")
	flag.Parse()
	if err := pack(*program, *name, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pack(program, name, out string) error {
	image, err := build(program)
	if err != nil {
		return fmt.Errorf("build image of %s: %w", program, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), "pack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write image layout: %w", err)
	}
	// The pair of names that docker's OCI exporter writes: containerd reads the first, others the second.
	err = path.AppendImage(image, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          "docker.io/library/" + name + ":latest",
		"org.opencontainers.image.ref.name": "latest",
	}))
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return archive(dir, out)
}

// build is an image of one layer that holds the program, and /tmp for whoever mounts nothing there.
func build(program string) (v1.Image, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	entry := "/" + filepath.Base(program)
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, h := range []struct {
		header  tar.Header
		content []byte
	}{
		{tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil},
		{tar.Header{Typeflag: tar.TypeReg, Name: entry[1:], Mode: 0o755, Size: int64(len(content))}, content},
	} {
		if err := w.WriteHeader(&h.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(h.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{entry}, Env: []string{"PATH=/"}}
	return mutate.ConfigFile(image, config)
}

// archive writes the folder's files in the order of their names, without times or owners.
func archive(dir, out string) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	w := tar.NewWriter(file)
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return file.Close()
}
