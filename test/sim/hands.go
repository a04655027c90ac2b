package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
)

// hands implements agent.Postgres on the model. Every method passes the gate of the agent's process, before and after.
type hands struct {
	s *server
	g *gate
}

var _ agent.Postgres = hands{}

// enter passes the gate, works for a while and takes the mutex.
func (h hands) enter(ctx context.Context, lo, hi int) error {
	h.g.pass()
	if err := pause(ctx, h.s.w.draw(time.Duration(lo)*time.Millisecond, time.Duration(hi)*time.Millisecond)); err != nil {
		return err
	}
	h.g.pass()
	h.s.w.mu.Lock()
	return nil
}

func (h hands) leave() {
	h.s.w.mu.Unlock()
	h.g.pass()
}

// answering waits until the server answers. The mutex is held.
func (h hands) answering(ctx context.Context) (*proc, error) {
	p := h.s.proc
	if p == nil || !p.ready {
		return nil, errors.New("connection refused")
	}
	return p, p.query(ctx, always)
}

func (h hands) Observe(ctx context.Context, r agent.Roster) agent.Observation {
	if err := h.enter(ctx, 0, 3); err != nil {
		return agent.Observation{PG: decide.Postgres{Why: err.Error()}}
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil {
		return agent.Observation{PG: decide.Postgres{Why: err.Error()}, Conf: h.s.conf}
	}
	h.s.grantedUnbound(p)
	d := h.s.dir
	o := agent.Observation{
		PG:   decide.Postgres{Reachable: true, InRecovery: !p.primary, Timeline: p.timeline(), LSN: lsn(p.replayed)},
		Conf: p.conf, Receive: lsn(len(d.wal)), Version: 150004, SetAside: h.s.aside,
	}
	if !p.primary {
		o.PG.Settled = p.replayed == len(d.wal) && p.receiver == nil
		o.PG.Streaming = p.receiver != nil && p.receiver.streaming
		return o
	}
	o.PG.LSN = lsn(len(d.wal))
	o.PG.SlotsWrong = !maps.Equal(d.slots, wantedSlots(r))
	for _, n := range r.Members {
		if n.ID == r.Self {
			continue
		}
		s := decide.Sender{Node: n.ID}
		if x := p.senderOf(n.ID, r.Group.Epoch); x != nil {
			s.Streaming, s.Lag = true, int64(lsn(len(d.wal))-lsn(x.flushed))
		}
		o.PG.Senders = append(o.PG.Senders, s)
	}
	return o
}

// timeline is that of the last record replayed.
func (p *proc) timeline() fsm.Timeline {
	if p.primary || p.replayed == 0 {
		return p.s.dir.tl
	}
	return p.s.dir.wal[p.replayed-1].tl
}

func (p *proc) senderOf(id fsm.NodeID, e fsm.Epoch) *sender {
	for s := range p.senders {
		if s.node == id && s.epoch == e {
			return s
		}
	}
	return nil
}

func wantedSlots(r agent.Roster) map[fsm.NodeID]bool {
	want := map[fsm.NodeID]bool{}
	for _, n := range r.Members {
		if n.ID != r.Self {
			want[n.ID] = true
		}
	}
	return want
}

func (h hands) Applied() decide.Conf {
	h.g.pass()
	h.s.w.mu.Lock()
	defer h.leave()
	return h.s.conf
}

func (h hands) Local() (decide.Local, error) {
	h.g.pass()
	h.s.w.mu.Lock()
	defer h.leave()
	s := h.s
	l := decide.Local{HasData: s.dir != nil, Promise: s.promise, Lineage: s.bound(maps.Clone(s.lineage)), Unfinished: s.unfinished, Word: s.word}
	if s.dir != nil {
		l.SystemID = s.dir.systemID
	}
	l.Stray = s.proc != nil && !s.proc.dead && s.proc.parent != s.m.sentinel
	return l, nil
}

func (h hands) InitDB(ctx context.Context) error {
	if err := h.onDisk(ctx); err != nil {
		return err
	}
	if err := h.enter(ctx, 100, 1000); err != nil {
		return err
	}
	defer h.leave()
	if h.s.dir == nil {
		h.s.w.lastID++
		h.s.dir = &dataDir{systemID: fmt.Sprint("sys", h.s.w.lastID), tl: 1, known: 1, wal: []record{{id: h.s.w.lastID, tl: 1}}, slots: map[fsm.NodeID]bool{}, ended: 1}
	}
	return nil
}

func (h hands) Identify(ctx context.Context) (string, fsm.Timeline, error) {
	if err := h.enter(ctx, 0, 5); err != nil {
		return "", 0, err
	}
	defer h.leave()
	return h.s.dir.systemID, h.s.dir.tl, nil
}

// fetch copies the data directory of another server.
func (h hands) fetch(ctx context.Context, from fsm.Node, e fsm.Epoch) (copied, error) {
	s := h.s
	s.w.mu.Lock()
	up := s.w.byID(from.ID)
	s.w.mu.Unlock()
	c, err := s.w.net.Host(s.m.pgHost).Dial(ctx, up.pgHost+":5432")
	if err != nil {
		return copied{}, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := s.w.send(c, hello{kind: "backup", node: s.m.id, epoch: e}); err != nil {
		return copied{}, err
	}
	v, err := s.w.receive(c, 10*time.Second)
	if err != nil {
		return copied{}, err
	}
	msg, ok := v.(copied)
	if !ok {
		return copied{}, errors.New(v.(refusal).why)
	}
	return msg, nil
}

// Try is a session that writes through the log, on a primary. The record itself is left out: one more or less proves nothing here.
func (h hands) Try(ctx context.Context, primary bool, connected func()) decide.Trial {
	if err := h.enter(ctx, 0, 5); err != nil {
		return decide.Trial{Failed: true, Text: err.Error()}
	}
	defer h.leave()
	p, err := h.answering(ctx)
	if err != nil {
		return decide.Trial{Failed: true, Text: err.Error()}
	}
	h.s.w.mu.Unlock()
	connected()
	h.g.pass()
	h.s.w.mu.Lock()
	if primary {
		err = p.flushed(ctx) // the session stays where it is when nobody waits for it any more
	}
	if err != nil {
		return decide.Trial{Failed: true, Connected: true, Text: err.Error()}
	}
	return decide.Trial{Connected: true}
}

// onDisk waits for the disk.
func (h hands) onDisk(ctx context.Context) error {
	h.s.w.mu.Lock()
	hung := h.s.m.hung
	h.s.w.mu.Unlock()
	if hung == nil {
		return nil
	}
	select {
	case <-hung.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Disks tells nothing but that they answer, by returning.
func (h hands) Disks() []decide.Disk {
	h.g.pass()
	h.s.w.mu.Lock()
	hung := h.s.m.hung
	h.s.w.mu.Unlock()
	if hung != nil && hung.whole {
		<-hung.over
	}
	h.g.pass()
	return nil
}

func (h hands) Stopped() bool { return false }

func (h hands) Progress() (copied, size int64) { return 0, 0 }

func (h hands) Clone(ctx context.Context, from fsm.Node, e fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, _ bool) error {
	if err := h.enter(ctx, 0, 20); err != nil {
		return err
	}
	if h.s.proc != nil {
		h.leave()
		return errors.New("PostgreSQL is running")
	}
	h.s.unfinished = "unfinished clone"
	h.leave()
	got, err := h.fetch(ctx, from, e)
	if err == nil {
		err = h.onDisk(ctx)
	}
	h.g.pass()
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	h.s.w.mu.Lock()
	defer h.leave()
	if h.s.dir != nil {
		h.s.aside++
	}
	h.take(got.dir, lineage)
	return nil
}

// take replaces the data directory.
func (h hands) take(d *dataDir, lineage map[fsm.Timeline]fsm.Epoch) {
	h.s.copies++
	h.s.lineage = maps.Clone(lineage)
	d.slots = map[fsm.NodeID]bool{}
	if d != h.s.dir {
		d.ended = 0
	}
	h.s.dir, h.s.unfinished = d, ""
	h.s.w.noteLocked("%s: data directory copied, timeline %d at %s", h.s.m.name, d.tl, lsn(len(d.wal)))
}

func (h hands) Rewind(ctx context.Context, from fsm.Node, e fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, _ fsm.LSN) error {
	if err := h.enter(ctx, 0, 20); err != nil {
		return err
	}
	if h.s.proc != nil || h.s.unfinished != "" {
		h.leave()
		return errors.New("PostgreSQL is running, or unfinished")
	}
	h.leave()
	got, err := h.fetch(ctx, from, e)
	if err == nil {
		err = h.onDisk(ctx)
	}
	h.g.pass()
	if err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	if !got.primary {
		return errors.New("the source is a standby: rewind to a primary")
	}
	h.s.w.mu.Lock()
	h.s.unfinished = "unfinished rewind"
	h.leave()
	if err := pause(ctx, h.s.w.draw(10*time.Millisecond, 500*time.Millisecond)); err != nil {
		return err
	}
	h.g.pass()
	h.s.w.mu.Lock()
	defer h.leave()
	if h.s.dir.sameByNumbers(got.dir) { // "no rewind required"
		got.dir = h.s.dir
	}
	h.take(got.dir, lineage)
	return nil
}
