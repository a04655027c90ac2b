package pgmanager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// SlotSource is what a standby must know of its primary's slots.
type SlotSource struct {
	Slots []Slot
	// Feedback: the primary keeps catalog rows on behalf of the standby whose slot was asked for.
	Feedback bool
}

// SlotsOf asks another server for its slots, and what it keeps for the holder of the physical slot member.
func (m *Manager) SlotsOf(ctx context.Context, up Upstream, member string) (SlotSource, error) {
	var out SlotSource
	c, err := m.connect(ctx, up)
	if err != nil {
		return out, err
	}
	defer closeConn(c)
	var text []byte
	err = c.QueryRow(ctx, `SELECT json_agg(json_build_object('name', l.slot_name, 'type', l.slot_type, 'database', coalesce(l.database, ''),
		'plugin', coalesce(l.plugin, ''), 'active', l.active, 'temporary', l.temporary, 'wal', coalesce(l.wal_status, ''),
		'failover', coalesce((to_jsonb(l) ->> 'failover')::bool, false),
		'restart', coalesce((l.restart_lsn - '0/0'::pg_lsn)::int8, 0), 'confirmed', coalesce((l.confirmed_flush_lsn - '0/0'::pg_lsn)::int8, 0),
		'catalog_xmin', coalesce(l.catalog_xmin::text::int8, 0))),
		coalesce(bool_or(l.slot_name = $1 AND l.catalog_xmin IS NOT NULL), false)
		FROM pg_replication_slots l`, member).Scan(&text, &out.Feedback)
	if err == nil {
		err = decode(text, &out.Slots)
	}
	if err != nil {
		return out, fmt.Errorf("ask %s for its slots: %w", up.address(), err)
	}
	return out, nil
}

// Databases lists the databases that let anybody in.
func (m *Manager) Databases(ctx context.Context) (names []string, err error) {
	err = m.withConn(ctx, "list databases", func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, "SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1")
		if err == nil {
			names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	return names, err
}

// CreateSlot makes a slot that holds the log from now on. A logical one is a failover slot where PostgreSQL knows these.
func (m *Manager) CreateSlot(ctx context.Context, s fsm.Slot) error {
	what := "create slot " + s.Name
	if s.Type == fsm.Physical {
		return m.withConn(ctx, what, func(c *pgx.Conn) error {
			_, err := c.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true)", s.Name)
			return err
		})
	}
	sql := "SELECT pg_create_logical_replication_slot($1, $2)"
	if m.tools.Version.Major() >= failoverSlots {
		sql = "SELECT pg_create_logical_replication_slot($1, $2, failover => true)"
	}
	return m.inDatabase(ctx, what, s.Database, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, sql, s.Name, s.Plugin)
		return err
	})
}

// failoverSlots is the first major version whose standbys copy logical slots.
const failoverSlots = 17

// DropReplicationSlot drops a slot that nobody uses. A missing one is no error.
func (m *Manager) DropReplicationSlot(ctx context.Context, name string) error {
	return m.withConn(ctx, "drop slot "+name, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active", name)
		return err
	})
}

// AdvanceSlot moves a standby's slot forward.
func (m *Manager) AdvanceSlot(ctx context.Context, s fsm.Slot, to fsm.LSN) error {
	what := "advance slot " + s.Name
	move := func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SELECT pg_replication_slot_advance($1, $2::pg_lsn)", s.Name, to.String())
		return err
	}
	if s.Type == fsm.Physical {
		return m.withConn(ctx, what, move)
	}
	return m.inDatabase(ctx, what, s.Database, move)
}

// inDatabase runs f in a session of its own in another database than the manager's.
func (m *Manager) inDatabase(ctx context.Context, what, database string, f func(*pgx.Conn) error) error {
	cfg, err := m.connConfig(Upstream{Host: m.cfg.SocketDir, Port: m.cfg.Port})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	cfg.Database = database
	c, err := m.login(ctx, cfg)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer closeConn(c)
	if err := f(c); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// SetReadySlots records which copies of logical slots a promotion may keep.
func (m *Manager) SetReadySlots(r ReadySlots) error {
	return m.change(func(l *Local) error {
		l.ReadySlots = &r
		return nil
	})
}

// CopySlots puts the primary's logical slots into the data directory of this stopped standby, each with the snapshot that decoding
// begins with. One that is here already stays as it is. Both servers have to be of one major version.
func (m *Manager) CopySlots(ctx context.Context, up Upstream, names []string) error {
	if pid, ok := m.RunningPostmaster(); ok {
		return fmt.Errorf("copy slots: %w (pid %d): stop it first", ErrRunning, pid)
	}
	c, err := m.connect(ctx, up)
	if err != nil {
		return fmt.Errorf("copy slots: %w", err)
	}
	defer closeConn(c)
	// What is on its disk is of its last checkpoint.
	if _, err := c.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("copy slots: checkpoint %s: %w", up.address(), err)
	}
	for _, name := range names {
		if err := m.copySlot(ctx, c, name); err != nil {
			return fmt.Errorf("copy slot %s from %s: %w", name, up.address(), err)
		}
		m.log.Info("logical slot copied", "slot", name, "from", up.address())
	}
	return nil
}

func (m *Manager) copySlot(ctx context.Context, c *pgx.Conn, name string) error {
	if !filepath.IsLocal(name) || name != filepath.Base(name) {
		return errors.New("not a name of a slot")
	}
	dir := filepath.Join(m.cfg.DataDir, "pg_replslot", name)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	state, err := readFile(ctx, c, "pg_replslot/"+name+"/state")
	if err != nil {
		return err
	}
	restart, err := slotRestart(state, name)
	if err != nil {
		return err
	}
	// None is needed where no transaction ran when the slot was made.
	snap := fmt.Sprintf("pg_logical/snapshots/%X-%X.snap", uint32(restart>>32), uint32(restart))
	if b, err := readFile(ctx, c, snap); err == nil {
		if err := m.replace(filepath.Join(m.cfg.DataDir, snap), b, 0o600); err != nil {
			return err
		}
	}
	tmp := dir + ".tmp" // which a starting server removes
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := m.makeDir(tmp, 0o700); err != nil {
		return err
	}
	if err := m.replace(filepath.Join(tmp, "state"), state, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// readFile reads a file of another server's data directory.
func readFile(ctx context.Context, c *pgx.Conn, path string) (b []byte, err error) {
	err = c.QueryRow(ctx, "SELECT pg_read_binary_file($1, 0, 16777216, true)", path).Scan(&b)
	if err == nil && b == nil {
		err = fmt.Errorf("%s is not there", path)
	}
	return b, err
}

// Places in a slot's state file that no version from 14 to 16 has moved.
const (
	slotNameAt    = 16
	slotRestartAt = 96
)

// slotRestart reads from a slot's state file where its decoding begins.
func slotRestart(state []byte, name string) (fsm.LSN, error) {
	if len(state) < slotRestartAt+8 {
		return 0, fmt.Errorf("its state has %d bytes only", len(state))
	}
	got, _, _ := bytes.Cut(state[slotNameAt:slotNameAt+pgconf.MaxName+1], []byte{0})
	if string(got) != name {
		return 0, fmt.Errorf("its state is that of %q", got)
	}
	return fsm.LSN(binary.NativeEndian.Uint64(state[slotRestartAt:])), nil
}
