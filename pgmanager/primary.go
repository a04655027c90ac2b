package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// ErrNotConfirmed means that a commit is on this disk, but its synchronous standbys have not been waited for.
var ErrNotConfirmed = errors.New("not confirmed by synchronous standbys")

// PromotionPoint returns the timeline that the last promotion made, the one it left, and where. A server that was never
// promoted has parent 0.
func (m *Manager) PromotionPoint(ctx context.Context) (tl, parent fsm.Timeline, fork fsm.LSN, err error) {
	o := m.Observe(ctx)
	switch {
	case !o.Reachable:
		return 0, 0, 0, fmt.Errorf("read the promotion point: the server does not answer: %s", o.Reason)
	case o.InRecovery:
		return 0, 0, 0, errors.New("read the promotion point: the server is still a standby")
	}
	h, err := m.history(o.Timeline)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("read the promotion point: %w", err)
	}
	p, ok := h.Parent()
	if !ok && o.Timeline > 1 {
		return 0, 0, 0, fmt.Errorf("read the promotion point: no history of timeline %d in pg_wal", o.Timeline)
	}
	return o.Timeline, p.Timeline, p.End, nil
}

// FirstCommit writes a mark of the epoch into the log as a synchronous transaction and returns a position at or behind its
// commit. Before it, the timeline is recorded as the epoch's: an adopted server goes on with the one that it has. It waits for the synchronous standbys until ctx ends; a wait that is broken off in any way is an error, with
// ErrNotConfirmed when the commit itself was done.
func (m *Manager) FirstCommit(ctx context.Context, e fsm.Epoch) (fsm.LSN, error) {
	lsn, err := m.firstCommit(ctx, e)
	if err != nil {
		return 0, fmt.Errorf("first commit of epoch %s: %w", e, err)
	}
	return lsn, nil
}

func (m *Manager) firstCommit(ctx context.Context, e fsm.Epoch) (lsn fsm.LSN, err error) {
	cfg, err := m.connConfig(Upstream{Host: m.cfg.SocketDir, Port: m.cfg.Port})
	if err != nil {
		return 0, err
	}
	// A broken wait still commits and says so by a warning only.
	var warned atomic.Bool
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			warned.Store(true)
		}
	}
	cfg.RuntimeParams["synchronous_commit"] = "on"
	cfg.RuntimeParams["application_name"] = "matriarch first commit"
	c, err := m.login(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer closeConn(c)
	if err := m.ownTimeline(ctx, c, e); err != nil {
		return 0, err
	}
	tx, err := c.Begin(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, 'matriarch', $1::text)", e.String()); err != nil {
		return 0, err
	}
	warned.Store(false) // a session may begin with one, about collations for instance
	err = tx.Commit(ctx)
	if ctx.Err() != nil || (err == nil && warned.Load()) {
		return 0, fmt.Errorf("%w: %w", ErrNotConfirmed, errors.Join(err, context.Cause(ctx)))
	}
	if err != nil {
		return 0, err
	}
	var text string
	if err := c.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&text); err != nil {
		return 0, err
	}
	return fsm.ParseLSN(text)
}

// ownTimeline records that the timeline written to is of this epoch.
func (m *Manager) ownTimeline(ctx context.Context, c *pgx.Conn, e fsm.Epoch) error {
	var segment string
	if err := c.QueryRow(ctx, "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)").Scan(&segment); err != nil {
		return err
	}
	tl, err := strconv.ParseUint(segment, 16, 32)
	if err != nil {
		return fmt.Errorf("read the timeline: %w", err)
	}
	return m.SetLineage(map[fsm.Timeline]fsm.Epoch{fsm.Timeline(tl): e})
}

// FreshSegment begins another segment of the log, unless the present one is hardly used: a standby that follows anew asks for the
// whole of it.
func (m *Manager) FreshSegment(ctx context.Context) error {
	return m.withConn(ctx, "begin a segment of the log", func(c *pgx.Conn) error {
		const unlessFresh = `SELECT CASE WHEN pg_is_in_recovery() THEN NULL
			WHEN (pg_current_wal_lsn() - '0/0') % (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size') > 65536 THEN pg_switch_wal() END`
		_, err := c.Exec(ctx, unlessFresh)
		return err
	})
}

// Checkpoint runs a checkpoint (on a standby a restart point) and waits for its end.
func (m *Manager) Checkpoint(ctx context.Context) error {
	return m.withConn(ctx, "checkpoint", func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "CHECKPOINT")
		return err
	})
}

// EnsureSlots makes the wanted physical slots, each holding the log from now on, and drops Matriarch's others unless in
// use. A slot that has lost its log is made anew, and its standby connects again: it may stream through such a slot, which
// keeps nothing for it. Slots without Matriarch's prefix are never touched.
func (m *Manager) EnsureSlots(ctx context.Context, want []string) (created []string, err error) {
	for _, n := range want {
		if !strings.HasPrefix(n, pgconf.SlotPrefix) || len(n) > pgconf.MaxName {
			return nil, fmt.Errorf("ensure slots: %q is not a name of ours", n)
		}
	}
	err = m.withConn(ctx, "ensure slots", func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots
			WHERE slot_type = 'physical' AND starts_with(slot_name, $1) AND active AND wal_status = 'lost'`, pgconf.SlotPrefix)
		if err != nil {
			return err
		}
		_, err = c.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
			WHERE slot_type = 'physical' AND starts_with(slot_name, $1) AND NOT active AND NOT temporary
			AND (slot_name <> ALL($2) OR wal_status = 'lost')`, pgconf.SlotPrefix, notNil(want))
		if err != nil {
			return err
		}
		rows, err := c.Query(ctx, `SELECT (pg_create_physical_replication_slot(n, true)).slot_name::text FROM unnest($1::text[]) n
			WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = n) ORDER BY n`, notNil(want))
		if err != nil {
			return err
		}
		created, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return created, err
}

// notNil keeps an empty list from becoming NULL, which would match nothing.
func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// DropSlot drops one of Matriarch's slots, ending the walsender that uses it. A missing slot is no error.
func (m *Manager) DropSlot(ctx context.Context, name string) error {
	if !strings.HasPrefix(name, pgconf.SlotPrefix) {
		return fmt.Errorf("drop slot %q: not one of ours", name)
	}
	if _, err := m.TerminateSenders(ctx, []string{name}, nil); err != nil {
		return fmt.Errorf("drop slot %s: %w", name, err)
	}
	return m.withConn(ctx, "drop slot "+name, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
			WHERE slot_name = $1 AND slot_type = 'physical'`, name)
		return err
	})
}

// TerminateSenders ends the walsenders that use one of the slots or have one of the process ids, waits up to a second for
// each, and returns how many there were.
func (m *Manager) TerminateSenders(ctx context.Context, slots []string, pids []int) (n int, err error) {
	ids := make([]int32, 0, len(pids))
	for _, p := range pids {
		ids = append(ids, int32(p))
	}
	err = m.withConn(ctx, "end walsenders", func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT count(pg_terminate_backend(r.pid, 1000)) FROM pg_stat_replication r
			WHERE r.pid = ANY($1) OR r.pid IN (SELECT active_pid FROM pg_replication_slots WHERE slot_name = ANY($2))`,
			ids, notNil(slots)).Scan(&n)
	})
	return n, err
}
