package instance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

// Observe implements agent.Postgres.
func (p *Postgres) Observe(ctx context.Context, r agent.Roster) agent.Observation {
	o := p.m.Observe(ctx)
	aside := setAside(p.cfg.DataDir, p.cfg.RunDir)
	out := agent.Observation{
		PG:   decide.Postgres{Reachable: o.Reachable, Why: o.Reason, InRecovery: o.InRecovery, Timeline: o.Timeline, LSN: o.CurrentLSN},
		Conf: p.effective(r, o), Receive: o.ReceiveLSN, Version: int(o.Version), Pending: len(o.PendingRestart) > 0,
		SetAside: len(aside), Aside: aside,
	}
	if !o.Reachable {
		return out
	}
	out.Slots = seen(o.Slots)
	if o.InRecovery {
		out.PG.LSN = o.ReplayLSN
		out.PG.Settled = o.Settled && o.Receiver == nil
		out.PG.Streaming = o.Receiver != nil && o.Receiver.Status == "streaming"
		out.PG.SlotsWrong = slotsWrong(nil, o)
		out.PG.CopySlots = p.restartForSlots(r)
		out.PG.Starved = o.ReplayPaused && p.starved(ctx)
		out.PG.WALRemoved = !out.PG.Streaming && out.Conf.Upstream != "" && p.walRemoved()
		return out
	}
	out.PG.Senders = senders(r, o)
	out.PG.SlotsWrong = slotsWrong(wantedSlots(r), o)
	out.SlotTrouble = decide.SlotTroubles(slotView(r, o), pgconf.SlotPrefix)
	return out
}

// starved reports whether replay stopped because a limit is lower than where the log was written. Else somebody paused it.
func (p *Postgres) starved(ctx context.Context) bool {
	low, err := p.m.LimitsTooLow(ctx)
	if err != nil {
		p.log.Warn("why replay is paused is not known", "error", err)
	}
	return low
}

// senders are the members that stream under their name of this epoch and through their own slot: one name, one vote.
func senders(r agent.Roster, o pgmanager.Observation) []decide.Sender {
	var out []decide.Sender
	for _, n := range r.Members {
		if n.ID == r.Self {
			continue
		}
		s := decide.Sender{Node: n.ID}
		if x, ok := senderOf(n.ID, r.Group.Epoch, o); ok {
			s.Streaming, s.Lag = true, int64(o.CurrentLSN)-int64(x.FlushLSN)
		}
		out = append(out, s)
	}
	return out
}

func senderOf(id fsm.NodeID, e fsm.Epoch, o pgmanager.Observation) (pgmanager.Sender, bool) {
	app, slot := pgconf.AppName(id, e), pgconf.SlotName(id)
	for _, x := range o.Senders {
		if x.AppName == app && x.SlotName == slot && x.State == "streaming" {
			return x, true
		}
	}
	return pgmanager.Sender{}, false
}

func slotsWrong(want []string, o pgmanager.Observation) bool {
	have := map[string]bool{}
	for _, s := range o.Slots {
		if len(s.Name) > len(pgconf.SlotPrefix) && s.Name[:len(pgconf.SlotPrefix)] == pgconf.SlotPrefix && s.Type == "physical" {
			have[s.Name] = s.WALStatus != "lost"
		}
	}
	for _, w := range want {
		if !have[w] {
			return true
		}
		delete(have, w)
	}
	for name := range have { // a stranger's, unless it is in use: that one is left alone until it is not
		for _, s := range o.Slots {
			if s.Name == name && !s.Active {
				return true
			}
		}
	}
	return false
}

// effective is what PostgreSQL is set to, in the group's terms: what was applied last if the effective values agree, and
// else what can be read from them.
func (p *Postgres) effective(r agent.Roster, o pgmanager.Observation) decide.Conf {
	p.mu.Lock()
	applied := p.applied
	p.mu.Unlock()
	if !o.Reachable {
		return applied
	}
	now := readConninfo(r, o.Conninfo)
	if now.Upstream == applied.Upstream && (now.Upstream == "" || now.Epoch == applied.Epoch) && syncNames(applied) == o.SyncNames {
		return applied
	}
	now.Phase = decide.Closed
	return now
}

// readConninfo finds the node and the epoch that a standby follows.
func readConninfo(r agent.Roster, conninfo string) decide.Conf {
	ci, err := pgconf.ParseConninfo(conninfo)
	if err != nil || ci["host"] == "" {
		return decide.Conf{}
	}
	addr := ci["host"] + ":" + ci["port"]
	for _, n := range r.Members {
		if n.Postgres != addr {
			continue
		}
		c := decide.Conf{Upstream: n.ID}
		for _, g := range r.Group.Grants {
			if pgconf.AppName(r.Self, g.Epoch) == ci["application_name"] {
				c.Epoch = g.Epoch
			}
		}
		return c
	}
	return decide.Conf{Upstream: fsm.NodeID(addr)} // somebody who is no member: to be left
}

// Barrier implements agent.Postgres. (a) Every walsender is gone, is new, or was seen with two newer reply times since the
// reload: it goes by the new list. (b) K of S have flushed a position read after that.
func (p *Postgres) Barrier(ctx context.Context, r agent.Roster, c decide.Conf) error {
	if c.Sync.K == 0 {
		return nil
	}
	if err := p.arm(ctx); err != nil {
		return err
	}
	old := map[int]time.Time{}
	replies := map[int]int{}
	for _, s := range p.m.Observe(ctx).Senders {
		old[s.PID] = s.ReplyTime
	}
	var target fsm.LSN
	ready := false
	for {
		lsn, err := p.m.Mark(ctx) // standbys answer it, an idle one would answer once a second only
		if err != nil {
			return err
		}
		if ready && target == 0 {
			target = lsn
		}
		o := p.m.Observe(ctx)
		if !o.Reachable {
			return fmt.Errorf("PostgreSQL does not answer: %s", o.Reason)
		}
		ready = ready || reloaded(o.Senders, old, replies)
		if target != 0 && flushed(r, c, o, target) >= c.Sync.K {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settlePoll):
		}
	}
}

// arm makes sure that commits wait: the checkpointer, which tells the backends, reads its settings before it begins a
// checkpoint asked for.
func (p *Postgres) arm(ctx context.Context) error {
	p.mu.Lock()
	unarmed := p.unarmed
	p.mu.Unlock()
	if !unarmed {
		return nil
	}
	if err := p.m.Checkpoint(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.unarmed = false
	p.mu.Unlock()
	return nil
}

func reloaded(senders []pgmanager.Sender, old map[int]time.Time, replies map[int]int) bool {
	ok := true
	for _, s := range senders {
		before, known := old[s.PID]
		if !known {
			continue
		}
		if !s.ReplyTime.Equal(before) {
			old[s.PID] = s.ReplyTime
			replies[s.PID]++
		}
		ok = ok && replies[s.PID] >= 2
	}
	return ok
}

func flushed(r agent.Roster, c decide.Conf, o pgmanager.Observation, target fsm.LSN) (n int) {
	for _, id := range c.Sync.S {
		if x, ok := senderOf(id, r.Group.Epoch, o); ok && x.FlushLSN >= target {
			n++
		}
	}
	return n
}

const logTail = 16 << 10

func logSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// walRemoved looks for the one message that says so; PostgreSQL has no better way to tell.
func (p *Postgres) walRemoved() bool {
	p.mu.Lock()
	from := p.logMark
	p.mu.Unlock()
	f, err := os.Open(p.cfg.LogFile)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	if size := logSize(p.cfg.LogFile); size-from > logTail {
		from = size - logTail
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return false
	}
	b, err := io.ReadAll(io.LimitReader(f, logTail))
	return err == nil && bytes.Contains(b, []byte("has already been removed"))
}
