package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	opEvery   = 15 * time.Millisecond
	opTimeout = 10 * time.Second // a client's patience
	retryWait = 10 * time.Millisecond
	perClient = 10_000_000 // numbers for the rows of one client in one run
)

// sample is one operation. Code is empty when it was answered with success; otherwise what went wrong, an SQLSTATE where there is one.
type sample struct {
	from, to time.Time
	code     string
}

// client repeats one kind of operation on a connection of its own, one at a time. It goes to the next slot only after success, so that an
// outage of one group is not hidden by operations on another. Every attempt has row numbers of its own.
type client struct {
	kind
	dsn   string
	slots []int
	first int64 // of its row numbers

	conn *pgx.Conn

	mu      sync.Mutex
	samples []sample
	inRow   int     // successes since the last error
	acked   []int64 // first row number of each acknowledged write
	unknown []int64 // and of those whose outcome is open

	cancel context.CancelFunc
	ended  chan struct{}
}

func (c *client) start(ctx context.Context) {
	ctx, c.cancel = context.WithCancel(ctx)
	c.ended = make(chan struct{})
	go func() {
		defer close(c.ended)
		c.run(ctx)
	}()
}

// stop ends the client after the operation under way.
func (c *client) stop() {
	c.cancel()
	<-c.ended
}

func (c *client) run(ctx context.Context) {
	defer c.drop(ctx)
	next := c.first
	for slot := 0; ctx.Err() == nil; slot++ {
		began := time.Now()
		for !c.attempt(ctx, slot, next) {
			next += int64(c.rows)
			if !sleep(ctx, retryWait) {
				return
			}
		}
		next += int64(c.rows)
		if !sleep(ctx, max(0, c.every-time.Since(began))) {
			return
		}
	}
}

// attempt includes the way to a server when there is no connection.
func (c *client) attempt(ctx context.Context, slot int, n int64) bool {
	octx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	from := time.Now()
	if c.conn == nil {
		conn, err := pgx.Connect(octx, c.dsn)
		if err != nil {
			c.note(sample{from, time.Now(), "connect: " + code(err)}, 0, false)
			return false
		}
		c.conn = conn
	}
	err := c.do(octx, c.conn, c.slots, slot, n)
	s := sample{from: from, to: time.Now()}
	if err != nil {
		s.code = code(err)
		if c.conn.IsClosed() && strings.HasPrefix(s.code, "other") {
			s.code = "connection lost"
		}
	}
	c.note(s, n, true)
	if err != nil && !c.usable(err) {
		c.drop(ctx)
	}
	return err == nil
}

func (c *client) note(s sample, n int64, sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples = append(c.samples, s)
	c.inRow++
	if s.code != "" {
		c.inRow = 0
	}
	switch {
	case !sent || c.rows == 0:
	case s.code == "":
		c.acked = append(c.acked, n)
	default:
		c.unknown = append(c.unknown, n)
	}
}

// usable reports whether the session goes on after an error; one on a server that became a standby does not.
func (c *client) usable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Severity == "ERROR" && pg.Code != "25006" && !c.conn.IsClosed() && c.conn.PgConn().TxStatus() == 'I'
}

// drop says goodbye even after the end of ctx.
func (c *client) drop(ctx context.Context) {
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
	defer cancel()
	_ = c.conn.Close(ctx)
	c.conn = nil
}

// steady reports whether so many operations in a row have succeeded.
func (c *client) steady(count int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inRow >= count
}

// restart counts successes from now on.
func (c *client) restart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inRow = 0
}

// code names an error for the table.
func code(err error) string {
	var timeout net.Error
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok:
		return pg.Code
	case errors.Is(err, pgconn.ErrReadOnlyConnection): // others were asked, too, and refused
		return "no primary"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return "connection lost"
	}
	return "other: " + err.Error()
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
