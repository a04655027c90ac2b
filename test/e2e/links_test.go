package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/internal/testkit"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
	"matriarch/transport"
)

const linkPassword = "of a role"

// TestLinksOfRoles has roles that are no superusers query a formation of Citus, with certificates on its links: those in matriarch_links
// reach all groups, others do not, and nothing else was opened.
func TestLinksOfRoles(t *testing.T) {
	needsCitus(t)
	needsRealCitus(t)
	t.Parallel()
	c := testkit.New(t)
	c.Flags = []string{"--pg-bin", pgtest.Bin()}
	c1 := c.Bootstrap("c1")
	a1 := c.Join(1, "a1")[0]
	c.WaitHealthy()
	right(c, c1)
	t.Log("Citus is", query[string](t, c1, "SELECT citus_version()"))
	c1.Exec("app",
		"CREATE ROLE linked LOGIN PASSWORD '"+linkPassword+"'", "CREATE ROLE plain LOGIN PASSWORD '"+linkPassword+"'", "GRANT matriarch_links TO linked")
	b1 := c.Join(2, "b1")[0] // it learns of the roles with everything else
	c.WaitHealthy()
	right(c, c1)
	c1.Exec("app",
		"CREATE TABLE notes (id bigint, note text)", "SELECT create_distributed_table('notes', 'id', shard_count => 8)", "GRANT ALL ON notes TO linked, plain")
	if n := query[int](t, c1, "SELECT count(DISTINCT groupid)::int FROM pg_dist_placement WHERE groupid > 0"); n != 2 {
		t.Fatalf("shards are in %d groups", n)
	}

	c.Run("a role that may", func(t *testing.T) {
		for _, via := range []*testkit.Node{c1, a1} { // a worker asks the others, too
			conn, err := knock(t, via, "linked", linkPassword, nil)
			if err != nil {
				t.Fatalf("log in to %s: %v", via.Name, err)
			}
			defer conn.Close(context.WithoutCancel(t.Context()))
			for _, sql := range []string{
				"INSERT INTO notes SELECT i, 'x' FROM generate_series(1, 100) i", // both groups, two-phase
				"UPDATE notes SET note = 'y'",
			} {
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					t.Errorf("%s through %s: %v", sql, via.Name, err)
				}
			}
			var n int
			if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM notes WHERE note = 'y'").Scan(&n); err != nil || n%100 != 0 || n == 0 {
				t.Errorf("%d rows through %s: %v", n, via.Name, err)
			}
			how, err := testkit.Query[string](b1, "app", "SELECT coalesce(string_agg(DISTINCT s.ssl || ' ' || s.client_dn, ','), '') FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE usename = 'linked'")
			if err != nil || !strings.HasPrefix(how, "true /CN=") || strings.Contains(how, ",") {
				t.Errorf("the link from %s came as %q: %v", via.Name, how, err)
			}
		}
	})

	c.Run("a role that may not", func(t *testing.T) {
		conn, err := knock(t, c1, "plain", linkPassword, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if _, err := conn.Exec(t.Context(), "UPDATE notes SET note = 'z'"); err == nil || !strings.Contains(err.Error(), "password") {
			t.Errorf("it wrote to the workers: %v", err)
		}
	})

	c.Run("nothing else is open", func(t *testing.T) {
		pair := func(name string) *tls.Certificate {
			file := filepath.Join(c1.Dir, "pg", "tls", name)
			p, err := tls.LoadX509KeyPair(file+".crt", file+".key")
			if err != nil {
				t.Fatal(err)
			}
			return &p
		}
		for _, x := range []struct {
			name, user string
			from       *testkit.Node
			show       *tls.Certificate
			open       bool
		}{
			{"the role, from a node with its certificate", "linked", c1, pair("superuser"), true},
			{"the role, from a node without a certificate", "linked", c1, nil, false},
			{"the role, from elsewhere with the certificate", "linked", nil, pair("superuser"), false},
			{"the role, from elsewhere without", "linked", nil, nil, false},
			{"the role, with another formation's certificate", "linked", c1, foreign(t), false},
			{"a role that may not, from a node with its certificate", "plain", c1, pair("superuser"), false},
			{"the superuser with the certificate of replication", "postgres", c1, pair("replication"), false},
			{"the superuser from elsewhere with the certificate", "postgres", nil, pair("superuser"), false},
			{"the role matriarch_links itself", "matriarch_links", c1, pair("superuser"), false},
		} {
			from := elsewhere()
			if x.from != nil {
				from = net.ParseIP(x.from.IP)
			}
			if from == nil { // all addresses of the loopback network are the nodes'
				t.Logf("%s: not tried, this machine has no other address", x.name)
				continue
			}
			conn, err := knock(t, a1, x.user, "", &stranger{from, x.show})
			if (err == nil) != x.open {
				t.Errorf("%s: let in %v (%v)", x.name, err == nil, err)
			}
			if err == nil {
				_ = conn.Close(context.WithoutCancel(t.Context()))
			}
		}
	})
}

// needsRealCitus skips where only the stand-in is: its links know the superuser alone.
func needsRealCitus(t *testing.T) {
	t.Helper()
	tools, err := pgmanager.Find(pgtest.Bin())
	if err != nil {
		t.Skip(err)
	}
	share, err := exec.Command(tools.Path("pg_config"), "--sharedir").Output()
	if err != nil {
		t.Skip(err)
	}
	control, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(share)), "extension", "citus.control"))
	if err != nil || strings.Contains(string(control), "stand-in") {
		t.Skip("needs the real Citus extension (MATRIARCH_PG_BIN): the links of the stand-in know the superuser only")
	}
}

// elsewhere is an address of this machine that is none of the loopback network; nil where there is none.
func elsewhere() net.IP {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP
		}
	}
	return nil
}

// foreign is a certificate for the superuser that another cluster's CA has signed.
func foreign(t *testing.T) *tls.Certificate {
	t.Helper()
	ca, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.IssuePostgres(transport.PostgresCert{NodeID: "n", Role: "postgres"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// stranger is who comes by TLS from an address, with a certificate or without.
type stranger struct {
	from net.IP
	show *tls.Certificate
}

// knock logs in to a node's PostgreSQL.
func knock(t *testing.T, n *testkit.Node, user, password string, as *stranger) (*pgx.Conn, error) {
	t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s/app?sslmode=prefer&user=%s", n.PG(), user))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Password = password
	if as != nil {
		cfg.Fallbacks = nil
		cfg.TLSConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the server is what is tried
		if as.show != nil {
			cfg.TLSConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return as.show, nil }
		}
		cfg.DialFunc = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: as.from}}).DialContext
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return pgx.ConnectConfig(ctx, cfg)
}
