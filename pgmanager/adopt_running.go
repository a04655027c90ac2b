package pgmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// asOwner keeps our statements out of the server's log and away from its standbys' answers.
const asOwner = `SET search_path = pg_catalog; SET log_statement = none; SET log_min_duration_statement = -1; SET log_min_error_statement = panic;
SET synchronous_commit = local; SET default_transaction_read_only = off; SET statement_timeout = 0; SET lock_timeout = 0;
`

const askSQL = `SELECT json_build_object('in_recovery', pg_is_in_recovery(),
	'timeline', CASE WHEN pg_is_in_recovery() THEN '0' ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
	'bad_lines', (SELECT array_agg(line_number ORDER BY line_number) FROM pg_hba_file_rules WHERE error IS NOT NULL),
	'settings', (SELECT json_object_agg(name, setting) FROM pg_settings WHERE name = ANY (%s::text[])));
`

// askRunning asks the running server as the OS user that owns it, over its own socket.
func (m *Manager) askRunning(ctx context.Context, a *Adoption) (map[string]string, error) {
	if err := m.findSocket(a); err != nil {
		return nil, err
	}
	if a.Port != m.cfg.Port {
		return nil, fmt.Errorf("the running server listens on port %d, not %d: give --pg-listen with port %d", a.Port, m.cfg.Port, a.Port)
	}
	var ans struct {
		InRecovery bool              `json:"in_recovery"`
		Timeline   string            `json:"timeline"`
		BadLines   []int             `json:"bad_lines"`
		Settings   map[string]string `json:"settings"`
	}
	super, err := m.psql(ctx, *a, "SHOW is_superuser;\n")
	if err != nil {
		return nil, m.notLetIn(a, err)
	}
	if super != "on" {
		return nil, fmt.Errorf("role %s of the running server is no superuser: as one run ALTER ROLE %s SUPERUSER, or stop the server and adopt it stopped", m.os.name, pgconf.QuoteIdent(m.os.name))
	}
	names := append(m.adjustable(), asked...)
	out, err := m.psql(ctx, *a, asOwner+fmt.Sprintf(askSQL, pgconf.QuoteLiteral("{"+strings.Join(names, ",")+"}")))
	if err == nil {
		err = json.Unmarshal([]byte(out), &ans)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the running server: %w", err)
	}
	a.ConfigFile, a.HBAFile = ans.Settings["config_file"], ans.Settings["hba_file"]
	if ans.InRecovery {
		return nil, errStandby
	}
	if len(ans.BadLines) > 0 {
		return nil, fmt.Errorf("%s has mistakes in lines %v, so that the server would not read it again: correct them", a.HBAFile, ans.BadLines)
	}
	tl, err := strconv.ParseUint(ans.Timeline, 16, 32)
	if err != nil {
		return nil, fmt.Errorf("ask the running server for its timeline: %w", err)
	}
	a.current = a.Timeline == fsm.Timeline(tl)
	a.Timeline = fsm.Timeline(tl)
	return ans.Settings, nil
}

func (m *Manager) findSocket(a *Adoption) error {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "postmaster.pid"))
	if err != nil {
		return fmt.Errorf("look for the running server: %w", err)
	}
	p, err := pgconf.ParsePidFile(b)
	if err != nil {
		return fmt.Errorf("look for the running server: %w", err)
	}
	if p.Port == 0 {
		return errors.New("the running server has not finished its start: wait until it answers, and try again")
	}
	if !filepath.IsAbs(p.SocketDir) {
		return errors.New("the running server has no Unix socket: set unix_socket_directories and restart it, or stop it and adopt it stopped")
	}
	a.SocketDir, a.Port = filepath.Clean(p.SocketDir), p.Port
	return nil
}

func (m *Manager) notLetIn(a *Adoption, err error) error {
	role := pgconf.QuoteIdent(m.os.name)
	return fmt.Errorf("log in to the running server as its OS user: %w: nothing was changed; let that user in (as a superuser: CREATE ROLE %s SUPERUSER LOGIN; first in pg_hba.conf: local %s %s peer; then SELECT pg_reload_conf()), or stop the server and adopt it stopped",
		err, role, MaintenanceDB, role)
}

// psql runs statements in one session of the OS user's; the first error ends it. The answer is without column names.
func (m *Manager) psql(ctx context.Context, a Adoption, sql string) (string, error) {
	if !exists(m.tools.Path("psql")) {
		return "", fmt.Errorf("%s is missing: install PostgreSQL's client package of the same version", m.tools.Path("psql"))
	}
	out, err := m.run(ctx, tool{name: "psql", in: sql, args: []string{
		"-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", "-v", "SHOW_CONTEXT=never",
		"-h", a.SocketDir, "-p", strconv.Itoa(a.Port), "-U", m.os.name, "-d", MaintenanceDB,
	}})
	return strings.TrimSpace(string(out)), err
}

// adoptRunning makes the roles and opens the way for our superuser; the server is not disturbed.
func (m *Manager) adoptRunning(ctx context.Context, a Adoption) error {
	sql, err := m.roleSQL()
	if err != nil {
		return err
	}
	if !a.current { // the control file is what the group learns the timeline from
		sql += "CHECKPOINT;\n"
	}
	if _, err := m.psql(ctx, a, asOwner+sql); err != nil {
		return fmt.Errorf("make our roles: %w", err)
	}
	if err := m.saveAdopted(a); err != nil {
		return err
	}
	if err := m.letUsIn(ctx, a); err != nil {
		return errors.Join(err, m.forgetAdopted())
	}
	return nil
}

const letInLimit = 5 * time.Second

// letUsIn puts our lines into the server's own pg_hba.conf and waits until it goes by them.
func (m *Manager) letUsIn(ctx context.Context, a Adoption) error {
	ctx, cancel := context.WithTimeout(ctx, letInLimit)
	defer cancel()
	pid, ok := m.RunningPostmaster()
	if !ok {
		return errors.New("the running server has ended meanwhile: adopt it stopped")
	}
	if _, err := m.admit(Conf{}); err != nil {
		return err
	}
	if err := m.hangUp(pid); err != nil {
		return fmt.Errorf("have the running server read its pg_hba.conf: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := m.connect(ctx, Upstream{Host: a.SocketDir, Port: a.Port})
		if err == nil {
			closeConn(c)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("log in as %s after a line for it was added to %s: %w", m.cfg.Superuser, a.HBAFile, err)
		case <-tick.C:
		}
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
