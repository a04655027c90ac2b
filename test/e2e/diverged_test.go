package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"matriarch/internal/testkit"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
)

// TestDiverged brings back servers that hold what nobody else has.
func TestDiverged(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)

	c.Run("a tail that was never sent", func(t *testing.T) {
		old := c.WaitPrimary(0)
		s := old.WriteLocally()
		s.WaitWrites(1)
		old.FreezeSenders()
		s.WaitWrites(20)
		old.PowerOff()
		next := c.WaitPrimary(0, old)
		w.WaitAck()
		before := inode(t, old.DataDir())
		old.Start()
		c.WaitHealthy()
		if inode(t, old.DataDir()) != before {
			t.Error("it was cloned, a rewind would have done")
		}
		sameNumbers(t, c, "local_numbers", old, next)
		if kept := files(t, filepath.Join(old.Dir, "pg", "set-aside")); len(kept) == 0 {
			t.Error("what only the old primary had was not set aside")
		}
	})

	c.Run("a row written by hand", func(t *testing.T) {
		old := c.WaitPrimary(0)
		old.PowerOff()
		next := c.WaitPrimary(0, old)
		w.WaitAck()
		single(t, old, "INSERT INTO local_numbers VALUES (-1)")
		old.Start()
		c.WaitHealthy()
		sameNumbers(t, c, "local_numbers", old, next)
		if have, err := next.Numbers("local_numbers"); err != nil || have[-1] {
			t.Errorf("the row that only the old directory had is on %s (%v)", next.Name, err)
		}
	})

	// Both servers make the timeline of the same number. PostgreSQL itself would follow, and pg_rewind sees nothing to do.
	c.Run("promoted by hand to the same timeline", func(t *testing.T) {
		old := c.WaitPrimary(0)
		old.PowerOff()
		next := c.WaitPrimary(0, old)
		w.WaitAck()
		promoteByHand(t, old, "INSERT INTO local_numbers VALUES (-2)")
		before := inode(t, old.DataDir())
		old.Start()
		c.WaitHealthy()
		if inode(t, old.DataDir()) == before {
			t.Error("it was followed or rewound: only a clone is safe")
		}
		sameNumbers(t, c, "local_numbers", old, next)
		aside, _ := filepath.Glob(old.DataDir() + ".set-aside-*")
		if len(aside) != 1 || inode(t, aside[0]) != before {
			t.Errorf("the old directory was not set aside: %v", aside)
		}
		c.Eventually("list mentions the data set aside", func() error {
			if r := others(nodes, old)[0].CLI("list"); !strings.Contains(r.Out, "set") {
				return fmt.Errorf("it says:\n%s%s", r.Out, r.Err)
			}
			return nil
		})
	})
	w.Check()
	timelinesAgree(t, c)
}

func sameNumbers(t *testing.T, c *testkit.Cluster, table string, a, b *testkit.Node) {
	t.Helper()
	c.Eventually(fmt.Sprintf("%s and %s have the same %s", a.Name, b.Name, table), func() error {
		x, err := a.Numbers(table)
		if err != nil {
			return err
		}
		y, err := b.Numbers(table)
		if err != nil {
			return err
		}
		for n := range y {
			if !x[n] {
				return fmt.Errorf("%s lacks %d", a.Name, n)
			}
		}
		if len(x) != len(y) {
			return fmt.Errorf("%s has %d rows, %s has %d", a.Name, len(x), b.Name, len(y))
		}
		return nil
	})
}

func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return out
}

// tool runs one of PostgreSQL's programs as its user.
func tool(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	tools, err := pgmanager.Find(pgtest.Bin())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, tools.Path(name), args...)
	cmd.SysProcAttr, cmd.Dir, cmd.Stdin = testkit.AsPostgres(t), "/", strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// single runs a statement in a single-user server, which asks nobody.
func single(t *testing.T, n *testkit.Node, sql string) {
	t.Helper()
	_ = os.Remove(filepath.Join(n.DataDir(), "standby.signal"))
	out := tool(t, sql+"\n", "postgres", "--single", "-D", n.DataDir(), "-c", "synchronous_standby_names=", testkit.Database)
	if strings.Contains(out, "ERROR") {
		t.Fatal(out)
	}
}

// promoteByHand starts a dead node's server without Matriarch, promotes it, writes, and stops it.
func promoteByHand(t *testing.T, n *testkit.Node, sql string) {
	t.Helper()
	hba := filepath.Join(n.Dir, "run", "hand.conf")
	if err := os.WriteFile(hba, []byte("local all all trust\n"), 0o644); err != nil { //nolint:gosec // PostgreSQL's own user reads it
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.DataDir(), "standby.signal"), nil, 0o644); err != nil { //nolint:gosec // PostgreSQL's own user reads it
		t.Fatal(err)
	}
	opts := fmt.Sprintf("-c listen_addresses= -c port=6432 -c unix_socket_directories=%[1]s/run -c hba_file=%[2]s -c primary_conninfo= -c synchronous_standby_names= -c hot_standby=on", n.Dir, hba)
	tool(t, "", "pg_ctl", "start", "-w", "-D", n.DataDir(), "-l", filepath.Join(n.Dir, "run", "hand.log"), "-o", opts)
	tool(t, "", "pg_ctl", "promote", "-w", "-D", n.DataDir())
	tool(t, "", "psql", "-X", "-h", filepath.Join(n.Dir, "run"), "-p", "6432", "-U", "postgres", "-d", testkit.Database, "-v", "ON_ERROR_STOP=1", "-c", sql)
	tool(t, "", "pg_ctl", "stop", "-w", "-m", "fast", "-D", n.DataDir())
}
