package secrets

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	keyFile = "data.key"
	// keyMagic starts a key file; the byte after it is the format.
	keyMagic  = "swarm data key\n"
	keyFormat = 1
	// keySumBytes of SHA-256 over what precedes them end the file, so that a damaged key is
	// named as such instead of making everything sealed with it look damaged.
	keySumBytes = 8
)

// openKey reads the key file of dir or makes one with a random key.
func openKey(dir string) (key []byte, path string, err error) {
	path = filepath.Join(dir, keyFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = createKey(dir, path)
		return key, path, err
	}
	if err != nil {
		return nil, path, fmt.Errorf("read data key: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, path, fmt.Errorf("data key %s can be read by others (mode %#o): chmod 600 it", path, info.Mode().Perm())
	}
	key, err = decodeKey(content)
	if err != nil {
		return nil, path, fmt.Errorf("data key %s %w", path, err)
	}
	return key, path, nil
}

func encodeKey(key []byte) []byte {
	content := append([]byte(keyMagic), keyFormat)
	content = append(content, key...)
	sum := sha256.Sum256(content)
	return append(content, sum[:keySumBytes]...)
}

// decodeKey's errors continue the sentence "data key FILE …".
func decodeKey(content []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(content, []byte(keyMagic))
	if !ok || len(rest) == 0 {
		return nil, errors.New("is damaged: restore it from a copy, or remove this node's data directory and join the cluster again")
	}
	if rest[0] > keyFormat {
		return nil, fmt.Errorf("has format %d, this version of swarm reads up to %d: upgrade swarm", rest[0], keyFormat)
	}
	body := len(content) - keySumBytes
	if len(rest) != 1+chacha20poly1305.KeySize+keySumBytes {
		return nil, fmt.Errorf("is damaged (%d bytes long): restore it from a copy, or remove this node's data directory and join the cluster again", len(content))
	}
	if sum := sha256.Sum256(content[:body]); !bytes.Equal(sum[:keySumBytes], content[body:]) {
		return nil, errors.New("is damaged (wrong checksum): restore it from a copy, or remove this node's data directory and join the cluster again")
	}
	return rest[1 : 1+chacha20poly1305.KeySize], nil
}

// createKey writes a random key so that after a crash there is the whole file or none.
func createKey(dir, path string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data key: %w", err)
	}
	key := make([]byte, chacha20poly1305.KeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make data key: %w", err)
	}
	if err := writeSynced(dir, path, encodeKey(key)); err != nil {
		return nil, fmt.Errorf("write data key: %w", err)
	}
	return key, nil
}

func writeSynced(dir, path string, content []byte) error {
	file, err := os.CreateTemp(dir, keyFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	// Link instead of rename: of two that race to make the key, the second fails and nothing is lost.
	if err := os.Link(file.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
