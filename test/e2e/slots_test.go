package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/internal/testkit"
)

// TestSlots: what a consumer of a permanent slot has not confirmed comes after a failover, too, and slots of nobody known are left alone.
func TestSlots(t *testing.T) {
	c, nodes := three(t)
	p := c.WaitPrimary(0)
	p.Exec(testkit.Database, "CREATE TABLE cdc (n int PRIMARY KEY)")

	c.Run("made everywhere", func(t *testing.T) {
		for _, args := range [][]string{
			{"slots", "add", "cdc", "--type", "logical", "--database", testkit.Database, "--plugin", "test_decoding"},
			{"slots", "add", "archive", "--type", "physical"},
		} {
			if r := p.CLI(args...); r.Code != 0 {
				t.Fatalf("%v: %s%s", args, r.Out, r.Err)
			}
		}
		waitSlots(t, c, nodes)
		c.Eventually("slots list shows them", func() error {
			if r := p.CLI("slots", "list"); r.Code != 0 || strings.Count(r.Out, " cdc ") != 3 || strings.Count(r.Out, " archive ") != 3 {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		if r := p.CLI("slots", "add", "m_mine"); r.Code != 2 || !strings.Contains(r.Err, "members' own") {
			t.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
	})

	row := 0
	insert := func() (n int) {
		row++
		c.Eventually("the new primary takes a row", func() error { // clients are let in a moment after it is known
			_, err := testkit.Query[int](c.WaitPrimary(0), testkit.Database, fmt.Sprintf("INSERT INTO cdc VALUES (%d) ON CONFLICT DO NOTHING RETURNING 1", row))
			if errors.Is(err, pgx.ErrNoRows) { // it was in before the answer was lost
				return nil
			}
			return err
		})
		return row
	}

	c.Run("failover", func(t *testing.T) {
		old := c.WaitPrimary(0)
		seen := insert()
		consume(t, old, seen)
		waitSlots(t, c, nodes)
		missed := insert()
		old.PowerOff()
		next := c.WaitPrimary(0, old)
		later := insert()
		consume(t, next, missed, later)
		old.Start()
		c.WaitHealthy()
		waitSlots(t, c, nodes)
	})

	c.Run("switchover", func(t *testing.T) {
		old := c.WaitPrimary(0)
		missed := insert()
		switchOver(c, old, "--force")
		next := c.WaitPrimary(0, old)
		c.WaitHealthy()
		consume(t, next, missed, insert())
		waitSlots(t, c, nodes)
	})

	c.Run("lost, unknown and not wanted", func(t *testing.T) {
		p := c.WaitPrimary(0)
		p.Exec("postgres", "SELECT pg_create_physical_replication_slot('stranger', true)", "SELECT pg_create_physical_replication_slot('citus_shard_move_slot_1', true)",
			"ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "ALTER SYSTEM SET wal_keep_size = 0", "SELECT pg_reload_conf()")
		for range 4 {
			p.Exec("postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')", "SELECT pg_switch_wal()", "CHECKPOINT")
		}
		c.Eventually("list tells of the slot that was lost, by its owner", func() error {
			r := p.CLI("list")
			if !strings.Contains(r.Out, "slot cdc: the log that it needs is gone") || !strings.Contains(r.Out, "slot stranger, which is none of Matriarch's, has lost") || strings.Contains(r.Out, "citus_shard") {
				return fmt.Errorf("%s%s", r.Out, r.Err)
			}
			return nil
		})
		p.Exec("postgres", "ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")
		if r := p.CLI("slots", "reset", "cdc"); r.Code != 0 {
			t.Fatalf("%s%s", r.Out, r.Err)
		}
		waitSlot(t, c, p, "cdc and archive are made anew, the others stay", "2 ok, 2 left", `SELECT count(*) FILTER (WHERE slot_name IN ('cdc', 'archive') AND wal_status <> 'lost') || ' ok, '
			|| count(*) FILTER (WHERE slot_name IN ('stranger', 'citus_shard_move_slot_1')) || ' left' FROM pg_replication_slots`)
		for _, name := range []string{"cdc", "archive"} {
			if r := p.CLI("slots", "drop", name); r.Code != 0 {
				t.Fatalf("%s%s", r.Out, r.Err)
			}
		}
		for _, n := range nodes {
			waitSlot(t, c, n, "dropped on "+n.Name, "0", "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name IN ('cdc', 'archive')")
		}
		c.WaitHealthy()
	})
}

// consume reads the slot as its consumer does, which gets these rows and no others, and confirms them.
func consume(t *testing.T, p *testkit.Node, want ...int) {
	t.Helper()
	text, err := testkit.Query[string](p, testkit.Database, `SELECT coalesce(string_agg((regexp_match(data, 'n\[integer\]:(\d+)'))[1], ' '), '')
		FROM pg_logical_slot_get_changes('cdc', NULL, NULL) WHERE data LIKE 'table public.cdc:%'`)
	if got := strings.Fields(text); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the consumer on %s got %v (%v), want %v", p.Name, got, err, want)
	}
}

// waitSlots waits until every node has both slots, standbys so that they could be promoted at once, as far as the primary has come.
func waitSlots(t *testing.T, c *testkit.Cluster, nodes []*testkit.Node) {
	t.Helper()
	p := c.WaitPrimary(0)
	var at string
	c.Eventually("the primary has the slot", func() (err error) {
		at, err = testkit.Query[string](p, "postgres", "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'cdc'")
		return err
	})
	version, err := testkit.Query[int](p, "postgres", "SELECT current_setting('server_version_num')::int / 10000")
	if err != nil {
		t.Fatal(err)
	}
	check := copied
	if version >= 17 {
		check = copiedByPostgres
	}
	for _, n := range others(nodes, p) {
		c.Eventually("the slots are on "+n.Name, func() error {
			if is := c.WaitPrimary(0); is != p { // nobody asked for that: one that takes over before its copy is whole drops it
				t.Fatalf("%s took over from %s while the copies were awaited", is.Name, p.Name)
			}
			return check(c, p, n, at)
		})
	}
}

// copied: the node has said of the present epoch that its copy is whole.
func copied(c *testkit.Cluster, _, n *testkit.Node, at string) error {
	have, err := testkit.Query[int](n, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'archive' OR slot_name = 'cdc' AND confirmed_flush_lsn >= '"+at+"'")
	if err != nil || have != 2 {
		return fmt.Errorf("%d of 2 (%w)", have, err)
	}
	var local struct {
		Ready struct {
			Epoch fsm.Epoch `json:"epoch"`
			Names []string  `json:"names"`
		} `json:"ready_slots"`
	}
	b, err := os.ReadFile(filepath.Join(n.Dir, "pg", "local.json"))
	if err == nil {
		err = json.Unmarshal(b, &local)
	}
	if err != nil || local.Ready.Epoch != c.GroupState(0).Epoch || len(local.Ready.Names) != 1 {
		return fmt.Errorf("the copy of cdc is not whole: %s %w", b, err)
	}
	return nil
}

// copiedByPostgres: a new copy waits until the slot's consumer has gone beyond what the standby has.
func copiedByPostgres(_ *testkit.Cluster, p, n *testkit.Node, at string) error {
	p.Exec(testkit.Database, "CHECKPOINT", "SELECT count(*) FROM pg_logical_slot_get_changes('cdc', NULL, NULL)")
	have, err := testkit.Query[int](n, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'archive' OR slot_name = 'cdc' AND confirmed_flush_lsn >= '"+at+
		"' AND synced AND NOT temporary AND invalidation_reason IS NULL")
	if err != nil || have != 2 {
		return fmt.Errorf("%d of 2 (%w)", have, err)
	}
	return nil
}

func waitSlot(t *testing.T, c *testkit.Cluster, n *testkit.Node, what, want, sql string) {
	t.Helper()
	c.Eventually(what, func() error {
		got, err := testkit.Query[string](n, "postgres", sql)
		if err == nil && got != want {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	})
}
