package pgmanager

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
	"matriarch/transport"
)

const testCluster = "0aaaaaaa-0000-4000-8000-000000000001"

func newCA(t *testing.T, cluster string) *transport.CA {
	t.Helper()
	ca, err := transport.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue makes a certificate as of a moment.
func issue(t *testing.T, ca *transport.CA, p transport.PostgresCert, now time.Time) (cert, key []byte) {
	t.Helper()
	cert, key, err := ca.IssuePostgres(p, now)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// install gives a node all certificates of a CA.
func (n *node) install(ca *transport.CA, revoked ...string) {
	n.t.Helper()
	id := string(n.id)
	f := TLSFiles{CA: ca.CertPEM()}
	f.ServerCert, f.ServerKey = issue(n.t, ca, transport.PostgresCert{NodeID: id, Hosts: []string{n.cfg.Host}}, time.Now())
	f.SuperuserCert, f.SuperuserKey = issue(n.t, ca, transport.PostgresCert{NodeID: id, Role: n.cfg.Superuser}, time.Now())
	f.ReplicationCert, f.ReplicationKey = issue(n.t, ca, transport.PostgresCert{NodeID: id, Role: n.cfg.ReplicationUser}, time.Now())
	var err error
	f.CRL, err = ca.RevokePostgres(revoked, time.Now())
	n.must(err)
	changed, err := n.InstallTLS(f)
	if err != nil || !changed {
		n.t.Fatalf("install certificates: changed %v: %v", changed, err)
	}
}

func members(how pgconf.Security) Conf {
	return Conf{Phase: pgconf.Members, Nodes: everyone, Security: how}
}

// secured makes a primary and its standby that know certificates only.
func secured(t *testing.T, ca *transport.CA) (p, s *node) {
	t.Helper()
	withTLS := func(c *Config) { c.TLS = true }
	p = newNode(t, withTLS)
	p.install(ca)
	_, err := p.InitDB(p.ctx())
	p.must(err)
	p.start()
	p.apply(members(pgconf.Required))
	p.promote()
	p.must(p.SetLineage(map[fsm.Timeline]fsm.Epoch{2: epoch(1)}))
	p.must(p.EnsureRoles(p.ctx()))
	s = newNode(t, withTLS)
	s.install(ca)
	_, err = p.EnsureSlots(p.ctx(), []string{pgconf.SlotName(s.id)})
	p.must(err)
	up := p.secureUpstream(s, pgconf.Required)
	s.must(s.Clone(s.ctx(), up, false, nil))
	s.streamFrom(up, pgconf.Required)
	return p, s
}

func (n *node) secureUpstream(s *node, how pgconf.Security) Upstream {
	s.t.Helper()
	pass, err := s.WriteCredential(epoch(1), how)
	s.must(err)
	return Upstream{Host: n.cfg.Host, Port: n.cfg.Port, AppName: pgconf.AppName(s.id, epoch(1)), Slot: pgconf.SlotName(s.id), PassFile: pass, Epoch: epoch(1), Security: how}
}

func (n *node) streamFrom(up Upstream, how pgconf.Security) {
	n.t.Helper()
	c := members(how)
	c.Upstream = &up
	if n.cmd == nil {
		_, err := n.Apply(c)
		n.must(err)
		n.start()
	} else {
		n.apply(c)
	}
	n.eventually("streams", func(o Observation) bool { return o.Receiver != nil && o.Receiver.Status == "streaming" })
}

// sender is how the one walsender's client proved itself.
func (n *node) sender() string {
	n.t.Helper()
	n.eventually("has a sender", func(o Observation) bool { return len(o.Senders) == 1 })
	return value[string](n, `SELECT s.ssl || ' ' || coalesce(s.client_dn, '') FROM pg_stat_ssl s JOIN pg_stat_replication r USING (pid)`)
}

func TestLinksByCertificate(t *testing.T) {
	ca := newCA(t, testCluster)
	p, s := secured(t, ca)
	if got := p.sender(); got != "true /CN=repl" {
		t.Errorf("the standby came as %q", got)
	}
	files, _ := filepath.Glob(filepath.Join(s.cfg.passDir(), "*"))
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || strings.Contains(string(b), "r:pl") || strings.Contains(string(b), s.cfg.SuperuserPassword) {
			t.Errorf("%s holds a password (%v)", f, err)
		}
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, st.Mode())
		}
	}
	if src, err := s.askSource(s.ctx(), p.secureUpstream(s, pgconf.Required)); err != nil || src.timeline != 2 {
		t.Errorf("asked as superuser: %+v, %v", src, err)
	}

	t.Run("renewed while it streams", func(t *testing.T) {
		shown := func() string {
			c, err := p.connect(p.ctx(), p.secureUpstream(s, pgconf.Required))
			if err != nil {
				t.Fatal(err)
			}
			defer closeConn(c)
			return string(c.PgConn().Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].Raw)
		}
		before, pid := shown(), value[int](p, "SELECT pid FROM pg_stat_replication")
		p.install(ca)
		p.must(p.Reload(p.ctx()))
		s.install(ca)
		if shown() == before {
			t.Error("the server shows its old certificate")
		}
		if now := value[int](p, "SELECT pid FROM pg_stat_replication"); now != pid {
			t.Errorf("the stream was cut: sender %d, then %d", pid, now)
		}
		s.must(s.EndReceiver(s.ctx())) // the next one reads the new files
		p.eventually("has a new sender", func(o Observation) bool { return len(o.Senders) == 1 && o.Senders[0].PID != pid })
		if got := p.sender(); got != "true /CN=repl" {
			t.Errorf("the standby came back as %q", got)
		}
	})

	t.Run("a promise takes the certificate away", func(t *testing.T) {
		s.must(s.Promise(epoch(2)))
		s.must(s.DropCredentialsBelow(epoch(2)))
		s.install(ca) // a renewal must not bring it back
		p.keepsOut(s)
	})
}

// TestLinksMove takes a pair from passwords to certificates and back: who is a step ahead locks nobody out.
func TestLinksMove(t *testing.T) {
	ca := newCA(t, testCluster)
	p, s := secured(t, ca)
	// Each row leaves the two one step apart, the primary ahead or behind.
	for _, step := range []struct{ primary, standby pgconf.Security }{
		{pgconf.Both, pgconf.Required},
		{pgconf.Both, pgconf.Both},
		{pgconf.Both, pgconf.Passwords},
		{pgconf.Passwords, pgconf.Passwords},
		{pgconf.Passwords, pgconf.Both},
		{pgconf.Both, pgconf.Both},
		{pgconf.Required, pgconf.Both},
		{pgconf.Required, pgconf.Required},
	} {
		t.Run(string(step.primary)+" and "+string(step.standby), func(t *testing.T) {
			p.t, s.t = t, t
			p.apply(members(step.primary))
			s.streamFrom(p.secureUpstream(s, step.standby), step.standby)
			s.must(s.EndReceiver(s.ctx())) // a new one, by the settings as they are now
			s.eventually("streams", func(o Observation) bool { return o.Receiver != nil && o.Receiver.Status == "streaming" })
			if _, err := s.askSource(s.ctx(), p.secureUpstream(s, step.standby)); err != nil {
				t.Error(err)
			}
			want := "CN=repl"
			if step.standby == pgconf.Passwords || step.primary == pgconf.Passwords && step.standby != pgconf.Both {
				want = ""
			}
			if got := p.sender(); !strings.Contains(got, want) {
				t.Errorf("the standby came as %q", got)
			}
		})
	}
}

// TestPostgresRefusesStrangers knocks at a server's port in every way but the right one.
func TestPostgresRefusesStrangers(t *testing.T) {
	ca := newCA(t, testCluster)
	p, s := secured(t, ca)
	gone := "0ccccccc-0000-4000-8000-00000000000f"
	p.install(ca, gone)
	p.must(p.Reload(p.ctx()))
	foreign, other := newCA(t, testCluster), newCA(t, "0aaaaaaa-0000-4000-8000-000000000002")
	super := transport.PostgresCert{NodeID: string(s.id), Role: p.cfg.Superuser}
	node := transport.PostgresCert{NodeID: gone, Role: p.cfg.Superuser}
	type pair struct{ cert, key []byte }
	of := func(ca *transport.CA, c transport.PostgresCert, now time.Time) pair {
		cert, key := issue(t, ca, c, now)
		return pair{cert, key}
	}
	long := 400 * 24 * time.Hour
	for _, tc := range []struct {
		name string
		user string
		show pair
		tls  bool
		ok   bool
	}{
		{"a member", p.cfg.Superuser, of(ca, super, time.Now()), true, true},
		{"no certificate", p.cfg.Superuser, pair{}, true, false},
		{"no TLS, the right password", p.cfg.Superuser, pair{}, false, false},
		{"a foreign CA of the same name", p.cfg.Superuser, of(foreign, super, time.Now()), true, false},
		{"another cluster's", p.cfg.Superuser, of(other, super, time.Now()), true, false},
		{"expired", p.cfg.Superuser, of(ca, super, time.Now().Add(-long)), true, false},
		{"not valid yet", p.cfg.Superuser, of(ca, super, time.Now().Add(long)), true, false},
		{"a removed node", p.cfg.Superuser, of(ca, node, time.Now()), true, false},
		{"the replication certificate", p.cfg.Superuser, of(ca, transport.PostgresCert{NodeID: string(s.id), Role: p.cfg.ReplicationUser}, time.Now()), true, false},
		{"a server's certificate", p.cfg.Superuser, of(ca, transport.PostgresCert{NodeID: string(s.id)}, time.Now()), true, false},
		{"another role", "app", of(ca, super, time.Now()), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := p.knock(tc.user, tc.show.cert, tc.show.key, ca, tc.tls)
			if (err == nil) != tc.ok {
				t.Fatalf("let in: %v (%v)", err == nil, err)
			}
		})
	}
	t.Run("noise and silence", func(t *testing.T) { outlasts(t, p, s, ca) })

	// Open to everybody, a server still lets the replication user in where it streams from only: by a logical slot it could read all.
	open := members(pgconf.Required)
	open.Phase, open.Nodes = pgconf.Open, []string{"10.255.255.1"} // others
	p.apply(open)
	if err := p.knock(p.cfg.Superuser, nil, nil, ca, true); err != nil {
		t.Errorf("a client: %v", err)
	}
	for _, useTLS := range []bool{true, false} {
		if err := p.knock(p.cfg.ReplicationUser, nil, nil, ca, useTLS); err == nil || !strings.Contains(err.Error(), "pg_hba.conf rejects") {
			t.Errorf("the replication user with its password, TLS %v: %v", useTLS, err)
		}
	}
}

// outlasts: bytes that are no packet end their connection only, and those who say nothing keep nobody out.
func outlasts(t *testing.T, p, s *node, ca *transport.CA) {
	addr := net.JoinHostPort(p.cfg.Host, strconv.Itoa(p.cfg.Port))
	dial := func(says string) net.Conn {
		c, err := net.Dial("tcp", addr)
		p.must(err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.Write([]byte(says))
		p.must(err)
		return c
	}
	for name, says := range map[string]string{
		"random bytes":        "\x00\xff\x17\x03\x03\x80\x81\xfe" + strings.Repeat("\xa5", 64),
		"HTTP":                "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"an oversized packet": "\x7f\xff\xff\xff\x00\x03\x00\x00" + strings.Repeat("x", 20_000),
		"TLS without asking":  "\x16\x03\x01\x00\x05hello",
	} {
		c := dial(says)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection was held", name)
		}
	}
	for range 10 {
		dial("")
		dial("\x00\x00\x00\x40\x00\x03") // half a packet
	}
	cert, key := issue(t, ca, transport.PostgresCert{NodeID: string(s.id), Role: p.cfg.Superuser}, time.Now())
	if err := p.knock(p.cfg.Superuser, cert, key, ca, true); err != nil {
		t.Errorf("a member among strangers: %v", err)
	}
	if cut := value[int](p, "SELECT setting::int FROM pg_settings WHERE name = 'authentication_timeout'"); cut < 1 || cut > 60 {
		t.Errorf("strangers who say nothing are cut after %d s", cut)
	}
}

// knock tries a session with a certificate, and always with the right password.
func (n *node) knock(user string, cert, key []byte, trust *transport.CA, useTLS bool) error {
	n.t.Helper()
	cfg, err := pgx.ParseConfig("sslmode=disable dbname=postgres")
	n.must(err)
	cfg.Host, cfg.Port, cfg.User, cfg.Password = n.cfg.Host, uint16(n.cfg.Port), user, n.cfg.SuperuserPassword
	if user == n.cfg.ReplicationUser {
		cfg.Password = n.cfg.ReplicationPassword
	}
	if useTLS {
		block, _ := pem.Decode(trust.CertPEM())
		ca, err := x509.ParseCertificate(block.Bytes)
		n.must(err)
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		cfg.TLSConfig = &tls.Config{RootCAs: roots, ServerName: n.cfg.Host, MinVersion: tls.VersionTLS12}
		if cert != nil {
			p, err := tls.X509KeyPair(cert, key)
			n.must(err)
			// Whatever the server says whom it trusts: a stranger shows what he has.
			cfg.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p, nil }
		}
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Second)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil {
		closeConn(c)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		n.t.Fatal("no answer")
	}
	return err
}
