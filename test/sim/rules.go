package sim

import (
	"context"
	"maps"
	"runtime"
	"strings"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
)

// rule is one of the rules that keep writes, or keep them going. A World can live without one: the removal is in the seams between the product and the
// model (what an agent or a conductor is shown of the state, what its hands and its sentinel do, how its proposals are sent), so that
// the product has no switch for it. See docs/adr/0033.
type rule string

const (
	ruleBarrier     rule = "barrier"
	ruleFullTTL     rule = "full TTL for a new leader"
	ruleEpoch       rule = "epoch check"
	ruleInstance    rule = "instance check"
	ruleRevoke      rule = "Revoke"
	ruleJoint       rule = "joint phase"
	ruleJointEnd    rule = "barrier of the joint phase"
	ruleGrantJoint  rule = "Grant as joint phase"
	rulePromise     rule = "promise"
	ruleCredential  rule = "credential"
	ruleTimeline    rule = "timeline binding"
	ruleFirstCommit rule = "first synchronous commit"
	ruleMargin      rule = "margin"
	ruleSick        rule = "sick holder"
)

// lacks reports whether this world has to do without a rule. It is fixed before anything runs.
func (w *World) lacks(r rule) bool { return w.without == r }

// conductorState is what a leader's conductor is shown.
func (p *process) conductorState(s *fsm.State) *fsm.State {
	w := p.m.w
	if old := p.behind.Load(); old != nil {
		return old // it leads without having applied what was committed before its term
	}
	if w.lacks(ruleSick) {
		return changed(s, func(g fsm.Group) fsm.Group { g.NoSick = true; return g })
	}
	if !w.lacks(ruleJoint) && !w.lacks(ruleGrantJoint) {
		return s
	}
	return changed(s, func(g fsm.Group) fsm.Group {
		if byGrant := g.Sync.Confirmed != g.Epoch; g.Sync.Joint() && byGrant == w.lacks(ruleGrantJoint) {
			g.Sync.Pairs = []fsm.Pair{g.Sync.Target()}
		}
		return g
	})
}

// agentState is what a node's agent is shown.
func (p *process) agentState(s *fsm.State) *fsm.State {
	if !p.m.w.lacks(ruleRevoke) {
		return s
	}
	return changed(s, func(g fsm.Group) fsm.Group {
		g.Lease.Revoked, g.Lease.Early = false, false
		return g
	})
}

func changed(s *fsm.State, change func(fsm.Group) fsm.Group) *fsm.State {
	c := *s
	c.Groups = maps.Clone(s.Groups)
	for id, g := range c.Groups {
		c.Groups[id] = change(g)
	}
	return &c
}

// stall keeps a node from applying what is committed until the answer is called. Without the Barrier it would lead all the same.
func (p *process) stall() (goOn func()) {
	if p.m.w.lacks(ruleBarrier) {
		p.behind.Store(p.node.State())
		return func() { p.behind.Store(nil) }
	}
	p.slow.shut()
	return p.slow.open
}

// leaderClock is the clock that leases are timed with on the leader.
func (p *process) leaderClock() lease.Stamp {
	p.gate.pass()
	now := p.m.clock()
	if p.m.w.lacks(ruleFullTTL) && calledBy("newTerm") {
		return now.Add(-fsm.DefaultSettings().TTL) // what is held when a term begins is over
	}
	return now
}

// calledBy reports whether a function of that name is the caller's caller, or near.
func calledBy(name string) bool {
	pcs := make([]uintptr, 6)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "."+name) {
			return true
		}
		if !more {
			return false
		}
	}
}

// asked is a keepalive as it reaches the leader, judged its answer.
func (p *process) asked(b agent.Beat) agent.Beat {
	if l := p.node.State().Groups[b.Group].Lease; p.m.w.lacks(ruleInstance) && l.Holder == b.Node {
		b.Instance = l.Instance
	}
	return b
}

func (p *process) judged(b agent.Beat, a agent.Answer) agent.Answer {
	if l := a.Lease; p.m.w.lacks(ruleRevoke) && l.Holder == b.Node && l.Instance == b.Instance && l.Epoch == b.Epoch {
		a.Held, a.Lease.Revoked, a.Lease.Early = true, false, false
	}
	return a
}

// releaseAny gives back whatever lease the group has by the time it gets through, which is what a Release without an epoch would do.
func (p *process) releaseAny(ctx context.Context, c fsm.Release) (fsm.Result, error) {
	for {
		c.Epoch, _ = p.m.w.lease(c.Group)
		sctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		res, err := p.node.Submit(sctx, c)
		cancel()
		if err == nil || ctx.Err() != nil {
			return res, err
		}
	}
}

// until is the deadline that the sentinel is told.
func (w *World) until(t lease.Stamp) lease.Stamp {
	if w.lacks(ruleMargin) {
		return t.Add(lease.Margin)
	}
	return t
}

// grantedUnbound: without promises a standby leaves its primary when it is granted the lease, and not before. The mutex is held.
func (s *server) grantedUnbound(p *proc) {
	a := s.m.agent
	if !s.w.lacks(rulePromise) || a == nil || s.conf.Upstream == "" || a.node.State().Groups[s.m.group].Lease.Holder != s.m.id {
		return
	}
	s.conf = decide.Conf{Phase: s.conf.Phase}
	p.set(s.conf)
	if p.receiver != nil {
		p.receiver.cancel()
	}
}

// bound is the record of who made which timeline. Without the binding a number is as good as another.
func (s *server) bound(made map[fsm.Timeline]fsm.Epoch) map[fsm.Timeline]fsm.Epoch {
	if a := s.m.agent; s.w.lacks(ruleTimeline) && a != nil {
		for _, g := range a.node.State().Groups[s.m.group].Grants {
			if g.Timeline != 0 {
				made[g.Timeline] = g.Epoch
			}
		}
	}
	return made
}
