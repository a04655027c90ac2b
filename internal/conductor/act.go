package conductor

import (
	"context"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

func (t *term) act(ctx context.Context, s *fsm.State, g fsm.Group, p decide.ClusterPlan) {
	switch a := p.Action.(type) {
	case nil:
	case decide.RecruitAll:
		t.recruitAll(ctx, s, g)
	case decide.ProbeHolder:
		t.probe(ctx, s, g, a.Witnesses)
	case decide.ClaimGroup:
		t.commit(ctx, fsm.Claim{Group: g.ID, Node: a.Node})
	case decide.RevokeLease:
		if a.Early {
			t.early[g.ID] = time.Now()
		}
		t.commit(ctx, fsm.Revoke{Group: g.ID, Epoch: a.Epoch, Reason: a.Reason, Early: a.Early, Sick: a.Sick})
	case decide.DropOperation:
		t.commit(ctx, fsm.OperationDrop{Group: g.ID, ID: a.ID, Reason: a.Reason})
	case decide.BeginOperation:
		t.tried[g.ID] = time.Now()
		a.Operation.At = time.Now().UTC().Truncate(time.Millisecond)
		t.commit(ctx, fsm.OperationPut{Group: g.ID, Operation: a.Operation})
	case decide.StartWork:
		t.begin(ctx, s, g, a.Phase)
	case decide.MoveOperation:
		t.move(ctx, g, a)
	case decide.GrantLease:
		cmd := fsm.GrantCmd{
			Group: g.ID, Prev: g.Epoch, Holder: a.To.Node, Instance: a.To.Instance, TTL: s.Cluster.Settings.TTL,
			Pair: a.Pair, LSN: a.To.LSN, Reason: p.Reason, From: a.To.Lineage,
		}
		if a.To.Primary {
			cmd.Adopt = a.To.Timeline
		}
		t.commit(ctx, fsm.Known(cmd, max(s.Cluster.Gate, 1)))
	}
}

// commit proposes and waits: the next look must see the outcome. An unknown outcome ends with a fresh look at the state.
func (t *term) commit(ctx context.Context, c fsm.Command) {
	cctx, cancel := context.WithTimeout(ctx, commitLimit)
	defer cancel()
	res, err := t.lead.Submit(cctx, c)
	switch {
	case err != nil:
		t.cfg.Log.Warn("proposal without an answer", "command", c.Kind(), "error", err)
	case !res.OK:
		t.cfg.Log.Warn("proposal refused", "command", c.Kind(), "reason", res.Reason)
	default:
		nudge(t.wake)
	}
}

// recruitAll asks every member that has not answered for the next epoch, again after a refusal. Who was unfit may be fit by now.
func (t *term) recruitAll(ctx context.Context, s *fsm.State, g fsm.Group) {
	e := t.elections[g.ID]
	if e == nil {
		e = &election{
			prev: g.Epoch, began: time.Now(), recruits: map[fsm.NodeID]decide.Recruit{}, refusals: map[fsm.NodeID]string{},
			asking: map[fsm.NodeID]bool{}, again: map[fsm.NodeID]time.Time{},
		}
		t.elections[g.ID] = e
	}
	only := fsm.NodeID("")
	if g.Op.Pausing() && time.Since(e.began) < decide.PlannedRecruit {
		only = g.Op.To
	}
	next := fsm.Epoch{Inc: max(s.Cluster.Incarnation, g.Epoch.Inc), N: g.Epoch.N + 1}
	for _, n := range s.Members(g.ID) {
		if only != "" && n.ID != only {
			continue
		}
		if r, have := e.recruits[n.ID]; have && r.Unfit == "" || e.asking[n.ID] || time.Now().Before(e.again[n.ID]) || n.Postgres == "" {
			continue
		}
		e.asking[n.ID] = true
		t.wg.Go(func() { t.ask(ctx, g, n, next) })
	}
}

func (t *term) ask(ctx context.Context, g fsm.Group, n fsm.Node, next fsm.Epoch) {
	actx, cancel := context.WithTimeout(ctx, recruitLimit)
	defer cancel()
	r, err := t.cfg.Recruiter.Recruit(actx, n, next)
	select {
	case t.answers <- answer{group: g.ID, prev: g.Epoch, node: n.ID, r: r, err: err}:
	case <-ctx.Done():
	}
}

func (t *term) take(a answer) {
	e := t.elections[a.group]
	if e == nil || e.prev != a.prev {
		return
	}
	delete(e.asking, a.node)
	name := t.lead.State().Name(a.node)
	if a.err != nil {
		if e.refusals[a.node] != a.err.Error() {
			t.cfg.Log.Info("not recruited", "group", int(a.group), "node", name, "error", a.err)
		}
		e.refusals[a.node] = a.err.Error()
		e.again[a.node] = time.Now().Add(recruitAgain)
		if time.Since(e.began) < decide.PlannedRecruit {
			e.again[a.node] = time.Now().Add(fastLook)
		}
		return
	}
	delete(e.refusals, a.node)
	if a.r.Unfit != "" {
		e.again[a.node] = time.Now().Add(unfitAgain)
	}
	if e.recruits[a.node] == a.r {
		return
	}
	e.recruits[a.node] = a.r
	t.cfg.Log.Info("recruited", "group", int(a.group), "node", name, "timeline", int(a.r.Timeline), "lsn", a.r.LSN.String(), "lineage", a.r.Lineage.String())
}
