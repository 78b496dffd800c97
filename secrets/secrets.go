// Package secrets protects what a node keeps: sealing at rest with a data key of its own.
// agent opens it; raftstore is given its Sealer.
package secrets

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// sealFormat is the first byte of everything sealed: XChaCha20-Poly1305, 24-byte nonce, ciphertext with tag.
const sealFormat = 1

// sealedOverheadBytes is how much longer sealed data is than plain data.
const sealedOverheadBytes = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

// Sealer seals with XChaCha20-Poly1305 under a data key kept in a file of its own. It is safe for concurrent use.
type Sealer struct {
	aead cipher.AEAD
	// path is the key file, named in errors.
	path string
}

// OpenSealer reads the data key from dir or makes one. A key file that is damaged or of a newer format is an error that names it.
func OpenSealer(dir string) (*Sealer, error) {
	key, path, err := openKey(dir)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("use data key %s: %w", path, err)
	}
	return &Sealer{aead: aead, path: path}, nil
}

// Seal returns plain encrypted and authenticated together with context, which Open must be given again.
func (s *Sealer) Seal(plain, context []byte) ([]byte, error) {
	sealed := make([]byte, 1+chacha20poly1305.NonceSizeX, len(plain)+sealedOverheadBytes)
	sealed[0] = sealFormat
	nonce := sealed[1:]
	// Random nonces of 24 bytes never repeat in practice, so no counter has to survive a crash.
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return s.aead.Seal(sealed, nonce, plain, context), nil
}

// Open returns the plain data of what Seal returned for the same context.
func (s *Sealer) Open(sealed, context []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, errors.New("sealed data is empty")
	}
	if sealed[0] != sealFormat {
		return nil, fmt.Errorf("sealed data has format %d, this version of swarm reads format %d", sealed[0], sealFormat)
	}
	if len(sealed) < sealedOverheadBytes {
		return nil, fmt.Errorf("sealed data is cut short: %d bytes", len(sealed))
	}
	nonce, ciphertext := sealed[1:1+chacha20poly1305.NonceSizeX], sealed[1+chacha20poly1305.NonceSizeX:]
	plain, err := s.aead.Open(nil, nonce, ciphertext, context)
	if err != nil {
		return nil, fmt.Errorf("sealed data is damaged, or was sealed with another key than %s", s.path)
	}
	return plain, nil
}
