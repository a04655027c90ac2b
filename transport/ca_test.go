package transport

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCASignsWhatTheCallerSays(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	ca, err := NewCA(clusterA, now)
	if err != nil {
		t.Fatal(err)
	}
	// The request asks to be somebody else, and a CA: none of it may count.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	greedy := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"other"}, IPAddresses: []net.IP{net.IPv4(9, 9, 9, 9)},
		URIs:            []*url.URL{nodeURI(clusterA, "victim")},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, greedy, key)
	if err != nil {
		t.Fatal(err)
	}
	ip := net.IPv4(127, 0, 0, 3).To4()
	certPEM, err := ca.SignCSR(encodePEM(pemCSR, der), nodeC, "pg2", []net.IP{ip}, now)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	c := certs[0]
	type facts struct {
		Name       string
		URI        string
		DNS        []string
		IPs        []string
		CA         bool
		From, Till time.Time
		SameKey    bool
	}
	var ips []string
	for _, i := range c.IPAddresses {
		ips = append(ips, i.String())
	}
	got := facts{c.Subject.CommonName, c.URIs[0].String(), c.DNSNames, ips, c.IsCA, c.NotBefore, c.NotAfter, key.PublicKey.Equal(c.PublicKey)}
	want := facts{
		"pg2", "matriarch://" + clusterA + "/node/" + nodeC,
		[]string{"pg2", nodeC},
		[]string{"127.0.0.3"},
		false,
		now.Add(-backdate), now.Add(NodeLifetime), true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if err := c.CheckSignatureFrom(ca.cert); err != nil {
		t.Fatal(err)
	}
	if p, err := peerOfCert(c); err != nil || p != (Peer{clusterA, nodeC}) {
		t.Fatalf("%v, %v", p, err)
	}
}

func TestCALifetimes(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	ca, err := NewCA(clusterA, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := ca.cert.NotAfter; !got.Equal(now.Add(CALifetime)) {
		t.Fatalf("CA ends %v", got)
	}
	end := func(life time.Duration, at time.Time) time.Time {
		ca.NodeLifetime = life
		cert, _, _, _ := certOf(t, ca, nodeS, at, 1)
		certs, err := parseCerts(cert)
		if err != nil {
			t.Fatal(err)
		}
		return certs[0].NotAfter
	}
	if got := end(time.Hour, now); !got.Equal(now.Add(time.Hour)) {
		t.Errorf("own lifetime: ends %v", got)
	}
	if got := end(0, now.Add(CALifetime-time.Hour)); !got.Equal(ca.cert.NotAfter) {
		t.Errorf("a node certificate outlives its CA: %v", got)
	}
}

func TestCALoad(t *testing.T) {
	ca, other := newCA(t, clusterA), newCA(t, clusterA)
	key := func(c *CA) []byte {
		k, err := c.KeyPEM()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	nodeCert, nodeKey, _, _ := certOf(t, ca, nodeS, time.Now(), 1)
	again, err := LoadCA(ca.CertPEM(), key(ca))
	if err != nil {
		t.Fatal(err)
	}
	if again.ClusterID() != clusterA || again.Fingerprint() != ca.Fingerprint() {
		t.Fatalf("loaded %s %s", again.ClusterID(), again.Fingerprint())
	}
	if fp, err := Fingerprint(ca.CertPEM()); err != nil || fp != ca.Fingerprint() || !strings.HasPrefix(fp, "sha256:") || len(fp) != 71 {
		t.Fatalf("%q, %v", fp, err)
	}
	identity(t, again, nodeC, 1) // it signs
	for _, c := range []struct {
		name      string
		cert, key []byte
		text      string
	}{
		{"key of another CA", ca.CertPEM(), key(other), "do not belong together"},
		{"node certificate", nodeCert, nodeKey, "not a cluster's CA"},
		{"no certificate", nil, key(ca), "no certificate"},
		{"key as certificate", key(ca), key(ca), "where a certificate belongs"},
		{"rubbish behind", append(ca.CertPEM(), "rubbish"...), key(ca), "rubbish"},
		{"no key", ca.CertPEM(), []byte("x"), "no private key"},
		{"damaged key", ca.CertPEM(), encodePEM(pemKey, []byte("x")), "parse private key"},
		{"damaged certificate", encodePEM(pemCert, []byte("x")), key(ca), "parse certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := LoadCA(c.cert, c.key); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %q", err, c.text)
			}
		})
	}
}

func TestCARefusesRequests(t *testing.T) {
	ca := newCA(t, clusterA)
	_, good, err := NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, edKey)
	if err != nil {
		t.Fatal(err)
	}
	forged := forge(t, good)
	for _, c := range []struct {
		name, node, label string
		csr               []byte
		text              string
	}{
		{"empty", nodeS, "n", nil, "no certificate request"},
		{"certificate", nodeS, "n", ca.CertPEM(), "no certificate request"},
		{"rubbish", nodeS, "n", encodePEM(pemCSR, []byte("x")), "parse certificate request"},
		{"not signed by its key", nodeS, "n", forged, "check certificate request"},
		{"another kind of key", nodeS, "n", encodePEM(pemCSR, ed), "ECDSA P-256"},
		{"no node", "", "n", good, "node id"},
		{"path in node", "a/../b", "n", good, "node id"},
		{"no name", nodeS, "", good, "node name"},
		{"wildcard", nodeS, "*", good, "node name"},
		{"long name", nodeS, strings.Repeat("n", 65), good, "node name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ca.SignCSR(c.csr, c.node, c.label, nil, time.Now()); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %q", err, c.text)
			}
		})
	}
	if _, err := NewCA("a b", time.Now()); err == nil {
		t.Fatal("an odd cluster id was accepted")
	}
}

func TestNodeTLSRefusesWhatDoesNotFit(t *testing.T) {
	ca, other, foreign := newCA(t, clusterA), newCA(t, clusterA), newCA(t, clusterB)
	cert, key, caPEM, _ := certOf(t, ca, nodeS, time.Now(), 1)
	_, otherKey, _, _ := certOf(t, ca, nodeS, time.Now(), 1)
	caKey, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		cert, key, ca []byte
		text          string
	}{
		{"wrong key", cert, otherKey, caPEM, "load node certificate"},
		{"wrong CA", cert, key, other.CertPEM(), "not signed by the given CA"},
		{"no CA", cert, key, nil, "load CA certificate"},
		{"CA as node", ca.CertPEM(), caKey, caPEM, "does not belong to a node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := NewNodeTLS(c.cert, c.key, c.ca, 1); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %q", err, c.text)
			}
		})
	}
	id := identity(t, ca, nodeS, 4)
	if id.Incarnation() != 4 || id.Self() != (Peer{clusterA, nodeS}) || time.Until(id.Expires()) < NodeLifetime-time.Hour {
		t.Fatalf("%d %v %v", id.Incarnation(), id.Self(), id.Expires())
	}
	for _, signer := range []*CA{ca, foreign} { // another node, another cluster
		c, k, p, _ := certOf(t, signer, nodeC, time.Now(), 1)
		if err := id.Swap(c, k, p); err == nil || !strings.Contains(err.Error(), "it names node") {
			t.Fatalf("got %v", err)
		}
	}
	if id.Self().NodeID != nodeS {
		t.Fatal("a refused swap had effect")
	}
}

// forge flips one bit of a request's signature.
func forge(t *testing.T, csr []byte) []byte {
	t.Helper()
	b, _ := pem.Decode(csr)
	if b == nil {
		t.Fatal("no request")
	}
	b.Bytes[len(b.Bytes)-1] ^= 1
	return pem.EncodeToMemory(b)
}

func TestNodeOf(t *testing.T) {
	ca := newCA(t, clusterA)
	postgres, _, err := ca.IssuePostgres(PostgresCert{NodeID: nodeC, Role: "r"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseCerts(postgres)
	if err != nil {
		t.Fatal(err)
	}
	if got := NodeOf(all[0]); got != nodeC {
		t.Errorf("PostgreSQL's: %q", got)
	}
	if got := NodeOf(identity(t, ca, nodeC, 1).cur.Load().leaf.Leaf); got != nodeC {
		t.Errorf("the node's: %q", got)
	}
	if got := NodeOf(ca.cert); got != "" {
		t.Errorf("the CA's: %q", got)
	}
}
