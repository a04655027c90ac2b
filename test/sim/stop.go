package sim

import (
	"context"
	"errors"
	"time"

	"matriarch/fsm"
)

// A fast stop, as SIGINT to the postmaster makes it: sessions end at once and nobody new is let in; a primary then writes its last
// record, the shutdown checkpoint, and ends once every walsender is gone or has heard that its standby has flushed it.

var errStopping = errors.New("the database system is shutting down")

// fastStopLimit is the sentinel's: then it kills.
const fastStopLimit = 30 * time.Second

// halt begins a fast stop. The mutex is held.
func (p *proc) halt() {
	if p.stopping || p.dead {
		return
	}
	p.stopping = true
	p.w.noteLocked("%s: fast stop begins", p.m.name)
	p.endSessions()
	if r := p.receiver; r != nil && !p.primary {
		r.cancel()
	}
	p.w.judgeWriters(p.m)
	p.cond.Broadcast()
	p.w.background.Go(p.shutdown)
	p.w.background.Go(func() { p.parent.insist(p) })
}

// insist kills a server that has not stopped in time.
func (s *sentinel) insist(p *proc) {
	if pause(p.ctx, fastStopLimit) != nil {
		return
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for s.frozen != nil {
		thawed := s.frozen
		p.w.mu.Unlock()
		select {
		case <-thawed:
		case <-p.w.ctx.Done():
		}
		p.w.mu.Lock()
		if p.w.ctx.Err() != nil {
			return
		}
	}
	if !s.dead {
		p.kill("killed, as it did not stop")
	}
}

// shutdown ends the server. PostgreSQL marks its control file with the last record, before the walsenders are waited for.
func (p *proc) shutdown() {
	if pause(p.ctx, p.w.draw(5*time.Millisecond, 300*time.Millisecond)) != nil {
		return
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	written := func() bool { return p.flushes() && len(p.flights) == 0 }
	if p.flushed(p.ctx) != nil || p.await(p.ctx, written) != nil {
		return
	}
	if !p.primary {
		p.kill("stopped")
		return
	}
	d := p.s.dir
	p.w.lastID++
	d.wal = append(d.wal, record{id: p.w.lastID, tl: d.tl})
	at := len(d.wal)
	d.ended = at
	p.w.noteLocked("%s: shutdown checkpoint on timeline %d at %s, %d walsenders", p.m.name, d.tl, lsn(at-1), len(p.senders))
	p.cond.Broadcast()
	gone := func() bool {
		for s := range p.senders {
			if s.flushed >= at {
				s.cancel()
			}
		}
		return len(p.senders) == 0
	}
	if p.await(p.ctx, gone) == nil {
		p.kill("stopped in good order")
	}
}

// query waits as a session does, which ends when a stop begins. The mutex is held.
func (p *proc) query(ctx context.Context, ok func() bool) error {
	if err := p.await(ctx, func() bool { return p.stopping || ok() }); err != nil {
		return err
	}
	if p.stopping {
		return errStopping
	}
	return nil
}

func (h hands) Ended(ctx context.Context) (fsm.Timeline, fsm.LSN, bool, error) {
	if err := h.enter(ctx, 0, 5); err != nil {
		return 0, 0, false, err
	}
	defer h.leave()
	d := h.s.dir
	if d == nil {
		return 0, 0, false, errors.New("no data directory")
	}
	if d.ended == 0 {
		return d.tl, 0, false, nil
	}
	return d.tl, lsn(d.ended - 1), true, nil
}

func (h hands) EndSenders(ctx context.Context) error {
	if err := h.enter(ctx, 0, 5); err != nil {
		return err
	}
	defer h.leave()
	p := h.s.proc
	if p == nil {
		return nil
	}
	err := p.await(ctx, func() bool {
		for s := range p.senders {
			s.cancel()
		}
		return len(p.senders) == 0
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}
