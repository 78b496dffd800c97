package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
)

const (
	// DefaultValidity is how long a node certificate lives unless the cluster says otherwise.
	DefaultValidity = 90 * 24 * time.Hour
	// MinValidity is the shortest life a node certificate may have.
	MinValidity = time.Hour

	rootYears = 20
	// backdate lets nodes whose clocks are behind accept a certificate at once.
	backdate = time.Hour
	// rootPathLen leaves room for the one intermediate of a root rotation: the new root, signed by the old one.
	rootPathLen = 1
)

// NewRoot makes a root CA: ECDSA P-256, 20 years.
func NewRoot(organization string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "swarm-ca", Organization: []string{organization}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(rootYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            rootPathLen,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make root certificate: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return encodeCertificate(der), keyPEM, err
}

// NewKey makes a node's private key and a CSR for it.
func NewKey() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), err
}

// Sign issues a node certificate for the public key in csrPEM alone; subject fields of the CSR are ignored. validFor is at least 1 h
// (0: 90 days); backdated 1 h, and it never outlives the root. node's Address is not in it. InvalidArgument errors say what is
// wrong with the request.
func Sign(rootPEM, rootKeyPEM, csrPEM []byte, node rpc.Peer, validFor time.Duration) (certPEM []byte, err error) {
	root, rootKey, err := parseAuthority(rootPEM, rootKeyPEM)
	if err != nil {
		return nil, err
	}
	public, err := requestedKey(csrPEM)
	if err != nil {
		return nil, err
	}
	template, err := nodeTemplate(node, validFor)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(root.NotAfter) {
		template.NotAfter = root.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, public, rootKey)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node.NodeID, err)
	}
	return encodeCertificate(der), nil
}

func parseAuthority(rootPEM, rootKeyPEM []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	roots, err := parseCertificates(rootPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read root certificate: %w", err)
	}
	key, err := parseKey(rootKeyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read root key: %w", err)
	}
	if !key.PublicKey.Equal(roots[0].PublicKey) {
		return nil, nil, fmt.Errorf("root key does not belong to the root certificate: %w", errdefs.ErrInvalidArgument)
	}
	return roots[0], key, nil
}

// requestedKey is the one thing a CSR is believed: a P-256 key whose owner signed the request.
func requestedKey(csrPEM []byte) (*ecdsa.PublicKey, error) {
	if len(csrPEM) > pemBytesMax {
		return nil, fmt.Errorf("certificate request of %d bytes is larger than %d: %w", len(csrPEM), pemBytesMax, errdefs.ErrInvalidArgument)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("not a PEM certificate request: %w", errdefs.ErrInvalidArgument)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// The type is looked at before the signature, so that nobody makes this node verify with a huge key.
	public, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate request is not for an ECDSA P-256 key: %w", errdefs.ErrInvalidArgument)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its own key: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return public, nil
}

func nodeTemplate(node rpc.Peer, validFor time.Duration) (*x509.Certificate, error) {
	if validFor == 0 {
		validFor = DefaultValidity
	}
	if validFor < MinValidity {
		return nil, fmt.Errorf("certificate validity of %s is shorter than %s: %w", validFor, MinValidity, errdefs.ErrInvalidArgument)
	}
	if node.NodeID == "" || node.ClusterID == "" || (node.Role != rpc.Worker && node.Role != rpc.Manager) {
		return nil, fmt.Errorf("node %q of cluster %q cannot have a certificate as %q: %w", node.NodeID, node.ClusterID, node.Role, errdefs.ErrInvalidArgument)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      node.Subject(),
		// Names for clients that insist on one; our own nodes read the subject.
		DNSNames:              []string{node.NodeID, "swarm-" + string(node.Role)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validFor),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
