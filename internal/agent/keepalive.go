package agent

import (
	"context"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// lastBeat bounds the keepalive that a leaving agent still sends.
const lastBeat = 300 * time.Millisecond

// keepalives renews the lease and reports, on the leader's grid. It stops renewing while the sentinel is silent: a lease
// that nobody could fence must run out.
func (a *Agent) keepalives(ctx context.Context) {
	next := time.Now()
	for {
		t := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			t.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastBeat)
			a.beat(last) // the next agent has the whole of a lease to begin in
			cancel()
			return
		case <-a.poke:
			t.Stop()
			if !a.unanswered() {
				continue
			}
		case <-a.opened:
			t.Stop()
		case <-a.news:
			t.Stop()
			if soon := time.Now().Add(a.interval() / 2); soon.Before(next) {
				next = soon // never later: a busy node must not put its keepalive off for ever
			}
			continue
		case <-t.C:
		}
		next = time.Now().Add(a.beat(ctx))
	}
}

// unanswered reports whether the state has given us a lease that no keepalive has confirmed yet.
func (a *Agent) unanswered() bool {
	s := a.cfg.Control.State()
	instance := a.cfg.Sentinel.Instance()
	l := s.Groups[s.Nodes[a.cfg.Self].Group].Lease
	return l.Holder == a.cfg.Self && l.Instance == instance && !l.Revoked && a.lease.left(instance, l.Epoch, a.cfg.Clock()) <= 0
}

func (a *Agent) interval() time.Duration {
	ttl := a.cfg.Control.State().Cluster.Settings.TTL
	if ttl == 0 {
		ttl = fsm.DefaultSettings().TTL
	}
	return lease.Interval(ttl)
}

// beat sends one keepalive and says when to send the next.
func (a *Agent) beat(ctx context.Context) time.Duration {
	s := a.cfg.Control.State()
	n, member := s.Nodes[a.cfg.Self]
	every := a.interval()
	if !member {
		return every
	}
	instance := a.cfg.Sentinel.Instance()
	b := Beat{Node: a.cfg.Self, Instance: instance, Group: n.Group, Report: n.Report}
	if snap := a.view.Load(); snap != nil {
		b.Report = a.withHealth(snap.Report) // the loop may hang with the disk
	}
	l := s.Groups[n.Group].Lease
	if l.Holder == a.cfg.Self && l.Instance == instance && a.sentinelAnswers() {
		b.Epoch = l.Epoch
	}
	sent := a.cfg.Clock()
	actx, cancel := context.WithTimeout(ctx, 2*every)
	ans, err := a.cfg.Control.Keepalive(actx, b)
	cancel()
	if err != nil {
		a.cfg.Log.Debug("keepalive not answered", "error", err)
		return every / 5
	}
	if ans.Removed && a.removed.CompareAndSwap(false, true) {
		nudge(a.wake)
	}
	a.present(ans.Present)
	if ans.Held {
		if until, moved := a.lease.answered(sent, instance, ans); moved {
			a.renewed(ctx, ans.Lease.Epoch, until)
		}
	}
	next := every
	if ans.NextIn > 0 && ans.NextIn <= 2*every {
		next = ans.NextIn
	}
	if b.Epoch.IsZero() {
		next += every // nothing to renew: half as often is enough to be known alive
	}
	return next
}

func (a *Agent) sentinelAnswers() bool {
	st := a.sentinel.get()
	return st.Connected && st.Silent < decide.SentinelSilence
}

// renewed hands the new deadline to the sentinel, and wakes the loop when it is the first of its epoch.
func (a *Agent) renewed(ctx context.Context, e fsm.Epoch, until lease.Stamp) {
	dctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := a.cfg.Sentinel.Deadline(dctx, e, until); err != nil {
		a.cfg.Log.Warn("hand the deadline to the sentinel", "epoch", e.String(), "error", err)
	}
	if snap := a.view.Load(); snap == nil || snap.View.LeaseLeft <= 0 {
		nudge(a.wake)
	}
}
