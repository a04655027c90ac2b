package pgmanager

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"matriarch/pgmanager/pgconf"
)

// ErrNotOurs means that the data directory holds a cluster that Matriarch did not make.
var ErrNotOurs = errors.New("the data directory holds another cluster")

// InitDB makes a new cluster and returns its system identifier. It works in a folder beside the data directory and renames
// at the end, so an interrupted run leaves nothing that looks finished. On a cluster that it made before it does nothing.
func (m *Manager) InitDB(ctx context.Context) (systemID string, err error) {
	if id, done, err := m.alreadyMade(); done || err != nil {
		return id, err
	}
	tmp := m.cfg.DataDir + ".initdb"
	if err := m.freshSibling(tmp); err != nil {
		return "", fmt.Errorf("initialise %s: %w", m.cfg.DataDir, err)
	}
	if err := m.initdb(ctx, tmp); err != nil {
		return "", fmt.Errorf("initialise %s: %w", m.cfg.DataDir, err)
	}
	if err := m.firstLimits(ctx, tmp); err != nil {
		return "", fmt.Errorf("initialise %s: %w", m.cfg.DataDir, err)
	}
	if err := m.makeStandby(tmp); err != nil {
		return "", fmt.Errorf("initialise %s: %w", m.cfg.DataDir, err)
	}
	id, err := systemIDOf(tmp)
	if err != nil {
		return "", err
	}
	// The record first: a crash in between leaves a record without data, which the next run overwrites.
	if err := m.finish(id, nil); err != nil {
		return "", err
	}
	if err := m.moveIn(tmp); err != nil {
		return "", fmt.Errorf("initialise %s: %w", m.cfg.DataDir, err)
	}
	m.log.Info("data directory initialised", "path", m.cfg.DataDir, "system_id", id)
	return id, nil
}

// alreadyMade reports whether the data directory is the one that InitDB or Clone finished before.
func (m *Manager) alreadyMade() (id string, done bool, err error) {
	empty, err := isEmpty(m.cfg.DataDir)
	if err != nil || empty {
		return "", false, err
	}
	l, err := m.Local()
	if err != nil {
		return "", false, err
	}
	id, err = m.SystemID()
	if err != nil || id != l.SystemID || l.Unfinished != nil {
		return "", false, fmt.Errorf("initialise %s: %w: adopt it, choose another data_dir, or move it away", m.cfg.DataDir, ErrNotOurs)
	}
	return id, true, nil
}

func (m *Manager) initdb(ctx context.Context, dir string) error {
	pwfile, done, err := m.secretFile(m.passwords.Load().super + "\n")
	if err != nil {
		return err
	}
	defer done()
	args := func(locale string) []string {
		return []string{
			"-D", dir, "--username=" + m.cfg.Superuser, "--pwfile=" + pwfile, "--auth=scram-sha-256",
			"--encoding=UTF8", "--locale=" + locale, "--data-checksums",
		}
	}
	_, err = m.run(ctx, tool{name: "initdb", args: args("C.UTF-8")})
	if err == nil || !strings.Contains(err.Error(), "invalid locale") {
		return err
	}
	m.log.Warn("locale C.UTF-8 is not installed, the cluster gets locale C")
	if err := m.freshSibling(dir); err != nil {
		return err
	}
	_, err = m.run(ctx, tool{name: "initdb", args: args("C")})
	return err
}

// firstLimits brings our limits into the control file, where initdb put its own: a standby cannot start with lower ones,
// and PostgreSQL is only ever started as a standby.
func (m *Manager) firstLimits(ctx context.Context, dir string) error {
	args := []string{"--single", "-D", dir, "-c", "shared_preload_libraries="}
	managed := pgconf.Settings{Parameters: m.cfg.Parameters, Citus: m.cfg.Citus}.Managed()
	for _, l := range limits {
		if v, ok := managed[l.name]; ok {
			args = append(args, "-c", l.name+"="+v)
		}
	}
	if _, err := m.run(ctx, tool{name: "postgres", args: append(args, MaintenanceDB)}); err != nil {
		return fmt.Errorf("set the first limits: %w", err)
	}
	return nil
}

// freshSibling creates an empty folder of ours beside the data directory; what an interrupted run left there goes.
func (m *Manager) freshSibling(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove the rest of an interrupted run: %w", err)
	}
	return m.makeDir(path, 0o700)
}

// moveIn puts a finished folder in the place of the data directory. What is there is renamed aside, never deleted.
func (m *Manager) moveIn(tmp string) error {
	empty, err := isEmpty(m.cfg.DataDir)
	switch {
	case err != nil:
		return err
	case empty:
		err = os.Remove(m.cfg.DataDir)
	default:
		aside := m.cfg.DataDir + ".set-aside-" + stamp(time.Now())
		if err = os.Rename(m.cfg.DataDir, aside); err == nil {
			m.log.Info("old data directory set aside", "path", aside)
		}
	}
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%s is a mount point and cannot be renamed: set data_dir to a folder inside it, for instance %s",
			m.cfg.DataDir, filepath.Join(m.cfg.DataDir, "data"))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, m.cfg.DataDir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(m.cfg.DataDir))
}

// stamp names things that are set aside, in UTC, fine enough for two in a row.
func stamp(t time.Time) string { return t.UTC().Format("20060102T150405.000Z") }

func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into the data directory: %w", err)
	}
	return len(entries) == 0, nil
}

// SystemID returns the system identifier of the data directory, from its control file.
func (m *Manager) SystemID() (string, error) { return systemIDOf(m.cfg.DataDir) }

func systemIDOf(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "global", "pg_control"))
	if err != nil {
		return "", fmt.Errorf("read the system identifier: %w", err)
	}
	if len(b) < 8 {
		return "", fmt.Errorf("read the system identifier: %s/global/pg_control has %d bytes: restore or clone this data directory", dir, len(b))
	}
	return strconv.FormatUint(binary.NativeEndian.Uint64(b), 10), nil
}
