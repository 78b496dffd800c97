package secrets

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, dir string) *Sealer {
	t.Helper()
	s, err := OpenSealer(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealedDataOpensAfterRestart(t *testing.T) {
	dir := t.TempDir()
	sealed, err := open(t, dir).Seal([]byte("plain"), []byte("place"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := open(t, dir).Open(sealed, []byte("place"))
	if err != nil || string(plain) != "plain" {
		t.Fatalf("got %q, %v", plain, err)
	}
	if bytes.Contains(sealed, []byte("plain")) {
		t.Fatal("sealed data shows the plain text")
	}
}

func TestSealedDataOpensNowhereElse(t *testing.T) {
	s := open(t, t.TempDir())
	sealed, _ := s.Seal([]byte("plain"), []byte("place"))
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	newer := bytes.Clone(sealed)
	newer[0] = 9
	for name, open := range map[string]func() ([]byte, error){
		"another place":   func() ([]byte, error) { return s.Open(sealed, []byte("other")) },
		"another key":     func() ([]byte, error) { return open(t, t.TempDir()).Open(sealed, []byte("place")) },
		"one flipped bit": func() ([]byte, error) { return s.Open(flipped, []byte("place")) },
		"cut short":       func() ([]byte, error) { return s.Open(sealed[:10], []byte("place")) },
		"empty":           func() ([]byte, error) { return s.Open(nil, []byte("place")) },
		"newer format":    func() ([]byte, error) { return s.Open(newer, []byte("place")) },
	} {
		if plain, err := open(); err == nil {
			t.Errorf("%s: opened as %q", name, plain)
		}
	}
}

func TestKeyFileIsPrivate(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	path := filepath.Join(dir, keyFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("left behind: %v", entries)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSealer(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("key that others can read: %v", err)
	}
}

func TestBadKeyFileIsNamed(t *testing.T) {
	good := encodeKey(make([]byte, 32))
	flipped := bytes.Clone(good)
	flipped[20] ^= 1
	newer := bytes.Clone(good)
	newer[len(keyMagic)] = 2
	for want, content := range map[string][]byte{
		"is damaged: restore it":            nil,
		"is damaged (wrong checksum)":       flipped,
		"is damaged (55 bytes long)":        good[:len(good)-1],
		"has format 2, this version of swa": newer,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, keyFile)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenSealer(dir)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("want %q with the path, got %v", want, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s, err := OpenSealer(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	sealed, _ := s.Seal([]byte("plain"), nil)
	f.Add(sealed)
	f.Add(sealed[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		if plain, err := s.Open(data, nil); err == nil && !bytes.Equal(data, sealed) {
			t.Fatalf("forged data opened as %q", plain)
		}
	})
}
