package citus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// items makes a distributed table with n rows.
func (f *trial) items(n int) {
	f.t.Helper()
	f.servers[0].exec(appDB, "CREATE TABLE items (id int PRIMARY KEY, v text)", "SELECT create_distributed_table('items', 'id', shard_count => 8)",
		fmt.Sprintf("INSERT INTO items SELECT i, 'x' FROM generate_series(1, %d) i", n))
}

func (f *trial) count(s *server, want int) {
	f.t.Helper()
	var n int
	s.get(appDB, &n, "SELECT count(*) FROM items")
	if n != want {
		f.t.Errorf("%s sees %d rows, want %d", s.addr, n, want)
	}
}

func TestRegister(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2)
	before := f.agreed()
	f.items(100)
	for _, s := range f.servers {
		f.count(s, 100)
	}
	f.servers[1].exec(appDB, "INSERT INTO items SELECT i FROM generate_series(101, 110) i")
	f.count(f.servers[2], 110)
	if rep, err := f.round(); err != nil || !rep.Synced || len(rep.Differences) > 0 {
		t.Errorf("a second look found %+v, %v", rep, err)
	}
	if after := f.agreed(); !maps.Equal(before, after) {
		t.Errorf("ids changed: %v, %v", before, after)
	}
	if err := f.pool.EnsureDatabase(t.Context(), f.term, f.servers[1].addr, appDB); err != nil {
		t.Errorf("repeated: %v", err)
	}
	for g, s := range f.servers {
		log, err := os.ReadFile(filepath.Join(s.dir, "log"))
		if err != nil || strings.Contains(string(log), "s3:c") {
			t.Errorf("group %d logged the password (%v)", g, err)
		}
	}
}

func TestWorkerFailover(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2)
	f.items(100)
	before := f.agreed()
	old := f.servers[1]
	b := old.standby()
	old.caughtUp(b)
	clients := map[string]*pgx.Conn{"coordinator": f.servers[0].session(appDB), "other worker": f.servers[2].session(appDB)}
	look := func(when string) {
		for name, c := range clients {
			var n int
			if err := c.QueryRow(t.Context(), "SELECT count(*) FROM items").Scan(&n); err != nil || n != 100 {
				t.Errorf("%s: open session on the %s: %d rows, %v", when, name, n, err)
			}
		}
	}
	look("before")
	old.kill()
	b.promote()
	f.servers[1] = b
	rep, err := f.round()
	// Citus' daemon may bring workers their row before the round does.
	moved := slices.ContainsFunc(rep.Differences, func(d string) bool { return !strings.Contains(d, "in the copy of") })
	if err != nil || !moved || len(rep.Differences) > 3 {
		t.Fatalf("first round: %+v, %v", rep, err)
	}
	look("after")
	f.servers[0].exec(appDB, "INSERT INTO items SELECT i FROM generate_series(101, 120) i")
	f.count(f.servers[2], 120)
	f.settle()
	after := f.agreed()
	for id := range before {
		if _, ok := after[id]; !ok {
			t.Errorf("row %d of %v is gone: %v", id, before, after)
		}
	}
}

// A client that wrote to the dead worker and went to sleep holds locks that the new address has to wait for.
func TestIdleWriterDoesNotHoldFailover(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	f.items(100)
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	c := f.servers[0].session(appDB)
	tx, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "UPDATE items SET v = 'y' WHERE id = 7"); err != nil {
		t.Fatal(err)
	}
	f.servers[1].kill()
	b.promote()
	f.servers[1] = b
	start := time.Now()
	if rep, err := f.round(); err != nil {
		t.Errorf("after %v: %+v, %v", time.Since(start), rep, err)
	}
	f.settle()
	f.count(f.servers[0], 100)
}

func TestHandEditIsRepaired(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2)
	f.items(20)
	want := f.agreed()
	edits := []struct {
		name string
		on   fsm.GroupID
		sql  []string
	}{
		{"address in a copy", 2, []string{"UPDATE pg_dist_node SET nodename = '127.254.0.1' WHERE groupid = 1"}},
		{"row deleted in a copy", 2, []string{"DELETE FROM pg_dist_node WHERE groupid = 1"}},
		{"row invented in a copy", 1, []string{"INSERT INTO pg_dist_node (nodeid, groupid, nodename, noderole, nodecluster) VALUES (77, 2, 'x', 'secondary', 'default')"}},
		{"inactive in a copy", 1, []string{"UPDATE pg_dist_node SET isactive = false WHERE groupid = 2"}},
		{"role on the coordinator", 0, []string{"UPDATE pg_dist_node SET noderole = 'secondary' WHERE groupid = 1"}},
		{"role of the coordinator", 0, []string{"UPDATE pg_dist_node SET noderole = 'unavailable' WHERE groupid = 0"}},
		{"inactive on the coordinator", 0, []string{"UPDATE pg_dist_node SET isactive = false WHERE groupid = 2"}},
		{"metadata denied", 0, []string{"UPDATE pg_dist_node SET hasmetadata = false WHERE groupid = 2"}},
		{"row deleted on the coordinator", 0, []string{"DELETE FROM pg_dist_node WHERE groupid = 2"}},
		{"group on the coordinator", 0, []string{"UPDATE pg_dist_node SET groupid = 8 WHERE groupid = 1"}},
		{"address on the coordinator", 0, []string{"UPDATE pg_dist_node SET nodename = '127.254.0.1' WHERE groupid = 2"}},
		{"rows swapped on the coordinator", 0, []string{
			"UPDATE pg_dist_node SET nodename = 'aside' WHERE groupid = 1",
			fmt.Sprintf("UPDATE pg_dist_node SET nodename = '%s', nodeport = %d WHERE groupid = 2", f.servers[1].addr.Host, f.servers[1].addr.Port),
			fmt.Sprintf("UPDATE pg_dist_node SET nodename = '%s', nodeport = %d WHERE groupid = 1", f.servers[2].addr.Host, f.servers[2].addr.Port),
		}},
	}
	for _, e := range edits {
		f.servers[e.on].exec(appDB, e.sql...)
		start := time.Now()
		found := f.settle()
		if len(found) == 0 {
			t.Errorf("%s: not found", e.name)
		}
		t.Logf("%s: right after %v: %q", e.name, time.Since(start).Round(time.Millisecond), found)
		if got := f.agreed(); !maps.Equal(got, want) {
			t.Errorf("%s: rows are %v, want %v", e.name, got, want)
		}
		f.count(f.servers[0], 20)
	}
}

// The worker moves while the coordinator is down. The promoted coordinator still has the old row, and rows that its daemon
// thinks it must carry to the others: none of them may see the old address again.
func TestPromotedCoordinatorCarriesNoOldRows(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2)
	f.items(10)
	c2, w2 := f.servers[0].standby(), f.servers[1].standby()
	f.servers[0].exec(appDB, "UPDATE pg_dist_node SET metadatasynced = false WHERE groupid > 0")
	f.servers[0].caughtUp(c2)
	f.servers[1].caughtUp(w2)
	f.servers[0].kill()
	f.servers[1].kill()
	w2.promote()
	f.servers[0], f.servers[1] = nil, w2
	if _, err := f.round(); err != nil {
		t.Fatal(err)
	}
	watch := f.servers[2].session(appDB)
	const sql = "SELECT nodename FROM pg_dist_node WHERE groupid = 1"
	seen := func() string {
		var name string
		if err := watch.QueryRow(t.Context(), sql).Scan(&name); err != nil {
			t.Error(err)
		}
		return name
	}
	if got := seen(); got != w2.addr.Host {
		t.Fatalf("without a coordinator the other worker's row leads to %s, want %s", got, w2.addr.Host)
	}
	c2.promote()
	f.servers[0] = c2
	done := make(chan struct{})
	go func() {
		defer close(done)
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && !t.Failed(); {
			if got := seen(); got != w2.addr.Host {
				t.Errorf("the old address %s came back", got)
			}
		}
	}()
	f.settle()
	<-done
	f.agreed()
	f.count(c2, 10)
}

func TestNewGroup(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	f.items(50)
	f.servers[2] = newServer(t).create()
	f.settle()
	if rows := f.agreed(); len(rows) != 3 {
		t.Errorf("rows %v", rows)
	}
	f.count(f.servers[2], 50)
}

// A worker that does not answer, however silent, keeps nobody else from being put right.
func TestSilentWorkerHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2, "citus.node_connection_timeout = '2s'")
	f.pool.patience = 1
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	f.servers[1].kill()
	b.promote()
	f.servers[1] = b
	want := f.want()
	silent := f.servers[2]
	if err := silent.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if silent.cmd != nil {
			_ = silent.cmd.Process.Signal(syscall.SIGCONT)
		}
	})
	f.pool.Close()
	start := time.Now()
	rep, err := f.pool.Reconcile(t.Context(), f.term, want)
	if err == nil || rep.Synced || time.Since(start) > 20*time.Second {
		t.Errorf("after %v: %+v, %v", time.Since(start), rep, err)
	}
	var name string
	f.servers[0].get(appDB, &name, "SELECT nodename FROM pg_dist_node WHERE groupid = 1")
	if name != b.addr.Host {
		t.Errorf("coordinator's row leads to %s, want %s", name, b.addr.Host)
	}
}

// Clients of all other servers wait for the new address, so it is written before the way to the new primary is there.
func TestNewPrimaryIsToldOfAtOnce(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.pool.patience = 30
	told, done := make(chan struct{}), make(chan struct{})
	go func() { // the new primary says nothing until the others are told
		c, err := ln.Accept()
		_ = ln.Close()
		<-told
		if err == nil {
			_ = c.Close()
		}
	}()
	want := f.want()
	addr, err := ParseAddr(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	want.Primaries[1] = Primary{Addr: addr}
	go func() {
		defer close(done)
		_, _ = f.pool.Reconcile(t.Context(), f.term, want)
	}()
	t.Cleanup(func() { <-done })
	for _, g := range []fsm.GroupID{0, 2} {
		f.servers[g].eventually("has the new address", func(ctx context.Context) bool {
			var there bool
			err := f.servers[g].query(ctx, appDB, &there, "SELECT EXISTS (SELECT FROM pg_dist_node WHERE groupid = 1 AND nodeport = $1)", addr.Port)
			return err == nil && there
		})
	}
	close(told)
}

// A worker without a primary stays out of sync, and Citus' daemon keeps trying it with a lock on the rows in its hand. Other
// groups must not have to wait for that. The wrong address is a number: resolving a name would hold PostgreSQL up on a machine
// without a name server.
func TestDeadWorkerDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 2, "citus.node_connection_timeout = '5s'")
	dead := f.servers[2]
	if err := dead.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dead.cmd.Process.Signal(syscall.SIGCONT) })
	f.servers[2] = nil
	coordinator := f.servers[0].session(appDB)
	for i := range 3 {
		if _, err := coordinator.Exec(t.Context(), "SELECT citus_update_node(nodeid, '127.254.0.1', nodeport) FROM pg_dist_node WHERE groupid = 1"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		rep, err := f.round()
		if err != nil {
			t.Errorf("round %d, after %v: %+v, %v", i, time.Since(start), rep, err)
		}
		<-time.After(300 * time.Millisecond)
	}
	if err := dead.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.servers[2] = dead
	f.settle()
	f.agreed()
}

func TestDeposedConductorWritesNothing(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	f.term = 7
	f.settle()
	f.servers[1].exec(appDB, "UPDATE matriarch.conductor SET term = 9")
	f.servers[1].exec(appDB, "UPDATE pg_dist_node SET nodename = '127.254.0.1' WHERE groupid = 0")
	if _, err := f.round(); !errors.Is(err, ErrDeposed) {
		t.Errorf("error %v, want ErrDeposed", err)
	}
	var name string
	f.servers[1].get(appDB, &name, "SELECT nodename FROM pg_dist_node WHERE groupid = 0")
	if name != "127.254.0.1" {
		t.Error("a deposed conductor wrote")
	}
	f.term = 9
	f.settle()
	f.agreed()
}

func TestNewConductorEndsOlderSessions(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	next := NewPool(Config{User: superuser, Password: password})
	defer next.Close()
	sessions := "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'matriarch conductor term=1'"
	var n int
	f.servers[0].eventually("has one session of term 1", func(ctx context.Context) bool {
		return f.servers[0].query(ctx, "postgres", &n, sessions) == nil && n == 1
	})
	if _, err := next.Reconcile(t.Context(), 2, f.want()); err != nil {
		t.Fatal(err)
	}
	f.servers[0].eventually("has no session of term 1", func(ctx context.Context) bool {
		return f.servers[0].query(ctx, "postgres", &n, sessions) == nil && n == 0
	})
}
