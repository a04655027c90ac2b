package pgmanager

import (
	"context"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// Mark writes a small record into a primary's log, makes it durable here only, and returns a position at or behind it.
// Standbys answer it at once, which a barrier needs.
func (m *Manager) Mark(ctx context.Context) (lsn fsm.LSN, err error) {
	err = m.withConn(ctx, "mark the log", func(c *pgx.Conn) error {
		if _, err := c.Exec(ctx, "SET synchronous_commit = local"); err != nil {
			return err
		}
		if _, err := c.Exec(ctx, "SELECT pg_logical_emit_message(true, 'matriarch', 'barrier')"); err != nil {
			return err
		}
		var text string
		if err := c.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&text); err != nil {
			return err
		}
		lsn, err = fsm.ParseLSN(text)
		return err
	})
	return lsn, err
}

// ResumeReplay lets a standby whose replay was paused by hand go on.
func (m *Manager) ResumeReplay(ctx context.Context) error {
	return m.withConn(ctx, "resume replay", func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery() AND pg_is_wal_replay_paused()")
		return err
	})
}

// CheckData reports why PostgreSQL would refuse the data directory, if there is one: owner, mode, version.
func (m *Manager) CheckData() error {
	if !exists(m.cfg.DataDir) {
		return nil
	}
	if empty, err := isEmpty(m.cfg.DataDir); err != nil || empty {
		return err
	}
	return m.checkDataDir()
}

// HasData reports whether the data directory holds a database cluster.
func (m *Manager) HasData() bool {
	return exists(m.cfg.DataDir+"/PG_VERSION") && exists(m.cfg.DataDir+"/global/pg_control")
}
