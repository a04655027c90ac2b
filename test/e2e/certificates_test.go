package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/internal/config"
	"matriarch/internal/testkit"
)

// TestCertificates lives longer than its certificates: those of the cluster's CA, which renew themselves, and those that the operator
// brings and replaces on disk.
func TestCertificates(t *testing.T) {
	t.Parallel()
	const life = 12 * time.Second
	c := testkit.New(t)
	n1, n2 := c.Lay("n1", 0), c.Lay("n2", 0)
	own := filepath.Join(c.Dir, "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, caFile := filepath.Join(own, "n1.crt"), filepath.Join(own, "n1.key"), filepath.Join(own, "ca.crt")
	mine, other := newAuthority(t, "mine"), newAuthority(t, "other")
	put := func(cert, key, cas []byte) {
		t.Helper()
		for path, data := range map[string][]byte{keyFile: key, certFile: cert, caFile: cas} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	first, firstKey := mine.issue(n1.IP, past, soon)
	put(first, firstKey, mine.pem())

	configure := func(n *testkit.Node) {
		t.Helper()
		cfg, err := config.Load(n.Config())
		if err != nil {
			t.Fatal(err)
		}
		cfg.API.TLS, cfg.Certificates.Lifetime, cfg.Certificates.CAFile = "on", life, caFile
		if n == n1 { // n2 has all from the cluster's CA
			cfg.Certificates.CertFile, cfg.Certificates.KeyFile = certFile, keyFile
		}
		if err := cfg.Save(n.Config()); err != nil {
			t.Fatal(err)
		}
	}
	r := n1.BootstrapOnly()
	ok(t, r)
	configure(n1)
	n1.Start()
	c.WaitPrimary(0)
	c.Eventually("the cluster takes n2", func() error { // a first node that has just started may not
		if r := n2.JoinOnly(testkit.TokenOf(t, r.Out), n1.Peer()); r.Code != 0 {
			return fmt.Errorf("exit %d: %s", r.Code, r.Err)
		}
		return nil
	})
	configure(n2)
	n2.Start()
	c.WaitHealthy()
	w := c.Write(0)
	before, failed := running(t, c, n1, n2), w.LastError()
	unmoved := func(t *testing.T) {
		t.Helper()
		if now := running(t, c, n1, n2); now != before {
			t.Errorf("something was restarted, cut or elected:\n%s\n%s", before, now)
		}
		if err := w.LastError(); err != failed && !pgconn.Timeout(err) { //nolint:errorlint // the same one, or none
			t.Errorf("the writer met %v", err)
		}
	}

	c.Run("they renew themselves", func(t *testing.T) {
		type was struct {
			raw string
			end time.Time
		}
		began, old := time.Now(), map[string]was{}
		ports := map[string]string{"n1 peers": n1.Peer(), "n2 peers": n2.Peer(), "n2 PostgreSQL": n2.PG(), "n2 API": n2.API()}
		for what, addr := range ports {
			leaf := shown(t, addr)
			if left := time.Until(leaf.NotAfter); left > life {
				t.Fatalf("%s shows one for %s more", what, left)
			}
			old[what] = was{string(leaf.Raw), leaf.NotAfter}
		}
		for what, addr := range ports {
			c.Eventually(what+" shows another", func() error {
				leaf := shown(t, addr)
				if string(leaf.Raw) == old[what].raw {
					return fmt.Errorf("still the one of %s before", time.Since(began).Round(time.Second))
				}
				if made := leaf.NotAfter.Add(-life); made.After(old[what].end) {
					t.Errorf("it was made %s after the one before had run out", made.Sub(old[what].end))
				}
				return nil
			})
		}
		c.Eventually("all from before have run out", func() error {
			if left := life - time.Since(began); left > 0 {
				return fmt.Errorf("%s left", left)
			}
			return nil
		})
		unmoved(t)
		for what, addr := range ports {
			if leaf := shown(t, addr); time.Now().After(leaf.NotAfter) {
				t.Errorf("%s shows one that has run out", what)
			}
		}
		reconnect(t, c, n1) // by the certificates as they are now
		w.WaitAck()
		before, failed = running(t, c, n1, n2), w.LastError()
	})

	c.Run("files of one's own are read again", func(t *testing.T) {
		shows := func(t *testing.T, cert []byte) {
			t.Helper()
			for what, addr := range map[string]string{"PostgreSQL": n1.PG(), "the API": n1.API()} {
				c.Eventually(what+" shows it", func() error {
					if got := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown(t, addr).Raw}); !bytes.Equal(got, cert) {
						return fmt.Errorf("another one")
					}
					return nil
				})
			}
		}
		refused := func(t *testing.T, words string) {
			t.Helper()
			c.Eventually("it is refused in words", func() error {
				r := n2.CLI("certificates", "show")
				if r.Code != 1 || !strings.Contains(r.Err, "n1") || !strings.Contains(r.Err, words) || !strings.Contains(n1.Log(), words) {
					return fmt.Errorf("exit %d, want %q\n%s%s", r.Code, words, r.Out, r.Err)
				}
				return nil
			})
		}
		shows(t, first)
		next, nextKey := mine.issue(n1.IP, past, soon)
		put(next, nextKey, mine.pem())
		shows(t, next)
		c.Eventually("they are shown", func() error {
			if r := n2.CLI("certificates", "show"); r.Code != 0 {
				return fmt.Errorf("exit %d: %s", r.Code, r.Err)
			}
			return nil
		})

		put(first, nextKey, mine.pem())
		refused(t, "no pair")
		shows(t, next)
		expired, expiredKey := mine.issue(n1.IP, past.Add(-time.Hour), past)
		put(expired, expiredKey, mine.pem())
		refused(t, "it expired at")
		shows(t, next)
		foreign, foreignKey := other.issue(n1.IP, past, soon)
		put(foreign, foreignKey, mine.pem())
		refused(t, "no CA that the nodes trust")
		shows(t, next)
		unmoved(t)
		reconnect(t, c, n1)
		w.WaitAck()
		failed = w.LastError()

		put(foreign, foreignKey, append(mine.pem(), other.pem()...)) // the file is n2's as well
		shows(t, foreign)
		c.Eventually("n2 trusts the second CA", func() error {
			if b, err := os.ReadFile(filepath.Join(n2.Dir, "pg", "tls", "ca.crt")); err != nil || !bytes.Contains(b, other.pem()) {
				return fmt.Errorf("not yet (%w)", err)
			}
			return nil
		})
		reconnect(t, c, n1)
		w.WaitAck()
		before, failed = running(t, c, n1, n2), w.LastError()
		w.WaitAck()
		unmoved(t)
	})
	w.Check()
}

// running tells which processes there are, who streams to whom, and who leads in which term.
func running(t *testing.T, c *testkit.Cluster, nodes ...*testkit.Node) string {
	t.Helper()
	out := "senders " + senders(t, c)
	for _, n := range nodes {
		for _, p := range []testkit.Part{testkit.Agent, testkit.Sentinel, testkit.Postmaster} {
			out += fmt.Sprintf(", %s of %s %d", p, n.Name, n.PID(p))
		}
	}
	st := c.Status()
	return out + fmt.Sprintf(", term %d, epoch %s", st.Raft.Term, st.State.Groups[0].Epoch)
}

// reconnect ends the one stream and waits until it is there again.
func reconnect(t *testing.T, c *testkit.Cluster, p *testkit.Node) {
	t.Helper()
	before := senders(t, c)
	p.Exec(testkit.Database, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
	c.Eventually("the standby streams again", func() error {
		now, err := testkit.Query[string](p, testkit.Database, "SELECT coalesce(string_agg(pid::text, ' '), '') FROM pg_stat_replication WHERE state = 'streaming'")
		if err != nil || now == "" || now == before {
			return fmt.Errorf("senders %q: %w", now, err)
		}
		return nil
	})
	c.WaitHealthy()
}

// shown is the certificate that a port shows, in the language of PostgreSQL, HTTPS or the nodes.
func shown(t *testing.T, addr string) *x509.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1", "matriarch/join/1"}} //nolint:gosec // it is looked at
	if strings.HasSuffix(addr, ":6432") {
		cfg.NextProtos = nil
		answer := make([]byte, 1)
		if _, err = raw.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err == nil { // SSLRequest
			_, err = io.ReadFull(raw, answer)
		}
		if err != nil || answer[0] != 'S' {
			t.Fatalf("%s has no TLS: %q %v", addr, answer, err)
		}
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		t.Fatalf("shake hands with %s: %v", addr, err)
	}
	return conn.ConnectionState().PeerCertificates[0]
}

// authority is a CA that is not the cluster's.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	a := authority{t: t}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, x, x, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a server's certificate with its key.
func (a authority) issue(ip string, from, to time.Time) (certPEM, keyPEM []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "db"}, IPAddresses: []net.IP{net.ParseIP(ip)}, DNSNames: []string{ip}, NotBefore: from, NotAfter: to}
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
