package demo

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/internal/identity"
)

const (
	writeEvery   = 10 * time.Millisecond
	writeTimeout = 2 * time.Second
	retryAfter   = 10 * time.Millisecond
	slots        = 64 // values of the distribution column, spread over both worker groups
)

// dsn leads to the coordinator's primary, whoever that is.
func (d *Demo) dsn() (string, error) {
	var hosts []string
	password := ""
	for _, n := range d.Nodes() {
		if n.Group != 0 {
			continue
		}
		hosts = append(hosts, n.postgres())
		if s, err := identity.Dir(n.stateDir()).Secret(identity.Superuser); err == nil {
			password = s
		}
	}
	if password == "" {
		return "", errors.New("the superuser's password is in no node's state directory")
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: strings.Join(hosts, ","), Path: "/" + database}
	u.RawQuery = url.Values{"target_session_attrs": {"read-write"}, "connect_timeout": {"1"}, "application_name": {"matriarch demo"}}.Encode()
	return u.String(), nil
}

// ack is one acknowledged insert.
type ack struct {
	n  int64
	at time.Time
}

// writer inserts one row every 10 ms through the coordinator's primary. It goes to the next slot only after an acknowledgement, so that an
// outage of one worker group is not hidden by inserts into another; every attempt has a number of its own.
type writer struct {
	dsn  string
	conn *pgx.Conn
	next int64

	mu      sync.Mutex
	acks    []ack
	unknown []int64 // attempts whose outcome is open
	lastErr error

	cancel context.CancelFunc
	ended  chan struct{}
}

func startWriter(ctx context.Context, dsn string) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{dsn: dsn, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		w.run(ctx)
	}()
	return w
}

// stop ends the writer after the insert under way.
func (w *writer) stop() {
	w.cancel()
	<-w.ended
}

func (w *writer) run(ctx context.Context) {
	t := time.NewTicker(writeEvery)
	defer t.Stop()
	defer w.drop(ctx)
	for slot := 0; ; slot++ {
		for !w.insert(ctx, slot%slots) {
			if !sleep(ctx, retryAfter) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// insert makes one attempt under a new number.
func (w *writer) insert(ctx context.Context, slot int) bool {
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if w.conn == nil {
		conn, err := pgx.Connect(wctx, w.dsn)
		if err != nil {
			w.note(err)
			return ctx.Err() != nil
		}
		w.conn = conn
	}
	w.next++
	_, err := w.conn.Exec(wctx, insertSQL, slot, w.next)
	if err == nil {
		w.mu.Lock()
		w.acks = append(w.acks, ack{w.next, time.Now()})
		w.mu.Unlock()
		return true
	}
	w.note(err)
	// Only an answer of the server, that it rolled back, is certain; and even that may be a cancelled wait for a standby.
	w.mu.Lock()
	w.unknown = append(w.unknown, w.next)
	w.mu.Unlock()
	if w.conn.IsClosed() || !statementError(err) {
		w.drop(ctx)
	}
	return ctx.Err() != nil
}

// statementError reports whether the session goes on.
func statementError(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Severity == "ERROR" && pg.Code != "25006" // read-only: this server is no primary any more
}

// drop says goodbye even after the end of ctx.
func (w *writer) drop(ctx context.Context) {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.conn = nil
}

func (w *writer) note(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastErr = err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// acknowledged is how many inserts were, by now.
func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acks)
}

// gap is the longest time between two acknowledgements since shortly before from; an outage that lasts counts until now.
func (w *writer) gap(from time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	times := make([]time.Time, 0, len(w.acks))
	for _, a := range w.acks {
		times = append(times, a.at)
	}
	return longestGap(times, from, time.Now())
}

// longestGap looks at the intervals that end after from.
func longestGap(times []time.Time, from, now time.Time) time.Duration {
	i, _ := slices.BinarySearchFunc(times, from, func(a, b time.Time) int { return a.Compare(b) })
	last := from
	if i > 0 {
		last = times[i-1]
	}
	longest := time.Duration(0)
	for _, t := range append(slices.Clone(times[i:]), now) {
		longest, last = max(longest, t.Sub(last)), t
	}
	return longest
}

// waitWriting waits until so many inserts were acknowledged after now.
func (w *writer) waitWriting(ctx context.Context, count int, limit time.Duration) error {
	goal := w.acknowledged() + count
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := every(ctx, writeEvery, func() (bool, error) { return w.acknowledged() >= goal, nil })
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Errorf("writes have not come back within %s: %w", limit, errors.Join(err, w.lastErr))
}

// tally is the count after all is over.
type tally struct {
	Acknowledged   int `json:"acknowledged"`
	Present        int `json:"present"` // of those acknowledged
	Lost           int `json:"lost"`
	Unknown        int `json:"unknown"` // attempts without an answer: present or not, both is right
	UnknownPresent int `json:"unknown_present"`
	Strange        int `json:"strange"` // present, though never sent
}

// count compares what was acknowledged with what is there.
func count(acked, unknown, present []int64) tally {
	there := map[int64]bool{}
	for _, n := range present {
		there[n] = true
	}
	t := tally{Acknowledged: len(acked), Unknown: len(unknown)}
	for _, n := range acked {
		if there[n] {
			t.Present++
		}
	}
	for _, n := range unknown {
		if there[n] {
			t.UnknownPresent++
		}
	}
	t.Lost = t.Acknowledged - t.Present
	t.Strange = len(there) - t.Present - t.UnknownPresent
	return t
}

func connect(ctx context.Context, dsn string) (conn *pgx.Conn, err error) {
	err = again(ctx, func(ctx context.Context) error { conn, err = pgx.Connect(ctx, dsn); return err })
	return conn, err
}

// tally reads all rows back through the coordinator.
func (w *writer) tally(ctx context.Context) (tally, error) {
	conn, err := connect(ctx, w.dsn)
	if err != nil {
		return tally{}, fmt.Errorf("count rows: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, selectSQL)
	if err != nil {
		return tally{}, fmt.Errorf("count rows: %w", err)
	}
	present, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return tally{}, fmt.Errorf("count rows: %w", err)
	}
	acked := make([]int64, 0, len(w.acks))
	for _, a := range w.acks {
		acked = append(acked, a.n)
	}
	return count(acked, w.unknown, present), nil
}

const (
	insertSQL = "INSERT INTO matriarch_demo (slot, n) VALUES ($1, $2)"
	selectSQL = "SELECT n FROM matriarch_demo"
)

// createTable makes the distributed table and returns what calls itself Citus.
func createTable(ctx context.Context, dsn string) (string, error) {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return "", fmt.Errorf("create the table: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	defer func() { _ = conn.Close(ctx) }()
	var citus string
	if err := conn.QueryRow(ctx, "SELECT citus_version()").Scan(&citus); err != nil {
		return "", fmt.Errorf("create the table: %w", err)
	}
	for _, sql := range []string{
		"SET citus.shard_count = 8", "CREATE TABLE matriarch_demo (slot int NOT NULL, n bigint NOT NULL, PRIMARY KEY (slot, n))",
		"SELECT create_distributed_table('matriarch_demo', 'slot')",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", fmt.Errorf("create the table: %w", err)
		}
	}
	return citus, nil
}
