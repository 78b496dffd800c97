// Package pki is the cluster's public-key infrastructure: root CA, join tokens, node certificates and their renewal.
// agent makes and renews identities with it; rpc is given its Identity.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// NewRoot makes a root CA: ECDSA P-256, 20 years.
func NewRoot(organization string) (certPEM, keyPEM []byte, err error) { panic("contract") }

// NewJoinToken makes SWMTKN-1-<sha256 of the root certificate, base36, 50>-<128 random bits, base36, 25>.
func NewJoinToken(rootPEM []byte) (string, error) { panic("contract") }

// CheckToken parses token and verifies that rootPEM is the certificate it names. InvalidArgument errors say what is wrong with it.
func CheckToken(token string, rootPEM []byte) error { panic("contract") }

// ParseToken checks only the form of a token.
func ParseToken(token string) error { panic("contract") }

// TokenRole compares in constant time, manager first; ok is false for a token that is neither.
func TokenRole(token string, tokens swarm.JoinTokens) (role swarm.NodeRole, ok bool) {
	panic("contract")
}

// NewKey makes a node's private key and a CSR for it.
func NewKey() (keyPEM, csrPEM []byte, err error) { panic("contract") }

// Sign issues a node certificate for the public key in csrPEM alone; subject fields of the CSR are ignored. validFor is at least 1 h; backdated 1 h.
func Sign(rootPEM, rootKeyPEM, csrPEM []byte, nodeID string, role swarm.NodeRole, clusterID string, validFor time.Duration) (certPEM []byte, err error) {
	panic("contract")
}

// Identity is a node's certificate on disk and in memory; safe for concurrent use. It implements rpc.Identity.
type Identity struct{}

// Load reads an identity from dir; NotFound when there is none.
func Load(dir string) (*Identity, error) { panic("contract") }

// Save writes a new identity to dir (0700, files 0600, atomically) and returns it.
func Save(dir string, rootPEM, certPEM, keyPEM []byte) (*Identity, error) { panic("contract") }

// Replace writes a renewed certificate and key in place; new connections use it.
func (i *Identity) Replace(rootPEM, certPEM, keyPEM []byte) error { panic("contract") }

func (i *Identity) Certificate() *tls.Certificate { panic("contract") }
func (i *Identity) Roots() *x509.CertPool         { panic("contract") }
func (i *Identity) RootPEM() []byte               { panic("contract") }
func (i *Identity) NodeID() string                { panic("contract") }
func (i *Identity) ClusterID() string             { panic("contract") }
func (i *Identity) Role() swarm.NodeRole          { panic("contract") }

// RenewAt is the moment, between 50 and 80 % of its life, at which the certificate should be renewed.
func (i *Identity) RenewAt() time.Time { panic("contract") }
