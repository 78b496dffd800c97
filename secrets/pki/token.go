package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"math/big"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

const (
	tokenPrefix  = "SWMTKN"
	tokenVersion = "1"
	// Base-36 digits that 256 and 128 bits take.
	tokenDigestDigits = 50
	tokenSecretDigits = 25
	tokenSecretBytes  = 16
	// tokenBytesMax bounds what is looked at at all.
	tokenBytesMax = 256
)

// NewJoinToken makes SWMTKN-1-<sha256 of the root certificate, base36, 50>-<128 random bits, base36, 25>.
func NewJoinToken(rootPEM []byte) (string, error) {
	digest, err := rootDigest(rootPEM)
	if err != nil {
		return "", err
	}
	secret := make([]byte, tokenSecretBytes)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	return strings.Join([]string{tokenPrefix, tokenVersion, digest, base36(secret, tokenSecretDigits)}, "-"), nil
}

// CheckToken parses token and verifies that rootPEM is the certificate it names. InvalidArgument errors say what is wrong with it.
func CheckToken(token string, rootPEM []byte) error {
	named, err := splitToken(token)
	if err != nil {
		return err
	}
	actual, err := rootDigest(rootPEM)
	if err != nil {
		return err
	}
	if named != actual {
		return fmt.Errorf("join token belongs to another swarm: the manager's root certificate is not the one it names; "+
			"get the token with `swarm join-token` on a manager of the swarm to join, and check the address: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// ParseToken checks only the form of a token.
func ParseToken(token string) error {
	_, err := splitToken(token)
	return err
}

// TokenRole compares in constant time, manager first; ok is false for a token that is neither.
func TokenRole(token string, tokens swarm.JoinTokens) (role swarm.NodeRole, ok bool) {
	manager, worker := sameToken(token, tokens.Manager), sameToken(token, tokens.Worker)
	switch {
	case manager:
		return swarm.NodeRoleManager, true
	case worker:
		return swarm.NodeRoleWorker, true
	}
	return "", false
}

func sameToken(token, wanted string) bool {
	return wanted != "" && subtle.ConstantTimeCompare([]byte(token), []byte(wanted)) == 1
}

// splitToken checks the form of a token and returns the digest in it. Errors never repeat the token, which is a secret.
func splitToken(token string) (digest string, err error) {
	if len(token) > tokenBytesMax {
		return "", malformedToken(fmt.Sprintf("it has %d characters", len(token)))
	}
	parts := strings.Split(token, "-")
	if len(parts) >= 2 && parts[0] == tokenPrefix && parts[1] == "2" {
		return "", fmt.Errorf("join token is of version 2, made by a swarm in FIPS mode, which is not supported; "+
			"get a token with `swarm join-token` on a manager of this kind: %w", errdefs.ErrInvalidArgument)
	}
	switch {
	case parts[0] != tokenPrefix:
		return "", malformedToken("it does not begin with " + tokenPrefix + "-")
	case len(parts) != 4:
		return "", malformedToken(fmt.Sprintf("it has %d parts instead of 4", len(parts)))
	case parts[1] != tokenVersion:
		return "", malformedToken("its version is not " + tokenVersion)
	case !isBase36(parts[2], tokenDigestDigits, sha256.Size*8):
		return "", malformedToken("its third part is not a digest")
	case !isBase36(parts[3], tokenSecretDigits, tokenSecretBytes*8):
		return "", malformedToken("its fourth part is not a secret")
	}
	return parts[2], nil
}

func malformedToken(why string) error {
	return fmt.Errorf("join token is malformed: %s; the form is %s-%s-<%d characters>-<%d characters>, as printed by `swarm join-token`: %w",
		why, tokenPrefix, tokenVersion, tokenDigestDigits, tokenSecretDigits, errdefs.ErrInvalidArgument)
}

// rootDigest hashes the certificates' bytes themselves, so that white space of the PEM text does not matter. It covers
// all of them: a certificate appended by someone on the way must not become trusted.
func rootDigest(rootPEM []byte) (string, error) {
	roots, err := parseCertificates(rootPEM)
	if err != nil {
		return "", fmt.Errorf("read root certificate: %w", err)
	}
	hash := sha256.New()
	for _, root := range roots {
		hash.Write(root.Raw)
	}
	return base36(hash.Sum(nil), tokenDigestDigits), nil
}

func base36(b []byte, digits int) string {
	text := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", digits-len(text)) + text
}

func isBase36(s string, digits, bits int) bool {
	if len(s) != digits {
		return false
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	n, ok := new(big.Int).SetString(s, 36)
	return ok && n.BitLen() <= bits
}
