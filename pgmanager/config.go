package pgmanager

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// Config describes one node's PostgreSQL. Paths are absolute.
type Config struct {
	BinDir              string            // folder of PostgreSQL's programs; empty searches the distribution's places
	DataDir             string            // PGDATA
	ConfigFile          string            // postgresql.conf; empty means inside DataDir
	RunDir              string            // everything of ours that must outlive PGDATA
	SocketDir           string            // folder of the Unix socket
	Host                string            // address under which other nodes reach this PostgreSQL
	Port                int               // TCP port
	ListenAddresses     string            // as listen_addresses; empty means Host
	User                string            // OS user; empty means ours, or for root the data directory's owner or postgres
	Superuser           string            // role the manager and Citus work as
	ReplicationUser     string            // role of the standbys
	SuperuserPassword   string            //nolint:gosec // a field, not a secret
	ReplicationPassword string            //nolint:gosec // a field, not a secret
	Name                string            // cluster_name
	Parameters          map[string]string // the user's settings
	HBA                 []string          // the user's pg_hba lines; empty admits clients with a password
	Citus               bool
	TLS                 bool   // InstallTLS gives the certificates; without, ssl is the user's
	ForeignCA           bool   // another CA than the cluster's is trusted too, which has no revocation list here
	LogFile             string // PostgreSQL's stderr
	SetAsideLimit       int    // data directories kept aside; 0 means no limit
	SystemID            string // expected system identifier; empty means not known yet
}

// Upstream is the server that a standby follows or is built from.
type Upstream struct {
	Host     string
	Port     int
	AppName  string    // application_name, see pgconf.AppName
	Slot     string    // physical slot on the upstream; empty for none
	Database string    // in which the slots of the upstream are asked for, from PostgreSQL 17; empty for none
	PassFile string    // credential of the epoch, see WriteCredential
	Epoch    fsm.Epoch // epoch of the primary; used by Clone and Rewind only
	// Lineage tells which epoch made each timeline of the upstream's history; used by Clone and Rewind only.
	Lineage  map[fsm.Timeline]fsm.Epoch
	SystemID string // expected of it; empty means Config.SystemID; used by Clone and Rewind only
	Security pgconf.Security
}

// Manager holds the hands. Its methods may be called from several goroutines, but only one of InitDB, Clone and Rewind
// at a time.
type Manager struct {
	cfg   Config
	tools Tools
	os    osUser
	log   *slog.Logger

	localMu sync.Mutex // guards local.json

	passwords atomic.Pointer[passwords]

	catchingUp atomic.Bool // a rewound server may be started, to end its rewind

	spare   spare
	connMu  sync.Mutex // guards the fields below
	conn    *pgx.Conn  // Observe's own
	pending []string   // last seen settings that wait for a restart
	polls   int
}

// New checks the configuration, finds PostgreSQL's programs and the OS user. It changes nothing.
func New(cfg Config, log *slog.Logger) (*Manager, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("postgresql configuration: %w", err)
	}
	if cfg.ListenAddresses == "" {
		cfg.ListenAddresses = cfg.Host
	}
	a, err := readAdopted(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.ConfigFile == "" {
		cfg.ConfigFile = a.ConfigFile
	}
	if cfg.ConfigFile == "" {
		cfg.ConfigFile = filepath.Join(cfg.DataDir, "postgresql.conf")
	}
	m := &Manager{cfg: cfg, log: log}
	m.passwords.Store(&passwords{super: cfg.SuperuserPassword, repl: cfg.ReplicationPassword})
	if m.tools, err = findFor(cfg.BinDir, m.dataMajor()); err != nil {
		return nil, err
	}
	if m.os, err = lookupUser(cfg); err != nil {
		return nil, err
	}
	return m, nil
}

// Tools returns the programs in use.
func (m *Manager) Tools() Tools { return m.tools }

// Close ends the observing connection.
func (m *Manager) Close() {
	m.connMu.Lock()
	defer m.connMu.Unlock()
	m.dropConn()
	m.dropSpare()
}

// socketPathMax is the longest path of a Unix socket on Linux.
const socketPathMax = 107

func (c Config) check() error {
	var errs []error
	for _, p := range []struct{ key, path string }{
		{"data_dir", c.DataDir}, {"run_dir", c.RunDir}, {"socket_dir", c.SocketDir}, {"log_file", c.LogFile},
	} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s %q: want an absolute path", p.key, p.path))
		}
	}
	if rel, err := filepath.Rel(c.DataDir, c.RunDir); err == nil && filepath.IsLocal(rel) {
		errs = append(errs, fmt.Errorf("run_dir %s lies inside data_dir, where a clone would replace it: choose another folder", c.RunDir))
	}
	if c.Port < 1 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("port %d: want 1 to 65535", c.Port))
	}
	if n := len(fmt.Sprintf("%s/.s.PGSQL.%d", c.SocketDir, c.Port)); n > socketPathMax {
		errs = append(errs, fmt.Errorf("socket_dir %s: the socket's path has %d bytes, %d are possible: choose a shorter one", c.SocketDir, n, socketPathMax))
	}
	if c.Host == "" || c.Superuser == "" || c.ReplicationUser == "" || c.SuperuserPassword == "" || c.ReplicationPassword == "" {
		errs = append(errs, errors.New("host, both roles and both passwords are needed"))
	}
	if c.Superuser == c.ReplicationUser {
		errs = append(errs, fmt.Errorf("superuser and replication user are both %q: they need to differ", c.Superuser))
	}
	errs = append(errs, c.settings(Conf{}).Validate())
	return errors.Join(errs...)
}

// dataMajor returns the major version of the data directory; 0 when there is none.
func (m *Manager) dataMajor() int {
	b, err := os.ReadFile(filepath.Join(m.cfg.DataDir, "PG_VERSION"))
	if err != nil {
		return 0
	}
	v, err := pgconf.ParseVersion(string(b))
	if err != nil {
		return 0
	}
	return v.Major()
}

// settings are those of the managed file for one wanted configuration.
func (c Config) settings(w Conf) pgconf.Settings {
	s := pgconf.Settings{
		Name: c.Name, Host: c.Host, Port: c.Port, ListenAddresses: c.ListenAddresses, SocketDir: c.SocketDir,
		HBAFile: c.hbaFile(), SyncNames: w.SyncNames, Citus: c.Citus, Databases: w.Databases, Links: w.Links,
		Secure: w.Security, Pooled: w.Pooled,
		Parameters: map[string]string{},
	}
	if c.TLS {
		s.TLS = c.tls()
	}
	maps.Copy(s.Parameters, c.Parameters)
	maps.Copy(s.Parameters, w.Parameters)
	if u := w.Upstream; u != nil {
		s.PrimaryConninfo, s.PrimarySlotName = c.conninfo(*u), u.Slot
	}
	return s
}

// conninfo is how a walreceiver reaches its upstream, which has to be a primary: a standby of another branch may have a
// timeline of the same number, and nothing in the protocol would notice (0005).
func (c Config) conninfo(u Upstream) string {
	ci := pgconf.Conninfo{
		"host": u.Host, "port": fmt.Sprint(u.Port), "user": c.ReplicationUser, "application_name": u.AppName,
		"sslmode": "prefer", "connect_timeout": "3", "target_session_attrs": "primary",
	}
	if c.certificates(u.Security) {
		maps.Copy(ci, c.tls().Link(epochPair(u.PassFile)))
	}
	if !c.certificates(u.Security) || u.Security.PasswordLinks() {
		ci["passfile"] = u.PassFile
	}
	if u.Database != "" {
		ci["dbname"] = u.Database
	}
	return ci.String()
}

func (c Config) managedFile() string { return filepath.Join(c.RunDir, "managed.conf") }
func (c Config) hbaFile() string     { return filepath.Join(c.RunDir, "hba.conf") }
func (c Config) passDir() string     { return filepath.Join(c.RunDir, "pass") }

// address is host:port for messages.
func (u Upstream) address() string { return net.JoinHostPort(u.Host, fmt.Sprint(u.Port)) }
