package pki

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// identityFile holds all of an identity (node certificate chain, private key, root certificates, in this order), because
// one file can be replaced atomically and two cannot: a key without its certificate would lock the node out.
func identityFile(dir string) string { return filepath.Join(dir, "identity.pem") }

func readCredentials(dir string) (*credentials, error) {
	file := identityFile(dir)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no identity in %s: %w", file, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	c, err := decodeIdentity(text)
	if err != nil {
		return nil, fmt.Errorf("identity in %s is damaged; restore the file, or remove it and join again: %w", file, err)
	}
	return c, nil
}

func decodeIdentity(text []byte) (*credentials, error) {
	var root, cert, key []byte
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		switch {
		case block == nil:
			return nil, fmt.Errorf("not PEM: %w", errdefs.ErrDataLoss)
		case block.Type == "PRIVATE KEY" && key == nil:
			key = pem.EncodeToMemory(block)
		case block.Type == "CERTIFICATE" && key == nil:
			cert = append(cert, pem.EncodeToMemory(block)...)
		case block.Type == "CERTIFICATE":
			root = append(root, pem.EncodeToMemory(block)...)
		default:
			return nil, fmt.Errorf("unexpected %s: %w", block.Type, errdefs.ErrDataLoss)
		}
		text = rest
	}
	return newCredentials(root, cert, key)
}

func writeIdentity(dir string, rootPEM, certPEM, keyPEM []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make identity directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("protect identity directory: %w", err)
	}
	if err := replaceFile(identityFile(dir), bytes.Join([][]byte{certPEM, keyPEM, rootPEM}, []byte("\n"))); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// replaceFile leaves either the old or the new content behind, whenever the machine stops.
func replaceFile(file string, content []byte) error {
	temporary := file + ".new"
	if err := writeSynced(temporary, content); err != nil {
		return err
	}
	if err := os.Rename(temporary, file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func writeSynced(file string, content []byte) error {
	// A leftover of an interrupted attempt may have other rights.
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
