package citus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// kind is a client that repeats one piece of work.
type kind struct {
	name  string
	via   fsm.GroupID
	every time.Duration
	work  func(ctx context.Context, c *pgx.Conn, id int64) error

	done    int
	errs    []error
	slowest time.Duration
}

func statement(sql string) func(context.Context, *pgx.Conn, int64) error {
	return func(ctx context.Context, c *pgx.Conn, id int64) error {
		var args []any
		if strings.Contains(sql, "$1") {
			args = append(args, id)
		}
		_, err := c.Exec(ctx, sql, args...)
		return err
	}
}

// twoShards is a transaction of some 20 ms over several shards, most often on both workers.
func twoShards(ctx context.Context, c *pgx.Conn, id int64) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO facts VALUES ($1)", id); err != nil {
			return err
		}
		<-time.After(20 * time.Millisecond)
		_, err := tx.Exec(ctx, "INSERT INTO facts VALUES ($1), ($1 + 500000000), ($1 + 600000000)", id+100_000_000)
		return err
	})
}

func copyIn(ctx context.Context, c *pgx.Conn, id int64) error {
	_, err := c.CopyFrom(ctx, pgx.Identifier{"facts"}, []string{"id"}, pgx.CopyFromRows([][]any{{id}, {id + 100_000_000}, {id + 200_000_000}}))
	return err
}

func kinds() []*kind {
	const ms = time.Millisecond
	return []*kind{
		{name: "insert via coordinator", via: 0, every: 10 * ms, work: statement("INSERT INTO facts VALUES ($1)")},
		{name: "insert via worker", via: 2, every: 10 * ms, work: statement("INSERT INTO facts VALUES ($1)")},
		{name: "select one via coordinator", via: 0, every: 10 * ms, work: statement("SELECT * FROM facts WHERE id = $1 % 1000")},
		{name: "select one via worker", via: 2, every: 10 * ms, work: statement("SELECT * FROM facts WHERE id = $1 % 1000")},
		{name: "select all shards via coordinator", via: 0, every: 20 * ms, work: statement("SELECT count(*) FROM facts WHERE id < 1000")},
		{name: "two-shard transaction, 20 ms", via: 0, every: 10 * ms, work: twoShards},
		{name: "copy via coordinator", via: 0, every: 20 * ms, work: copyIn},
		{name: "reference write via worker", via: 2, every: 20 * ms, work: statement("UPDATE kinds SET n = n + 1 WHERE id = 1")},
	}
}

func (k *kind) run(ctx context.Context, c *pgx.Conn, ids *atomic.Int64) {
	for ctx.Err() == nil {
		start := time.Now()
		err := k.work(context.WithoutCancel(ctx), c, ids.Add(1))
		k.slowest = max(k.slowest, time.Since(start))
		k.done++
		if err != nil {
			k.errs = append(k.errs, err)
		}
		wait(ctx, k.every)
	}
}

// follow makes a cleanly stopped primary the standby of its successor. The password is in its environment.
func (s *server) follow(primary *server) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.data(), "standby.signal"), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.append("postgresql.auto.conf", fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=%s'", primary.addr.Host, primary.addr.Port, superuser))
	s.start()
}

// switchOver does what an agent does, as fast as it goes: stop by signal, promote over an open session, look every millisecond.
func (f *trial) switchOver(g fsm.GroupID, to *server) (Timings, time.Duration) {
	f.t.Helper()
	ctx := f.t.Context()
	old := f.servers[g]
	old.caughtUp(to)
	old.exec("postgres", "CHECKPOINT")
	to.exec("postgres", "CHECKPOINT")
	control := to.session("postgres")
	h := f.prepare(g, PauseOptions{})
	if err := h.Warm(ctx, to.addr); err != nil {
		f.t.Fatal(err)
	}
	if err := h.Hold(ctx); err != nil {
		f.t.Fatal(err)
	}
	start := time.Now()
	old.stop(syscall.SIGINT)
	if _, err := control.Exec(ctx, "SELECT pg_promote(false)"); err != nil {
		f.t.Fatal(err)
	}
	for in := true; in; wait(ctx, time.Millisecond) {
		if err := control.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&in); err != nil {
			f.t.Fatal(err)
		}
	}
	took := time.Since(start)
	f.servers[g] = to
	want := f.want()
	p := want.Primaries[g]
	p.Timeline = 0 // not asked for while clients wait
	want.Primaries[g] = p
	tm, err := h.Resume(ctx, []Wanted{want})
	if err != nil {
		f.t.Fatal(err)
	}
	return tm, took
}

// forget makes every backend give up its connections to other nodes, as the agents do after a change of primary: sessions keep
// dead ones to the stopped server, and COPY and writes to reference tables fail on them once it is primary at that address again.
func (f *trial) forget(i int) {
	f.t.Helper()
	links := pgconf.Settings{Citus: true, Links: uint64(i)}.Managed()["citus.node_conninfo"]
	for _, s := range f.servers {
		s.exec("postgres", fmt.Sprintf("ALTER SYSTEM SET citus.node_conninfo = '%s'", links),
			"SELECT pg_reload_conf()")
	}
}

// The point of it all: no client sees an error while a worker's primary changes, five times over.
func TestSwitchoverCostsNoClientAnError(t *testing.T) {
	h, err := theHost()
	if err != nil || !h.real {
		t.Skip("needs the real Citus extension (MATRIARCH_PG_BIN): the stand-in has no two-phase commit")
	}
	f := newTrial(t, 2)
	f.servers[0].exec(appDB, "CREATE TABLE facts (id bigint)", "SELECT create_distributed_table('facts', 'id', shard_count => 8)",
		"INSERT INTO facts SELECT generate_series(0, 999)", "CREATE TABLE kinds (id int PRIMARY KEY, n int)",
		"SELECT create_reference_table('kinds')", "INSERT INTO kinds VALUES (1, 0)")
	standby := f.servers[1].standby()
	f.settle()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	clients := kinds()
	ids := &atomic.Int64{}
	ids.Store(10_000)
	var wg sync.WaitGroup
	for _, k := range clients {
		c := f.servers[k.via].session(appDB)
		wg.Go(func() { k.run(ctx, c, ids) })
	}
	var lock, held []time.Duration
	for i := range 5 {
		old := f.servers[1]
		wait(ctx, 500*time.Millisecond)
		tm, server := f.switchOver(1, standby)
		t.Logf("switchover %d: lock %.1f ms, stop and promotion %.1f ms, rows %.1f ms, write %.1f ms, held %.1f ms", i+1, millis(tm.Lock),
			millis(server), millis(tm.Rows), millis(tm.Write), millis(tm.Held))
		lock, held = append(lock, tm.Lock), append(held, tm.Held)
		f.forget(i)
		old.follow(standby)
		standby = old
		f.settle()
	}
	wait(ctx, 500*time.Millisecond)
	stop()
	wg.Wait()
	for _, k := range clients {
		t.Logf("%-34s %5d done, %d errors, slowest %.0f ms", k.name, k.done, len(k.errs), millis(k.slowest))
		for _, err := range k.errs[:min(3, len(k.errs))] {
			t.Errorf("%s: %v", k.name, err)
		}
	}
	slices.Sort(lock)
	slices.Sort(held)
	t.Logf("median lock %.1f ms, held %.1f ms", millis(lock[2]), millis(held[2]))
	want := 1000 + clients[0].done + clients[1].done + 4*clients[5].done + 3*clients[6].done
	var have, updates int
	f.servers[0].get(appDB, &have, "SELECT count(*) FROM facts")
	f.servers[0].get(appDB, &updates, "SELECT n FROM kinds")
	if have != want || updates != clients[7].done {
		t.Errorf("%d rows and %d updates, acknowledged %d and %d", have, updates, want, clients[7].done)
	}
}

// A session keeps its connection to a server that was stopped. When that one is primary again, at the same address, COPY fails
// on it, once in every session, unless the backends were told to forget.
func TestSessionsKeepDeadConnections(t *testing.T) {
	h, err := theHost()
	if err != nil || !h.real {
		t.Skip("needs the real Citus extension (MATRIARCH_PG_BIN): the stand-in connects through postgres_fdw, which tries a broken connection again")
	}
	f := newTrial(t, 1)
	f.servers[0].exec(appDB, "CREATE TABLE facts (id bigint)", "SELECT create_distributed_table('facts', 'id', shard_count => 8)")
	standby := f.servers[1].standby()
	ctx, c := t.Context(), f.servers[0].session(appDB)
	if err := copyIn(ctx, c, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		old := f.servers[1]
		f.switchOver(1, standby)
		if i >= 2 {
			f.forget(i)
		}
		old.follow(standby)
		standby = old
		f.settle()
		if err := copyIn(ctx, c, int64(i)); (err != nil) != (i == 1) {
			t.Errorf("after switchover %d: %v", i+1, err)
		}
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
