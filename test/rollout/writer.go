package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	writeEvery = 10 * time.Millisecond
	writeLimit = 2 * time.Second // of one write: what a dead host costs besides
	password   = "rollout-0123456789"
)

// writer inserts numbers into a table of one group, one after the other, as a client with a list of hosts does.
type writer struct {
	group int
	dsn   string
	end   context.CancelFunc
	done  chan struct{}

	mu     sync.Mutex
	acked  []int64
	last   time.Time
	gap    time.Duration
	errors int
	first  string // error
}

// write starts a writer on a group; its role and table are made on the primary.
func (b *bed) write(ctx context.Context, from *host, group int) (*writer, error) {
	p, err := b.primary(ctx, from, group)
	if err != nil {
		return nil, err
	}
	sql := fmt.Sprintf("CREATE ROLE rollout LOGIN PASSWORD '%s'; CREATE TABLE rollout (n bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp()); GRANT ALL ON rollout TO rollout;", password)
	_, err = p.ssh(ctx, fmt.Sprintf(`cd /tmp; PGPASSWORD=$(cat /var/lib/matriarch/secrets/superuser) PGOPTIONS='-c citus.enable_ddl_propagation=off' setpriv --reuid postgres --regid postgres --init-groups psql -v ON_ERROR_STOP=1 -q -h /var/lib/matriarch/run -U postgres -d app <<'X'
SET client_min_messages = error;
%s
X`, sql))
	if err != nil {
		return nil, err
	}
	var hosts, ports []string
	for _, h := range b.hosts {
		if h.group == group && h.suite == "bookworm" {
			hosts, ports = append(hosts, h.ip()), append(ports, "5432")
		}
	}
	w := &writer{group: group, done: make(chan struct{}), last: time.Now()}
	w.dsn = fmt.Sprintf("host=%s port=%s user=rollout password=%s dbname=app target_session_attrs=read-write connect_timeout=1 default_query_exec_mode=exec",
		strings.Join(hosts, ","), strings.Join(ports, ","), password)
	wctx, cancel := context.WithCancel(ctx)
	w.end = cancel
	go w.run(wctx)
	return w, nil
}

func (w *writer) run(ctx context.Context) {
	defer close(w.done)
	var conn *pgx.Conn
	t := time.NewTicker(writeEvery)
	defer t.Stop()
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close(context.Background())
			}
			return
		case <-t.C:
		}
		octx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeLimit)
		var err error
		if conn == nil {
			conn, err = pgx.Connect(octx, w.dsn)
		}
		if err == nil {
			_, err = conn.Exec(octx, "INSERT INTO rollout (n) VALUES ($1)", n)
		}
		cancel()
		w.note(n, err)
		if err != nil && conn != nil {
			_ = conn.PgConn().Conn().Close()
			conn = nil
		}
	}
}

func (w *writer) note(n int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if w.errors++; w.first == "" {
			w.first = err.Error()
		}
		return
	}
	now := time.Now()
	w.gap = max(w.gap, now.Sub(w.last))
	w.last = now
	w.acked = append(w.acked, n)
}

// window begins a new measurement.
func (w *writer) window() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gap, w.errors, w.first, w.last = 0, 0, "", time.Now()
}

// seen is the longest time without an acknowledgement and the errors of this window.
func (w *writer) seen() (gap time.Duration, failed int, first string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.gap, time.Since(w.last)), w.errors, w.first
}

// writesAgain waits for an acknowledgement from now on.
func (w *writer) writesAgain(ctx context.Context, b *bed) error {
	since := time.Now()
	return b.until(ctx, time.Minute, fmt.Sprintf("group %d takes writes", w.group), func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.last.Before(since) || len(w.acked) == 0 {
			return errors.New(w.first)
		}
		return nil
	})
}

// check ends the writer and looks for every acknowledged number.
func (w *writer) check(ctx context.Context) (string, error) {
	w.end()
	<-w.done
	conn, err := pgx.Connect(ctx, w.dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT n FROM rollout")
	if err != nil {
		return "", err
	}
	there := map[int64]bool{}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	for _, n := range all {
		there[n] = true
	}
	lost := 0
	for _, n := range w.acked {
		if !there[n] {
			lost++
		}
	}
	if err == nil && lost > 0 {
		err = fmt.Errorf("group %d lost %d of %d acknowledged writes", w.group, lost, len(w.acked))
	}
	return fmt.Sprintf("group %d: %d acknowledged, none lost", w.group, len(w.acked)), err
}
