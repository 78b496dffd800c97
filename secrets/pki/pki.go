// Package pki is the cluster's public-key infrastructure: root CA, join tokens, node certificates and their renewal.
// agent makes and renews identities with it; rpc is given its Identity.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"
)

// pemBytesMax bounds PEM input from files and from the wire.
const pemBytesMax = 64 << 10

// parseCertificates reads every certificate of a PEM text; anything else in it is an InvalidArgument error.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	if len(text) > pemBytesMax {
		return nil, fmt.Errorf("certificates of %d bytes are larger than %d: %w", len(text), pemBytesMax, errdefs.ErrInvalidArgument)
	}
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("not a PEM certificate: %w", errdefs.ErrInvalidArgument)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		certs = append(certs, cert)
		text = rest
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("no certificate found: %w", errdefs.ErrInvalidArgument)
	}
	return certs, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("not a PEM private key: %w", errdefs.ErrInvalidArgument)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("private key is not ECDSA: %w", errdefs.ErrInvalidArgument)
	}
	return ec, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
