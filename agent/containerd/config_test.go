package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A full disk, here a directory in the way, keeps containerd from starting only where it was never configured.
func TestFormerConfigurationIsGoodEnough(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	check(t, keepConfig(path, []byte("one")))
	check(t, os.Mkdir(path+".new", 0o700))
	if err := keepConfig(path, []byte("one")); err != nil {
		t.Errorf("the same configuration: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(path+".new", "x"), nil, 0o600))
	if err := keepConfig(path, []byte("two")); !errors.Is(err, errOldConfig) {
		t.Errorf("another configuration: %v", err)
	}
	check(t, os.Remove(path))
	if err := keepConfig(path, []byte("two")); err == nil || errors.Is(err, errOldConfig) {
		t.Errorf("without one: %v", err)
	}
}
