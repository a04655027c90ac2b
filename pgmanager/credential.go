package pgmanager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// WriteCredential writes the replication credential of one epoch, as password, certificate or both, and returns the path for
// Upstream.PassFile. Below the promise it is refused with ErrPromised.
func (m *Manager) WriteCredential(e fsm.Epoch, how pgconf.Security) (string, error) {
	m.localMu.Lock() // a promise made meanwhile has to see this file
	defer m.localMu.Unlock()
	l, err := m.readLocal()
	if err != nil {
		return "", err
	}
	if e.Less(l.Promise) {
		return "", fmt.Errorf("write the credential of epoch %s: %w: %s", e, ErrPromised, l.Promise)
	}
	if err := m.makeRunDirs(); err != nil {
		return "", err
	}
	path := filepath.Join(m.cfg.passDir(), e.Suffix())
	if m.cfg.certificates(how) {
		if err := m.copyPair(m.cfg.tls().Replication, epochPair(path)); err != nil {
			return "", err
		}
	}
	if m.cfg.certificates(how) && !how.PasswordLinks() {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return path, err
	}
	_, err = m.replaceIfChanged(path, []byte(pgconf.PassfileLine(m.cfg.ReplicationUser, m.passwords.Load().repl)), 0o600)
	return path, err
}

// DropCredentialsBelow durably removes the credential of every epoch below e: no walreceiver forked later can log in for
// one of them, neither now nor after a restart.
func (m *Manager) DropCredentialsBelow(e fsm.Epoch) error {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	entries, err := os.ReadDir(m.cfg.passDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop credentials below epoch %s: %w", e, err)
	}
	for _, f := range entries {
		var of fsm.Epoch
		name := strings.TrimSuffix(strings.TrimSuffix(f.Name(), keySuffix), certSuffix)
		n, _ := fmt.Sscanf(name, "e%d_%d", &of.Inc, &of.N)
		if n != 2 || name != of.Suffix() || !of.Less(e) {
			continue
		}
		if err := os.Remove(filepath.Join(m.cfg.passDir(), f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop credentials below epoch %s: %w", e, err)
		}
	}
	return syncDir(m.cfg.passDir())
}

// toolPass writes a password file for one run of a tool, where one is needed; done removes it.
func (m *Manager) toolPass(up Upstream) (env []string, done func(), err error) {
	if m.cfg.certificates(up.Security) && !up.Security.PasswordLinks() {
		return nil, func() {}, nil
	}
	text := pgconf.PassfileLine(m.cfg.ReplicationUser, m.passwords.Load().repl) +
		pgconf.PassfileLine(m.cfg.Superuser, m.passwords.Load().super)
	path, done, err := m.secretFile(text)
	return []string{"PGPASSFILE=" + path}, done, err
}

// secretFile writes a file that only PostgreSQL's account can read.
func (m *Manager) secretFile(text string) (path string, done func(), err error) {
	if err := m.makeRunDirs(); err != nil {
		return "", nil, err
	}
	f, err := os.CreateTemp(m.cfg.passDir(), "tool-*") // mode 0600
	if err != nil {
		return "", nil, fmt.Errorf("write a password file: %w", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close(), m.os.own(f.Name())); err != nil {
		_ = os.Remove(f.Name())
		return "", nil, fmt.Errorf("write a password file: %w", err)
	}
	return f.Name(), func() { _ = os.Remove(f.Name()) }, nil
}
