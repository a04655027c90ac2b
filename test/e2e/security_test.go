package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/internal/identity"
	"matriarch/internal/testkit"
	"matriarch/transport"
)

// TestSecurity changes every secret of a formation under a writer, and then lets strangers knock.
func TestSecurity(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Flags, c.Proxy = []string{"--no-citus"}, true
	n1 := c.Bootstrap("n1")
	c.Join(0, "n2", "n3")
	c.WaitHealthy()
	w := c.Write(0)
	w.WaitAck()
	began, members := time.Now(), c.Nodes

	c.Run("links show certificates", func(t *testing.T) {
		p := c.WaitPrimary(0)
		how, err := testkit.Query[string](p, testkit.Database, `SELECT string_agg(DISTINCT s.ssl || ' ' || s.client_dn, ',') FROM pg_stat_ssl s JOIN pg_stat_replication r USING (pid)`)
		if err != nil || how != "true /CN=matriarch_replication" {
			t.Fatalf("standbys came as %q: %v", how, err)
		}
		conf, err := os.ReadFile(filepath.Join(n1.Dir, "pg", "hba.conf"))
		if err != nil || strings.Contains(string(conf), "replication \"matriarch_replication\" 127.0.0.0/8 scram") {
			t.Fatalf("a password would do: %v\n%s", err, conf)
		}
	})

	c.Run("certificates renew", func(t *testing.T) {
		c.Eventually("they renew, and no stream is cut", func() error { // one that is silent for 3 s cuts itself
			before := senders(t, c)
			if r := n1.CLI("certificates", "renew"); r.Code != 0 {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			if r := n1.CLI("certificates", "show"); r.Code != 0 || strings.Count(r.Out, "replication") != 3 {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			if after := senders(t, c); after != before {
				return fmt.Errorf("streams were cut: %s, then %s", before, after)
			}
			return nil
		})
	})

	c.Run("the CA is replaced", func(t *testing.T) {
		token := n1.NewToken()
		old, err := identity.Dir(n1.Dir).CAFingerprint()
		if err != nil {
			t.Fatal(err)
		}
		ok(t, n1.CLI("ca", "rotate", "--yes"))
		for _, n := range members {
			bundle, err := identity.Dir(n.Dir).Trusted()
			if err != nil {
				t.Fatal(err)
			}
			if all, err := transport.Fingerprints(bundle); err != nil || len(all) != 1 || all[0] == old {
				t.Errorf("%s trusts %v, the old one was %s: %v", n.Name, all, old, err)
			}
		}
		c.WaitHealthy()
		if r := c.Lay("n4", 0).JoinOnly(token, n1.Peer()); r.Code == 0 || !strings.Contains(r.Err, "fingerprint") {
			t.Errorf("a token from before: exit %d\n%s", r.Code, r.Err)
		}
		w.WaitAck()
	})

	c.Run("a member is away", func(t *testing.T) {
		n3 := c.Named("n3")
		n3.Stop()
		if r := n1.CLI("ca", "rotate", "--yes"); r.Code != 1 || !strings.Contains(r.Err, "n3") || !strings.Contains(r.Err, "--force") {
			t.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		n3.Start()
		c.WaitHealthy()
	})

	c.Run("passwords change", func(t *testing.T) {
		before, err := identity.Dir(n1.Dir).Secrets()
		if err != nil {
			t.Fatal(err)
		}
		ok(t, n1.CLI("password", "rotate", "--yes"))
		for _, n := range members {
			now, err := identity.Dir(n.Dir).Secrets()
			if err != nil || len(now) != 2 || now[identity.Superuser] == before[identity.Superuser] || now[identity.Replication] == before[identity.Replication] {
				t.Errorf("%s: %d secrets, changed %v: %v", n.Name, len(now), now[identity.Superuser] != before[identity.Superuser], err)
			}
		}
		c.WaitHealthy()
		n1.Stop()
		n1.Start() // with nothing but the new ones
		c.WaitHealthy()
		w.WaitAck()
	})

	c.Run("nobody noticed", func(t *testing.T) {
		gap, _ := w.Gap(began)
		within(t, "the longest pause of the writer", gap, 2*time.Second+slack)
	})

	w.Check()
	// To PostgreSQL a proxy's clients come from a node's address: that alone must not make anybody a member.
	c.Run("strangers at the proxy", func(t *testing.T) {
		p := c.WaitPrimary(0)
		if err := throughProxy(t, p, ""); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("the superuser's password, without a certificate: %v", err)
		}
		if err := throughProxy(t, p, copyOf(t, others(members, p)[0])); err != nil {
			t.Errorf("a member's certificate: %v", err)
		}
	})
	c.Run("a removed node", func(t *testing.T) {
		n2 := c.Named("n2")
		if c.WaitPrimary(0) == n2 {
			n2 = c.Named("n3")
		}
		files := copyOf(t, n2) // as a thief would have
		kept, err := identity.Dir(n2.Dir).TLS()
		if err != nil {
			t.Fatal(err)
		}
		id := n2.ID()
		ok(t, c.WaitPrimary(0).CLI("remove", n2.Name, "--yes"))
		p := c.WaitPrimary(0)
		c.Eventually(p.Name+" knows of it", func() error { // by its own state it refuses
			st, err := p.Status()
			if err != nil {
				return err
			}
			if _, gone := st.State.Removed[id]; !gone {
				return errNotYet
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		d := &transport.Dialer{Network: transport.TCP{}, Identity: kept}
		for _, k := range []transport.Kind{transport.KindRaft, transport.KindGossip} {
			if _, err := d.Dial(ctx, k, p.Peer(), ""); !errors.Is(err, transport.ErrRefused) {
				t.Errorf("%s: %v", k, err)
			}
		}
		client := transport.NewClient(d)
		defer client.Close()
		if err := client.Call(ctx, p.Peer(), "", "status", struct{}{}, nil); err == nil || !strings.Contains(err.Error(), "removed") {
			t.Errorf("a call: %v", err)
		}
		crl, err := os.ReadFile(filepath.Join(p.Dir, "pg", "tls", "ca.crl"))
		if err != nil {
			t.Fatal(err)
		}
		c.Eventually("PostgreSQL refuses its certificate", func() error {
			cas, err := identity.Dir(p.Dir).CAs()
			if err != nil {
				return err
			}
			if crl, err = os.ReadFile(filepath.Join(p.Dir, "pg", "tls", "ca.crl")); err != nil {
				return err
			}
			if !transport.RevokedAre(crl, []string{string(kept.Self().NodeID)}, cas...) {
				return fmt.Errorf("the list of revoked certificates does not name it")
			}
			if err := throughProxy(t, p, files); err == nil || !strings.Contains(err.Error(), "revoked") {
				return fmt.Errorf("logging in with its certificate: %w", cmp.Or(err, errors.New("let in")))
			}
			return nil
		})
	})
}

// copyOf copies the files that make a node the superuser at PostgreSQL.
func copyOf(t *testing.T, n *testkit.Node) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(n.Dir, "pg", "tls"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// throughProxy logs in as the superuser, always with the right password, over TLS at a node's proxy, with the certificate of a directory if one is given.
func throughProxy(t *testing.T, n *testkit.Node, dir string) error {
	t.Helper()
	pass, err := identity.Dir(n.Dir).Secret(identity.Superuser)
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("postgres://postgres:%s@%s/%s?sslmode=require&connect_timeout=5", pass, n.ToCoordinator(), testkit.Database)
	if dir != "" {
		url += "&sslcert=" + filepath.Join(dir, "superuser.crt") + "&sslkey=" + filepath.Join(dir, "superuser.key")
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		err = conn.Close(t.Context())
	}
	return err
}

func ok(t *testing.T, r testkit.Result) {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("exit %d\n%s%s", r.Code, r.Out, r.Err)
	}
}

// senders are the processes that stream to standbys.
func senders(t *testing.T, c *testkit.Cluster) string {
	t.Helper()
	s, err := testkit.Query[string](c.WaitPrimary(0), testkit.Database, "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_replication")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
