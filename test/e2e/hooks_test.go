package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"matriarch/internal/config"
	"matriarch/internal/testkit"
)

// TestHooks: a candidate whose pre_promote says no lets the next one try, and each is told whom to fence.
func TestHooks(t *testing.T) {
	c, nodes := three(t)
	dir := filepath.Join(c.Dir, "hooks")
	if err := os.Mkdir(dir, 0o777); err != nil { //nolint:gosec // PostgreSQL's user writes there
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // PostgreSQL's user writes there
		t.Fatal(err)
	}
	script := func(name, body string) []string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
		return []string{path, "an argument"}
	}
	check := script("check", fmt.Sprintf(`echo "$MATRIARCH_NODE" >>%[1]s/asked; test ! -e "%[1]s/refuse-$MATRIARCH_NODE"`, dir))
	fence := script("fence", fmt.Sprintf(`echo "$MATRIARCH_NODE fences $MATRIARCH_OLD_PRIMARY at $MATRIARCH_OLD_POSTGRES, epoch $MATRIARCH_OLD_EPOCH, $1" >>%s/fenced`, dir))
	for _, n := range nodes {
		n.Stop()
		cfg, err := config.Load(n.Config())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Hooks.PrePromote, cfg.Hooks.FenceCommand = check, fence
		if err := cfg.Save(n.Config()); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
	c.WaitHealthy()

	old := c.WaitPrimary(0)
	standbys := others(nodes, old)
	// With equal positions the first by name is the first to be tried.
	refuser, taker := standbys[0], standbys[1]
	if err := os.WriteFile(filepath.Join(dir, "refuse-"+refuser.Name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := c.Write(0)
	w.Check() // and ends it
	c.WaitHealthy()
	epoch := c.GroupState(0).Epoch
	for _, f := range []string{"asked", "fenced"} { // the restarts may have cost a failover
		if err := os.RemoveAll(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	old.Freeze(testkit.Agent) // it writes a record every 2 s
	c.Eventually("the standbys have the same", func() error {
		if old.PID(testkit.Postmaster) == 0 { // fenced meanwhile, which is as good
			return nil
		}
		at, err := testkit.Query[string](old, "postgres", "SELECT pg_current_wal_flush_lsn()::text")
		for _, n := range standbys {
			got, nerr := testkit.Query[string](n, "postgres", "SELECT coalesce(pg_last_wal_receive_lsn()::text, '')")
			if err != nil || nerr != nil || got != at {
				return fmt.Errorf("%s has %q of %q: %w", n.Name, got, at, errors.Join(err, nerr))
			}
		}
		return nil
	})
	old.PowerOff()
	if p := c.WaitPrimary(0, old); p != taker {
		t.Errorf("the primary is %s, whose pre_promote refuses", p.Name)
	}
	asked := read(t, filepath.Join(dir, "asked"))
	if first, _, _ := strings.Cut(asked, "\n"); first != refuser.Name || !strings.HasSuffix(strings.TrimSpace(asked), taker.Name) {
		t.Errorf("pre_promote ran on:\n%swant %s first, %s last", asked, refuser.Name, taker.Name)
	}
	fenced := read(t, filepath.Join(dir, "fenced"))
	for _, n := range standbys {
		if want := fmt.Sprintf("%s fences %s at %s, epoch %s, an argument\n", n.Name, old.Name, old.PG(), epoch); !strings.Contains(fenced, want) {
			t.Errorf("fence_command was told:\n%swant %s", fenced, want)
		}
	}
	refused := false
	for _, h := range c.State().History[0] {
		refused = refused || h.Kind == "released" && strings.Contains(h.Text, "pre_promote")
	}
	if !refused {
		t.Errorf("the history does not tell who refused: %+v", c.State().History[0])
	}

	old.Start()
	c.WaitHealthy()
	fenced = read(t, filepath.Join(dir, "fenced"))
	switchOver(c, taker, "--candidate", old.Name, "--force")
	if more := read(t, filepath.Join(dir, "fenced")); more != fenced {
		t.Errorf("a primary that ended in good order was fenced:\n%s", more)
	}
	c.WaitHealthy()
	if p := c.WaitPrimary(0); p != old || old.PID(testkit.Postmaster) == 0 {
		t.Errorf("the primary is %s", p.Name)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
