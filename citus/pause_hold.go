package citus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	oneAttempt   = 400 * time.Millisecond // newcomers queue behind a lock that waits
	attemptEvery = 2 * time.Second        // from the end of one that failed
	lookEvery    = 20 * time.Millisecond
	forceRounds  = 3
)

// errNotInTime says that a lock was not to be had in the time of one attempt.
var errNotInTime = errors.New("lock not obtained in time")

// Hold locks the rows on all nodes, or on none: from its return on clients wait. It looks before it locks, since a lock that
// waits stops all newcomers: an attempt is made only while no older transaction is in the way, and one that failed is not
// repeated for 2 s. After LockTimeout it fails with *Blocked, or, with Force, ends those in the way. A Hold that failed has let
// go of everything and is the end of the Pause.
func (h *Pause) Hold(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != prepared {
		return fmt.Errorf("hold pause of group %d: begun before, or cancelled", h.group)
	}
	ctx, cancel := h.bound(ctx)
	defer cancel()
	h.gated = true
	h.pool.pausing.Add(1)
	if err := h.acquire(ctx); err != nil {
		h.release()
		return fmt.Errorf("hold pause of group %d: %w", h.group, err)
	}
	h.phase = held
	go h.keepAlive()
	return nil
}

func (h *Pause) acquire(ctx context.Context) error {
	start := time.Now()
	deadline := start.Add(h.opts.LockTimeout)
	var failed time.Time   // end of the last attempt
	var inTheWay []Blocker // seen last
	for {
		found, err := h.look(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if len(found) > 0 {
			inTheWay = found
		}
		now := time.Now()
		switch {
		case ctx.Err() != nil || now.After(deadline):
			blocked := &Blocked{Waited: now.Sub(start).Round(time.Millisecond), Blockers: inTheWay}
			if h.opts.Force && ctx.Err() == nil {
				return h.force(ctx, blocked)
			}
			return errors.Join(blocked, ctx.Err())
		case len(found) == 0 && now.Sub(failed) >= attemptEvery && h.alone():
			if err := h.attempt(ctx); !errors.Is(err, errNotInTime) {
				return err
			}
			failed = time.Now()
			continue
		}
		wait(ctx, lookEvery)
	}
}

// wait returns after a time, or earlier when the context ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// alone reports whether no round of Reconcile is under way. None begins while the Pause is announced.
func (h *Pause) alone() bool {
	if !h.pool.mu.TryLock() {
		return false
	}
	h.pool.mu.Unlock()
	return true
}

// attempt takes all locks at once. If one is not to be had it lets go of the others: half a pause makes clients wait for
// nothing, and those of two nodes for each other.
func (h *Pause) attempt(ctx context.Context) error {
	errs := h.each(func(s *seat) error { return h.begin(ctx, s) })
	if len(errs) == 0 {
		h.since = time.Now()
		errs = h.each(func(s *seat) error { return h.lock(ctx, s) })
		h.timings.Lock = time.Since(h.since)
	}
	if len(errs) == 0 {
		return nil
	}
	errs = append(errs, h.each(func(s *seat) error { return s.rollback(ctx, h.pool.times(pauseGrace)) })...)
	var hard []error
	for _, err := range errs {
		if !errors.Is(err, errNotInTime) {
			hard = append(hard, err)
		}
	}
	if len(hard) > 0 {
		return errors.Join(hard...)
	}
	return errors.Join(errs...)
}

// begin opens the transaction and proves the term in it, before anybody has to wait. Its commit waits for no standby, else one
// slow standby of any group would hold all clients up; the rows are derived from the replicated state.
func (h *Pause) begin(ctx context.Context, s *seat) error {
	tx, err := s.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	s.tx = tx
	const settings = `SELECT set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true),
		set_config('synchronous_commit', 'local', true)`
	if _, err := tx.Exec(ctx, settings, fmt.Sprintf("%dms", oneAttempt.Milliseconds()), fmt.Sprintf("%dms", h.pool.times(deadMan).Milliseconds())); err != nil {
		return fmt.Errorf("set timeouts: %w", err)
	}
	return inTime(prove(ctx, tx, h.term))
}

func (h *Pause) lock(ctx context.Context, s *seat) error {
	var err error
	if h.opts.Mode == PauseGroup {
		const pause = `SELECT citus_pause_node_within_txn(nodeid, false, 0) FROM pg_dist_node WHERE groupid = $1::int AND noderole = 'primary'`
		_, err = s.tx.Exec(ctx, pause, int(h.group))
	} else {
		_, err = s.tx.Exec(ctx, "LOCK TABLE pg_catalog.pg_dist_node IN ACCESS EXCLUSIVE MODE")
	}
	if err != nil {
		return fmt.Errorf("lock: %w", inTime(err))
	}
	return nil
}

// inTime marks the errors that another attempt may not meet.
func inTime(err error) error {
	const lockNotAvailable, deadlock = "55P03", "40P01"
	switch sqlState(err) {
	case lockNotAvailable, deadlock:
		return fmt.Errorf("%w: %w", errNotInTime, err)
	}
	return err
}

// force ends the transactions in the way and tries again at once: nobody is left to wait for.
func (h *Pause) force(ctx context.Context, blocked *Blocked) error {
	blockers := blocked.Blockers
	for range forceRounds {
		for _, b := range blockers {
			ended, err := b.end(ctx)
			if err != nil {
				return err
			}
			if ended {
				h.ended = append(h.ended, b)
			}
		}
		err := h.clear(ctx)
		if err == nil {
			err = h.attempt(ctx)
		}
		if !errors.Is(err, errNotInTime) {
			return err
		}
		found, err := h.look(ctx)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			blockers = found
		}
	}
	blocked.Blockers = blockers
	return blocked
}

// clear waits until those who were ended are gone.
func (h *Pause) clear(ctx context.Context) error {
	for limit := time.Now().Add(time.Second); time.Now().Before(limit) && ctx.Err() == nil; wait(ctx, lookEvery) {
		found, err := h.look(ctx)
		if err != nil || len(found) == 0 {
			return err
		}
	}
	return errors.Join(errNotInTime, ctx.Err())
}
