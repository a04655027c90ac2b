package testkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/internal/config"
	"matriarch/internal/identity"
)

// Database is the one that every group has.
const Database = "app"

// the writer is an ordinary client: it has no rights that would let it in earlier than others.
const (
	clientName     = "app_client"
	clientPassword = "client"
)

// Times of the writer, and how long others may take to log in.
const (
	writeEvery   = 10 * time.Millisecond
	writeTimeout = 2 * time.Second
	writeLogin   = time.Second
	login        = 5 * time.Second
)

// Connect opens a session as superuser on one node.
func (n *Node) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return n.ConnectVia(ctx, n.PG(), database)
}

// ConnectVia opens a session as superuser at another address, with what the node knows.
func (n *Node) ConnectVia(ctx context.Context, addr, database string) (*pgx.Conn, error) {
	pass, err := identity.Dir(n.Dir).Secret(identity.Superuser)
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(n.Config())
	if err != nil {
		return nil, err
	}
	return connect(ctx, addr, cfg.PostgreSQL.Superuser, pass, database, login, "")
}

func connect(ctx context.Context, hosts, user, password, database string, limit time.Duration, options string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=prefer&connect_timeout=%.0f%s", user, password, hosts, database, limit.Seconds(), options))
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// Query answers the one value of a query on one node.
func Query[V any](n *Node, database, sql string, args ...any) (v V, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := n.Connect(ctx, database)
	if err != nil {
		return v, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql, args...).Scan(&v)
	return v, err
}

// Exec runs statements on one node, which must succeed.
func (n *Node) Exec(database string, statements ...string) {
	n.c.T.Helper()
	ctx, cancel := context.WithTimeout(n.c.T.Context(), 30*time.Second)
	defer cancel()
	conn, err := n.Connect(ctx, database)
	if err != nil {
		n.c.T.Fatalf("connect to %s: %v", n.Name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			n.c.T.Fatalf("on %s: %s: %v", n.Name, s, err)
		}
	}
}

// SwitchWAL begins other segments of the log until that fails: a server without room for one ends.
func (n *Node) SwitchWAL() {
	for range 1000 {
		if _, err := Query[string](n, "postgres", "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))::text"); err != nil {
			return
		}
	}
}

// Ack is one acknowledged write.
type Ack struct {
	N    int64
	At   time.Time
	Host string // IP of the server
}

// Writer inserts a number every 10 ms through whichever node takes it, and remembers what was acknowledged.
type Writer struct {
	c     *Cluster
	group int
	hosts string

	cancel context.CancelFunc
	done   chan struct{}
	tried  atomic.Int64

	mu   sync.Mutex
	acks []Ack
	errs []error
}

// Write starts a writer on a healthy group. A test has at most one for each group.
func (c *Cluster) Write(group int) *Writer {
	c.T.Helper()
	p := c.WaitPrimary(group)
	c.Eventually("the database is there", func() error {
		_, err := Query[int](p, Database, "SELECT 1")
		return err
	})
	p.Exec(Database,
		fmt.Sprintf("DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '%[1]s') THEN CREATE ROLE %[1]s LOGIN PASSWORD '%[2]s'; END IF; END $$", clientName, clientPassword),
		"CREATE TABLE IF NOT EXISTS numbers (n bigint PRIMARY KEY)", "CREATE TABLE IF NOT EXISTS local_numbers (n bigint PRIMARY KEY)",
		"GRANT ALL ON numbers, local_numbers TO "+clientName)
	w := &Writer{c: c, group: group, done: make(chan struct{})}
	var hosts []string
	for _, n := range c.Nodes {
		if n.Group == group {
			hosts = append(hosts, n.PG())
		}
	}
	w.hosts = strings.Join(hosts, ",")
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.T.Context()))
	w.cancel = cancel
	c.T.Cleanup(w.stop)
	go w.run(ctx)
	w.WaitAck()
	return w
}

func (w *Writer) stop() {
	w.cancel()
	<-w.done
}

func (w *Writer) run(ctx context.Context) {
	defer close(w.done)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	var conn *pgx.Conn
	leave := func() {
		if conn != nil {
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
			_ = conn.Close(cctx)
			cancel()
			conn = nil
		}
	}
	defer leave()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		if conn == nil {
			if conn, err = connect(ctx, w.hosts, clientName, clientPassword, Database, writeLogin, "&target_session_attrs=read-write"); err != nil {
				w.failed(err)
				conn = nil
				continue
			}
		}
		if err = w.insert(ctx, conn); err != nil {
			w.failed(err)
			leave()
		}
	}
}

func (w *Writer) insert(ctx context.Context, conn *pgx.Conn) error {
	n := w.tried.Add(1)
	// Not cut short by the end of the test: then it would be unknown whether it was done.
	ictx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if _, err := conn.Exec(ictx, "INSERT INTO numbers VALUES ($1)", n); err != nil {
		return err
	}
	host, _, _ := strings.Cut(conn.PgConn().Conn().RemoteAddr().String(), ":")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, Ack{N: n, At: time.Now(), Host: host})
	return nil
}

func (w *Writer) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// Acks are the acknowledged writes so far.
func (w *Writer) Acks() []Ack {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acks)
}

// Tried is how many writes have begun.
func (w *Writer) Tried() int64 { return w.tried.Load() }

// LastError is the newest error of a write, nil when none has failed.
func (w *Writer) LastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) == 0 {
		return nil
	}
	return w.errs[len(w.errs)-1]
}

// Refused are the errors so far, but for writes that merely took longer than the writer waits: then nobody was turned away.
func (w *Writer) Refused() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.errs), func(err error) bool {
		_, said := errors.AsType[*pgconn.PgError](err)
		return pgconn.Timeout(err) && !said
	})
}

// WaitAck waits until a write that began after the call was acknowledged.
func (w *Writer) WaitAck() {
	w.c.T.Helper()
	after := w.tried.Load()
	w.c.Eventually(fmt.Sprintf("a write on group %d is acknowledged", w.group), func() error {
		acks := w.Acks()
		if len(acks) > 0 && acks[len(acks)-1].N > after {
			return nil
		}
		return fmt.Errorf("last error: %w", orNone(w.LastError()))
	})
}

func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

// Gap is the longest time without an acknowledged write since a moment, and where it ended.
func (w *Writer) Gap(since time.Time) (longest time.Duration, to string) {
	acks := w.Acks()
	i, _ := slices.BinarySearchFunc(acks, since, func(a Ack, t time.Time) int { return a.At.Compare(t) })
	for i = max(i, 1); i < len(acks); i++ {
		if d := acks[i].At.Sub(acks[i-1].At); d > longest {
			longest, to = d, acks[i].Host
		}
	}
	return longest, to
}

// FirstOn is when a node first acknowledged a write after a moment.
func (w *Writer) FirstOn(n *Node, since time.Time) (time.Time, bool) {
	for _, a := range w.Acks() {
		if a.Host == n.IP && a.At.After(since) {
			return a.At, true
		}
	}
	return time.Time{}, false
}

// Check ends the writer and looks for every acknowledged number on the present primary, and for numbers that nobody wrote. The
// standbys must come to have the same.
func (w *Writer) Check() {
	w.c.T.Helper()
	w.stop()
	p := w.c.WaitPrimary(w.group)
	var present map[int64]bool
	w.c.Eventually("the numbers on "+p.Name, func() (err error) { present, err = p.Numbers("numbers"); return err })
	w.judge(p, maps.Clone(present))
	for _, n := range w.c.Nodes {
		if n == p || n.Group != w.group || !n.Running() {
			continue
		}
		w.c.Eventually(n.Name+" has what the primary has", func() error {
			have, err := n.Numbers("numbers")
			if err == nil && !maps.Equal(have, present) {
				err = fmt.Errorf("%d numbers, %s has %d", len(have), p.Name, len(present))
				if now, nerr := p.Numbers("numbers"); nerr == nil { // a write that was given up may have come through
					present = now
				}
			}
			return err
		})
	}
}

func (w *Writer) judge(n *Node, present map[int64]bool) {
	w.c.T.Helper()
	var lost []int64
	acks := w.Acks()
	for _, a := range acks {
		if !present[a.N] {
			lost = append(lost, a.N)
		}
		delete(present, a.N)
	}
	if len(lost) > 0 {
		w.c.T.Errorf("%s lacks %d of %d acknowledged writes: %v", n.Name, len(lost), len(acks), lost[:min(len(lost), 20)])
	}
	for _, x := range slices.Sorted(maps.Keys(present)) {
		if x < 1 || x > w.tried.Load() {
			w.c.T.Errorf("%s has %d, which nobody wrote", n.Name, x)
		}
	}
	w.c.T.Logf("acknowledged %d, lost %d, present though never acknowledged %d", len(acks), len(lost), len(present))
}

// Numbers reads a table of numbers on one node.
func (n *Node) Numbers(table string) (map[int64]bool, error) {
	ctx, cancel := context.WithTimeout(n.c.T.Context(), 30*time.Second)
	defer cancel()
	conn, err := n.Connect(ctx, Database)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "SELECT n FROM "+table)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	out := map[int64]bool{}
	for _, x := range all {
		out[x] = true
	}
	return out, err
}

// Stubborn writes to one node only, without waiting for any standby, until that fails. What it wrote last tells how long that
// server was writable.
type Stubborn struct {
	c    *Cluster
	done chan struct{}
	mu   sync.Mutex
	last time.Time
	n    int64
	err  error
}

// WriteLocally starts a stubborn writer; Write must have made the tables.
func (n *Node) WriteLocally() *Stubborn {
	n.c.T.Helper()
	ctx, cancel := context.WithTimeout(n.c.T.Context(), 5*time.Second)
	defer cancel()
	conn, err := connect(ctx, n.PG(), clientName, clientPassword, Database, login, "")
	if err == nil {
		_, err = conn.Exec(ctx, "SET synchronous_commit = local")
	}
	if err != nil {
		n.c.T.Fatalf("write on %s: %v", n.Name, err)
	}
	s := &Stubborn{c: n.c, done: make(chan struct{})}
	rctx, end := context.WithCancel(context.WithoutCancel(n.c.T.Context()))
	n.c.T.Cleanup(func() { end(); <-s.done })
	go s.run(rctx, conn)
	return s
}

func (s *Stubborn) run(ctx context.Context, conn *pgx.Conn) {
	defer close(s.done)
	defer func() { _ = conn.PgConn().Conn().Close() }()
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		began := time.Now() // not when the answer was read, which may be much later
		_, err := conn.Exec(ctx, "INSERT INTO local_numbers SELECT coalesce(max(n), 0) + 1 FROM local_numbers")
		s.mu.Lock()
		if err == nil {
			s.last = began
			s.n++
		}
		s.err = err
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// WaitWrites waits until the server has taken so many more.
func (s *Stubborn) WaitWrites(more int64) {
	s.c.T.Helper()
	count := func() (int64, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.n, s.err
	}
	before, _ := count()
	s.c.Eventually("local writes", func() error {
		if n, err := count(); n < before+more {
			return fmt.Errorf("%d of %d: %w", n-before, more, orNone(err))
		}
		return nil
	})
}

// WaitEnd waits until the server takes no more writes and returns when it took the last.
func (s *Stubborn) WaitEnd() time.Time {
	s.c.T.Helper()
	select {
	case <-s.done:
	case <-time.After(waitLimit):
		s.c.T.Fatalf("the server still takes writes after %s", waitLimit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		s.c.T.Fatalf("it never took one: %v", s.err)
	}
	return s.last
}
