package sim

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// sender is a walsender: it goes by its own copy of the settings until it has read them anew.
type sender struct {
	node    fsm.NodeID
	epoch   fsm.Epoch
	conf    decide.Conf
	next    *decide.Conf // reloaded, not read yet
	lag     int          // replies until it is read: 0 or 1
	flushed int
	replies int // how many came
	cancel  context.CancelFunc
}

func (s *sender) votes() bool { return s.conf.Epoch == s.epoch && s.conf.Sync.Has(s.node) }

type batch struct {
	recs    []record
	from    int
	prev    uint64 // id of the record before
	history []fork
	epoch   fsm.Epoch // of the server
}

type reply struct{ flushed int }

const (
	statusEvery     = time.Second
	receiverTimeout = 3 * time.Second
	senderTimeout   = 5 * time.Second
)

// walsender serves one standby through its slot.
func (p *proc) walsender(c net.Conn, h hello) {
	p.w.mu.Lock()
	d := p.s.dir
	why := ""
	switch {
	case p.stopping:
		why = errStopping.Error()
	case !p.primary:
		why = "server is in hot standby mode"
	case !d.slots[h.node]:
		why = "replication slot does not exist"
	case p.slotBusy(h.node):
		why = "replication slot is active"
	case !d.serves(h.tl, h.have):
		why = "requested starting point is not in this server's history"
	}
	if why != "" {
		p.w.mu.Unlock()
		_ = p.w.send(c, refusal{why})
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	s := &sender{node: h.node, epoch: h.epoch, conf: p.conf, cancel: cancel}
	p.senders[s] = true
	p.w.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	p.w.background.Go(func() { p.replies(ctx, c, s) })
	sent := h.have
	for {
		p.w.mu.Lock()
		err := p.newWAL(ctx, sent)
		if err != nil {
			delete(p.senders, s)
			p.cond.Broadcast()
			p.w.mu.Unlock()
			_ = c.Close()
			return
		}
		b := batch{recs: slices.Clone(p.s.dir.wal[min(sent, len(p.s.dir.wal)):]), from: sent, history: append(slices.Clone(p.s.dir.history), fork{p.s.dir.tl, 0}), epoch: p.epoch}
		if sent > 0 {
			b.prev = p.s.dir.wal[sent-1].id
		}
		sent += len(b.recs)
		p.w.mu.Unlock()
		if p.w.send(c, b) != nil {
			cancel()
		}
	}
}

func (p *proc) slotBusy(id fsm.NodeID) bool {
	for s := range p.senders {
		if s.node == id {
			return true
		}
	}
	return false
}

// newWAL waits until there is more than sent, or a keepalive is due. The mutex is held.
func (p *proc) newWAL(ctx context.Context, sent int) error {
	tctx, cancel := context.WithTimeout(ctx, statusEvery)
	defer cancel()
	err := p.await(tctx, func() bool { return len(p.s.dir.wal) > sent })
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return p.await(ctx, always)
	}
	return err
}

// replies takes a standby's confirmations. The first after a reload may still be judged by the old settings.
func (p *proc) replies(ctx context.Context, c net.Conn, s *sender) {
	defer s.cancel()
	for ctx.Err() == nil {
		v, err := p.w.receive(c, senderTimeout)
		r, ok := v.(reply)
		if err != nil || !ok {
			return
		}
		p.w.mu.Lock()
		if p.await(ctx, always) != nil {
			p.w.mu.Unlock()
			return
		}
		if s.next != nil && s.lag == 0 {
			s.conf, s.next = *s.next, nil
		}
		s.lag = 0
		s.flushed = max(s.flushed, r.flushed)
		s.replies++
		p.release(s)
		p.cond.Broadcast()
		p.w.mu.Unlock()
	}
}

// release lets commits go, as one walsender sees it. The mutex is held.
func (p *proc) release(s *sender) {
	if !p.primary || !s.votes() {
		return
	}
	var voters []*sender
	for o := range p.senders {
		if o.votes() {
			voters = append(voters, o)
		}
	}
	k := s.conf.Sync.K
	if k == 0 || len(voters) < k {
		return
	}
	if s.conf.Order == nil { // ANY k: the k that are furthest
		slices.SortFunc(voters, func(a, b *sender) int { return b.flushed - a.flushed })
	} else { // FIRST k: those connected that stand first
		at := func(x *sender) int { return slices.Index(s.conf.Order, x.node) }
		slices.SortFunc(voters, func(a, b *sender) int { return at(a) - at(b) })
	}
	least := voters[0].flushed
	for _, o := range voters[:k] {
		least = min(least, o.flushed)
	}
	p.synced = max(p.synced, least)
}

// receiver is a walreceiver, with the settings it was forked with.
type receiver struct {
	conf      decide.Conf
	cancel    context.CancelFunc
	streaming bool
}

// fork starts a walreceiver if the settings name an upstream. The mutex is held.
func (p *proc) fork(conf decide.Conf) {
	if conf.Upstream == "" || p.receiver != nil || p.primary || p.stopping {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	r := &receiver{conf: conf, cancel: cancel}
	p.receiver = r
	p.w.background.Go(func() {
		why := p.follow(ctx, r)
		cancel()
		_ = pause(p.ctx, p.w.draw(0, 30*time.Millisecond)) // a process takes its time to end
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		if why != p.m.lastReceiver {
			p.w.noteLocked("%s: walreceiver of epoch %s from %s ends: %s", p.m.name, conf.Epoch, conf.Upstream, why)
		}
		p.m.lastReceiver = why
		if p.receiver == r {
			p.receiver = nil
		}
		p.cond.Broadcast()
	})
}

// follow logs in with the credential of its epoch and streams until something ends it.
func (p *proc) follow(ctx context.Context, r *receiver) string {
	if err := pause(ctx, p.w.draw(0, 20*time.Millisecond)); err != nil {
		return "terminated"
	}
	p.w.mu.Lock()
	up := p.w.byID(r.conf.Upstream)
	may := p.s.credentials[r.conf.Epoch]
	h := hello{kind: "replication", node: p.m.id, epoch: r.conf.Epoch, tl: p.s.dir.tl, have: len(p.s.dir.wal)}
	p.w.mu.Unlock()
	if !may || up == nil {
		return "no credential"
	}
	dctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := p.w.net.Host(p.m.pgHost).Dial(dctx, up.pgHost+":5432")
	if err != nil {
		return "not connected"
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if p.w.send(c, h) != nil {
		return "connection lost"
	}
	heard := time.Now()
	for {
		v, err := p.w.receive(c, statusEvery)
		switch {
		case ctx.Err() != nil:
			return "terminated"
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Since(heard) < receiverTimeout:
		case err != nil:
			return "connection lost"
		default:
			heard = time.Now()
			b, ok := v.(batch)
			if !ok {
				return v.(refusal).why
			}
			if err := p.flush(ctx, r, b); err != nil {
				return "terminated"
			}
		}
		p.w.mu.Lock()
		err = p.await(ctx, always)
		msg := reply{len(p.s.dir.wal)}
		p.w.mu.Unlock()
		if err != nil || p.w.send(c, msg) != nil {
			return "connection lost"
		}
	}
}

// flush writes what arrived. PostgreSQL may not notice another history of the same numbers; the checker does. Where the upstream is primary in
// a newer epoch than is followed here, the agent has not heard of it yet or does not run. Nobody counts on such a standby, and it is cloned
// when the agent comes to it: until then each record's link to the one before has to do.
func (p *proc) flush(ctx context.Context, r *receiver, b batch) error {
	if p.w.chance(0.3) {
		if err := pause(ctx, p.w.draw(0, 20*time.Millisecond)); err != nil {
			return err
		}
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	d := p.s.dir
	if err := p.await(ctx, always); err != nil {
		return err
	}
	r.streaming = true
	if b.from != len(d.wal) || (b.from > 0 && d.wal[b.from-1].id != b.prev) {
		if r.conf.Epoch.Less(b.epoch) {
			return errGone
		}
		p.w.violate("group %d: %s streams from %s, whose history is another one (timeline %d, %d records)", p.m.group, p.m.name, r.conf.Upstream, d.tl, len(d.wal))
		return errGone
	}
	err := p.write(p.ctx, func() { d.append(b.recs, b.history) })
	p.cond.Broadcast()
	return err
}
