package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

func listed(t *testing.T, n *testkit.Node, word string, want bool) error {
	t.Helper()
	r := n.CLI("list")
	if r.Code != 0 {
		return fmt.Errorf("list: %s", r.Err)
	}
	if got := strings.Contains(r.Out, word); got != want {
		return fmt.Errorf("list says %q: %v, want %v\n%s", word, got, want, r.Out)
	}
	return nil
}

// TestLegacyRunning takes a server over while its application works, gives it a standby, and then loses it.
func TestLegacyRunning(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	l := newLegacy(t, c, "n1")
	hba, err := os.ReadFile(filepath.Join(l.DataDir(), "pg_hba.conf"))
	l.must(err)
	n2 := c.Lay("n2", 0)
	w := openTill(t, l.Node, n2)
	w.sells(c)

	postmaster := l.PID(testkit.Postmaster)
	if notes := l.adopt(c); !strings.Contains(notes, "fencing is weak") {
		t.Errorf("bootstrap does not say that fencing is weak: %s", notes)
	}
	w.sells(c)
	l.Start()
	c.WaitPrimary(0)
	epoch := c.GroupState(0).Epoch
	c.Eventually("list says what adoption means", func() error {
		if err := listed(t, l.Node, "fence: weak", true); err != nil {
			return err
		}
		return listed(t, l.Node, "restart pending", true)
	})
	w.sells(c)
	w.undisturbed("adopted")

	renewed(c, l.Node)
	away := time.Now()
	l.Stop()
	l.Start()
	inTime := returned(c, l.Node, epoch, away)
	c.WaitPrimary(0)
	w.sells(c)
	if inTime {
		w.undisturbed("agent restarted")
	} else {
		t.Log("the agent was away for too long on this machine: whether anybody notices is not judged")
	}

	c.Eventually("the cluster takes n2", func() error {
		if r := n2.JoinOnly(c.Token, l.Peer()); r.Code != 0 {
			return fmt.Errorf("exit %d: %s", r.Code, r.Err)
		}
		return nil
	})
	n2.Start()
	c.WaitHealthy()
	w.sells(c)
	if inTime {
		w.undisturbed("standby cloned and synchronous")
	}
	if got := l.PID(testkit.Postmaster); inTime && (got != postmaster || c.GroupState(0).Epoch != epoch) {
		t.Errorf("postmaster %d, epoch %s: it should still be %d under %s", got, c.GroupState(0).Epoch, postmaster, epoch)
	}
	if l.psql("shop", "SELECT count(*) FROM orders WHERE n = 0") != "1" {
		t.Error("the owner's own access is gone")
	}

	_, at := losesPostmaster(c, l.Node)
	w.sells(c)
	within(t, "handing over", time.Since(at), ttl+slack)
	c.WaitHealthy()
	timelinesAgree(t, c)
	c.Eventually("list says nothing of a weak fence", func() error { return listed(t, n2, "weak", false) })
	if now, err := os.ReadFile(filepath.Join(l.DataDir(), "pg_hba.conf")); err != nil || string(now) != string(hba) {
		t.Errorf("its pg_hba.conf is not as it was (%v):\n%s", err, now)
	}
	w.check()
}

// TestLegacyRunningSentinelKilled: the watcher of an adopted server dies; what it could no longer fence is restarted.
func TestLegacyRunningSentinelKilled(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	l := newLegacy(t, c, "n1")
	w := openTill(t, l.Node)
	l.adopt(c)
	l.Start()
	c.WaitPrimary(0)
	w.sells(c)
	w.undisturbed("adopted")
	postmaster, epoch := l.PID(testkit.Postmaster), c.GroupState(0).Epoch
	l.Kill9(testkit.Sentinel)
	c.WaitState("another epoch is open", func(st admin.Status) error {
		if g := st.State.Groups[0]; !g.Opened() || g.Epoch == epoch {
			return fmt.Errorf("epoch %s", g.Epoch)
		}
		return nil
	})
	w.sells(c)
	if got := l.PID(testkit.Postmaster); got == postmaster || got == 0 {
		t.Errorf("postmaster %d, it was %d: it should have been restarted", got, postmaster)
	}
	w.check()
}

// TestLegacyStopped takes a directory over that was shut down, or left by a crash, and lets its clients in as before.
func TestLegacyStopped(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"clean": syscall.SIGINT, "crashed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testkit.New(t)
			l := newLegacy(t, c, "n1")
			w := openTill(t, l.Node)
			w.sells(c)
			l.end(sig)
			l.adopt(c)
			l.Start()
			c.WaitPrimary(0)
			w.sells(c)
			if got := l.run("psql", "-X", "-A", "-t", "-h", l.sock, "-p", "6432", "-d", "shop", "-U", "auditor", "-c", "SELECT n FROM orders WHERE n = 0"); got != "0" {
				t.Errorf("the auditor, whom a line trusts over the socket, sees %q", got)
			}
			c.Eventually("the formation's database is made beside the old ones", func() error {
				if got := l.psql("postgres", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate"); got != "app postgres shop" {
					return fmt.Errorf("databases: %s", got)
				}
				return nil
			})
			if got := l.psql("postgres", "SHOW max_connections"); got != "50" {
				t.Errorf("max_connections is %s, the owner had 50", got)
			}
			if st := c.Status().State.Groups[0]; len(st.Grants) == 0 || st.Grants[len(st.Grants)-1].Timeline != 2 {
				t.Errorf("grants: %+v, want a promotion to timeline 2", st.Grants)
			}
			w.check()
		})
	}
}

// TestLegacyRefused: what cannot be adopted, and data that belongs elsewhere, is refused in words, and nothing is changed.
func TestLegacyRefused(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	l := newLegacy(t, c, "n1")
	l.change("postgresql.conf", func(s string) string { return s + "port = 6499\n" })
	l.end(syscall.SIGINT)
	l.serve()
	l.refused("listens on port 6499, not 6432", "--pg-listen")
	l.end(syscall.SIGINT)
	l.change("postgresql.conf", func(s string) string { return strings.TrimSuffix(s, "port = 6499\n") })
	signal := filepath.Join(l.DataDir(), "standby.signal")
	l.must(os.WriteFile(signal, nil, 0o600))
	l.refused("it is a standby", "adopt its primary")
	l.must(os.Remove(signal))
	l.serve()
	if got := l.psql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'matriarch%'"); got != "0" {
		t.Errorf("%s roles were left behind", got)
	}
	l.adopt(c)
	l.Start()
	c.WaitPrimary(0)

	other := newLegacy(t, c, "n2")
	other.end(syscall.SIGINT)
	joined := func(n *testkit.Node, words ...string) {
		t.Helper()
		r := n.JoinOnly(c.Token, l.Peer())
		if r.Code != 1 {
			t.Fatalf("join of %s: exit %d\n%s%s", n.Name, r.Code, r.Out, r.Err)
		}
		for _, w := range words {
			if !strings.Contains(r.Err, w) {
				t.Errorf("the refusal does not say %q: %s", w, r.Err)
			}
		}
		if _, err := os.Stat(n.Config()); err == nil {
			t.Errorf("%s was left behind", n.Config())
		}
	}
	joined(other.Node, "system identifier", "belongs to another database cluster")
	other.Group = 1
	joined(other.Node, "group 1 has no data yet", "bootstrap --adopt")
	l.must(os.Remove(filepath.Join(other.DataDir(), "PG_VERSION")))
	joined(other.Node, "is not empty and holds no database cluster")
	if st := c.State(); len(st.Nodes) != 1 {
		t.Errorf("%d nodes", len(st.Nodes))
	}
}
