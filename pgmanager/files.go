package pgmanager

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"matriarch/pgmanager/pgconf"
)

// replace writes a file of PostgreSQL's account so that a crash leaves the old or the new content, never a part.
func (m *Manager) replace(path string, content []byte, mode fs.FileMode) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer f.Cleanup() //nolint:errcheck // after success there is nothing to clean
	if err := m.os.own(f.Name()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if _, err := f.Write(content); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// replaceIfChanged is replace for content that rarely differs.
func (m *Manager) replaceIfChanged(path string, content []byte, mode fs.FileMode) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, content) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, m.replace(path, content, mode)
}

// makeDir creates a folder of PostgreSQL's account, and its parents.
func (m *Manager) makeDir(path string, mode fs.FileMode) error {
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("create folder %s: a file is in its place", path)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create folder %s: %w", path, err)
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create folder %s: %w", path, err)
	}
	if err := m.os.own(path); err != nil {
		return fmt.Errorf("create folder %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// makeRunDirs creates what the managed files and the socket live in.
func (m *Manager) makeRunDirs() error {
	return errors.Join(
		m.makeDir(m.cfg.RunDir, 0o700),
		m.makeDir(m.cfg.passDir(), 0o700),
		m.makeDir(m.cfg.SocketDir, 0o755),
		m.makeDir(filepath.Dir(m.cfg.LogFile), 0o755),
	)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", path, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", path, err)
	}
	return nil
}

// makeStandby gives a data directory all that it needs before it may be started. The signal file comes first: from there
// on nothing can start it writable.
func (m *Manager) makeStandby(dir string) error {
	if err := m.ensureSignal(dir); err != nil {
		return err
	}
	if err := m.ensureInclude(dir); err != nil {
		return err
	}
	_, err := m.stripAutoConf(dir)
	return err
}

func (m *Manager) ensureSignal(dir string) error {
	_, err := m.replaceIfChanged(filepath.Join(dir, "standby.signal"), nil, 0o600)
	return err
}

// ensureInclude makes postgresql.conf read the managed file. A clone of a server whose configuration lives elsewhere
// brings none along and gets one.
func (m *Manager) ensureInclude(dir string) error {
	path, mode := m.cfg.ConfigFile, fs.FileMode(0o600)
	if path == filepath.Join(m.cfg.DataDir, "postgresql.conf") {
		path = filepath.Join(dir, "postgresql.conf")
	}
	old, err := os.ReadFile(path)
	switch {
	case err == nil:
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		mode = st.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read %s: %w", path, err)
	}
	text, changed := pgconf.EnsureInclude(old, m.cfg.managedFile())
	if !changed {
		return nil
	}
	return m.replace(path, text, mode)
}

// stripAutoConf removes what ALTER SYSTEM or pg_basebackup -R wrote for settings that are ours.
func (m *Manager) stripAutoConf(dir string) (removed []string, err error) {
	path := filepath.Join(dir, "postgresql.auto.conf")
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	text, removed := pgconf.StripManaged(old)
	if len(removed) == 0 {
		return nil, nil
	}
	m.log.Warn("settings in postgresql.auto.conf removed, they would beat the managed ones", "path", path, "settings", removed)
	return removed, m.replace(path, text, 0o600)
}
