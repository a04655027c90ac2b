package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"matriarch/internal/testkit"
)

// byHand starts a server that Matriarch knows nothing of, at the address that its node will have, with some rows.
func byHand(t *testing.T, n *testkit.Node) {
	t.Helper()
	initDB(t, n)
	socket := filepath.Join(n.Dir, "sock")
	makeFor(t, socket, "postgres")
	tool(t, "", "pg_ctl", "start", "-w", "-D", n.DataDir(), "-l", filepath.Join(socket, "hand.log"),
		"-o", fmt.Sprintf("-c listen_addresses=%s -c port=6432 -c unix_socket_directories=%s", n.IP, socket))
	for _, sql := range []string{"CREATE DATABASE shop", "CREATE TABLE before (x int); INSERT INTO before SELECT generate_series(1, 1000)"} {
		tool(t, "", "psql", "-X", "-h", socket, "-p", "6432", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql)
	}
}

// adopted goes through what an adopted server must be able to do.
func adopted(t *testing.T, c *testkit.Cluster, n *testkit.Node) {
	t.Helper()
	c.WaitPrimary(0)
	c.Join(0, "n2", "n3")
	c.WaitHealthy()
	w := c.Write(0)
	for _, x := range c.Nodes {
		c.Eventually(x.Name+" has the rows of before", func() error { // a standby lets clients in last
			rows, err := testkit.Query[int](x, "postgres", "SELECT count(*) FROM before")
			if err == nil && rows != 1000 {
				err = fmt.Errorf("%d rows", rows)
			}
			return err
		})
	}
	losesPostmaster(c, n)
	w.WaitAck()
	c.WaitHealthy()
	c.Eventually("the fence is not weak any more", func() error {
		st, err := n.SentinelStatus()
		if err == nil && st.Weak {
			err = errNotYet
		}
		return err
	})
	w.Check()
}

// TestAdoptStopped takes over a data directory.
func TestAdoptStopped(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	n := c.Lay("n1", 0)
	byHand(t, n)
	tool(t, "", "pg_ctl", "stop", "-w", "-m", "fast", "-D", n.DataDir())
	before := inode(t, n.DataDir())
	c.Adopt(n)
	adopted(t, c, n)
	if inode(t, n.DataDir()) != before {
		t.Error("it is not the same directory any more")
	}
}

// TestAdoptRunning takes over a server without stopping it.
func TestAdoptRunning(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	n := c.Lay("n1", 0)
	byHand(t, n)
	postmaster := n.PID(testkit.Postmaster)
	c.Adopt(n)
	c.WaitPrimary(0)
	if got := n.PID(testkit.Postmaster); got != postmaster {
		t.Errorf("postmaster %d became %d", postmaster, got)
	}
	c.Eventually("list says that the fence is weak", func() error {
		if r := n.CLI("list"); r.Code != 0 || !strings.Contains(r.Out, "fence: weak") {
			return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		return nil
	})
	adopted(t, c, n)
}

// TestAdoptNothing refuses a directory that is not a primary's.
func TestAdoptNothing(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	n := c.Lay("n1", 0)
	initDB(t, n)
	writeFor(t, filepath.Join(n.DataDir(), "standby.signal"), "postgres")
	r := n.BootstrapOnly("--adopt")
	if r.Code != 1 || !strings.Contains(r.Err, "standby") {
		t.Errorf("exit %d %s", r.Code, r.Err)
	}
	for _, x := range files(t, n.Dir) {
		if strings.HasSuffix(x, "identity.json") {
			t.Errorf("%s is there after a refusal", x)
		}
	}
}
