package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
)

// sentinel models the parent of PostgreSQL. Guarded by World.mu.
type sentinel struct {
	m         *machine
	instance  string
	dead      bool
	frozen    chan struct{} // closed at the thaw; nil: runs
	deadlines map[fsm.Epoch]lease.Stamp
	newest    fsm.Epoch
	renounced map[fsm.Epoch]bool
	events    chan struct{}
	exit      string
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// newSentinel starts one; what an earlier one left of PostgreSQL is killed before. The mutex is held.
func newSentinel(m *machine) *sentinel {
	if p := m.server.proc; p != nil {
		p.kill("left over from an earlier sentinel")
	}
	m.w.lastID++
	s := &sentinel{m: m, instance: fmt.Sprintf("%s.%d-%d", m.name, m.boots, m.w.lastID), deadlines: map[fsm.Epoch]lease.Stamp{}, renounced: map[fsm.Epoch]bool{}, events: make(chan struct{}, 1)}
	if p := m.server.proc; p != nil {
		p.parent = s
	}
	m.w.background.Go(s.watch)
	return s
}

// left is how long the epoch's deadline is away by the earlier clock. The mutex is held.
func (s *sentinel) left(e fsm.Epoch) time.Duration {
	until, ok := s.deadlines[e]
	if !ok {
		return 0
	}
	now := s.m.clock()
	return min(until.Raw-now.Raw, until.Boot-now.Boot)
}

// watch fences: softly a second before the deadline, for good at the deadline.
func (s *sentinel) watch() {
	var soft, overdue *proc
	for {
		s.m.w.mu.Lock()
		stopped := s.frozen
		wait := 100 * time.Millisecond
		if p := s.m.server.proc; stopped == nil && !s.dead && p != nil && !p.dead && p.parent == s && !p.epoch.IsZero() {
			left := s.left(p.epoch)
			switch {
			case left <= 0 && overdue != p:
				overdue = p
				s.m.w.background.Go(func() { s.end(p, s.m.w.draw(s.m.w.quickest, s.m.w.overshoot)) })
			case left <= 0:
				left = time.Second
			case left <= time.Second && soft != p:
				soft = p
				s.m.w.background.Go(func() { p.quit("stopped a second before the end of the lease") })
			}
			wait = min(wait, max(left, time.Millisecond))
		}
		dead := s.dead
		s.m.w.mu.Unlock()
		if dead {
			return
		}
		if stopped != nil {
			select {
			case <-stopped:
				continue
			case <-s.m.w.ctx.Done():
				return
			}
		}
		if pause(s.m.w.ctx, wait) != nil {
			return
		}
	}
}

// end kills for good. From the deadline to the last effect of the last process takes a moment, less than lease.Margin.
func (s *sentinel) end(p *proc, wait time.Duration) {
	if pause(p.ctx, wait) != nil {
		return
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.await(p.ctx, always) == nil {
		p.kill("fenced at the end of the lease")
	}
}

// quit is an immediate shutdown: it takes a moment, and backends may go on until then.
func (p *proc) quit(why string) {
	if p.w.chance(p.w.hangs) {
		p.w.note("%s: does not end when told to: %s", p.m.name, why)
		return
	}
	if pause(p.ctx, p.w.draw(5*time.Millisecond, 300*time.Millisecond)) != nil {
		return
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.await(p.ctx, always) == nil {
		p.kill(why)
	}
}

// die ends the sentinel; PostgreSQL gets SIGQUIT by the parent-death signal. The mutex is held.
func (s *sentinel) die() {
	if s.dead {
		return
	}
	s.dead = true
	s.thaw()
	if p := s.m.server.proc; p != nil && p.parent == s {
		s.m.w.background.Go(func() { p.quit("its sentinel died") })
	}
	nudge(s.events)
}

func (s *sentinel) freeze() {
	if s.frozen == nil && !s.dead {
		s.frozen = make(chan struct{})
	}
}

func (s *sentinel) thaw() {
	if s.frozen != nil {
		close(s.frozen)
		s.frozen = nil
	}
}

// port is the agent's connection to whichever sentinel runs on its machine.
type port struct {
	m *machine
	g *gate
}

var _ agent.Sentinel = port{}

// call reaches the sentinel with the mutex held, when it answers.
func (c port) call(ctx context.Context, f func(s *sentinel) error) error {
	c.g.pass()
	defer c.g.pass()
	if err := pause(ctx, time.Millisecond); err != nil {
		return err
	}
	for {
		c.m.w.mu.Lock()
		s := c.m.sentinel
		switch {
		case s == nil || s.dead:
			c.m.w.mu.Unlock()
			return agent.ErrSentinelGone
		case s.frozen == nil:
			err := f(s)
			c.m.w.mu.Unlock()
			return err
		}
		thawed := s.frozen
		c.m.w.mu.Unlock()
		select {
		case <-thawed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c port) Instance() string {
	c.g.pass()
	c.m.w.mu.Lock()
	defer c.m.w.mu.Unlock()
	return c.m.sentinel.instance
}

func (c port) Ping(ctx context.Context) (st decide.Sentinel, err error) {
	err = c.call(ctx, func(s *sentinel) error {
		st = decide.Sentinel{Connected: true, Exit: s.exit}
		if p := c.m.server.proc; p != nil && p.parent == s {
			st.Postmaster, st.Remains, st.Primary, st.Epoch = p.pid, p.dead, !p.epoch.IsZero(), p.epoch
		}
		return nil
	})
	return st, err
}

func (c port) Remembered() (fsm.Epoch, lease.Stamp, bool) {
	c.g.pass()
	c.m.w.mu.Lock()
	defer c.m.w.mu.Unlock()
	s := c.m.sentinel
	until, ok := s.deadlines[s.newest]
	return s.newest, until, ok
}

func (c port) Start(ctx context.Context) error {
	return c.call(ctx, func(s *sentinel) error {
		switch {
		case c.m.server.proc != nil:
			return errors.New("PostgreSQL runs already")
		case c.m.server.dir == nil || c.m.server.unfinished != "":
			return errors.New("no data directory that may be started")
		}
		c.m.server.start(s)
		return nil
	})
}

func (c port) Stop(ctx context.Context, immediate bool) error {
	var p *proc
	err := c.call(ctx, func(s *sentinel) error {
		if p = c.m.server.proc; p == nil || p.parent != s {
			p = nil
			return nil
		}
		if immediate && !p.dead {
			c.m.w.background.Go(func() { p.quit("stopped at once") })
		} else {
			p.halt()
		}
		return nil
	})
	if err != nil || p == nil {
		return err
	}
	select {
	case <-p.gone:
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.g.pass()
	return err
}

func (c port) Promote(ctx context.Context, e fsm.Epoch) error {
	return c.call(ctx, func(s *sentinel) error {
		p := c.m.server.proc
		switch {
		case p == nil || p.dead || p.parent != s || !p.ready:
			return errors.New("PostgreSQL does not run")
		case p.epoch == e:
			return nil
		case !p.epoch.IsZero():
			return errors.New("it is primary under another epoch")
		case s.renounced[e]:
			return fmt.Errorf("%w: epoch %s is renounced", agent.ErrSpent, e)
		case c.m.w.rng.Float64() < c.m.w.unfit:
			c.m.w.noteLocked("%s: refuses to promote under epoch %s", c.m.name, e)
			return agent.ErrUnfit
		case s.left(e) <= 0:
			return fmt.Errorf("no valid deadline for epoch %s", e)
		}
		p.promote(e)
		return nil
	})
}

func (c port) Renounce(ctx context.Context, e fsm.Epoch) error {
	return c.call(ctx, func(s *sentinel) error {
		if p := c.m.server.proc; p != nil && p.epoch == e {
			return fmt.Errorf("epoch %s is promoted already", e)
		}
		s.renounced[e] = true
		return nil
	})
}

func (c port) Adopt(context.Context, fsm.Epoch) error { return errors.New("not modelled") }

func (c port) Deadline(ctx context.Context, e fsm.Epoch, until lease.Stamp) error {
	until = c.m.w.until(until)
	return c.call(ctx, func(s *sentinel) error {
		old, ok := s.deadlines[e]
		switch {
		case e.Less(s.newest), ok && (until.Raw < old.Raw || until.Boot < old.Boot):
			return nil // it has a later one
		}
		s.deadlines[e], s.newest = until, e
		return nil
	})
}

func (c port) Events() <-chan struct{} {
	c.m.w.mu.Lock()
	defer c.m.w.mu.Unlock()
	return c.m.sentinel.events
}

// Reset kills without the sentinel's help and starts another.
func (c port) Reset(ctx context.Context) error {
	c.g.pass()
	defer c.g.pass()
	if err := pause(ctx, c.m.w.draw(time.Millisecond, 20*time.Millisecond)); err != nil {
		return err
	}
	c.g.pass()
	c.m.w.mu.Lock()
	defer c.m.w.mu.Unlock()
	c.m.sentinel.die()
	if p := c.m.server.proc; p != nil {
		p.kill("killed without its sentinel")
		if c.m.server.proc != nil {
			return errors.New("processes are left")
		}
	}
	c.m.sentinel = newSentinel(c.m)
	c.m.w.noteLocked("%s: another sentinel, %s", c.m.name, c.m.sentinel.instance)
	return nil
}
