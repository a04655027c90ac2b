package standin_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestPause holds a pause on the coordinator and looks at what gets through.
func TestPause(t *testing.T) {
	f := newFormation(t)
	id, here, there := f.nodeID(1), f.key(1), f.key(2)
	const copyIn = "COPY"
	statements := []struct {
		name, sql    string
		whenGroup    bool // waits while the shards of group 1 are locked
		throughOther bool // enters through worker 2, where nothing is locked
	}{
		{"insert", fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", here), true, false},
		{"insert elsewhere", fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", there), false, false},
		{"update", "UPDATE t SET v = 'y' WHERE k = " + fmt.Sprint(here), true, false},
		{"update elsewhere", "UPDATE t SET v = 'y' WHERE k = " + fmt.Sprint(there), false, false},
		{"update of all", "UPDATE t SET v = 'y'", true, false},
		{"delete of all", "DELETE FROM t", true, false},
		{"insert select", "INSERT INTO t SELECT k + 5000, v FROM t", true, false},
		{"copy", copyIn, true, false},
		{"truncate", "TRUNCATE u", true, false},
		{"reference write", "INSERT INTO r VALUES (1, 'x')", true, false},
		{"select", "SELECT v FROM t WHERE k = " + fmt.Sprint(here), false, false},
		{"select of all", "SELECT count(*) FROM t", false, false},
		{"reference read", "SELECT count(*) FROM r", false, false},
		{"insert through a worker", fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", here), false, true},
		{"select through a worker", "SELECT count(*) FROM t", false, true},
	}
	pauses := []struct {
		name, sql string
		all       bool // stops every statement that enters here
	}{
		{"citus_pause_node_within_txn", fmt.Sprintf("SELECT citus_pause_node_within_txn(%d)", id), false},
		{"citus_update_node", fmt.Sprintf("SELECT citus_update_node(%d, '127.254.0.1', 1)", id), false},
		{"lock", "LOCK TABLE pg_catalog.pg_dist_node IN ACCESS EXCLUSIVE MODE", true},
	}
	manager := f.session("app")
	for _, p := range pauses {
		t.Run(p.name, func(t *testing.T) {
			f.on(manager, "BEGIN", p.sql)
			for _, s := range statements {
				at := f.server
				if s.throughOther {
					at = f.workers[1]
				}
				c := at.session("app", "-c statement_timeout=400")
				f.on(c, "BEGIN")
				var err error
				if s.sql == copyIn {
					_, err = c.CopyFrom(t.Context(), pgx.Identifier{"t"}, []string{"k"}, pgx.CopyFromRows([][]any{{here}, {there}}))
				} else {
					_, err = c.Exec(t.Context(), s.sql)
				}
				_ = c.Close(t.Context())
				waits := s.whenGroup || p.all && !s.throughOther
				if (code(err) == "57014") != waits || err != nil && !waits {
					t.Errorf("%s: %v, waits should be %t", s.name, err, waits)
				}
			}
			// One that waits goes on when the pause is over.
			done := make(chan error, 1)
			c := f.session("app")
			go func() {
				_, err := c.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("UPDATE t SET v = 'z' WHERE k = %d", here))
				done <- err
			}()
			select {
			case err := <-done:
				t.Errorf("an update did not wait: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
			f.on(manager, "ROLLBACK")
			if err := <-done; err != nil {
				t.Errorf("an update that waited: %v", err)
			}
		})
	}
	refused(t, manager, "node 99 not found", "SELECT citus_pause_node_within_txn(99)")
}

// TestPauseForce has a writer in the way.
func TestPauseForce(t *testing.T) {
	f := newFormation(t)
	id, here := f.nodeID(1), f.key(1)
	reader, writer, manager := f.session("app"), f.session("app"), f.session("app")
	f.on(reader, "BEGIN", "SELECT count(*) FROM t")
	f.on(writer, "BEGIN", fmt.Sprintf("INSERT INTO t VALUES (%d, 'x')", here))

	f.on(manager, "SET lock_timeout = '300ms'")
	if _, err := manager.Exec(t.Context(), "SELECT citus_pause_node_within_txn($1)", id); code(err) != "55P03" {
		t.Errorf("without force: %v, want a lock timeout", err)
	}
	f.on(manager, "RESET lock_timeout", "BEGIN")
	began := time.Now()
	f.on(manager, fmt.Sprintf("SELECT citus_pause_node_within_txn(%d, true, 500)", id))
	if took := time.Since(began); took < 500*time.Millisecond || took > 10*time.Second {
		t.Errorf("with force: %s, want the cooldown of 500 ms", took)
	}
	if _, err := writer.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the writer in the way still lives")
	}
	f.on(reader, "COMMIT")
	f.on(manager, "ROLLBACK", "BEGIN", fmt.Sprintf("SELECT citus_pause_node_within_txn(%d, true, 500)", id), "COMMIT")
	if n := get[int](t, manager, "SELECT count(*)::int FROM t"); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
}

// TestUpdateNode moves a worker's address while sessions are open.
func TestUpdateNode(t *testing.T) {
	f := newFormation(t)
	id, here := f.nodeID(1), f.key(1)
	standby := f.workers[0].standby()
	client, other := f.session("app"), f.workers[1].session("app")
	for _, c := range []*pgx.Conn{client, other} {
		f.on(c, "SELECT count(*) FROM t", fmt.Sprintf("UPDATE t SET v = 'x' WHERE k = %d", here))
	}
	f.workers[0].stop(syscall.SIGINT)
	f.on(standby.session("postgres"), "SELECT pg_promote()")
	f.do(fmt.Sprintf("SELECT citus_update_node(%d, '%s', %d, true, 1000)", id, standby.ip, standby.port))
	f.on(client, fmt.Sprintf("INSERT INTO t VALUES (%d, 'new')", here))
	eventually(t, "the other worker knows the address", func(ctx context.Context) bool {
		var n int
		return other.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&n) == nil && n == 101
	})
	eventually(t, "all is in sync", func(ctx context.Context) bool {
		var ok bool
		return client.QueryRow(ctx, "SELECT bool_and(metadatasynced) FROM pg_dist_node").Scan(&ok) == nil && ok
	})
}

func TestSecondaries(t *testing.T) {
	f := newFormation(t)
	always := []string{"-c citus.use_secondary_nodes=always"}
	refused(t, f.session("app", always...), "node group 1 does not have a secondary node", "SELECT count(*) FROM t WHERE k = $1", f.key(1))
	var standbys [2]*server
	for i, w := range f.workers {
		standbys[i] = w.standby()
		f.do(fmt.Sprintf("SELECT citus_add_secondary_node('%s', %d, '%s', %d)", standbys[i].ip, standbys[i].port, w.ip, w.port))
	}
	read := f.session("app", always...)
	eventually(t, "the standbys have the rows", func(ctx context.Context) bool {
		var n int
		return read.QueryRow(ctx, "SELECT count(*) FROM t").Scan(&n) == nil && n == 100
	})
	for _, sql := range []string{"INSERT INTO t VALUES (1000, 'x')", "UPDATE t SET v = 'x' WHERE k = 1", "DELETE FROM t"} {
		refused(t, read, "writing to worker nodes is not currently allowed", sql)
	}
	refused(t, f.session("app", "-c citus.use_secondary_nodes=always -c citus.cluster_name=reports"), "there are no nodes in that group", "SELECT count(*) FROM t")

	// Replay stands still: sessions that read from secondaries see the past, the others the present.
	for _, s := range standbys {
		f.on(s.session("postgres"), "SELECT pg_wal_replay_pause()")
	}
	f.do("UPDATE t SET v = 'new'")
	now, early := f.session("app"), "SELECT count(*)::int FROM t WHERE v = 'old'"
	if n := get[int](t, now, early); n != 0 {
		t.Errorf("by primaries %d old rows, want 0", n)
	}
	if n := get[int](t, read, early); n != 100 {
		t.Errorf("by secondaries %d old rows, want 100", n)
	}
	if n := get[int](t, read, "SELECT count(*)::int FROM t a JOIN t b USING (k) WHERE a.v = 'old'"); n != 100 {
		t.Errorf("by secondaries %d old rows in a join, want 100", n)
	}
	for _, s := range standbys {
		f.on(s.session("postgres"), "SELECT pg_wal_replay_resume()")
	}

	// A standby of the coordinator serves reads, by either way, and no writes.
	coordinator := f.standby()
	for _, options := range [][]string{nil, always} {
		c := coordinator.session("app", options...)
		eventually(t, "the coordinator's standby sees the rows", func(ctx context.Context) bool {
			var n int
			return c.QueryRow(ctx, "SELECT count(*) FROM t WHERE v = 'new'").Scan(&n) == nil && n == 100
		})
		refused(t, c, "writing to worker nodes is not currently allowed", "UPDATE t SET v = 'x'")
	}

	// A secondary's row goes and comes again, whatever its group holds.
	f.do(fmt.Sprintf("SELECT citus_remove_node('%s', %d)", standbys[0].ip, standbys[0].port),
		fmt.Sprintf("SELECT citus_add_secondary_node('%s', %d, '%s', %d)", standbys[0].ip, standbys[0].port, f.workers[0].ip, f.workers[0].port))

	// The row follows another standby.
	f.workers[0].stop(syscall.SIGQUIT)
	f.workers[0].start()
	next := f.workers[0].standby()
	standbys[0].stop(syscall.SIGQUIT)
	f.do(fmt.Sprintf("SELECT citus_update_node((SELECT nodeid FROM pg_dist_node WHERE groupid = 1 AND noderole = 'secondary'), '%s', %d)", next.ip, next.port))
	eventually(t, "reads come from the new standby", func(ctx context.Context) bool {
		var n int
		return f.session("app", always...).QueryRow(ctx, "SELECT count(*) FROM t").Scan(&n) == nil && n == 100
	})
}

// forwarder stands for a pooler: it hands connections on to a server and counts them.
func forwarder(t *testing.T, to *server) (port int, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", to.ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	count = new(atomic.Int64)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", net.JoinHostPort(to.ip, strconv.Itoa(to.port)))
			if err != nil {
				_ = in.Close()
				continue
			}
			count.Add(1)
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, count
}

// TestPool changes pg_dist_poolinfo, which counts for new connections. (A session of Citus keeps those it has.)
func TestPool(t *testing.T) {
	f := newFormation(t)
	id := f.nodeID(1)
	port, count := forwarder(t, f.workers[0])
	c := f.session("app")
	ask := func(step string, rises bool) {
		t.Helper()
		before, c := count.Load(), f.session("app")
		defer func() { _ = c.Close(t.Context()) }()
		if n := get[int](t, c, "SELECT count(*)::int FROM t"); n != 100 {
			t.Errorf("%s: %d rows, want 100", step, n)
		}
		if got := count.Load() > before; got != rises {
			t.Errorf("%s: a connection through the pool: %t, want %t", step, got, rises)
		}
	}
	ask("direct", false)
	f.do(fmt.Sprintf("INSERT INTO pg_dist_poolinfo VALUES (%d, 'port=%d')", id, port))
	ask("pool", true)
	f.do("DELETE FROM pg_dist_poolinfo")
	ask("direct again", false)
	f.do(fmt.Sprintf("INSERT INTO pg_dist_poolinfo VALUES (%d, 'host=%s port=1')", id, f.workers[0].ip))
	if _, err := f.session("app").Exec(t.Context(), "SELECT count(*) FROM t"); err == nil {
		t.Error("a pool that is not there did not matter")
	}
	refused(t, c, "poolinfo_valid", "INSERT INTO pg_dist_poolinfo VALUES (77, 'user=x')")
}
