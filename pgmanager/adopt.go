package pgmanager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Adoption describes an existing data directory, running or stopped.
type Adoption struct {
	Running    bool
	PID        int
	Version    pgconf.Version // of the running server; else of the programs
	SystemID   string
	Timeline   fsm.Timeline
	InRecovery bool // a standby of somebody
	ConfigFile string
	SocketDir  string // of the running server
	Port       int    // of the running server
	CanLogin   bool   // our superuser was let in
	LoginError string
	Needs      []string // what keeps it from being adopted, each with its remedy
}

// AdoptCheck looks at the data directory and changes nothing.
func (m *Manager) AdoptCheck(ctx context.Context) (Adoption, error) {
	if err := m.checkDataDir(); err != nil {
		return Adoption{}, fmt.Errorf("check for adoption: %w", err)
	}
	c, err := m.ControlData(ctx)
	if err != nil {
		return Adoption{}, fmt.Errorf("check for adoption: %w", err)
	}
	a := Adoption{Version: m.tools.Version, SystemID: c.SystemID, Timeline: c.LastTimeline(), ConfigFile: m.foundConfig()}
	a.InRecovery = exists(filepath.Join(m.cfg.DataDir, "standby.signal")) || strings.Contains(c.State, "recovery")
	a.PID, a.Running = m.RunningPostmaster()
	if a.Running {
		m.askRunning(ctx, &a)
	}
	if m.cfg.SystemID != "" && m.cfg.SystemID != a.SystemID {
		a.Needs = append(a.Needs, fmt.Sprintf("system identifier %s, this group has %s: it belongs to another cluster", a.SystemID, m.cfg.SystemID))
	}
	if !c.Checksums && !c.WALLogHints {
		a.Needs = append(a.Needs, "neither data checksums nor wal_log_hints: pg_rewind cannot work before a restart under Matriarch")
	}
	if a.ConfigFile == "" {
		a.Needs = append(a.Needs, "no postgresql.conf in the data directory: name it with config_file")
	}
	if a.Running && !a.CanLogin {
		a.Needs = append(a.Needs, fmt.Sprintf("superuser %s cannot log in (%s): create it with the given password, or stop the server and adopt it stopped", m.cfg.Superuser, a.LoginError))
	}
	return a, nil
}

// askRunning completes what only the running server knows.
func (m *Manager) askRunning(ctx context.Context, a *Adoption) {
	a.SocketDir, a.Port = m.cfg.SocketDir, m.cfg.Port
	if b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "postmaster.pid")); err == nil {
		if p, err := pgconf.ParsePidFile(b); err == nil && p.SocketDir != "" && p.Port != 0 {
			a.SocketDir, a.Port = p.SocketDir, p.Port
		}
	}
	c, err := m.connect(ctx, a.SocketDir, a.Port)
	if err != nil {
		a.LoginError = reason(err)
		return
	}
	defer closeConn(c)
	if err := ask(ctx, c, a); err != nil {
		a.LoginError = reason(err)
		return
	}
	a.CanLogin = true
}

func ask(ctx context.Context, c *pgx.Conn, a *Adoption) error {
	var version int
	var super bool
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), current_setting('config_file'),
		current_setting('is_superuser')::bool`).Scan(&version, &a.InRecovery, &a.ConfigFile, &super)
	if err != nil {
		return err
	}
	a.Version = pgconf.Version(version)
	if !super {
		return fmt.Errorf("role is no superuser: ALTER ROLE %s SUPERUSER", pgconf.QuoteIdent(c.Config().User))
	}
	return nil
}

// foundConfig looks for postgresql.conf where it is configured, and in the options of the last start.
func (m *Manager) foundConfig() string {
	if exists(m.cfg.ConfigFile) {
		return m.cfg.ConfigFile
	}
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "postmaster.opts"))
	if err != nil {
		return ""
	}
	for word := range strings.FieldsSeq(string(b)) {
		if path, ok := strings.CutPrefix(strings.Trim(word, `"`), "config_file="); ok && exists(path) {
			return path
		}
	}
	return ""
}
