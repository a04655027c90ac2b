package certificates

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"matriarch/internal/identity"
	"matriarch/pgmanager"
	"matriarch/transport"
)

const (
	cluster = "0aaaaaaa-0000-4000-8000-000000000001"
	self    = "0aaaaaaa-0000-4000-8000-00000000000a"
	host    = "10.0.0.1"
)

// server stands for PostgreSQL.
type server struct {
	mu      sync.Mutex // while a keeper runs beside the test
	files   pgmanager.TLSFiles
	read    pgmanager.TLSFiles // as of the last reload
	reloads int
	fail    error
}

func (s *server) TLS() (pgmanager.TLSFiles, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files, nil
}

func (s *server) InstallTLS(f pgmanager.TLSFiles) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := !bytes.Equal(flat(s.files), flat(f))
	s.files = f
	return changed, nil
}

func (s *server) Reload(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.reloads++
		s.read = s.files
	}
	return s.fail
}

// current reports whether it has read what it was given.
func (s *server) current() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Equal(flat(s.read), flat(s.files))
}

func flat(f pgmanager.TLSFiles) []byte {
	return bytes.Join([][]byte{f.CA, f.CRL, f.ServerCert, f.ServerKey, f.SuperuserCert, f.SuperuserKey, f.ReplicationCert, f.ReplicationKey}, []byte{0})
}

// bench is a keeper with all that it works on.
type bench struct {
	*Keeper
	t      *testing.T
	ca     *transport.CA
	server *server
	log    *bytes.Buffer
}

func newBench(t *testing.T, life time.Duration, own Own) *bench {
	t.Helper()
	b := &bench{t: t, server: &server{}, log: &bytes.Buffer{}}
	var err error
	if b.ca, err = transport.NewCA(cluster, time.Now()); err != nil {
		t.Fatal(err)
	}
	caKey, err1 := b.ca.KeyPEM()
	key, csr, err2 := transport.NewKeyAndCSR()
	cert, err3 := b.ca.SignCSR(csr, self, "n1", nil, time.Now())
	dir := identity.Dir(t.TempDir())
	id := identity.Identity{ClusterID: cluster, Incarnation: 1, NodeID: self, Name: "n1"}
	err4 := dir.SaveMaterial(identity.Material{Cert: cert, Key: key, CA: b.ca.CertPEM(), CAKey: caKey})
	if err := errors.Join(err1, err2, err3, err4, dir.Save(id)); err != nil {
		t.Fatal(err)
	}
	tls, err := dir.TLS()
	if err != nil {
		t.Fatal(err)
	}
	b.Keeper = New(Config{
		Dir: dir, Self: id, TLS: tls, Postgres: b.server, Host: host, Hosts: []string{host, "n1"}, Super: "boss", Repl: "repl", Own: own, Life: life,
		Removed: func() ([]string, bool) { return nil, true }, Log: slog.New(slog.NewTextHandler(b.log, nil)),
	})
	return b
}

func (b *bench) ensure() {
	b.t.Helper()
	if err := b.Ensure(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// ours complains unless a certificate is of the cluster's CA and valid now, for the host named; "" is a client's. It asks crypto/x509, since
// what the keeper itself takes for fresh is what is tested.
func (b *bench) ours(certPEM []byte, host string) {
	b.t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		b.t.Fatalf("no certificate: %q", certPEM)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.ca.CertPEM())
	opts := x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := c.Verify(opts); err != nil {
		b.t.Errorf("in use is %s's certificate: %v", c.Subject, err)
	}
}

// TestRenewal runs a keeper for ten lives: nothing that it keeps is ever close to its end, and PostgreSQL has read the newest.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 3 * time.Minute
		b := newBench(t, life, Own{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		seen := map[string]bool{}
		for range 40 {
			time.Sleep(life / 4)
			synctest.Wait()
			if left := time.Until(b.cfg.TLS.Expires()); left < life/3-every || left > life {
				t.Fatalf("the peer port's certificate has %s left", left)
			}
			r, err := b.Show()
			if err != nil || len(r.Certs) != 4 || !r.Signed() {
				t.Fatalf("%+v: %v", r, err)
			}
			for _, c := range r.Certs {
				if left := time.Until(c.NotAfter); left < life/3-every || left > life {
					t.Fatalf("the certificate for %s has %s left", c.Use, left)
				}
				seen[c.Fingerprint] = true
				if told := b.Expires(c.Use); !told.Equal(c.NotAfter) {
					t.Fatalf("the metric of %s says %s, it ends at %s", c.Use, told, c.NotAfter)
				}
			}
			if !b.server.current() {
				t.Fatal("PostgreSQL does not know of its newest certificates")
			}
		}
		cancel()
		<-ended
		if len(seen) < 4*14 || len(seen) > 4*16 { // one in two thirds of a life
			t.Errorf("%d certificates for four uses in ten lives", len(seen))
		}
		if b.log.Len() > 0 && strings.Contains(b.log.String(), "level=WARN") {
			t.Error(b.log)
		}
	})
}

// TestLongAway: a node that was switched off until long after the end of its certificates issues new ones when it starts, before it
// speaks to anybody.
func TestLongAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Hour, Own{})
		b.ensure()
		time.Sleep(1000 * time.Hour)
		tls, err := b.cfg.Dir.TLS()
		if err != nil {
			t.Fatal(err)
		}
		if time.Until(tls.Expires()) > 0 {
			t.Fatal("it has not ended")
		}
		b.cfg.TLS = tls
		b.ensure()
		if left := time.Until(tls.Expires()); left < 59*time.Minute {
			t.Errorf("the peer port's certificate has %s left", left)
		}
		if !bytes.Equal(flat(b.server.read), flat(b.server.files)) {
			t.Error("PostgreSQL was not told")
		}
		b.ours(b.server.read.ServerCert, host)
		b.ours(b.server.read.SuperuserCert, "")
		b.ours(b.server.read.ReplicationCert, "")
	})
}

// TestHalfWritten: a key that was replaced without its certificate, as a power cut leaves it, does not stay.
func TestHalfWritten(t *testing.T) {
	b := newBench(t, time.Hour, Own{})
	b.ensure()
	key, _, err := transport.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	b.server.files.ServerKey, b.server.files.ReplicationKey = key, key
	if err := b.cfg.Dir.SaveMaterial(identity.Material{Key: key}); err != nil {
		t.Fatal(err)
	}
	b.ensure()
	m, err := b.cfg.Dir.Material()
	if err != nil {
		t.Fatal(err)
	}
	f := b.server.read
	for use, pair := range map[string][2][]byte{"node": {m.Cert, m.Key}, "server": {f.ServerCert, f.ServerKey}, "superuser": {f.SuperuserCert, f.SuperuserKey}, "replication": {f.ReplicationCert, f.ReplicationKey}} {
		if err := transport.CheckPair(pair[0], pair[1]); err != nil {
			t.Errorf("%s: %v", use, err)
		}
	}
}

// TestReloadIsRepeated: a server that could not be told is told later.
func TestReloadIsRepeated(t *testing.T) {
	b := newBench(t, time.Hour, Own{})
	b.server.fail = errors.New("it does not listen")
	if err := b.Ensure(t.Context()); err == nil {
		t.Fatal("no error")
	}
	b.server.fail = nil
	b.ensure()
	if b.server.reloads != 1 {
		t.Fatalf("%d reloads", b.server.reloads)
	}
	b.ensure()
	if b.server.reloads != 1 {
		t.Error("told again for nothing")
	}
}

// authority is a CA of the operator's.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := authority{t: t, key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a server's certificate with its key.
func (a authority) issue(host string, from, to time.Time, more ...string) (certPEM, keyPEM []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "db"}, DNSNames: append(more, host), NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, x, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// TestBrought replaces the operator's files in good and in bad ways, one after the other on one keeper: a bad one is refused in words and
// what was in use stays.
func TestBrought(t *testing.T) {
	dir := t.TempDir()
	own := Own{CertFile: filepath.Join(dir, "db.crt"), KeyFile: filepath.Join(dir, "db.key"), CAFile: filepath.Join(dir, "ca.crt")}
	b := newBench(t, time.Hour, own)
	mine, other := newAuthority(t, "mine"), newAuthority(t, "other")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	write := func(cert, key, ca []byte) {
		t.Helper()
		for path, data := range map[string][]byte{own.CertFile: cert, own.KeyFile: key, own.CAFile: ca} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	good, goodKey := mine.issue(host, past, soon)
	next, nextKey := mine.issue(host, past, soon)
	expired, expiredKey := mine.issue(host, past.Add(-time.Hour), past)
	early, earlyKey := mine.issue(host, soon, soon.Add(time.Hour))
	foreign, foreignKey := other.issue(host, past, soon)
	misnamed, misnamedKey := mine.issue("10.0.0.2", past, soon)
	both := append(mine.pem(), other.pem()...)

	type row struct {
		name          string
		cert, key, ca []byte
		words         string // of the refusal; empty: taken
		serves, cas   []byte // afterwards; serves nil: a certificate of the cluster's
	}
	for _, r := range []row{
		{"wrong from the beginning", expired, expiredKey, mine.pem(), "it expired at", nil, mine.pem()},
		{"mended", good, goodKey, mine.pem(), "", good, mine.pem()},
		{"the key of another", next, goodKey, mine.pem(), "no pair", good, mine.pem()},
		{"replaced", next, nextKey, mine.pem(), "", next, mine.pem()},
		{"expired", expired, expiredKey, mine.pem(), "it expired at", next, mine.pem()},
		{"not valid yet", early, earlyKey, mine.pem(), "valid from", next, mine.pem()},
		{"of another CA", foreign, foreignKey, mine.pem(), "no CA that the nodes trust", next, mine.pem()},
		{"with another name", misnamed, misnamedKey, mine.pem(), "does not name 10.0.0.1", next, mine.pem()},
		{"no certificate at all", []byte("rubbish"), goodKey, mine.pem(), "no pair", next, mine.pem()},
		{"another CA, which did not sign it", next, nextKey, other.pem(), "no CA that the nodes trust", next, mine.pem()},
		{"a CA file without a CA", good, goodKey, []byte("rubbish"), "certificates.ca_file", good, mine.pem()},
		{"a certificate where the CA belongs", good, goodKey, good, "is no CA's", good, mine.pem()},
		{"a second CA", good, goodKey, both, "", good, both},
		{"of the second CA", foreign, foreignKey, both, "", foreign, both},
		{"the second CA only", foreign, foreignKey, other.pem(), "", foreign, other.pem()},
		{"a key and comments in all files", append(foreignKey, foreign...), foreignKey, append([]byte("other's CA\n"), other.pem()...), "", foreign, other.pem()},
	} {
		t.Run(r.name, func(t *testing.T) {
			write(r.cert, r.key, r.ca)
			b.t = t
			b.ensure()
			report, err := b.Show()
			if err != nil {
				t.Fatal(err)
			}
			if (report.Refused != "") != (r.words != "") || !strings.Contains(report.Refused, r.words) {
				t.Errorf("refused %q, want %q", report.Refused, r.words)
			}
			if r.words != "" && !strings.Contains(b.log.String(), r.words) {
				t.Errorf("the log does not say %q:\n%s", r.words, b.log)
			}
			f := b.server.read
			if r.serves == nil {
				b.ours(f.ServerCert, host)
			} else if !bytes.Equal(f.ServerCert, r.serves) {
				t.Errorf("another certificate is in use")
			}
			if err := transport.CheckPair(f.ServerCert, f.ServerKey); err != nil {
				t.Error(err)
			}
			if want := append(b.ca.CertPEM(), r.cas...); !bytes.Equal(f.CA, want) {
				t.Error("other CAs are trusted")
			}
			b.ours(f.SuperuserCert, "")
			b.log.Reset()
			b.told = map[string]bool{}
		})
	}
}

// TestBroughtIsLeft takes the settings away again: the server shows a certificate of the cluster's.
func TestBroughtIsLeft(t *testing.T) {
	dir := t.TempDir()
	own := Own{CertFile: filepath.Join(dir, "db.crt"), KeyFile: filepath.Join(dir, "db.key"), CAFile: filepath.Join(dir, "ca.crt")}
	b := newBench(t, time.Hour, own)
	mine := newAuthority(t, "mine")
	// Nothing but its issuer makes it another than the cluster's.
	cert, key := mine.issue(host, time.Now().Add(-time.Minute), time.Now().Add(time.Hour), "n1")
	for path, data := range map[string][]byte{own.CertFile: cert, own.KeyFile: key, own.CAFile: mine.pem()} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.ensure()
	if !bytes.Equal(b.server.read.ServerCert, cert) {
		t.Fatal("not taken")
	}
	b.cfg.Own = Own{}
	b.ensure()
	b.ours(b.server.read.ServerCert, host)
	if err := transport.CheckPair(b.server.read.ServerCert, b.server.read.ServerKey); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(b.server.read.CA, b.ca.CertPEM()) {
		t.Error("the operator's CA is still trusted")
	}
}
