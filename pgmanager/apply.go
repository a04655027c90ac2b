package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/pgmanager/pgconf"
)

// ErrUnverified means that the server could not be asked whether it took the new settings.
var ErrUnverified = errors.New("the effective settings could not be read")

// ErrRefusedSettings means that the server took the managed values, but refuses other lines of its files; it would not start
// from them.
var ErrRefusedSettings = errors.New("PostgreSQL refuses part of its configuration")

// Conf is what changes while PostgreSQL runs. The zero value is closed, without upstream and without synchronous standbys.
type Conf struct {
	Phase      pgconf.Phase
	SyncNames  string            // as pgconf.SyncNames renders it
	Upstream   *Upstream         // nil for none
	Nodes      []string          // addresses of the nodes that need the superuser, own included
	Standbys   []string          // addresses of the group's nodes, own included; nil: as Nodes
	Security   pgconf.Security   // how nodes prove themselves
	Pooled     bool              // see pgconf.Settings
	Databases  int               // Citus databases
	Links      uint64            // see pgconf.Settings
	Parameters map[string]string // the cluster's settings, over the node's own
	SlotSync   bool              // standbys may ask for slots, from PostgreSQL 17
}

// Apply writes the managed settings and the hba file, each by rename, and reports whether one changed. It does not tell
// the server: see Reload.
func (m *Manager) Apply(w Conf) (changed bool, err error) {
	s := m.cfg.settings(w)
	if err := s.Validate(); err != nil {
		return false, fmt.Errorf("apply settings: %w", err)
	}
	if err := m.makeRunDirs(); err != nil {
		return false, fmt.Errorf("apply settings: %w", err)
	}
	hba := m.hba(w)
	hba.Lines = m.cfg.HBA
	if w.SlotSync {
		hba.SlotDatabase = MaintenanceDB
	}
	c1, err1 := m.replaceIfChanged(m.cfg.hbaFile(), pgconf.RenderHBA(hba), 0o600)
	c2, err2 := m.replaceIfChanged(m.cfg.managedFile(), pgconf.RenderManaged(s), 0o600)
	c3, err3 := m.keepAdopted(w)
	changed = c1 || c2 || c3
	if err := errors.Join(err1, err2, err3); err != nil {
		return changed, fmt.Errorf("apply settings: %w", err)
	}
	return changed, nil
}

// hba is who may enter, but for the user's lines.
func (m *Manager) hba(w Conf) pgconf.HBA {
	h := pgconf.HBA{
		Phase: w.Phase, Superuser: m.cfg.Superuser, ReplicationUser: m.cfg.ReplicationUser, Nodes: w.Nodes, Standbys: w.Standbys, Links: m.cfg.Citus,
	}
	if w.Standbys == nil {
		h.Standbys = w.Nodes
	}
	if m.cfg.TLS {
		h.Security = w.Security
	}
	return h
}

// lastApplied reads back what Apply wrote last.
func (m *Manager) lastApplied() map[string]string {
	out := map[string]string{}
	b, err := os.ReadFile(m.cfg.managedFile())
	if err != nil {
		return out
	}
	for _, s := range pgconf.ParseFile(b) {
		out[s.Name] = s.Value
	}
	return out
}

// reloaded are the settings whose effective value decides over data.
var reloaded = []string{"primary_conninfo", "primary_slot_name", "synchronous_standby_names"}

const (
	reloadPoll  = 2 * time.Millisecond
	reloadDoubt = 500 * time.Millisecond // after that the configuration files are searched for mistakes
)

// Reload makes the running server read what Apply wrote and returns once its effective values agree. The error names what
// beats a value or which file is wrong; ErrUnverified means that the server does not answer. Without a server it is done.
func (m *Manager) Reload(ctx context.Context) error {
	pid, ok := m.RunningPostmaster()
	if !ok {
		return nil
	}
	if _, err := m.stripAutoConf(m.cfg.DataDir); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	c, giveBack, connErr := m.borrow(ctx)
	var ended error
	if connErr == nil {
		defer func() { giveBack(ended) }()
	}
	before, loadErr := loadTime(ctx, c, connErr)
	if err := m.hangUp(pid); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if loadErr != nil {
		ended = loadErr
		return fmt.Errorf("reload: %w: %w", ErrUnverified, loadErr)
	}
	ended = m.awaitReload(ctx, c, before)
	return ended
}

func loadTime(ctx context.Context, c *pgx.Conn, connErr error) (t time.Time, err error) {
	if connErr != nil {
		return t, connErr
	}
	return t, c.QueryRow(ctx, "SELECT pg_conf_load_time()").Scan(&t)
}

// awaitReload waits until the session has read the files again, and judges the values it then has.
func (m *Manager) awaitReload(ctx context.Context, c *pgx.Conn, before time.Time) error {
	tick := time.NewTicker(reloadPoll)
	defer tick.Stop()
	begun := time.Now()
	for {
		now, err := loadTime(ctx, c, nil)
		if err != nil {
			return fmt.Errorf("reload: %w: %w", ErrUnverified, err)
		}
		if now.After(before) {
			if err := m.checkEffective(ctx, c); err != nil {
				return err
			}
			if err := fileErrors(ctx, c); err != nil {
				return fmt.Errorf("reload: %w: %w", ErrRefusedSettings, err)
			}
			return nil
		}
		if time.Since(begun) > reloadDoubt {
			if err := fileErrors(ctx, c); err != nil {
				return fmt.Errorf("reload: nothing was changed: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reload: the server has not read its files: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (m *Manager) checkEffective(ctx context.Context, c *pgx.Conn) error {
	want := m.lastApplied()
	rows, err := c.Query(ctx, `SELECT name, setting, source, coalesce(sourcefile, '') FROM pg_settings WHERE name = ANY($1)`, reloaded)
	if err != nil {
		return fmt.Errorf("reload: %w: %w", ErrUnverified, err)
	}
	defer rows.Close()
	var errs []error
	for rows.Next() {
		var name, value, source, file string
		if err := rows.Scan(&name, &value, &source, &file); err != nil {
			return fmt.Errorf("reload: %w: %w", ErrUnverified, err)
		}
		if value != want[name] {
			errs = append(errs, fmt.Errorf("reload: %s is still %q, set by %s %s: remove it there", name, pgconf.Redact(value), source, file))
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reload: %w: %w", ErrUnverified, err)
	}
	return errors.Join(errs...)
}

// fileErrors returns what PostgreSQL finds wrong in its configuration files, settings that wait for a restart excepted.
func fileErrors(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, `SELECT sourcefile, sourceline, coalesce(name, ''), error FROM pg_file_settings
		f WHERE error IS NOT NULL AND NOT EXISTS
			(SELECT FROM pg_settings s WHERE lower(s.name) = lower(f.name) AND s.pending_restart) LIMIT 5`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var file, name, text string
		var line int
		if err := rows.Scan(&file, &line, &name, &text); err != nil {
			return err
		}
		found = append(found, fmt.Sprintf("%s line %d: %s %s", file, line, name, text))
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("correct these lines: %s", strings.Join(found, "; "))
	}
	return nil
}

// ClearUpstream makes a standby stop following: w without upstream is written, loaded and verified, and the walreceiver
// ended. The credentials of the old epochs have to be dropped before, so that none comes back. The receiver is ended even
// when the server cannot be asked; the error is then ErrUnverified.
func (m *Manager) ClearUpstream(ctx context.Context, w Conf) error {
	w.Upstream = nil
	if _, err := m.Apply(w); err != nil {
		return fmt.Errorf("clear the upstream: %w", err)
	}
	loadErr := m.Reload(ctx)
	if errors.Is(loadErr, ErrRefusedSettings) { // not about the upstream
		m.log.Warn("upstream cleared, but the configuration has mistakes", "error", loadErr)
		loadErr = nil
	}
	if err := errors.Join(loadErr, m.EndReceiver(ctx)); err != nil {
		return fmt.Errorf("clear the upstream: %w", err)
	}
	return nil
}
