package pki

import (
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

func TestTokenNamesItsRoot(t *testing.T) {
	c := newCluster(t)
	token, err := NewJoinToken(c.root)
	check(t, err)
	if !regexp.MustCompile(`^SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}$`).MatchString(token) {
		t.Errorf("token %s", token)
	}
	check(t, ParseToken(token))
	check(t, CheckToken(token, c.root))
	check(t, CheckToken(token, append([]byte("\n"), c.root...)))
	says(t, CheckToken(token, newCluster(t).root), errdefs.ErrInvalidArgument, "belongs to another swarm")
	// A certificate slipped in behind the right one must not become trusted.
	says(t, CheckToken(token, append(c.root, newCluster(t).root...)), errdefs.ErrInvalidArgument, "belongs to another swarm")
}

func TestMalformedTokensAreExplained(t *testing.T) {
	digest, secret := strings.Repeat("1", 50), strings.Repeat("2", 25)
	for token, text := range map[string]string{
		"":                                      "does not begin with SWMTKN-",
		"hello":                                 "does not begin with SWMTKN-",
		"SWMTKN-1":                              "has 2 parts",
		"SWMTKN-1-" + digest:                    "has 3 parts",
		"SWMTKN-3-" + digest + "-" + secret:     "version is not 1",
		"SWMTKN-1-" + digest[1:] + "-" + secret: "third part",
		"SWMTKN-1-" + strings.Repeat("z", 50) + "-" + secret:           "third part",
		"SWMTKN-1-" + strings.ToUpper("a") + digest[1:] + "-" + secret: "third part",
		"SWMTKN-1-" + digest + "-" + secret[1:]:                        "fourth part",
		"SWMTKN-1-" + digest + "-" + secret + "\n":                     "fourth part",
		"SWMTKN-2-1-" + digest + "-" + secret:                          "FIPS",
		strings.Repeat("SWMTKN-1-", 100):                               "900 characters",
	} {
		err := ParseToken(token)
		says(t, err, errdefs.ErrInvalidArgument, text)
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("error repeats the secret: %v", err)
		}
	}
}

func TestTokenDecidesTheRole(t *testing.T) {
	tokens := swarm.JoinTokens{Worker: "w", Manager: "m"}
	for token, want := range map[string]string{"w": "worker true", "m": "manager true", "x": " false", "": " false"} {
		role, ok := TokenRole(token, tokens)
		if got := string(role) + " " + map[bool]string{true: "true", false: "false"}[ok]; got != want {
			t.Errorf("token %q is of %q, want %q", token, got, want)
		}
	}
	if role, _ := TokenRole("same", swarm.JoinTokens{Worker: "same", Manager: "same"}); role != swarm.NodeRoleManager {
		t.Errorf("a token of both roles is of %s", role)
	}
	if _, ok := TokenRole("", swarm.JoinTokens{}); ok {
		t.Error("no token matches a cluster without tokens")
	}
}

func FuzzTokens(f *testing.F) {
	f.Add("SWMTKN-1-" + strings.Repeat("1", 50) + "-" + strings.Repeat("2", 25))
	f.Add("SWMTKN-2-1-x-y")
	f.Add("")
	form := regexp.MustCompile(`\ASWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}\z`)
	f.Fuzz(func(t *testing.T, token string) {
		if ParseToken(token) == nil && !form.MatchString(token) {
			t.Errorf("token %q was accepted", token)
		}
	})
}

func FuzzIdentityFile(f *testing.F) {
	c := newCluster(f)
	cert, key := c.node(f, "n1", "worker", 0)
	f.Add(append(append(append([]byte{}, cert...), key...), c.root...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := decodeIdentity(text); err == nil && c.node.NodeID == "" {
			t.Error("identity without a node was accepted")
		}
	})
}
