package citus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

// PauseMode says what waits while the primary of a group changes.
type PauseMode string

const (
	// PauseFull holds back every distributed statement, reads included. No client sees an error.
	PauseFull PauseMode = "full"
	// PauseGroup holds back writes to the group's shards only; reads of them fail while the group has no primary. Citus 12.1.
	PauseGroup PauseMode = "group"
	// PauseOff is for callers that do without a Pause. Prepare refuses it.
	PauseOff PauseMode = "off"
)

const (
	defaultLockTimeout = 5 * time.Second
	pauseGrace         = 500 * time.Millisecond // for a server to confirm a cancelled statement, or a rollback
	pingEvery          = 400 * time.Millisecond
	pingTimeout        = time.Second
	// A server ends a session that is silent for this long, so that nobody waits for a conductor that is gone.
	deadMan = 2 * time.Second
)

// ErrPaused says that a Pause takes or holds its locks, which a round would wait for.
var ErrPaused = errors.New("a switchover holds the metadata")

// ErrNotHeld says that a Pause was not held any more, or not yet.
var ErrNotHeld = errors.New("the pause is not held")

// PauseOptions is how a Pause takes its locks.
type PauseOptions struct {
	Mode        PauseMode     // empty: PauseFull
	LockTimeout time.Duration // how long to try in all; 0: 5 s
	Force       bool          // after that time end the transactions in the way instead of giving up
}

// Timings says how long the parts of a Pause took.
type Timings struct {
	Lock  time.Duration // the attempt that got every lock
	Rows  time.Duration // reading the rows when the new primary is known
	Write time.Duration // writing and committing them; the slowest node
	Held  time.Duration // from the first statement that had to wait to the last commit
}

// Pause makes clients wait while a group gets another primary: one session per database on every other primary holds its copy
// of pg_dist_node. Prepare opens them, Hold locks, Resume writes the new address everywhere and lets go, Cancel lets go.
// Nothing is held after Resume or Cancel, whatever they return, nor 2 s after the process vanished. The methods may be called
// from several goroutines.
type Pause struct {
	pool  *Pool
	term  uint64
	group fsm.GroupID
	opts  PauseOptions
	seats []*seat // by database, then group

	life context.Context //nolint:containedctx // ends with the Pause, not with a call
	end  context.CancelFunc
	lost chan struct{}

	mu      sync.Mutex // one call or ping at a time; guards what follows
	phase   phase
	gated   bool
	warm    map[place]*session
	ended   []Blocker
	since   time.Time // of the successful attempt
	timings Timings
}

type phase int

const (
	prepared phase = iota
	held
	over
)

// seat is a session of the Pause on one node.
type seat struct {
	*session
	place
	group fsm.GroupID
	tx    pgx.Tx // nil: none open
}

func (s *seat) wrap(err error) error {
	return fmt.Errorf("database %s of group %d at %s: %w", s.database, s.group, s.addr, err)
}

// Prepare opens the sessions of a Pause and ends those of conductors of lower terms. It locks nothing. wants are all databases;
// the group's own primary is left out, as its clients are disconnected anyway, and so are groups without a primary and databases
// that are not set up yet. A primary that does not answer is an error. The rows should be in order (Check), and a round of
// Reconcile of this term have met the coordinator.
func (p *Pool) Prepare(ctx context.Context, term uint64, wants []Wanted, group fsm.GroupID, opts PauseOptions) (*Pause, error) {
	if opts.Mode == "" {
		opts.Mode = PauseFull
	}
	if opts.Mode != PauseFull && opts.Mode != PauseGroup {
		return nil, fmt.Errorf("prepare pause: unknown mode %q", opts.Mode)
	}
	if opts.LockTimeout <= 0 {
		opts.LockTimeout = defaultLockTimeout
	}
	h := &Pause{pool: p, term: term, group: group, opts: opts, lost: make(chan struct{}), warm: map[place]*session{}}
	h.life, h.end = context.WithCancel(context.WithoutCancel(ctx))
	for _, w := range wants {
		for g, at := range w.places() {
			if g != group {
				h.seats = append(h.seats, &seat{place: at, group: g})
			}
		}
	}
	slices.SortFunc(h.seats, func(a, b *seat) int {
		if c := strings.Compare(a.database, b.database); c != 0 {
			return c
		}
		return int(a.group) - int(b.group)
	})
	err := p.TakeOver(ctx, term, wants, group)
	if err == nil {
		err = errors.Join(h.each(func(s *seat) error { return h.open(ctx, s) })...)
	}
	if err != nil {
		h.Cancel()
		return nil, fmt.Errorf("prepare pause of group %d: %w", group, err)
	}
	h.seats = slices.DeleteFunc(h.seats, func(s *seat) bool { return s.session == nil })
	return h, nil
}

// TakeOver ends what conductors of lower terms hold on all primaries but one group's, pauses of theirs above all. It asks from
// database postgres: in the others the first statement of a session waits for whoever has locked the rows.
func (p *Pool) TakeOver(ctx context.Context, term uint64, wants []Wanted, but fsm.GroupID) error {
	at := map[Addr]fsm.GroupID{}
	for _, w := range wants {
		for g, place := range w.places() {
			if g != but {
				at[place.addr] = g
			}
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for addr, g := range at {
		wg.Go(func() {
			if err := p.endOlder(ctx, term, addr); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("group %d at %s: %w", g, addr, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (p *Pool) endOlder(ctx context.Context, term uint64, addr Addr) error {
	ctx, cancel := context.WithTimeout(ctx, p.times(2*connectTimeout))
	defer cancel()
	c, err := p.dialFor(ctx, term, addr, "postgres", pauseGrace)
	if err != nil {
		return err
	}
	defer closeConn(c)
	_, err = EndOlder(ctx, c, term)
	return err
}

// open connects a seat. It stays without a session where there is nothing to pause.
func (h *Pause) open(ctx context.Context, s *seat) error {
	ctx, cancel := context.WithTimeout(ctx, h.pool.times(2*connectTimeout))
	defer cancel()
	c, err := h.dial(ctx, s.place)
	const noDatabase = "3D000"
	if sqlState(err) == noDatabase {
		return nil
	}
	if err != nil {
		return err
	}
	s.session = c
	const look = `SELECT to_regclass('pg_catalog.pg_dist_node') IS NOT NULL AND to_regclass('matriarch.conductor') IS NOT NULL,
		to_regproc('pg_catalog.citus_pause_node_within_txn') IS NOT NULL`
	var ready, canGroup bool
	if err := c.QueryRow(ctx, look).Scan(&ready, &canGroup); err != nil {
		return fmt.Errorf("look for the extension: %w", err)
	}
	if !ready {
		closeConn(c.Conn)
		s.session = nil
		return nil
	}
	if h.opts.Mode == PauseGroup && !canGroup {
		return errors.New("pause mode \"group\" needs Citus 12.1: choose \"full\"")
	}
	_, err = Observe(ctx, c) // what it loads need not be loaded while clients wait
	return err
}

func (h *Pause) dial(ctx context.Context, at place) (*session, error) {
	c, err := h.pool.dialFor(ctx, h.term, at.addr, at.database, pauseGrace)
	if err != nil {
		return nil, err
	}
	return &session{Conn: c, term: h.term, fresh: true}, nil
}

// Warm opens sessions with the server that is to be the new primary, so that Resume need not. A coordinator to be is asked
// nothing: its first statement must be Resume's. Without Warm, or if its sessions break, Resume connects by itself.
func (h *Pause) Warm(ctx context.Context, addr Addr) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	found := map[place]*session{}
	for _, database := range h.databases() {
		wg.Go(func() {
			at := place{addr: addr, database: database}
			s, err := h.dial(ctx, at)
			if err == nil && h.group != 0 {
				_, err = Observe(ctx, s)
			}
			mu.Lock()
			defer mu.Unlock()
			if s != nil {
				found[at] = s
			}
			if err != nil {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for at, s := range found {
		if h.phase == over || h.warm[at] != nil {
			closeConn(s.Conn)
			continue
		}
		h.warm[at] = s
	}
	return errors.Join(errs...)
}

func (h *Pause) databases() []string {
	var out []string
	for _, s := range h.seats {
		out = append(out, s.database)
	}
	return slices.Compact(out)
}

// Lost is closed when a session was lost while the Pause was held: by then all others have let go.
func (h *Pause) Lost() <-chan struct{} { return h.lost }

// Ended lists whom Force has ended.
func (h *Pause) Ended() []Blocker {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ended)
}

// Cancel lets go everywhere and ends the sessions; a Hold or Resume under way fails. It takes about a second at most, may be
// repeated, and has nothing to do after Resume.
func (h *Pause) Cancel() {
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.release()
}

// bound ends a call's context with the Pause.
func (h *Pause) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// each runs f on all seats at once and returns what failed.
func (h *Pause) each(f func(*seat) error) []error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for _, s := range h.seats {
		wg.Go(func() {
			if err := f(s); err != nil {
				mu.Lock()
				errs = append(errs, s.wrap(err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errs
}

// release rolls back what is open and ends all sessions. The caller holds the mutex.
func (h *Pause) release() {
	if h.phase == over {
		return
	}
	h.phase = over
	h.end()
	h.each(func(s *seat) error {
		if s.session == nil {
			return nil
		}
		_ = s.rollback(h.life, h.pool.times(pauseGrace))
		closeConn(s.Conn)
		return nil
	})
	for _, s := range h.warm {
		closeConn(s.Conn)
	}
	if h.gated {
		h.pool.pausing.Add(-1)
	}
}

// rollback takes back the open transaction. The caller's context may have ended.
func (s *seat) rollback(ctx context.Context, grace time.Duration) error {
	if s.tx == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := s.tx.Rollback(ctx)
	s.tx = nil
	if errors.Is(err, pgx.ErrTxClosed) {
		return nil
	}
	return err
}

// keepAlive shows the servers that somebody is still there, until the Pause is over.
func (h *Pause) keepAlive() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.life.Done():
			return
		case <-tick.C:
		}
		if !h.ping() {
			return
		}
	}
}

// ping reports whether all sessions are still there. One that is not costs all others their locks.
func (h *Pause) ping() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != held {
		return false
	}
	ctx, cancel := context.WithTimeout(h.life, h.pool.times(pingTimeout))
	defer cancel()
	errs := h.each(func(s *seat) error { return s.Ping(ctx) })
	switch {
	case h.life.Err() != nil:
		return false
	case len(errs) > 0:
		h.release()
		close(h.lost)
		return false
	}
	return true
}
