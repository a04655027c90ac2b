package citus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// Blocker is a transaction in the way of a Pause.
type Blocker struct {
	Database string        `json:"database"`
	Group    fsm.GroupID   `json:"group"` // on whose primary
	Node     Addr          `json:"node"`
	Pid      int           `json:"pid,omitempty"` // 0: a prepared transaction, which App names
	User     string        `json:"user"`
	App      string        `json:"app"`
	State    string        `json:"state"`   // as in pg_stat_activity
	Command  string        `json:"command"` // first word of its last statement, no more
	Move     bool          `json:"move"`    // it moves shards
	Age      time.Duration `json:"age"`     // of the transaction

	began   time.Time
	backend string
	on      *seat
}

func (b Blocker) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "database %s of group %d at %s: ", b.Database, b.Group, b.Node)
	if b.Move {
		s.WriteString("shard move, ")
	}
	if b.Pid != 0 {
		fmt.Fprintf(&s, "pid %d, ", b.Pid)
	}
	fmt.Fprintf(&s, "user %s, application %q, %s for %s", b.User, b.App, b.State, b.Age.Round(time.Millisecond))
	if b.Command != "" {
		fmt.Fprintf(&s, " (%s)", b.Command)
	}
	return s.String()
}

// Blocked says that transactions kept a Pause from its locks all the time.
type Blocked struct {
	Waited   time.Duration
	Blockers []Blocker // empty: many short ones in turn, or a round of the conductor
}

func (e *Blocked) Error() string {
	var list []string
	remedy := "wait for them, end them, or use --force"
	for _, b := range e.Blockers {
		list = append(list, b.String())
		switch {
		case b.Move:
			remedy = "wait for the shard move, or stop it (citus_rebalance_stop), or use --force"
		case b.Pid == 0:
			remedy = "finish the prepared transaction (COMMIT PREPARED or ROLLBACK PREPARED)"
		}
	}
	if len(list) == 0 {
		return fmt.Sprintf("the metadata was never free within %s: try again when there is less traffic", e.Waited)
	}
	return fmt.Sprintf("transactions in the way for %s: %s; %s", e.Waited, strings.Join(list, "; "), remedy)
}

// Whatever holds the lock that the pause needs, for longer than a moment. In group mode these are Citus' locks of shards being
// written to, as numbered by its objsubid.
const (
	lookBegin = `SELECT DISTINCT coalesce(l.pid, 0), coalesce(a.usename, p.owner)::text,
		coalesce(a.application_name, 'prepared transaction ' || p.gid), coalesce(a.state, CASE WHEN p.gid IS NULL THEN 'active' ELSE 'prepared' END),
		upper(coalesce(substring(a.query FROM '^\s*(\w+)'), '')),
		coalesce(a.query ~* 'citus_(move|copy)_shard_placement|citus_split_shard|isolate_tenant|rebalance_table_shards|citus_drain_node|citus_schema_move', false),
		coalesce(a.backend_type, ''), coalesce(a.xact_start, p.prepared), extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8
	FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND l.virtualtransaction = '-1/' || p.transaction
	WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND l.pid IS DISTINCT FROM pg_backend_pid() AND coalesce(a.xact_start, p.prepared) < clock_timestamp() - interval '100 ms' AND `
	ofFull  = `l.locktype = 'relation' AND l.relation = 'pg_catalog.pg_dist_node'::regclass`
	ofGroup = `l.locktype = 'advisory' AND l.objsubid IN (4, 5, 8)`
)

// look lists the older transactions in the way on all nodes, oldest first. Servants that would start again, an autovacuum worker
// or Citus' daemon that waits for a dead node, are ended instead.
func (h *Pause) look(ctx context.Context) ([]Blocker, error) {
	var mu sync.Mutex
	var all []Blocker
	errs := h.each(func(s *seat) error {
		found, err := h.lookAt(ctx, s)
		if err != nil {
			return fmt.Errorf("look who is in the way: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return nil
	})
	slices.SortFunc(all, func(a, b Blocker) int { return a.began.Compare(b.began) })
	return all, errors.Join(errs...)
}

func (h *Pause) lookAt(ctx context.Context, s *seat) ([]Blocker, error) {
	sql := lookBegin + ofFull
	if h.opts.Mode == PauseGroup {
		sql = lookBegin + ofGroup
	}
	rows, err := s.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (Blocker, error) {
		b := Blocker{Database: s.database, Group: s.group, Node: s.addr, on: s}
		var age float64
		err := r.Scan(&b.Pid, &b.User, &b.App, &b.State, &b.Command, &b.Move, &b.backend, &b.began, &age)
		b.Age = time.Duration(age * float64(time.Second))
		return b, err
	})
	if err != nil {
		return nil, err
	}
	for _, b := range found {
		if b.servant() {
			if _, err := b.end(ctx); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

func (b Blocker) servant() bool {
	return b.backend == "autovacuum worker" || b.backend != "client backend" && b.App == "Citus Metadata Sync Daemon"
}

// end ends the session of a blocker, unless it is in another transaction by now, and reports whether it did. An autovacuum
// worker gives up its table only.
func (b Blocker) end(ctx context.Context) (bool, error) {
	const session = `SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity WHERE pid = $1::int AND xact_start = $2`
	const vacuum = `SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity WHERE pid = $1::int AND xact_start = $2`
	const daemon = `SELECT coalesce(bool_or(pg_cancel_backend(pid) AND pg_terminate_backend(pid)), false)
		FROM pg_stat_activity WHERE pid = $1::int AND xact_start = $2`
	sql := session
	switch {
	case b.Pid == 0:
		return false, nil
	case b.servant() && b.backend == "autovacuum worker":
		sql = vacuum
	case b.servant():
		sql = daemon
	}
	var ended bool
	if err := b.on.QueryRow(ctx, sql, b.Pid, b.began).Scan(&ended); err != nil {
		return false, b.on.wrap(fmt.Errorf("end pid %d: %w", b.Pid, err))
	}
	return ended, nil
}
