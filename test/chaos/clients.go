package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
)

const (
	opTimeout   = 3 * time.Second
	setEvery    = 20 * time.Millisecond
	regEvery    = 60 * time.Millisecond
	sampleEvery = 100 * time.Millisecond
	keyLife     = 4 * time.Second // then the clients of registers take a new one, so that open outcomes do not pile up
)

var tables = []string{
	"CREATE TABLE chaos_set (n bigint PRIMARY KEY)",
	"CREATE TABLE chaos_register (k bigint PRIMARY KEY, v bigint NOT NULL, touched bigint NOT NULL DEFAULT 0)",
	"CREATE TABLE chaos_probe (node int, at timestamptz DEFAULT clock_timestamp())",
}

// session is a connection that is opened when it is needed and dropped after every failure.
type session struct {
	dsn  string
	conn *pgx.Conn
}

var errNoCancel = errors.New("no cancel request")

// connect makes a connection that never sends a cancel request: a cancelled wait for a standby shows others a commit that may yet be lost.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	var open atomic.Bool
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if open.Load() {
			return nil, errNoCancel
		}
		return dial(ctx, network, addr)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	open.Store(true)
	return conn, err
}

// do reports whether the operation was sent at all.
func (s *session) do(ctx context.Context, op func(context.Context, *pgx.Conn) error) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if s.conn == nil {
		if s.conn, err = connect(ctx, s.dsn); err != nil {
			s.conn = nil
			return false, err
		}
	}
	if err = op(ctx, s.conn); err != nil {
		s.drop()
	}
	return true, err
}

func (s *session) drop() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_ = s.conn.Close(ctx)
	s.conn = nil
}

// numbers is what became of the numbers added to a group's set.
type numbers struct {
	mu               sync.Mutex
	attempted, acked map[int64]bool
	lastAck          time.Time
	gap              time.Duration // the longest without an acknowledgement
	gapFrom          time.Time
	gaps             []gap // those that somebody would notice
}

// gap is a time without an acknowledgement.
type gap struct {
	from time.Time
	took time.Duration
}

const noticed = 100 * time.Millisecond

func newNumbers() *numbers {
	return &numbers{attempted: map[int64]bool{}, acked: map[int64]bool{}, lastAck: time.Now()}
}

func (n *numbers) attempt(v int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attempted[v] = true
}

func (n *numbers) ack(v int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.acked[v] = true
	now := time.Now()
	g := gap{n.lastAck, now.Sub(n.lastAck)}
	if g.took > n.gap {
		n.gap, n.gapFrom = g.took, g.from
	}
	if g.took > noticed {
		n.gaps = append(n.gaps, g)
	}
	n.lastAck = now
}

// add writes numbers, each attempt a new one.
func (n *numbers) add(ctx context.Context, dsn, table string, next *atomic.Int64) {
	s := session{dsn: dsn}
	defer s.drop()
	for sleep(ctx, setEvery) {
		v := next.Add(1)
		_, err := s.do(ctx, func(ctx context.Context, c *pgx.Conn) error {
			n.attempt(v)
			_, err := c.Exec(ctx, "INSERT INTO "+table+" VALUES ($1)", v)
			return err
		})
		if err == nil {
			n.ack(v)
		}
	}
}

// An operation on a register. Reads write, too, unless they may be plain: only what a standby has confirmed tells that this was the primary.
type regOp struct {
	key  int64
	kind string // read, write or cas
	old  int64
	v    int64
}

// regAnswer is what the client saw; nothing when the outcome is open.
type regAnswer struct {
	known bool
	v     int64 // read
	set   bool  // cas
}

const (
	readSQL  = "INSERT INTO chaos_register (k, v) VALUES ($1, 0) ON CONFLICT (k) DO UPDATE SET touched = chaos_register.touched + 1 RETURNING v"
	writeSQL = "INSERT INTO chaos_register (k, v) VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
	plainSQL = "SELECT coalesce((SELECT v FROM chaos_register WHERE k = $1), 0)"
	casSQL   = `INSERT INTO chaos_register AS r (k, v) VALUES ($1, CASE WHEN $2::bigint = 0 THEN $3::bigint ELSE 0 END) ON CONFLICT (k) DO UPDATE SET v = CASE WHEN r.v = $2 THEN $3 ELSE r.v END, touched = r.touched + 1 RETURNING v = $3`
)

// registers records the operations of a group's registers.
type registers struct {
	mu  sync.Mutex
	ops []porcupine.Operation
}

func (r *registers) work(ctx context.Context, dsn string, client int, plain bool, began time.Time, rnd *rand.Rand) {
	s := session{dsn: dsn}
	defer s.drop()
	var unique, seen int64
	for sleep(ctx, regEvery) {
		unique++
		op := regOp{key: int64(time.Since(began) / keyLife), kind: []string{"read", "write", "cas"}[rnd.IntN(3)], old: seen, v: unique*100 + int64(client) + 1}
		call := time.Since(began)
		var a regAnswer
		sent, err := s.do(ctx, func(ctx context.Context, c *pgx.Conn) error {
			call = time.Since(began)
			return a.ask(ctx, c, op, plain)
		})
		switch {
		case !sent:
			continue
		case err == nil:
			a.known = true
			if op.kind == "read" {
				seen = a.v
			}
		}
		r.note(porcupine.Operation{ClientId: client, Input: op, Call: int64(call), Output: a, Return: int64(time.Since(began))})
	}
}

func (a *regAnswer) ask(ctx context.Context, c *pgx.Conn, op regOp, plain bool) error {
	switch op.kind {
	case "read":
		sql := readSQL
		if plain {
			sql = plainSQL
		}
		return c.QueryRow(ctx, sql, op.key).Scan(&a.v)
	case "write":
		_, err := c.Exec(ctx, writeSQL, op.key, op.v)
		return err
	}
	return c.QueryRow(ctx, casSQL, op.key, op.old, op.v).Scan(&a.set)
}

func (r *registers) note(op porcupine.Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
}

// ack is one write that a node has acknowledged, and the timeline it was made on.
type ack struct {
	node     int
	timeline uint64
	from, to time.Duration // since the beginning
	at       time.Time     // when it came
}

// sampler tries a write on one node again and again, whatever the node is. Where the lease alone must protect, every second try writes without
// waiting for a standby, and every other one only reads what a primary alone can tell.
type sampler struct {
	mu    sync.Mutex
	acks  []ack
	tries int
}

const (
	sampleSQL = "WITH level AS MATERIALIZED (SELECT set_config('synchronous_commit', '%s', true)) INSERT INTO chaos_probe (node) SELECT %d FROM level RETURNING pg_walfile_name(pg_current_wal_insert_lsn())"
	lookSQL   = "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END"
)

func (s *sampler) sample(ctx context.Context, dsn string, node int, began time.Time, leaseAlone bool) {
	c := session{dsn: dsn}
	defer c.drop()
	statements := []string{fmt.Sprintf(sampleSQL, "on", node)}
	if leaseAlone {
		statements = []string{fmt.Sprintf(sampleSQL, "local", node), lookSQL}
	}
	for i := 0; sleep(ctx, sampleEvery); i++ {
		var walfile string
		a := ack{node: node}
		_, err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			a.from = time.Since(began)
			return conn.QueryRow(ctx, statements[i%len(statements)]).Scan(&walfile)
		})
		a.to = time.Since(began)
		s.mu.Lock()
		s.tries++
		if err == nil && len(walfile) == 24 {
			if tl, err := strconv.ParseUint(walfile[:8], 16, 32); err == nil {
				a.timeline, a.at = tl, time.Now()
				s.acks = append(s.acks, a)
			}
		}
		s.mu.Unlock()
	}
}

// last is the node that acknowledged most lately; the first of the group before anybody has.
func (s *sampler) last(fallback int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.acks) == 0 {
		return fallback
	}
	return s.acks[len(s.acks)-1].node
}
