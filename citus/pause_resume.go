package citus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

const (
	resumeLook  = time.Second // for all nodes to show their rows; who does not is left to Reconcile
	resumeWrite = 3 * time.Second
)

// Resume writes the new primary's address, which wants name, into every copy and lets clients go on. A node that cannot be
// written to holds up no other: its rows are named in the error and left to the next round of Reconcile. There is no way back:
// the new primary is the primary, so rows written elsewhere stay, even if the coordinator's could not be. In wants the databases
// of the Pause must be among; ErrNotHeld means that clients went on before, with the old rows.
func (h *Pause) Resume(ctx context.Context, wants []Wanted) (Timings, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != held {
		return h.timings, fmt.Errorf("resume group %d: %w", h.group, ErrNotHeld)
	}
	ctx, cancel := h.bound(ctx)
	defer cancel()
	defer h.release()
	start := time.Now()
	r := &resumption{Pause: h, seen: map[string]map[fsm.GroupID]Actual{}, plan: map[place][]Step{}}
	for _, w := range wants {
		w.Secondaries = nil // their rows swap addresses with the primaries'; more is for Reconcile
		r.wants = append(r.wants, w)
	}
	r.meet(ctx)
	r.decide()
	h.timings.Rows = time.Since(start)
	write := time.Now()
	r.write(ctx)
	h.timings.Write, h.timings.Held = time.Since(write), time.Since(h.since)
	if err := errors.Join(r.errs...); err != nil {
		return h.timings, fmt.Errorf("resume group %d: %w", h.group, err)
	}
	return h.timings, nil
}

// resumption is one call of Resume.
type resumption struct {
	*Pause
	wants []Wanted
	seen  map[string]map[fsm.GroupID]Actual // by database
	plan  map[place][]Step

	mu   sync.Mutex
	errs []error
}

func (r *resumption) fail(err error) {
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.errs = append(r.errs, err)
	}
}

func (r *resumption) note(database string, g fsm.GroupID, a Actual) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[database] == nil {
		r.seen[database] = map[fsm.GroupID]Actual{}
	}
	r.seen[database][g] = a
}

// own lists where the new primary keeps its own copy.
func (r *resumption) own() map[place]Wanted {
	out := map[place]Wanted{}
	for _, w := range r.wants {
		if at, ok := w.places()[r.group]; ok {
			out[at] = w
		}
	}
	return out
}

// meet reads the rows, on the locked nodes within the pause. A new coordinator is not asked: its first statement puts its rows
// right.
func (r *resumption) meet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.pool.times(resumeLook))
	defer cancel()
	var wg sync.WaitGroup
	for at := range r.own() {
		wg.Go(func() {
			a, err := r.meetOwn(ctx, at)
			if err != nil {
				r.fail(fmt.Errorf("new primary, database %s: %w", at.database, err))
				return
			}
			if r.group != 0 {
				r.note(at.database, r.group, a)
			}
		})
	}
	wg.Go(func() {
		for _, err := range r.each(func(s *seat) error {
			a, err := Observe(ctx, s.tx)
			if err == nil {
				r.note(s.database, s.group, a)
			}
			return err
		}) {
			r.fail(err)
		}
	})
	wg.Wait()
}

// meetOwn finds a session with the new primary. A warm one may not have survived the promotion.
func (r *resumption) meetOwn(ctx context.Context, at place) (Actual, error) {
	look := func(s *session) (Actual, error) {
		if r.group == 0 {
			return Actual{}, s.Ping(ctx) // an empty query wakes nobody
		}
		return Observe(ctx, s)
	}
	r.mu.Lock()
	s := r.warm[at]
	r.mu.Unlock()
	if s != nil {
		if a, err := look(s); err == nil {
			return a, nil
		}
		closeConn(s.Conn)
	}
	s, err := r.dial(ctx, at)
	if err != nil {
		return Actual{}, err
	}
	r.mu.Lock()
	r.warm[at] = s
	r.mu.Unlock()
	return look(s)
}

// decide finds the steps of every node: changes of address, nothing else.
func (r *resumption) decide() {
	for _, w := range r.wants {
		at := w.places()
		for _, step := range addresses(Diff(w, r.seen[w.Database])) {
			r.plan[at[step.On()]] = append(r.plan[at[step.On()]], step)
		}
		for g, a := range r.seen[w.Database] {
			r.fail(r.covered(w, g, a, r.plan[at[g]]))
		}
	}
}

// covered checks that a node's row leads to the new primary after the steps.
func (r *resumption) covered(w Wanted, on fsm.GroupID, a Actual, steps []Step) error {
	row, ok := a.rowOf(r.group)
	want := w.Primaries[r.group].Addr
	if !ok {
		return nil
	}
	for _, s := range steps {
		switch s := s.(type) {
		case UpdateNode:
			if s.NodeID == row.NodeID {
				row.Addr = s.To
			}
		case UpdateRow:
			if s.NodeID == row.NodeID {
				row.Addr = s.To
			}
		}
	}
	if row.Addr != want {
		return fmt.Errorf("database %s of group %d: row %d stays at %s, wanted %s", w.Database, on, row.NodeID, row.Addr, want)
	}
	return nil
}

// write carries the steps out and commits, every node on its own.
func (r *resumption) write(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.pool.times(resumeWrite))
	defer cancel()
	var wg sync.WaitGroup
	for at, w := range r.own() {
		s := r.warm[at]
		if s == nil || s.IsClosed() {
			continue
		}
		wg.Go(func() {
			if err := r.writeOwn(ctx, s, w, r.plan[at]); err != nil {
				r.fail(fmt.Errorf("new primary, database %s: %w", at.database, err))
			}
		})
	}
	for _, err := range r.each(func(s *seat) error { return s.finish(ctx, r.plan[s.place], r.opts.Mode) }) {
		r.fail(err)
	}
	wg.Wait()
}

func (r *resumption) writeOwn(ctx context.Context, s *session, w Wanted, steps []Step) error {
	if r.group == 0 {
		if _, err := r.pool.settle(ctx, s, w); err != nil {
			return err
		}
		a, err := Observe(ctx, s)
		if err != nil {
			return err
		}
		return r.covered(w, 0, a, nil)
	}
	if len(steps) == 0 {
		return nil
	}
	return r.pool.write(ctx, s, false, func(tx pgx.Tx) error { return run(ctx, tx, true, steps...) })
}

// finish ends the transaction of the pause on one node.
func (s *seat) finish(ctx context.Context, steps []Step, mode PauseMode) error {
	if err := run(ctx, s.tx, mode != PauseFull, steps...); err != nil {
		return errors.Join(err, s.rollback(ctx, pauseGrace))
	}
	err := s.tx.Commit(ctx)
	s.tx = nil
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
