package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/pgmanager/pgconf"
)

// MaintenanceDB is where the manager's own sessions live. It is not a Citus database: a session there would start Citus'
// maintenance daemon before the conductor has corrected its rows.
const MaintenanceDB = "postgres"

const connectTimeout = 3 * time.Second

// local opens a session through the Unix socket.
func (m *Manager) local(ctx context.Context) (*pgx.Conn, error) {
	return m.connect(ctx, Upstream{Host: m.cfg.SocketDir, Port: m.cfg.Port})
}

// connect opens a session as superuser. Its settings are sent with the start packet, where no ALTER ROLE beats them. Its
// commits do not wait for standbys: what the manager writes is written again by the next primary, and a wait would hang
// the manager exactly when it is needed.
func (m *Manager) connect(ctx context.Context, to Upstream) (*pgx.Conn, error) {
	cfg, err := m.connConfig(to)
	if err != nil {
		return nil, err
	}
	c, err := m.login(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL at %s port %d: %w", to.Host, to.Port, err)
	}
	return c, nil
}

// login opens the session, also while a password is being changed: which of the two this server knows depends on what it replayed.
func (m *Manager) login(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	c, err := pgx.ConnectConfig(ctx, cfg)
	other := m.passwords.Load().other
	if other == "" || cfg.Password == "" {
		return c, err
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != invalidPassword {
		return c, err
	}
	cfg.Password = other
	return pgx.ConnectConfig(ctx, cfg)
}

const invalidPassword = "28P01"

func (m *Manager) connConfig(to Upstream) (*pgx.ConnConfig, error) {
	certificates := m.cfg.certificates(to.Security) && to.Host != m.cfg.SocketDir
	ci := pgconf.Conninfo{"sslmode": "prefer"}
	if certificates {
		ci = m.cfg.tls().Link(m.cfg.tls().Superuser)
	}
	ci["host"], ci["port"], ci["dbname"] = to.Host, strconv.Itoa(to.Port), MaintenanceDB
	cfg, err := pgx.ParseConfig(ci.String())
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL at %s port %d: %w", to.Host, to.Port, err)
	}
	cfg.User, cfg.Password = m.cfg.Superuser, ""
	if !certificates || to.Security.PasswordLinks() {
		cfg.Password = m.passwords.Load().super
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams = map[string]string{
		"application_name":                    "matriarch",
		"search_path":                         "pg_catalog",
		"synchronous_commit":                  "local",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"default_transaction_read_only":       "off",
		"lc_messages":                         "C",
		"DateStyle":                           "ISO",
		"TimeZone":                            "UTC",
	}
	return cfg, nil
}

// closeConn says goodbye without waiting for long.
func closeConn(c *pgx.Conn) {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond) //nolint:forbidigo // the goodbye also follows a context that ended
	defer cancel()
	_ = c.Close(ctx)
}

// withConn runs f in a session that nobody else uses meanwhile.
func (m *Manager) withConn(ctx context.Context, what string, f func(*pgx.Conn) error) error {
	c, giveBack, err := m.borrow(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	err = f(c)
	giveBack(err)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// spare is one session kept for the next to need one: while a primary changes, clients wait for every session that is opened.
type spare struct {
	mu   sync.Mutex
	conn *pgx.Conn
	pid  int // of the postmaster it belongs to
}

// borrow gives the spare session, or a new one. What is given back with an error is not kept.
func (m *Manager) borrow(ctx context.Context) (*pgx.Conn, func(error), error) {
	pid, _ := m.RunningPostmaster()
	m.spare.mu.Lock()
	c, of := m.spare.conn, m.spare.pid
	m.spare.conn = nil
	m.spare.mu.Unlock()
	if c != nil && (of != pid || c.Ping(ctx) != nil) {
		closeConn(c)
		c = nil
	}
	if c == nil {
		var err error
		if c, err = m.local(ctx); err != nil {
			return nil, nil, err
		}
	}
	return c, func(err error) {
		m.spare.mu.Lock()
		defer m.spare.mu.Unlock()
		if err != nil || c.IsClosed() || m.spare.conn != nil || c.PgConn().TxStatus() != 'I' {
			closeConn(c)
			return
		}
		m.spare.conn, m.spare.pid = c, pid
	}, nil
}

// dropSpare ends the kept session.
func (m *Manager) dropSpare() {
	m.spare.mu.Lock()
	defer m.spare.mu.Unlock()
	closeConn(m.spare.conn)
	m.spare.conn = nil
}
