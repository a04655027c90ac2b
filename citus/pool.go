package citus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

const (
	connectTimeout = 2 * time.Second
	observeTimeout = 2 * time.Second
	closeTimeout   = 200 * time.Millisecond
	userTimeoutOpt = 0x12 // TCP_USER_TIMEOUT of Linux, which package syscall does not name
	userTimeout    = 3 * time.Second
)

// Config is how sessions are opened and how often recovery is due.
type Config struct {
	User         string
	Password     string
	Secret       func() string // the password, when it may change; nil: Password
	TLS          pgconf.TLS    // certificates, as Access demands
	Access       func() Access // how sessions and Citus' links prove themselves now; nil: by the password
	RecoverEvery time.Duration // between recoveries of prepared transactions while nothing changes; 0: a minute
}

// Access says how sessions of ours, and Citus' own links, prove themselves.
type Access struct {
	Security pgconf.Security
	Pooled   bool // Citus' links lead to connection pools, which know the password only
}

func (p *Pool) password() string {
	if p.cfg.Secret == nil {
		return p.cfg.Password
	}
	return p.cfg.Secret()
}

func (p *Pool) access() Access {
	if p.cfg.Access == nil {
		return Access{}
	}
	return p.cfg.Access()
}

// Pool keeps one session per server and database, for one Raft term at a time.
type Pool struct {
	cfg Config

	mu       sync.Mutex   // one Reconcile or EnsureDatabase at a time
	pausing  atomic.Int32 // pauses that take or hold their locks
	term     uint64
	recovery map[string]recovered          // by database
	told     map[string]string             // by database: the primaries of which the servers were told
	away     map[string]map[Addr]time.Time // by database: standbys that have a row, and since when they do not deserve it
	smu      sync.Mutex                    // the map below, within one Reconcile
	sessions map[place]*session

	patience       time.Duration // what every limit for an answer is multiplied with: 1, but in tests
	beforeRecovery func()        // for tests: called between the first look at the primaries and a recovery
}

// place is where a session leads.
type place struct {
	addr     Addr
	database string
}

type session struct {
	*pgx.Conn
	term  uint64 // in its name, and proven by what it writes
	fresh bool   // no transaction of ours has run in it
}

// recovered remembers the last recovery and what the formation looked like then.
type recovered struct {
	at time.Time
	of string
}

// NewPool returns a pool without sessions.
func NewPool(cfg Config) *Pool {
	if cfg.RecoverEvery == 0 {
		cfg.RecoverEvery = time.Minute
	}
	return &Pool{
		cfg: cfg, sessions: map[place]*session{}, recovery: map[string]recovered{}, told: map[string]string{}, away: map[string]map[Addr]time.Time{},
		patience: 1,
	}
}

// times is a limit for an answer.
func (p *Pool) times(d time.Duration) time.Duration { return d * p.patience }

// Close ends all sessions.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeAll()
}

func (p *Pool) closeAll() {
	for at, s := range p.sessions {
		closeConn(s.Conn)
		delete(p.sessions, at)
	}
}

// serve prepares the pool for a term. Sessions carry theirs in their name, so another term needs other sessions.
func (p *Pool) serve(term uint64) {
	if p.term != term {
		p.closeAll()
		p.term = term
	}
}

// session returns the living session of a place or opens one.
func (p *Pool) session(ctx context.Context, at place) (*session, error) {
	if s := p.open(at); s != nil {
		return s, nil
	}
	c, err := p.dial(ctx, at.addr, at.database)
	if err != nil {
		return nil, err
	}
	s := &session{Conn: c, term: p.term, fresh: true}
	p.smu.Lock()
	p.sessions[at] = s
	p.smu.Unlock()
	return s, nil
}

// open returns the living session of a place, or nil.
func (p *Pool) open(at place) *session {
	p.smu.Lock()
	defer p.smu.Unlock()
	if s := p.sessions[at]; s != nil && !s.IsClosed() {
		return s
	}
	return nil
}

// keepOnly ends the sessions of a database that lead where nobody is wanted any more.
func (p *Pool) keepOnly(want Wanted) {
	keep := map[place]bool{}
	for _, at := range want.places() {
		keep[at] = true
	}
	for at, s := range p.sessions {
		if at.database == want.Database && !keep[at] {
			closeConn(s.Conn)
			delete(p.sessions, at)
		}
	}
}

func (p *Pool) dial(ctx context.Context, addr Addr, database string) (*pgx.Conn, error) {
	return p.dialFor(ctx, p.term, addr, database, time.Second)
}

// dialFor opens a session that carries a term. A statement whose context ends is cancelled; the server has the time of grace
// to say so, or the session is over.
func (p *Pool) dialFor(ctx context.Context, term uint64, addr Addr, database string, grace time.Duration) (*pgx.Conn, error) {
	ci, how := pgconf.Conninfo{"sslmode": "prefer"}, p.access().Security
	if how.Certificates() {
		ci = p.cfg.TLS.Link(p.cfg.TLS.Superuser)
	}
	ci["host"], ci["port"] = addr.Host, strconv.Itoa(addr.Port)
	cfg, err := pgx.ParseConfig(ci.String())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	cfg.User, cfg.Password, cfg.Database, cfg.ConnectTimeout = p.cfg.User, "", database, p.times(connectTimeout)
	if how.PasswordLinks() {
		cfg.Password = p.password()
	}
	cfg.DialFunc = (&net.Dialer{Timeout: p.times(connectTimeout), Control: limitSilence}).DialContext
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // ALTER EXTENSION changes tables under cached plans
	cfg.RuntimeParams = map[string]string{
		"application_name":                    fmt.Sprintf("%s%d", appName, term),
		"search_path":                         "pg_catalog",
		"statement_timeout":                   "0",
		"lock_timeout":                        "2s",
		"idle_in_transaction_session_timeout": "5s", // releases what a frozen conductor has locked
		"default_transaction_read_only":       "off",
		"default_transaction_isolation":       "read committed",
		"lc_messages":                         "C",
		"log_parameter_max_length":            "0", // the password is a parameter
	}
	cfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: p.times(grace)}
	}
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return c, nil
}

// limitSilence ends a connection to a host that stopped acknowledging, which a cut cable does not do by itself.
func limitSilence(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeoutOpt, int(userTimeout.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// closeConn says goodbye without waiting for long, whatever became of the caller's context.
func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout) //nolint:forbidigo // a session ends when its work is cancelled, too
	defer cancel()
	_ = c.Close(ctx)
}

// places lists where sessions are needed: at every primary there is.
func (w Wanted) places() map[fsm.GroupID]place {
	out := map[fsm.GroupID]place{}
	for g, p := range w.Primaries {
		if !p.Addr.IsZero() {
			out[g] = place{addr: p.Addr, database: w.Database}
		}
	}
	return out
}

// sqlState returns PostgreSQL's code of an error.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}
