package sim

import (
	"context"
	"errors"
	"maps"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
)

// set makes a configuration known to the running server: at once to the postmaster, later to its children. The mutex is held.
func (p *proc) set(c decide.Conf) {
	p.conf = c
	p.version++
	for s := range p.senders {
		s.next, s.lag = &c, p.w.rng.IntN(2)
	}
	v, wait := p.version, p.between(0, 60)
	p.w.background.Go(func() {
		if pause(p.ctx, wait) != nil {
			return
		}
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		if v > p.defVer {
			p.defVer, p.defined = v, c.Sync.K > 0
			p.cond.Broadcast()
		}
	})
	p.cond.Broadcast()
}

func (h hands) Configure(ctx context.Context, _ agent.Roster, c decide.Conf) error {
	if err := h.enter(ctx, 1, 15); err != nil {
		return err
	}
	defer h.leave()
	s := h.s
	if c.Upstream != "" {
		if c.Epoch.Less(s.promise) {
			return errors.New("write the credential: a newer epoch is promised")
		}
		s.credentials[c.Epoch] = true
	}
	before := s.conf
	s.conf = c
	p := s.proc
	if p == nil {
		return nil
	}
	if err := p.query(ctx, p.m.answers); err != nil {
		return err
	}
	opening := p.primary && c.Phase == decide.Open && p.conf.Phase != decide.Open
	p.set(c)
	if opening {
		s.w.group(s.m.group).opened++
		s.w.noteLocked("%s: open for clients", s.m.name)
		s.w.judgeOpening(p)
	}
	if before.Upstream != "" && c.Upstream != before.Upstream || c.Epoch != before.Epoch {
		return h.endReceiver(ctx, p, before)
	}
	return nil
}

// endReceiver ends the walreceiver and waits until its process is gone. One may be forked a moment later by a request that was made
// with the old settings. The mutex is held.
func (h hands) endReceiver(ctx context.Context, p *proc, before decide.Conf) error {
	if r := p.receiver; r != nil {
		r.cancel()
		if err := p.await(ctx, func() bool { return p.receiver != r }); err != nil {
			return err
		}
	}
	if p.w.rng.Float64() < p.w.refork {
		wait := p.between(0, 50)
		p.w.background.Go(func() {
			if pause(p.ctx, wait) == nil {
				p.w.mu.Lock()
				defer p.w.mu.Unlock()
				p.fork(before)
			}
		})
	}
	return nil
}

func (h hands) Prepare(ctx context.Context, _ agent.Roster, c decide.Conf) error {
	if err := h.enter(ctx, 0, 5); err != nil {
		return err
	}
	defer h.leave()
	h.s.conf = c
	return nil
}

func (h hands) Promise(ctx context.Context, _ agent.Roster, e fsm.Epoch) error {
	if err := h.enter(ctx, 0, 10); err != nil {
		return err
	}
	defer h.leave()
	s := h.s
	if !s.m.answers() {
		return errors.New("the disk does not answer")
	}
	if e.Less(s.promise) {
		return errors.New("a newer epoch is promised")
	}
	if s.w.lacks(rulePromise) {
		return h.empty(ctx)
	}
	s.promise = e
	if s.w.lacks(ruleCredential) {
		e = fsm.Epoch{}
	}
	maps.DeleteFunc(s.credentials, func(of fsm.Epoch, _ bool) bool { return of.Less(e) })
	p, err := h.answering(ctx)
	if err != nil {
		return err
	}
	if before := p.conf; before.Upstream != "" && before.Epoch.Less(s.promise) {
		s.conf = decide.Conf{Phase: before.Phase}
		p.set(s.conf)
		return h.endReceiver(ctx, p, before)
	}
	return nil
}

// empty is a promise that binds nobody: the walreceiver ends, and another will follow as before. The mutex is held.
func (h hands) empty(ctx context.Context) error {
	p, err := h.answering(ctx)
	if err != nil || p.receiver == nil {
		return err
	}
	return h.endReceiver(ctx, p, p.conf)
}

func (h hands) Settle(ctx context.Context) (fsm.Timeline, fsm.LSN, error) {
	if err := h.enter(ctx, 0, 10); err != nil {
		return 0, 0, err
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil {
		return 0, 0, err
	}
	if p.primary {
		return 0, 0, errors.New("it is not a standby")
	}
	d := h.s.dir
	if err := p.query(ctx, func() bool { return p.receiver == nil && p.replayed == len(d.wal) }); err != nil {
		return 0, 0, err
	}
	return p.timeline(), lsn(p.replayed), nil
}

func (h hands) SetLineage(made map[fsm.Timeline]fsm.Epoch) error {
	h.g.pass()
	h.s.w.mu.Lock()
	defer h.leave()
	maps.Copy(h.s.lineage, made)
	return nil
}

func (h hands) SetWord(length time.Duration) error {
	h.g.pass()
	h.s.w.mu.Lock()
	defer h.leave()
	h.s.word = length
	return nil
}

func (h hands) Promoted(ctx context.Context) (tl, parent fsm.Timeline, at fsm.LSN, err error) {
	if err := h.enter(ctx, 0, 5); err != nil {
		return 0, 0, 0, err
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil {
		return 0, 0, 0, err
	}
	if err := p.query(ctx, func() bool { return p.primary }); err != nil {
		return 0, 0, 0, err
	}
	d := h.s.dir
	last := d.history[len(d.history)-1]
	return d.tl, last.tl, lsn(last.end), nil
}

func (h hands) Origin(ctx context.Context, tl fsm.Timeline) (fsm.Timeline, fsm.LSN, error) {
	if err := h.enter(ctx, 0, 5); err != nil {
		return 0, 0, err
	}
	defer h.leave()
	d := h.s.dir
	if tl == d.tl && len(d.history) > 0 {
		last := d.history[len(d.history)-1]
		return last.tl, lsn(last.end), nil
	}
	return 0, 0, errors.New("no history of that timeline")
}

func (h hands) Slots(ctx context.Context, r agent.Roster) error {
	if err := h.enter(ctx, 1, 20); err != nil {
		return err
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err == nil {
		err = p.query(ctx, p.m.answers)
	}
	if err != nil {
		return err
	}
	h.s.dir.slots = wantedSlots(r)
	return nil
}

// Barrier waits until every walsender and the checkpointer go by the settings in force, and then until K of S have flushed what is
// there at that time.
func (h hands) Barrier(ctx context.Context, r agent.Roster, c decide.Conf) error {
	if err := h.enter(ctx, 0, 5); err != nil {
		return err
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil || c.Sync.K == 0 || p.w.lacks(ruleJointEnd) {
		return err
	}
	before := map[*sender]int{}
	for s := range p.senders {
		before[s] = s.replies
	}
	mark := func() int {
		p.w.lastID++
		h.s.dir.wal = append(h.s.dir.wal, record{id: p.w.lastID, tl: h.s.dir.tl})
		p.cond.Broadcast()
		return len(h.s.dir.wal)
	}
	if err := p.query(ctx, p.flushes); err != nil {
		return err
	}
	for !h.reloaded(p, before) {
		mark()
		p.w.mu.Unlock()
		err := pause(ctx, 10*time.Millisecond)
		h.g.pass()
		p.w.mu.Lock()
		if err == nil {
			err = p.query(ctx, p.flushes)
		}
		if err != nil {
			return err
		}
	}
	at := mark()
	return p.query(ctx, func() bool {
		n := 0
		for _, id := range c.Sync.S {
			if s := p.senderOf(id, r.Group.Epoch); s != nil && s.flushed >= at {
				n++
			}
		}
		return n >= c.Sync.K
	})
}

func (h hands) reloaded(p *proc, before map[*sender]int) bool {
	for s := range p.senders {
		if had, ok := before[s]; ok && s.replies < had+2 {
			return false
		}
	}
	return p.defVer == p.version
}

func (h hands) FirstCommit(ctx context.Context, _ fsm.Epoch) error {
	h.g.pass()
	defer h.g.pass()
	h.s.w.mu.Lock()
	p, err := h.answering(ctx)
	h.s.w.mu.Unlock()
	if err != nil {
		return err
	}
	return p.commit(ctx, 0)
}

func (h hands) Equip(ctx context.Context, _ agent.Roster) error {
	if err := h.enter(ctx, 1, 50); err != nil {
		return err
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil {
		return err
	}
	return p.query(ctx, p.flushes)
}
