package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/citus"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
)

const facts = 1000

// needsCitus skips where neither Citus nor its stand-in is installed.
func needsCitus(t *testing.T) {
	t.Helper()
	tools, err := pgmanager.Find(pgtest.Bin())
	if err != nil {
		t.Skip(err)
	}
	lib, err := exec.Command(tools.Path("pg_config"), "--pkglibdir").Output()
	if err == nil {
		_, err = os.Stat(filepath.Join(strings.TrimSpace(string(lib)), "citus.so"))
	}
	if err != nil {
		t.Skip("no Citus: make -C test/citus-standin install: ", err)
	}
}

// formation has a coordinator of two nodes, a worker group of one and one of two, with Citus or its stand-in.
func formation(t *testing.T) *testkit.Cluster {
	t.Helper()
	t.Parallel()
	c := testkit.New(t)
	c.Flags = []string{"--pg-bin", pgtest.Bin()}
	c.Bootstrap("c1")
	c.Join(0, "c2")
	c.Join(1, "a1")
	c.Join(2, "b1", "b2")
	c.WaitHealthy()
	return c
}

// right waits until `citus status` says so.
func right(c *testkit.Cluster, from *testkit.Node, args ...string) []citus.DatabaseStatus {
	c.T.Helper()
	var out []citus.DatabaseStatus
	c.Eventually("the metadata is right", func() error {
		r := from.CLI(append([]string{"--output", "json", "citus", "status"}, args...)...)
		if r.Code != 0 {
			return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		return json.Unmarshal([]byte(r.Out), &out)
	})
	return out
}

// work has the Raft leader do something that may be repeated: another may take over at any time, off the hosts of primaries, and on
// a busy machine a lock or a connection is not had in time.
func work(c *testkit.Cluster, from *testkit.Node, args ...string) (r testkit.Result) {
	c.T.Helper()
	c.EventuallyWithin(2*time.Minute, strings.Join(args, " "), func() error {
		r = from.CLI(args...)
		if r.Code == 0 || strings.Contains(r.Err, "is not retired") || strings.Contains(r.Err, "there is no node") { // done by an earlier try
			return nil
		}
		return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
	})
	return r
}

func query[V any](t *testing.T, n *testkit.Node, sql string) V {
	t.Helper()
	v, err := testkit.Query[V](n, "app", sql)
	if err != nil {
		t.Fatalf("on %s: %s: %v", n.Name, sql, err)
	}
	return v
}

// TestCitus is what an operator does with a formation of Citus, one thing after the other.
func TestCitus(t *testing.T) {
	needsCitus(t)
	c := formation(t)
	a1, b1, b2 := c.Named("a1"), c.Named("b1"), c.Named("b2")

	c.Run("status", func(t *testing.T) {
		d := right(c, b2)
		if len(d) != 1 || d[0].Database != "app" || len(d[0].Nodes) != 3 {
			t.Fatalf("%+v", d)
		}
		c.Eventually("both standbys have rows", func() error {
			if n := len(right(c, b2)[0].Nodes[0].Rows); n != 5 {
				return fmt.Errorf("%d rows", n)
			}
			return nil
		})
		c.Eventually("it is said for people, too", func() error { // a round may be under way
			if r := a1.CLI("citus", "status"); !strings.Contains(r.Out, "right on every node") || !strings.Contains(r.Out, "secondary") {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
	})

	c.Run("a row changed by hand", func(t *testing.T) {
		coord := c.WaitPrimary(0)
		wrong := fmt.Sprintf("%s:%d", a1.IP, 1+query[int](t, coord, "SELECT nodeport FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary'"))
		term, at := c.Status().Raft.Term, time.Now()
		coord.Exec("app", "UPDATE pg_dist_node SET nodeport = nodeport + 1 WHERE groupid = 1 AND noderole = 'primary'")
		c.Eventually("it is put right", func() error {
			n, err := testkit.Query[int](coord, "app", "SELECT nodeport FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary'")
			if err == nil && a1.PG() != fmt.Sprintf("%s:%d", a1.IP, n) {
				err = fmt.Errorf("port %d", n)
			}
			return err
		})
		if took := time.Since(at); c.Status().Raft.Term == term { // another leader must first get to know everybody
			within(t, "putting it right", took, 2*time.Second+slack)
		}
		c.Eventually("a log tells what was wrong", func() error {
			for _, n := range c.Nodes {
				for line := range strings.Lines(n.Log()) {
					if strings.Contains(line, "citus metadata mended") && strings.Contains(line, "led to "+wrong) {
						return nil
					}
				}
			}
			return errNotYet
		})
		right(c, a1)
	})

	c.Run("a database more", func(t *testing.T) {
		if r := a1.CLI("config", "set", "databases=app,web"); r.Code != 0 {
			t.Fatalf("exit %d %s", r.Code, r.Err)
		}
		d := right(c, a1, "--database", "web")
		if len(d) != 1 || d[0].Database != "web" || len(d[0].Nodes) != 3 {
			t.Errorf("%+v", d)
		}
		c.WaitPrimary(0).Exec("web", "CREATE TABLE pages (id bigint)", "SELECT create_distributed_table('pages', 'id', shard_count => 4)", "INSERT INTO pages SELECT generate_series(1, 10)")
		if n, err := testkit.Query[int](a1, "web", "SELECT count(*)::int FROM pages"); err != nil || n != 10 {
			t.Errorf("%d rows through a worker: %v", n, err)
		}
		c.WaitPrimary(0).Exec("web", "DROP TABLE pages")
		leftAlone(c, a1, "app", "web")
		if n := len(right(c, a1)); n != 1 {
			t.Errorf("%d databases", n)
		}
	})

	c.Run("there and back", func(t *testing.T) { thereAndBack(t, c, a1) })

	c.Run("drained", func(t *testing.T) {
		c.WaitPrimary(0).Exec("app", "CREATE TABLE facts (id bigint PRIMARY KEY)", "SELECT create_distributed_table('facts', 'id', shard_count => 8)",
			fmt.Sprintf("INSERT INTO facts SELECT generate_series(1, %d)", facts))
		c.Eventually("a group with the only copy of shards is not removed", func() error {
			r := a1.CLI("citus", "remove-group", "2", "--yes")
			if r.Code == 0 {
				t.Fatal("it was")
			}
			if r.Code != 1 || !strings.Contains(r.Err, "facts shard ") {
				return fmt.Errorf("exit %d %s", r.Code, r.Err)
			}
			return nil
		})
		work(c, a1, "citus", "drain", "2", "--watch", "--interval", "0.2")
		if n := query[int](t, c.WaitPrimary(0), "SELECT count(*)::int FROM pg_dist_placement WHERE groupid = 2"); n != 0 {
			t.Errorf("%d shards are left", n)
		}
		right(c, a1)
	})

	c.Run("rebalanced over a failover", func(t *testing.T) { rebalance(t, c, a1) })

	c.Run("retired", func(t *testing.T) { retire(t, c, a1, b1, b2) })

	c.Run("joined with a rebalance", func(t *testing.T) {
		c.Flags = append(c.Flags, "--rebalance")
		c.Join(3, "d1")
		coord := c.WaitPrimary(0)
		c.EventuallyWithin(2*time.Minute, "the new group has shards", func() error {
			if n := query[int](t, coord, "SELECT count(*)::int FROM pg_dist_placement WHERE groupid = 3"); n == 0 {
				return errNotYet
			}
			return nil
		})
		if got := query[int](t, coord, "SELECT count(*)::int FROM facts"); got != facts {
			t.Errorf("%d rows, not %d", got, facts)
		}
	})
}

// thereAndBack has a session copy rows into every group while one of them switches over twice: the connections that the session
// keeps to the server that was stopped must be forgotten before that one is primary again.
func thereAndBack(t *testing.T, c *testkit.Cluster, from *testkit.Node) {
	coord := c.WaitPrimary(0)
	coord.Exec("app", "CREATE TABLE notes (id bigint)", "SELECT create_distributed_table('notes', 'id', shard_count => 8)")
	if n := query[int](t, coord, "SELECT count(DISTINCT groupid)::int FROM pg_dist_placement WHERE groupid > 0"); n != 2 {
		t.Fatalf("shards are in %d groups", n)
	}
	session, err := coord.Connect(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.WithoutCancel(t.Context()))
	for i := range 4 {
		var rows [][]any
		for id := range 100 {
			rows = append(rows, []any{int64(1000*i + id)})
		}
		if _, err := session.CopyFrom(t.Context(), pgx.Identifier{"notes"}, []string{"id"}, pgx.CopyFromRows(rows)); err != nil {
			t.Errorf("after %d switchovers: %v", i, err)
		}
		c.Eventually("group 2 switches over", func() error { // on a busy machine it can be refused
			if r := from.CLI("switchover", "--group", "2", "--force"); r.Code != 0 {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		c.WaitHealthy()
		right(c, from) // Citus has told the workers
	}
	coord.Exec("app", "DROP TABLE notes")
}

// rebalance loses the coordinator in the middle.
func rebalance(t *testing.T, c *testkit.Cluster, from *testkit.Node) {
	old := c.WaitPrimary(0)
	standin := strings.Contains(query[string](t, old, "SELECT citus_version()"), "stand-in")
	if standin { // its shards move in no time
		old.Exec("app", "ALTER SYSTEM SET citus_standin.task_delay = 2000", "SELECT pg_reload_conf()")
	}
	work(c, from, "citus", "drain", "2", "--undo")
	if r := work(c, from, "citus", "rebalance", "--plan"); !strings.Contains(r.Out, "facts") {
		t.Errorf("%s%s", r.Out, r.Err)
	}
	const jobs = "SELECT count(*)::int FROM pg_dist_background_job"
	before := query[int](t, old, jobs)
	end := make(chan testkit.Result, 1)
	go func() {
		for {
			r := from.CLI("citus", "rebalance", "--watch", "--interval", "0.2")
			again := false
			for _, says := range []string{"the Raft leader changed meanwhile", "57P01", citus.ErrDeposed.Error()} {
				again = again || strings.Contains(r.Err, says)
			}
			if !again || t.Context().Err() != nil {
				end <- r
				return
			}
		}
	}()
	c.Eventually("shards move", func() error {
		if query[int](t, old, jobs) > before && (!standin || query[int](t, old, "SELECT count(*)::int FROM get_rebalance_progress() WHERE progress = 1") > 0) {
			return nil
		}
		return errNotYet
	})
	if r := from.CLI("switchover", "--group", "1", "--dry-run"); standin && r.Code != 1 {
		t.Errorf("a switchover while shards move: exit %d\n%s%s", r.Code, r.Out, r.Err)
	}
	old.PowerOff()
	p := c.WaitPrimary(0, old)
	select {
	case r := <-end:
		if r.Code != 0 || !strings.Contains(r.Out, "finished") {
			t.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		t.Log(r.Out)
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not end")
	}
	c.Eventually("shards are in group 2", func() error {
		if n, err := testkit.Query[int](p, "app", "SELECT count(*)::int FROM pg_dist_placement WHERE groupid = 2"); err != nil || n == 0 {
			return fmt.Errorf("%d shards (%w)", n, err)
		}
		return nil
	})
	if n := query[int](t, p, "SELECT count(*)::int FROM facts"); n != facts {
		t.Errorf("%d rows, want %d", n, facts)
	}
	old.Start()
	c.WaitHealthy()
	right(c, from)
}

// retire takes a whole group out, down to its last node, and takes it back once on the way.
func retire(t *testing.T, c *testkit.Cluster, from, b1, b2 *testkit.Node) {
	run := func(args ...string) { work(c, from, args...) }
	groups := func() int {
		return query[int](t, c.WaitPrimary(0), "SELECT count(DISTINCT groupid)::int FROM pg_dist_node")
	}
	run("citus", "drain", "2", "--watch", "--interval", "0.2")
	run("citus", "remove-group", "2", "--yes")
	if n := groups(); n != 2 {
		t.Errorf("%d groups are registered", n)
	}
	run("citus", "add-group", "2")
	c.Eventually("it is taken back", func() error {
		if n := groups(); n != 3 {
			return fmt.Errorf("%d groups are registered", n)
		}
		return nil
	})
	run("citus", "remove-group", "2", "--yes")
	right(c, from)
	last := c.WaitPrimary(2)
	first := others([]*testkit.Node{b1, b2}, last)[0]
	for _, n := range []*testkit.Node{first, last} {
		run("remove", n.Name, "--yes")
		if code := n.WaitExit(); code != 0 {
			t.Errorf("%s ended with code %d", n.Name, code)
		}
		allGone(c, n)
		if _, err := os.Stat(n.DataDir() + "/PG_VERSION"); err != nil {
			t.Errorf("the data directory of %s: %v", n.Name, err)
		}
	}
	if log, err := os.ReadFile(last.Dir + "/postgresql.log"); err != nil || !strings.Contains(string(log[max(0, len(log)-400):]), "database system is shut down") {
		t.Errorf("its last PostgreSQL was not shut down in good order (%v)", err)
	}
	if _, there := c.State().Groups[2]; there {
		t.Error("the group is still there")
	}
	right(c, from)
	if n := query[int](t, from, "SELECT count(*)::int FROM facts"); n != facts {
		t.Errorf("%d rows, want %d", n, facts)
	}
}

// leftAlone takes a database off the list. The leader that looked after it tells; where another came in between, it is listed once more.
func leftAlone(c *testkit.Cluster, n *testkit.Node, others, db string) {
	c.T.Helper()
	set := func(dbs string) {
		if r := n.CLI("config", "set", "databases="+dbs); r.Code != 0 {
			c.T.Fatalf("exit %d %s", r.Code, r.Err)
		}
	}
	for told := false; !told; {
		set(others + "," + db)
		var term uint64
		c.WaitState("the leader looks after "+db, func(st admin.Status) error {
			term = st.Raft.Term
			if b, err := json.Marshal(st.Metadata); err != nil || !strings.Contains(string(b), fmt.Sprintf("%q:%q", "database", db)) {
				return fmt.Errorf("%s (%w)", b, err)
			}
			return nil
		})
		set(others)
		c.WaitState("it is said to be left alone", func(st admin.Status) error {
			told = st.Metadata != nil && slices.Contains(st.Metadata.Left, db) && strings.Contains(n.CLI("list").Out, "database "+db+" is not listed")
			if !told && st.Raft.Term == term {
				return errNotYet
			}
			return nil
		})
	}
}
