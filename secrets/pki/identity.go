package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

var _ rpc.Identity = (*Identity)(nil)

// ErrExpired marks a certificate whose time is over. Load returns it together with the identity, so that a
// manager that still holds the root key can renew it.
var ErrExpired = errors.New("certificate expired")

// Renewal happens at a moment within this part of a certificate's life, so that a cluster made at once does not renew at once.
const (
	renewEarliest = 0.5
	renewLatest   = 0.8
)

// Identity is a node's certificate on disk and in memory; safe for concurrent use. It implements rpc.Identity.
type Identity struct {
	dir     string
	current atomic.Pointer[credentials]

	// mu orders replacements, so that disk and memory end up the same.
	mu sync.Mutex
}

// credentials are one certificate and what belongs to it, immutable.
type credentials struct {
	rootPEM     []byte
	roots       *x509.CertPool
	certificate *tls.Certificate
	node        rpc.Peer
}

// Load reads an identity from dir; NotFound when there is none. When its certificate has expired it returns
// both the identity and ErrExpired. Errors name the file.
func Load(dir string) (*Identity, error) {
	c, err := readCredentials(dir)
	if err != nil {
		return nil, err
	}
	i := &Identity{dir: dir}
	i.current.Store(c)
	if leaf := c.certificate.Leaf; time.Now().After(leaf.NotAfter) {
		return i, fmt.Errorf("certificate in %s ended at %s; leave the swarm on this node (leave --force) and join it again: %w",
			identityFile(dir), leaf.NotAfter.Format(time.RFC3339), ErrExpired)
	}
	return i, nil
}

// Save writes a new identity to dir (0700, files 0600, atomically) and returns it.
func Save(dir string, rootPEM, certPEM, keyPEM []byte) (*Identity, error) {
	c, err := newCredentials(rootPEM, certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if err := writeIdentity(dir, rootPEM, certPEM, keyPEM); err != nil {
		return nil, err
	}
	i := &Identity{dir: dir}
	i.current.Store(c)
	return i, nil
}

// Replace writes a renewed certificate and key in place; new connections use it. A certificate of another node or cluster is refused.
func (i *Identity) Replace(rootPEM, certPEM, keyPEM []byte) error {
	c, err := newCredentials(rootPEM, certPEM, keyPEM)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if old := i.current.Load().node; old.NodeID != c.node.NodeID || old.ClusterID != c.node.ClusterID {
		return fmt.Errorf("certificate is of node %s in cluster %s, not of node %s in cluster %s: %w",
			c.node.NodeID, c.node.ClusterID, old.NodeID, old.ClusterID, errdefs.ErrInvalidArgument)
	}
	if err := writeIdentity(i.dir, rootPEM, certPEM, keyPEM); err != nil {
		return err
	}
	i.current.Store(c)
	return nil
}

// newCredentials checks that key, certificate and roots belong together. Time is not looked at.
func newCredentials(rootPEM, certPEM, keyPEM []byte) (*credentials, error) {
	rootCerts, err := parseCertificates(rootPEM)
	if err != nil {
		return nil, fmt.Errorf("read root certificate: %w", err)
	}
	chain, err := parseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read node certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("private key does not belong to the node certificate: %w", errdefs.ErrInvalidArgument)
	}
	node, err := rpc.PeerOf(chain[0])
	if err != nil {
		return nil, err
	}
	c := &credentials{rootPEM: rootPEM, roots: x509.NewCertPool(), node: node,
		certificate: &tls.Certificate{PrivateKey: key, Leaf: chain[0]}}
	for _, cert := range rootCerts {
		c.roots.AddCert(cert)
	}
	for _, cert := range chain {
		c.certificate.Certificate = append(c.certificate.Certificate, cert.Raw)
	}
	return c, c.verify(chain)
}

func (c *credentials) verify(chain []*x509.Certificate) error {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		// An expired certificate is reported by Load, not mistaken for a foreign one.
		CurrentTime: chain[0].NotAfter,
	})
	if err != nil {
		return fmt.Errorf("node certificate is not signed by the root certificate: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Certificate is the node's certificate and key, for TLS.
func (i *Identity) Certificate() *tls.Certificate { return i.current.Load().certificate }

// Roots are the certificates that the cluster's nodes are verified with.
func (i *Identity) Roots() *x509.CertPool { return i.current.Load().roots }

// RootPEM is Roots as text. It must not be changed.
func (i *Identity) RootPEM() []byte { return i.current.Load().rootPEM }

func (i *Identity) NodeID() string       { return i.current.Load().node.NodeID }
func (i *Identity) ClusterID() string    { return i.current.Load().node.ClusterID }
func (i *Identity) Role() swarm.NodeRole { return swarm.NodeRole(i.current.Load().node.Role) }

// RenewAt is the moment, between 50 and 80 % of its life, at which the certificate should be renewed.
// It is always the same for one certificate, so that restarts do not move it.
func (i *Identity) RenewAt() time.Time {
	leaf := i.current.Load().certificate.Leaf
	sum := sha256.Sum256(leaf.Raw)
	dice := float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
	// Life begins at the signing: the backdated hour would make short-lived certificates due at once.
	issued := leaf.NotBefore.Add(backdate)
	life := float64(leaf.NotAfter.Sub(issued))
	return issued.Add(time.Duration(life * (renewEarliest + dice*(renewLatest-renewEarliest))))
}
