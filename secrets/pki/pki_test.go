package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/rpc"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func says(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v is not of kind %v", err, kind)
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v does not say %q", err, text)
	}
}

// cluster is a root with its key.
type cluster struct{ root, rootKey []byte }

func newCluster(t testing.TB) cluster {
	t.Helper()
	root, key, err := NewRoot("c1")
	check(t, err)
	return cluster{root, key}
}

// node makes a key and a certificate for it.
func (c cluster) node(t testing.TB, id string, role swarm.NodeRole, validFor time.Duration) (cert, key []byte) {
	t.Helper()
	key, csr, err := NewKey()
	check(t, err)
	cert, err = Sign(c.root, c.rootKey, csr, rpc.Peer{NodeID: id, Role: rpc.Role(role), ClusterID: "c1"}, validFor)
	check(t, err)
	return cert, key
}

func TestSignedCertificateNamesTheNode(t *testing.T) {
	c := newCluster(t)
	cert, key := c.node(t, "n1", swarm.NodeRoleManager, 0)
	id, err := Save(filepath.Join(t.TempDir(), "identity"), c.root, cert, key)
	check(t, err)
	if id.NodeID() != "n1" || id.ClusterID() != "c1" || id.Role() != swarm.NodeRoleManager {
		t.Errorf("identity is %s %s %s", id.NodeID(), id.ClusterID(), id.Role())
	}
	leaf := id.Certificate().Leaf
	if life := time.Until(leaf.NotAfter).Round(time.Hour); life != 90*24*time.Hour {
		t.Errorf("certificate lives for %s", life)
	}
	if back := time.Since(leaf.NotBefore).Round(time.Minute); back != time.Hour {
		t.Errorf("certificate is backdated by %s", back)
	}
	if got := strings.Join(leaf.DNSNames, " "); got != "n1 swarm-manager" {
		t.Errorf("names are %q", got)
	}
}

func TestOnlyTheKeyOfARequestIsUsed(t *testing.T) {
	c := newCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	request := &x509.CertificateRequest{DNSNames: []string{"evil"}}
	request.Subject.CommonName = "someone-else"
	request.Subject.OrganizationalUnit = []string{"manager"}
	der, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	check(t, err)
	text, err := Sign(c.root, c.rootKey, pemRequest(der), rpc.Peer{NodeID: "n1", Role: rpc.Worker, ClusterID: "c1"}, time.Hour)
	check(t, err)
	certs, err := parseCertificates(text)
	check(t, err)
	if got := certs[0].Subject.String() + " " + strings.Join(certs[0].DNSNames, " "); got != "CN=n1,OU=worker,O=c1 n1 swarm-worker" {
		t.Errorf("certificate is for %s", got)
	}
}

func pemRequest(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestBadRequestsAreRefused(t *testing.T) {
	c := newCluster(t)
	_, good, err := NewKey()
	check(t, err)
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	foreign, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	check(t, err)
	for _, test := range []struct {
		csr      []byte
		node     string
		role     swarm.NodeRole
		validFor time.Duration
		says     string
	}{
		{nil, "n1", "worker", 0, "not a PEM certificate request"},
		{pemRequest([]byte("x")), "n1", "worker", 0, "parse certificate request"},
		{pemRequest(forged), "n1", "worker", 0, "not signed by its own key"},
		{pemRequest(foreign), "n1", "worker", 0, "not for an ECDSA P-256 key"},
		{bytes.Repeat([]byte("x"), pemBytesMax+1), "n1", "worker", 0, "larger than"},
		{good, "", "worker", 0, "cannot have a certificate"},
		{good, "n1", "root", 0, "cannot have a certificate"},
		{good, "n1", "worker", time.Minute, "shorter than 1h0m0s"},
	} {
		_, err := Sign(c.root, c.rootKey, test.csr, rpc.Peer{NodeID: test.node, Role: rpc.Role(test.role), ClusterID: "c1"}, test.validFor)
		says(t, err, errdefs.ErrInvalidArgument, test.says)
	}
	_, err = Sign(c.root, newCluster(t).rootKey, good, rpc.Peer{NodeID: "n1", Role: rpc.Worker, ClusterID: "c1"}, 0)
	says(t, err, errdefs.ErrInvalidArgument, "does not belong to the root")
}

func TestIdentitySurvivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	_, err := Load(dir)
	says(t, err, errdefs.ErrNotFound, dir)

	c := newCluster(t)
	cert, key := c.node(t, "n1", "worker", 0)
	saved, err := Save(dir, c.root, cert, key)
	check(t, err)
	cert, key = c.node(t, "n1", "manager", 0)
	check(t, saved.Replace(c.root, cert, key))

	loaded, err := Load(dir)
	check(t, err)
	if loaded.NodeID() != "n1" || loaded.Role() != "manager" || !bytes.Equal(loaded.RootPEM(), c.root) {
		t.Errorf("loaded %s %s", loaded.NodeID(), loaded.Role())
	}
	if !loaded.RenewAt().Equal(saved.RenewAt()) {
		t.Error("the moment of renewal moved with a restart")
	}
	if got := modes(t, dir); got != "drwx------ -rw-------" {
		t.Errorf("modes are %s", got)
	}
}

func modes(t *testing.T, dir string) string {
	t.Helper()
	d, err := os.Stat(dir)
	check(t, err)
	f, err := os.Stat(identityFile(dir))
	check(t, err)
	return d.Mode().String() + " " + f.Mode().String()
}

func TestReplaceKeepsTheNode(t *testing.T) {
	c := newCluster(t)
	cert, key := c.node(t, "n1", "worker", 0)
	id, err := Save(t.TempDir(), c.root, cert, key)
	check(t, err)
	cert, key = c.node(t, "n2", "worker", 0)
	says(t, id.Replace(c.root, cert, key), errdefs.ErrInvalidArgument, "not of node n1")
	if id.NodeID() != "n1" {
		t.Errorf("identity became %s", id.NodeID())
	}
}

func TestDamagedIdentityIsNamed(t *testing.T) {
	c := newCluster(t)
	cert, key := c.node(t, "n1", "worker", 0)
	_, otherKey := c.node(t, "n1", "worker", 0)
	for _, test := range []struct {
		name string
		text []byte
		says string
	}{
		{"empty", nil, "no certificate found"},
		{"garbage", []byte("hello"), "not PEM"},
		{"cut off", append(bytes.Clone(cert), key[:len(key)/2]...), "not PEM"},
		{"without root", append(bytes.Clone(cert), key...), "read root certificate"},
		{"other key", bytes.Join([][]byte{cert, otherKey, c.root}, nil), "does not belong to the node certificate"},
		{"other root", bytes.Join([][]byte{cert, key, newCluster(t).root}, nil), "not signed by the root"},
		{"root as node", bytes.Join([][]byte{c.root, c.rootKey, c.root}, nil), "not a node's certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			check(t, os.WriteFile(identityFile(dir), test.text, 0o600))
			_, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), identityFile(dir)) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v does not name the file and say %q", err, test.says)
			}
		})
	}
}

func TestInterruptedWriteLeavesTheOldIdentity(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	cert, key := c.node(t, "n1", "worker", 0)
	_, err := Save(dir, c.root, cert, key)
	check(t, err)
	check(t, os.WriteFile(identityFile(dir)+".new", []byte("half"), 0o644))
	id, err := Load(dir)
	check(t, err)
	cert, key = c.node(t, "n1", "manager", 0)
	check(t, id.Replace(c.root, cert, key))
	if got := modes(t, dir); got != "drwx------ -rw-------" {
		t.Errorf("modes are %s", got)
	}
}

func TestExpiredIdentityIsLoadedAndNamed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cert, key := c.node(t, "n1", "worker", time.Hour)
		_, err := Save(dir, c.root, cert, key)
		check(t, err)
		time.Sleep(61 * time.Minute)
		id, err := Load(dir)
		says(t, err, ErrExpired, identityFile(dir))
		if id == nil || id.NodeID() != "n1" {
			t.Error("expired identity was not returned")
		}
	})
}

func TestRenewalIsSpreadOverTheMiddleOfLife(t *testing.T) {
	c := newCluster(t)
	moments := map[time.Time]bool{}
	for range 20 {
		cert, key := c.node(t, "n1", "worker", time.Hour)
		id, err := Save(t.TempDir(), c.root, cert, key)
		check(t, err)
		moments[id.RenewAt()] = true
		if in := time.Until(id.RenewAt()); in < 29*time.Minute || in > 49*time.Minute {
			t.Errorf("a certificate of 1 h is renewed in %s", in)
		}
	}
	if len(moments) < 10 {
		t.Errorf("20 certificates are renewed at %d moments", len(moments))
	}
}
