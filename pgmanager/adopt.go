package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Adoption describes an existing data directory that can be adopted.
type Adoption struct {
	Running    bool
	SystemID   string
	Timeline   fsm.Timeline
	ConfigFile string            // its postgresql.conf
	HBAFile    string            // its pg_hba.conf
	SocketDir  string            // the first of its socket folders; empty when that is not there
	Port       int               // that it listens on or is configured for
	HBA        []string          // its lines for clients, without comments; never empty
	Parameters map[string]string // its own values of settings for which Matriarch would have others
	Notes      []string          // what its owner has to know, a sentence each
	TLS        OwnTLS            // its certificate, when it has one in use

	current bool // the control file knows the timeline
}

// OwnTLS names the files of a server's own certificate.
type OwnTLS struct{ CertFile, KeyFile, CAFile string }

// ownTLS reads them from its settings; relative paths begin at the data directory.
func (m *Manager) ownTLS(s map[string]string) (t OwnTLS) {
	if s["ssl"] != "on" {
		return t
	}
	full := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(m.cfg.DataDir, path)
	}
	return OwnTLS{full(s["ssl_cert_file"]), full(s["ssl_key_file"]), full(s["ssl_ca_file"])}
}

// AdoptCheck looks at the data directory and the server that may run on it, and changes nothing. The error says why it cannot
// be adopted and what helps.
func (m *Manager) AdoptCheck(ctx context.Context) (Adoption, error) {
	a, err := m.adoptCheck(ctx)
	if err != nil {
		return Adoption{}, fmt.Errorf("adopt %s: %w", m.cfg.DataDir, err)
	}
	return a, nil
}

func (m *Manager) adoptCheck(ctx context.Context) (Adoption, error) {
	if err := m.checkDataDir(); err != nil {
		return Adoption{}, err
	}
	c, err := m.ControlData(ctx)
	if err != nil {
		return Adoption{}, err
	}
	a := Adoption{SystemID: c.SystemID, Timeline: c.LastTimeline(), current: true}
	_, a.Running = m.RunningPostmaster()
	if err := m.adoptable(c, a.Running); err != nil {
		return a, err
	}
	var s map[string]string
	if a.Running {
		s, err = m.askRunning(ctx, &a)
	} else {
		s, err = m.askStopped(ctx, &a)
	}
	if err != nil {
		return a, err
	}
	if a.HBA, err = clientLines(a.HBAFile); err != nil {
		return a, err
	}
	a.Parameters, a.TLS = m.ownParameters(s), m.ownTLS(s)
	a.Notes = append(m.notes(a, s), m.weakCopies(c)...)
	return a, nil
}

// adoptable refuses directories that belong to somebody else.
func (m *Manager) adoptable(c pgconf.ControlData, running bool) error {
	standby := exists(filepath.Join(m.cfg.DataDir, "standby.signal")) || exists(filepath.Join(m.cfg.DataDir, "recovery.signal"))
	if !running {
		standby = standby || c.State == "shut down in recovery" || c.State == "in archive recovery"
	}
	l, err := m.Local()
	switch {
	case err != nil:
		return err
	case standby:
		return errStandby
	case m.cfg.SystemID != "" && m.cfg.SystemID != c.SystemID:
		return fmt.Errorf("%w: it has system identifier %s, this group has %s", ErrNotOurs, c.SystemID, m.cfg.SystemID)
	case l.Unfinished != nil:
		return fmt.Errorf("%w (%s)", ErrUnfinished, l.Unfinished.Kind)
	}
	return nil
}

var errStandby = errors.New("it is a standby: adopt its primary; this host then joins and clones it")

// asked are the settings of an adopted server that something depends on, besides those in adjustable.
var asked = []string{
	"config_file", "hba_file", "port", "unix_socket_directories", "listen_addresses", "wal_level", "max_wal_senders",
	"max_replication_slots", "shared_preload_libraries", "synchronous_standby_names", "ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file",
}

// adjustable are the managed settings that the user may choose.
func (m *Manager) adjustable() []string {
	base := pgconf.Settings{Citus: m.cfg.Citus}
	var out []string
	for name, v := range base.Managed() {
		base.Parameters = map[string]string{name: v}
		if base.Validate() == nil {
			out = append(out, name)
		}
	}
	return out
}

// askStopped reads the configuration as the server would at its next start.
func (m *Manager) askStopped(ctx context.Context, a *Adoption) (map[string]string, error) {
	if a.ConfigFile = m.foundConfig(); a.ConfigFile == "" {
		return nil, fmt.Errorf("its postgresql.conf was not found: start it once, or link its configuration to %s", filepath.Join(m.cfg.DataDir, "postgresql.conf"))
	}
	s := map[string]string{}
	for _, name := range append(m.adjustable(), asked...) {
		args := append([]string{"-D", m.cfg.DataDir}, configArgs(m.cfg.DataDir, a.ConfigFile)...)
		out, err := m.run(ctx, tool{name: "postgres", args: append(args, "-C", name)})
		if err != nil {
			return nil, fmt.Errorf("read its setting %s: %w: correct %s", name, err, a.ConfigFile)
		}
		s[name] = strings.TrimSuffix(string(out), "\n")
	}
	a.HBAFile = s["hba_file"]
	a.Port, _ = strconv.Atoi(s["port"])
	first, _, _ := strings.Cut(s["unix_socket_directories"], ",")
	first = filepath.Clean(strings.Trim(strings.TrimSpace(first), `"`))
	if st, err := os.Stat(first); err == nil && st.IsDir() && filepath.IsAbs(first) {
		a.SocketDir = first
	}
	return s, nil
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
	dir := false
	for word := range strings.FieldsSeq(string(b)) {
		word = strings.Trim(word, `"`)
		path, ok := strings.CutPrefix(strings.TrimPrefix(word, "--"), "config_file=")
		if dir {
			path, ok = filepath.Join(word, "postgresql.conf"), true
		}
		if ok && exists(path) {
			return path
		}
		dir = word == "-D"
	}
	return ""
}

// ownParameters keeps what the managed file, which is read last, would otherwise change.
func (m *Manager) ownParameters(s map[string]string) map[string]string {
	const room = 16 // databases: a value that is enough for one must not be refused for the next
	managed := pgconf.Settings{Citus: m.cfg.Citus}.Managed()
	out := map[string]string{}
	for _, name := range sorted(m.adjustable()) {
		v := s[name]
		if v == "" || v == "0" || v == managed[name] {
			continue
		}
		out[name] = v
		if (pgconf.Settings{Parameters: out, Citus: m.cfg.Citus, Databases: room}).Validate() != nil {
			delete(out, name)
		}
	}
	return out
}

// DataSystemID returns the system identifier of the database cluster in a data directory, and "" when the directory is empty or
// missing. Anything else in it is an error.
func DataSystemID(dataDir string) (string, error) {
	empty, err := isEmpty(dataDir)
	if err != nil || empty {
		return "", err
	}
	if !exists(filepath.Join(dataDir, "PG_VERSION")) {
		return "", fmt.Errorf("data directory %s is not empty and holds no database cluster: move it away, or name another with --data-dir", dataDir)
	}
	return systemIDOf(dataDir)
}
