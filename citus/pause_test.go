package citus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

func (f *trial) wanting(databases ...string) []Wanted {
	f.t.Helper()
	var out []Wanted
	for _, db := range append([]string{appDB}, databases...) {
		w := f.want()
		w.Database = db
		out = append(out, w)
	}
	return out
}

func (f *trial) prepare(group fsm.GroupID, opts PauseOptions, databases ...string) *Pause {
	f.t.Helper()
	h, err := f.pool.Prepare(f.t.Context(), f.term, f.wanting(databases...), group, opts)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(h.Cancel)
	return h
}

func (f *trial) hold(group fsm.GroupID, opts PauseOptions, databases ...string) *Pause {
	f.t.Helper()
	h := f.prepare(group, opts, databases...)
	if err := h.Hold(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	return h
}

// free checks that nobody holds or waits for a strong lock on the rows of any living server.
func (f *trial) free(when string) {
	f.t.Helper()
	const sql = `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'matriarch conductor%'
		AND (relation = 'pg_dist_node'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND mode = 'AccessExclusiveLock' OR locktype = 'advisory')`
	for g, s := range f.servers {
		for end := time.Now().Add(10 * time.Second); ; <-time.After(20 * time.Millisecond) { // a rollback may end a little later
			var n int
			if s.get(appDB, &n, sql); n == 0 {
				break
			}
			if time.Now().After(end) {
				f.t.Errorf("%s: %d locks on group %d", when, n, g)
				break
			}
		}
	}
}

// waiter is a client with one statement.
type waiter struct {
	name string
	done chan error
}

// waiters sends statements over sessions that are open and have seen the table.
func (f *trial) waiters(database string, on ...fsm.GroupID) func(n int) []waiter {
	f.t.Helper()
	type client struct {
		c *pgx.Conn
		g fsm.GroupID
		w bool
	}
	var clients []client
	for _, g := range on {
		for _, w := range []bool{true, false} {
			c := f.servers[g].session(database)
			var n int
			if err := c.QueryRow(f.t.Context(), "SELECT count(*) FROM items").Scan(&n); err != nil {
				f.t.Fatal(err)
			}
			clients = append(clients, client{c, g, w})
		}
	}
	return func(id int) []waiter {
		var out []waiter
		for i, c := range clients {
			w := waiter{name: fmt.Sprintf("%s: write %v through group %d", database, c.w, c.g), done: make(chan error, 1)}
			go func() {
				sql := "SELECT count(*) FROM items"
				if c.w {
					sql = fmt.Sprintf("INSERT INTO items SELECT i FROM generate_series(%d, %d) i", id+i*20, id+i*20+19)
				}
				_, err := c.c.Exec(f.t.Context(), sql)
				w.done <- err
			}()
			out = append(out, w)
		}
		return out
	}
}

func allWait(t *testing.T, ws []waiter) {
	t.Helper()
	<-time.After(300 * time.Millisecond)
	for _, w := range ws {
		select {
		case err := <-w.done:
			t.Errorf("%s did not wait: %v", w.name, err)
			w.done <- err
		default:
		}
	}
}

func allPass(t *testing.T, limit time.Duration, ws []waiter) {
	t.Helper()
	late := time.After(limit)
	for _, w := range ws {
		select {
		case err := <-w.done:
			if err != nil {
				t.Errorf("%s: %v", w.name, err)
			}
		case <-late:
			t.Fatalf("%s still waits after %v", w.name, limit)
		}
	}
}

// change stops a group's primary and promotes its standby.
func (f *trial) change(g fsm.GroupID, to *server) {
	f.t.Helper()
	old := f.servers[g]
	old.stop(syscall.SIGINT)
	to.promote()
	f.servers[g] = to
}

func TestPauseOfWorkerSwitchover(t *testing.T) {
	f := newTrial(t, 2)
	f.items(100)
	send := f.waiters(appDB, 0, 2)
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	h := f.prepare(1, PauseOptions{})
	if err := h.Warm(t.Context(), b.addr); err != nil {
		t.Fatal(err)
	}
	if err := h.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	ws := send(1000)
	allWait(t, ws)
	if _, err := f.pool.Reconcile(t.Context(), f.term, Wanted{Database: appDB}); !errors.Is(err, ErrPaused) {
		t.Errorf("a round during the pause: %v, want ErrPaused", err)
	}
	f.change(1, b)
	tm, err := h.Resume(t.Context(), f.wanting())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("real Citus %v: %+v", b.real, tm)
	allPass(t, 30*time.Second, ws)
	f.free("after Resume")
	f.count(f.servers[0], 180-40) // two of four wrote
	if _, err := h.Resume(t.Context(), f.wanting()); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a second Resume: %v, want ErrNotHeld", err)
	}
	f.settle()
	f.agreed()
}

func TestPauseOfCoordinatorSwitchover(t *testing.T) {
	f := newTrial(t, 2)
	f.items(100)
	send := f.waiters(appDB, 1, 2)
	b := f.servers[0].standby()
	f.servers[0].caughtUp(b)
	h := f.prepare(0, PauseOptions{})
	if err := h.Warm(t.Context(), b.addr); err != nil {
		t.Fatal(err)
	}
	if err := h.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	ws := send(1000)
	allWait(t, ws)
	f.change(0, b)
	tm, err := h.Resume(t.Context(), f.wanting())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("real Citus %v: %+v", b.real, tm)
	allPass(t, 30*time.Second, ws)
	f.agreed()
	f.free("after Resume")
	f.settle()
	f.count(b, 140)
}

// The new primary had a row of its own, as a secondary: the two rows change places.
func TestPauseSwapsRows(t *testing.T) {
	f := newTrial(t, 2)
	f.items(100)
	old, b := f.servers[1], f.servers[1].standby()
	old.caughtUp(b)
	before := f.agreed()
	f.servers[0].exec(appDB, fmt.Sprintf("SELECT citus_add_node('%s', %d, 1, 'secondary')", b.addr.Host, b.addr.Port))
	h := f.hold(1, PauseOptions{})
	f.change(1, b)
	if _, err := h.Resume(t.Context(), f.wanting()); err != nil {
		t.Fatal(err)
	}
	for g, s := range f.servers {
		rows := s.rows()
		for id, at := range before {
			want := at
			if at == old.addr.String() {
				want = b.addr.String()
			}
			if rows[id] != want {
				t.Errorf("copy of group %d: row %d at %s, want %s", g, id, rows[id], want)
			}
			delete(rows, id)
		}
		for id, at := range rows {
			if at != old.addr.String() {
				t.Errorf("copy of group %d: secondary row %d at %s, want %s", g, id, at, old.addr)
			}
		}
	}
}

func TestPauseOfTwoDatabases(t *testing.T) {
	f := newTrial(t, 1)
	const second = "app2"
	f.items(100)
	for deadline, synced := time.Now().Add(30*time.Second), false; !synced; {
		rep, err := f.pool.Reconcile(t.Context(), f.term, f.wanting(second)[1])
		if synced = rep.Synced; !synced && time.Now().After(deadline) {
			t.Fatal(rep, err)
		}
	}
	f.servers[0].exec(second, "CREATE TABLE items (id int PRIMARY KEY, v text)", "SELECT create_distributed_table('items', 'id', shard_count => 4)")
	send, send2 := f.waiters(appDB, 0), f.waiters(second, 0)
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	h := f.prepare(1, PauseOptions{}, second, "not_made_yet")
	if err := h.Warm(t.Context(), b.addr); err != nil {
		t.Fatal(err)
	}
	if err := h.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	ws := slices.Concat(send(1000), send2(1000))
	allWait(t, ws)
	f.change(1, b)
	if _, err := h.Resume(t.Context(), f.wanting(second)); err != nil {
		t.Fatal(err)
	}
	allPass(t, 30*time.Second, ws)
	for _, db := range []string{appDB, second} {
		for g, s := range f.servers {
			var name string
			if s.get(db, &name, "SELECT nodename FROM pg_dist_node WHERE groupid = 1"); name != b.addr.Host {
				t.Errorf("database %s of group %d: %s", db, g, name)
			}
		}
	}
}

// What can go wrong with a pause, on one formation.
func TestPauseIn(t *testing.T) {
	f := newTrial(t, 2)
	f.items(100)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *trial)
	}{
		{"the way of an older transaction", pauseBlocked},
		{"the way of a young transaction", pauseBlockedByYoung},
		{"force", pauseForce},
		{"a vanished conductor's hand", pauseDeadMan},
		{"a broken session", pauseLost},
		{"a lower term", pauseDeposed},
		{"every phase cancelled", pauseCancel},
		{"group mode", pauseGroup},
		{"doubt", pauseCheck},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := *f
			sub.t = t
			for g, s := range f.servers {
				outer := s.t
				f.servers[g].t = t
				defer func() { s.t = outer }()
			}
			c.run(t, &sub)
			sub.free("at the end")
		})
	}
}

// idler leaves a transaction open that has read the table.
func (f *trial) idler(g fsm.GroupID) (*pgx.Conn, int) {
	f.t.Helper()
	c := f.servers[g].session(appDB)
	for _, sql := range []string{"BEGIN", "SELECT count(*) FROM items"} {
		if _, err := c.Exec(f.t.Context(), sql); err != nil {
			f.t.Fatal(err)
		}
	}
	return c, int(c.PgConn().PID())
}

// traffic reads all the time until the function it returns is called. A read gives up waiting for a lock after 300 ms.
func (f *trial) traffic() (end func()) {
	c := f.servers[0].session(appDB)
	if _, err := c.Exec(f.t.Context(), "SET lock_timeout = '300ms'"); err != nil {
		f.t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for all, waited := 1, 0; ; all++ {
			_, err := c.Exec(f.t.Context(), "SELECT v FROM items WHERE id = 7")
			if err = inTime(err); errors.Is(err, errNotInTime) {
				waited++
			} else if err != nil {
				f.t.Error(err)
			}
			select {
			case <-stop:
				f.t.Logf("%d reads, %d gave up", all, waited)
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// attempts counts the statements that asked any server for the lock of a pause. Clients wait behind each of them.
func (f *trial) attempts() (n int) {
	f.t.Helper()
	for _, s := range f.servers {
		log, err := os.ReadFile(filepath.Join(s.dir, "log"))
		if err != nil {
			f.t.Fatal(err)
		}
		n += strings.Count(string(log), ": LOCK TABLE pg_catalog.pg_dist_node IN ACCESS EXCLUSIVE MODE")
	}
	return n
}

func (f *trial) refused(opts PauseOptions, pid int) *Blocked {
	f.t.Helper()
	h := f.prepare(1, opts)
	ctx, cancel := context.WithTimeout(f.t.Context(), 30*time.Second)
	defer cancel()
	err := h.Hold(ctx)
	var b *Blocked
	if !errors.As(err, &b) || ctx.Err() != nil {
		f.t.Fatalf("%v, want Blocked within its own limit", err)
	}
	if !slices.ContainsFunc(b.Blockers, func(b Blocker) bool { return b.Pid == pid && b.State == "idle in transaction" && b.Age > 0 }) {
		f.t.Errorf("pid %d not named in %v", pid, b)
	}
	return b
}

func pauseBlocked(t *testing.T, f *trial) {
	c, pid := f.idler(2)
	<-time.After(150 * time.Millisecond)
	stop, before := f.traffic(), f.attempts()
	b := f.refused(PauseOptions{LockTimeout: 1500 * time.Millisecond}, pid)
	t.Log(b)
	stop()
	if n := f.attempts() - before; n > 0 {
		t.Errorf("%d locks were asked for, though no attempt could succeed", n)
	}
	if _, err := c.Exec(t.Context(), "COMMIT"); err != nil {
		t.Error(err)
	}
}

func pauseBlockedByYoung(t *testing.T, f *trial) {
	h := f.prepare(1, PauseOptions{LockTimeout: 1500 * time.Millisecond})
	stop, before := f.traffic(), f.attempts()
	c, pid := f.idler(0)
	if _, err := c.Exec(t.Context(), "COMMIT; BEGIN; SELECT count(*) FROM items"); err != nil {
		t.Fatal(err)
	}
	err := h.Hold(t.Context())
	var b *Blocked
	if !errors.As(err, &b) || !slices.ContainsFunc(b.Blockers, func(x Blocker) bool { return x.Pid == pid }) {
		t.Errorf("%v, want Blocked by %d", err, pid)
	}
	stop()
	if n := f.attempts() - before; n > len(f.servers) {
		t.Errorf("%d locks were asked for: want one attempt of 400 ms", n)
	}
	if _, err := c.Exec(t.Context(), "COMMIT"); err != nil {
		t.Error(err)
	}
}

func pauseForce(t *testing.T, f *trial) {
	c, pid := f.idler(2)
	<-time.After(150 * time.Millisecond)
	h := f.hold(1, PauseOptions{LockTimeout: 300 * time.Millisecond, Force: true})
	if ended := h.Ended(); len(ended) == 0 || slices.ContainsFunc(ended, func(x Blocker) bool { return x.Pid != pid }) {
		t.Errorf("ended %v, want pid %d", ended, pid)
	}
	if _, err := c.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the session in the way lives")
	}
	h.Cancel()
}

// A conductor that stands still pings no more: the servers let its clients go.
func pauseDeadMan(t *testing.T, f *trial) {
	send := f.waiters(appDB, 0, 2)
	g := *f
	g.pool = NewPool(Config{User: superuser, Password: password}) // with the limits of the product
	defer g.pool.Close()
	var h *Pause
	for held := false; !held; {
		h = g.hold(1, PauseOptions{})
		select {
		case <-h.Lost(): // this machine stood still
			t.Log("lost before its time")
			h.Cancel()
		case <-time.After(3 * time.Second):
			held = true
		}
	}
	ws := send(2000)
	allWait(t, ws)
	h.mu.Lock()
	allPass(t, 4900*time.Millisecond, ws) // after 5 s the servers would end any session of ours
	h.mu.Unlock()
	select {
	case <-h.Lost():
	case <-time.After(20 * time.Second):
		t.Error("not told")
	}
	if _, err := h.Resume(t.Context(), f.wanting()); !errors.Is(err, ErrNotHeld) {
		t.Errorf("Resume: %v, want ErrNotHeld", err)
	}
}

func pauseLost(t *testing.T, f *trial) {
	send := f.waiters(appDB, 0)
	h := f.hold(1, PauseOptions{})
	ws := send(3000)
	f.servers[2].exec("postgres", "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND locktype = 'relation'")
	allPass(t, 20*time.Second, ws)
	select {
	case <-h.Lost():
	case <-time.After(20 * time.Second):
		t.Error("not told")
	}
}

func pauseDeposed(t *testing.T, f *trial) {
	h := f.hold(1, PauseOptions{})
	next := NewPool(Config{User: superuser, Password: password})
	defer next.Close()
	f.term++
	h2, err := next.Prepare(t.Context(), f.term, f.wanting(), 1, PauseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.Lost():
	case <-time.After(20 * time.Second):
		t.Error("sessions of a lower term hold on")
	}
	if err := h2.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Resume(t.Context(), f.wanting()); err != nil {
		t.Fatal(err)
	}
	f.term--
	if err := f.prepare(1, PauseOptions{}).Hold(t.Context()); !errors.Is(err, ErrDeposed) {
		t.Errorf("%v, want ErrDeposed", err)
	}
	f.servers[0].exec(appDB, "UPDATE matriarch.conductor SET term = 1")
	f.servers[2].exec(appDB, "UPDATE matriarch.conductor SET term = 1")
	f.servers[1].exec(appDB, "UPDATE matriarch.conductor SET term = 1")
}

func pauseCancel(t *testing.T, f *trial) {
	cancel := func(h *Pause, when string) {
		t.Helper()
		start := time.Now()
		h.Cancel()
		h.Cancel()
		if took := time.Since(start); took > 20*time.Second { // waiting for the lock would take a minute
			t.Errorf("%s: took %v", when, took)
		}
		f.free(when)
		if f.pool.pausing.Load() != 0 {
			t.Errorf("%s: rounds are held off still", when)
		}
	}
	cancel(f.prepare(1, PauseOptions{}), "prepared")
	cancel(f.hold(1, PauseOptions{}), "held")
	for _, delay := range []time.Duration{0, 5 * time.Millisecond, 100 * time.Millisecond} {
		c, _ := f.idler(0)
		h := f.prepare(1, PauseOptions{LockTimeout: time.Minute})
		if _, err := c.Exec(t.Context(), "COMMIT; BEGIN; SELECT count(*) FROM items"); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() { failed <- h.Hold(t.Context()) }()
		<-time.After(delay)
		cancel(h, fmt.Sprintf("%v into Hold", delay))
		if err := <-failed; err == nil {
			t.Error("Hold did not fail")
		}
		if _, err := c.Exec(t.Context(), "COMMIT"); err != nil {
			t.Error(err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	c, _ := f.idler(0)
	<-time.After(150 * time.Millisecond)
	var b *Blocked
	if err := f.prepare(1, PauseOptions{}).Hold(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &b) {
		t.Errorf("%v, want the deadline and who was in the way", err)
	}
	if _, err := c.Exec(t.Context(), "COMMIT"); err != nil {
		t.Error(err)
	}
}

func pauseGroup(t *testing.T, f *trial) {
	var can bool
	f.servers[0].get(appDB, &can, "SELECT to_regproc('citus_pause_node_within_txn') IS NOT NULL")
	if !can {
		if _, err := f.pool.Prepare(t.Context(), f.term, f.wanting(), 1, PauseOptions{Mode: PauseGroup}); err == nil {
			t.Error("prepared without the function")
		}
		t.Skip("needs Citus 12.1 or the stand-in: no citus_pause_node_within_txn here")
	}
	send := f.waiters(appDB, 0, 2)
	h := f.hold(1, PauseOptions{Mode: PauseGroup})
	ws := send(4000)
	var writes, reads []waiter
	for i, w := range ws {
		if i%2 == 0 {
			writes = append(writes, w)
		} else {
			reads = append(reads, w)
		}
	}
	allPass(t, 20*time.Second, reads) // before Resume
	allWait(t, writes)
	if _, err := h.Resume(t.Context(), f.wanting()); err != nil {
		t.Error(err)
	}
	allPass(t, 20*time.Second, writes)
}

func pauseCheck(t *testing.T, f *trial) {
	check := func(want ...RefusalKind) {
		t.Helper()
		got, err := f.pool.Check(t.Context(), f.term, f.wanting(), 1)
		var kinds []RefusalKind
		for _, r := range got {
			kinds = append(kinds, r.Kind)
		}
		if err != nil || !slices.Equal(kinds, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	f.settle()
	check()
	f.servers[2].exec(appDB, "UPDATE pg_dist_node SET nodename = '127.254.0.1' WHERE groupid = 1")
	check(RefusalRows)
	f.settle()
	h := f.hold(1, PauseOptions{})
	if _, err := f.pool.Check(t.Context(), f.term, f.wanting(), 1); !errors.Is(err, ErrPaused) {
		t.Errorf("%v, want ErrPaused", err)
	}
	h.Cancel()
	wants := f.wanting()
	f.servers[2].stop(syscall.SIGINT)
	got, err := f.pool.Check(t.Context(), f.term, wants, 1)
	if err != nil || len(got) != 1 || got[0].Kind != RefusalUnreachable || got[0].Group != 2 {
		t.Errorf("%v, %v; want group 2 unreachable", got, err)
	}
	if _, err := f.pool.Prepare(t.Context(), f.term, wants, 1, PauseOptions{}); err == nil {
		t.Error("prepared without group 2")
	}
	f.servers[2].start()
	f.settle()
}

// A server that is there and says nothing costs Prepare its time-out, not more, and Resume no more than its own.
func TestPauseWithSilentNode(t *testing.T) {
	f := newTrial(t, 2, "citus.node_connection_timeout = '2s'")
	f.items(10)
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	send := f.waiters(appDB, 2)
	f.pool.patience = 1
	h := f.hold(1, PauseOptions{})
	ws := send(1000)
	allWait(t, ws)
	f.change(1, b)
	wants := f.wanting()
	silent := f.servers[0].cmd.Process
	if err := errors.Join(silent.Signal(syscall.SIGSTOP), stopBackends(f.servers[0], syscall.SIGSTOP)); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	wake := func() {
		once.Do(func() { _ = errors.Join(silent.Signal(syscall.SIGCONT), stopBackends(f.servers[0], syscall.SIGCONT)) })
	}
	t.Cleanup(wake)
	start := time.Now()
	_, err := h.Resume(t.Context(), wants)
	if took := time.Since(start); err == nil || took > 15*time.Second {
		t.Errorf("after %v: %v, want the silent coordinator named", took, err)
	}
	allPass(t, 15*time.Second, ws)
	start = time.Now()
	if _, err := f.pool.Prepare(t.Context(), f.term, wants, 1, PauseOptions{}); err == nil || time.Since(start) > 15*time.Second {
		t.Errorf("after %v: %v, want an error", time.Since(start), err)
	}
	wake()
	f.settle()
	f.agreed()
}

// stopBackends sends a signal to every process of a server but the first.
func stopBackends(s *server, sig syscall.Signal) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if field := strings.Fields(rest); len(field) > 1 && field[1] == strconv.Itoa(s.cmd.Process.Pid) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			err = errors.Join(err, syscall.Kill(pid, sig))
		}
	}
	return err
}
