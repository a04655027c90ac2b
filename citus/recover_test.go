package citus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// acknowledged leaves group 1 with a prepared transaction whose commit record stands on the coordinator: what remains when a
// worker dies between the two phases of a commit that the client has its answer for. It returns the worker's standby.
func (f *trial) acknowledged() *server {
	f.t.Helper()
	f.servers[1].exec(appDB, "CREATE TABLE held (id int)", "INSERT INTO held VALUES (1)")
	const gid = "citus_0_999999_1_1"
	c := f.servers[1].session(appDB)
	for _, sql := range []string{"BEGIN", "INSERT INTO held VALUES (2)", "PREPARE TRANSACTION '" + gid + "'"} {
		if _, err := c.Exec(f.t.Context(), sql); err != nil {
			f.t.Fatal(err)
		}
	}
	f.servers[0].exec(appDB, "INSERT INTO pg_dist_transaction (groupid, gid) VALUES (1, '"+gid+"')")
	b := f.servers[1].standby()
	f.servers[1].caughtUp(b)
	return b
}

func (f *trial) records() int {
	f.t.Helper()
	var n int
	f.servers[0].get(appDB, &n, "SELECT count(*) FROM pg_dist_transaction WHERE gid = 'citus_0_999999_1_1'")
	return n
}

func (s *server) held() (rows, prepared int) {
	s.t.Helper()
	s.get(appDB, &rows, "SELECT count(*) FROM held")
	s.get(appDB, &prepared, "SELECT count(*) FROM pg_prepared_xacts")
	return rows, prepared
}

// misled makes the coordinator's row of group 1 lead to the standby, as an old primary's row does when it comes back as one.
func (f *trial) misled(standby *server) {
	f.t.Helper()
	f.servers[0].exec(appDB, fmt.Sprintf("SELECT citus_update_node(nodeid, '%s', %d, true, 100) FROM pg_dist_node WHERE groupid = 1",
		standby.addr.Host, standby.addr.Port))
}

func TestRecovery(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	b := f.acknowledged()
	f.servers[1].kill()
	b.promote()
	f.servers[1] = b
	f.settle()
	f.settle() // a changed primary makes recovery due, with the rows in order
	if rows, prepared := b.held(); rows != 2 || prepared != 0 {
		t.Errorf("%d rows and %d prepared transactions, want 2 and 0", rows, prepared)
	}
}

// The row leads to a server in recovery: the record of the commit has to outlive every round, and the rows too.
func TestRecoveryWaitsWhileARowLeadsToAStandby(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	b := f.acknowledged()
	f.misled(b)
	f.servers[1].kill()
	f.servers[1] = nil
	for range 5 {
		want := f.want()
		want.Recover = true
		_, _ = f.pool.Reconcile(t.Context(), f.term, want)
		want.Primaries[1] = Primary{Addr: b.addr, Timeline: 2} // granted, not promoted yet
		_, _ = f.pool.Reconcile(t.Context(), f.term, want)
	}
	if f.records() != 1 {
		t.Fatal("the record of an acknowledged commit is gone")
	}
	b.promote()
	f.servers[1] = b
	f.settle()
	f.settle()
	if rows, prepared := b.held(); rows != 2 || prepared != 0 {
		t.Errorf("%d rows and %d prepared transactions, want 2 and 0", rows, prepared)
	}
}

// The primary turns into a standby between the look and the recovery: the second look takes the recovery back.
func TestRecoveryIsTakenBack(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1, "citus.max_cached_conns_per_worker = 0") // else a broken connection fails it earlier
	b := f.acknowledged()
	old := f.servers[1]
	want := f.want()
	want.Recover = true
	f.pool.beforeRecovery = func() {
		f.pool.beforeRecovery = nil
		old.stop(syscall.SIGINT)
		if err := os.WriteFile(filepath.Join(old.data(), "standby.signal"), nil, 0o644); err != nil {
			t.Error(err)
		}
		old.start()
	}
	if _, err := f.pool.Reconcile(t.Context(), f.term, want); !errors.Is(err, errUnproven) {
		t.Errorf("error %v, want errUnproven", err)
	}
	if f.records() != 1 {
		t.Fatal("the record of an acknowledged commit is gone")
	}
	b.promote()
	f.servers[1] = b
	f.settle()
	f.settle()
	if rows, prepared := b.held(); rows != 2 || prepared != 0 {
		t.Errorf("%d rows and %d prepared transactions, want 2 and 0", rows, prepared)
	}
}

// Without the guard the same call loses acknowledged rows: it is why the guard exists.
func TestUnguardedRecoveryLosesAcknowledgedRows(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	b := f.acknowledged()
	f.misled(b)
	f.servers[0].exec(appDB, "SELECT recover_prepared_transactions()")
	if f.records() != 0 {
		t.Fatal("the record survived: Citus no longer forgets what a standby cannot list")
	}
	f.servers[1].kill()
	b.promote()
	f.servers[0].exec(appDB, "SELECT recover_prepared_transactions()")
	if rows, prepared := b.held(); rows != 1 || prepared != 0 {
		t.Errorf("%d rows and %d prepared transactions, want the loss: 1 and 0", rows, prepared)
	}
}

// Citus' own recovery does the same by itself at any interval but -1.
func TestCitusRecoversByItselfAndLosesRows(t *testing.T) {
	t.Parallel()
	h, err := theHost()
	if err != nil {
		t.Skip(err)
	}
	if !h.real {
		t.Skip("needs the real Citus extension (MATRIARCH_PG_BIN): the stand-in never recovers by itself")
	}
	for interval, kept := range map[string]int{"1s": 0, "-1": 1} {
		t.Run(interval, func(t *testing.T) {
			t.Parallel()
			f := newTrial(t, 1)
			b := f.acknowledged()
			f.misled(b)
			f.servers[0].exec(appDB, "ALTER SYSTEM SET citus.recover_2pc_interval = '"+interval+"'", "SELECT pg_reload_conf()")
			for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline) && f.records() > 0; {
				<-time.After(100 * time.Millisecond)
			}
			if got := f.records(); got != kept {
				t.Fatalf("%d records, want %d", got, kept)
			}
			f.servers[1].kill()
			b.promote()
			f.servers[1] = b
			f.settle()
			f.settle()
			if rows, prepared := b.held(); rows != 1+kept || prepared != 0 {
				t.Errorf("%d rows and %d prepared transactions, want %d and 0", rows, prepared, 1+kept)
			}
		})
	}
}
