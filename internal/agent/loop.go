package agent

import (
	"context"
	"slices"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// pace is how soon a rule is looked at again when nothing happens in between; others wait slowPace.
var pace = map[string]time.Duration{
	"R152": 10 * time.Millisecond, "R205": 20 * time.Millisecond, "R302": 50 * time.Millisecond, "R190": 20 * time.Millisecond, "R350": 100 * time.Millisecond,
	"R120": 100 * time.Millisecond, "R148": 100 * time.Millisecond, "R314": 100 * time.Millisecond,
	"R195": 100 * time.Millisecond,
}

const (
	slowPace = time.Second
	// primaryPace is the slow pace of a primary, whose standbys may be missed soon.
	primaryPace = 500 * time.Millisecond
	// observeTimeout keeps a PostgreSQL that hangs from keeping the safety rules waiting.
	observeTimeout = 500 * time.Millisecond
)

func (a *Agent) loop(ctx context.Context) error {
	for {
		a.cfg.Alive()
		view := a.observe(ctx)
		plan := decide.Node(view)
		a.remember(view, plan)
		if _, exit := plan.Action.(decide.Exit); exit {
			return ErrRemoved
		}
		a.act(ctx, view, plan)
		wait := slowPace
		if view.Sentinel.Primary {
			wait = primaryPace
		}
		if p, ok := pace[plan.Rule]; ok {
			wait = p
		}
		if view.Backoff > 0 {
			wait = min(wait, view.Backoff)
		}
		if view.Sentinel.Primary && view.LeaseLeft > 0 {
			wait = min(wait, view.LeaseLeft)
		}
		if view.Sentinel.Silent >= decide.SentinelSilence && view.Sentinel.Postmaster != 0 {
			wait = min(wait, max(view.LeaseLeft, 10*time.Millisecond))
		}
		if err := a.idle(ctx, wait); err != nil {
			return err
		}
	}
}

// idle waits for whatever comes first.
func (a *Agent) idle(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	case <-a.wake:
	case d := <-a.jobs:
		a.finish(d)
	case c := <-a.recruits:
		a.recruit(ctx, c)
	case reply := <-a.restarts:
		reply <- a.restart(ctx)
	case c := <-a.reinits:
		c.reply <- a.reinit(ctx, c.from)
	}
	return nil
}

// observe gathers all inputs of one decision.
func (a *Agent) observe(ctx context.Context) decide.View {
	s := a.cfg.Control.State()
	v := decide.View{Self: a.cfg.Self, State: s, Instance: a.cfg.Sentinel.Instance(), Sentinel: a.sentinel.get(), Failed: a.failed, Removed: a.removed.Load()}
	if left := time.Until(a.backoff); left > 0 {
		v.Backoff = left
	}
	local, err := a.cfg.Postgres.Local()
	if err != nil {
		a.cfg.Log.Error("read the node's own record", "error", err)
		v.Backoff, v.Failed = max(v.Backoff, slowPace), err.Error()
	}
	v.Local = local
	if a.job != nil {
		v.Job = a.job.name
	} else if v.Sentinel.Postmaster != 0 || local.Stray {
		octx, cancel := context.WithTimeout(ctx, observeTimeout)
		a.obs = a.cfg.Postgres.Observe(octx, a.roster(s))
		cancel()
	} else {
		a.obs = Observation{SetAside: a.obs.SetAside, Aside: a.obs.Aside}
	}
	if e := a.equipped.Load(); e != nil {
		v.Equipped = *e
	}
	v.PG, v.Conf = a.obs.PG, a.obs.Conf
	v.PG.Senders = a.withMissing(s, v)
	epoch := s.Groups[s.Nodes[a.cfg.Self].Group].Lease.Epoch
	if v.Sentinel.Primary {
		epoch = v.Sentinel.Epoch
	}
	now := a.cfg.Clock()
	v.LeaseLeft, v.Leased, v.WordLeft = a.lease.left(v.Instance, epoch, now), a.lease.leased(v.Instance, epoch, s.Index), max(a.word.left(now), 0)
	return v
}

// withMissing completes the senders: every member of the synchronous set has a row, and how long it has been missing.
func (a *Agent) withMissing(s *fsm.State, v decide.View) []decide.Sender {
	if !v.Sentinel.Primary {
		a.primaryAt = time.Time{}
		clear(a.missing)
		return nil
	}
	now := time.Now()
	if a.primaryAt.IsZero() {
		a.primaryAt = now
	}
	out := slices.Clone(v.PG.Senders)
	for i := range out {
		if out[i].Streaming {
			a.missing[out[i].Node] = now
		}
	}
	for _, id := range s.Groups[s.Nodes[a.cfg.Self].Group].Sync.Target().S {
		if !slices.ContainsFunc(out, func(x decide.Sender) bool { return x.Node == id }) {
			out = append(out, decide.Sender{Node: id})
		}
	}
	for i := range out {
		since := a.primaryAt
		if seen, ok := a.missing[out[i].Node]; ok && seen.After(since) {
			since = seen
		}
		out[i].Missing = now.Sub(since)
	}
	return out
}

func (a *Agent) roster(s *fsm.State) Roster {
	n := s.Nodes[a.cfg.Self]
	set := s.Cluster.Settings
	r := Roster{
		Self: a.cfg.Self, Group: s.Groups[n.Group], Members: s.Members(n.Group), Databases: set.Databases, Citus: set.Citus,
		Security: set.PostgresTLS.Or(), Pooled: set.CitusPoolPort != 0,
	}
	r.Absent = a.absent(s, r.Members)
	for _, id := range s.NodeIDs() {
		r.Nodes = append(r.Nodes, s.Nodes[id])
	}
	return r
}

// remember publishes the decision and logs it when another rule holds than before.
func (a *Agent) remember(v decide.View, p decide.Plan) {
	snap := &Snapshot{At: time.Now(), View: v, Plan: p, Report: a.report(v, p), Aside: a.obs.Aside, Slots: a.obs.Slots}
	old := a.view.Load()
	if old != nil {
		snap.Past = old.Past
	}
	if p.Rule != a.lastRule {
		a.lastRule = p.Rule
		past := snap.Past
		if len(past) >= pastDecisions {
			past = past[1:]
		}
		snap.Past = append(slices.Clone(past), Decision{At: snap.At, Rule: p.Rule, Name: p.Name, Reason: p.Reason})
		a.cfg.Log.Info("decided", "rule", p.Rule, "name", p.Name, "reason", p.Reason)
		if a.cfg.Decided != nil {
			a.cfg.Decided(p)
		}
	}
	a.view.Store(snap)
	a.tellRole(v, snap.Report)
	switch {
	case old != nil && old.Report.SameButLSN(snap.Report):
	case old != nil && snap.Report.Open && !old.Report.Open:
		nudge(a.opened)
	default:
		nudge(a.news)
	}
}

// report is what others get to see of this node.
func (a *Agent) report(v decide.View, p decide.Plan) fsm.Report {
	g := v.State.Groups[v.State.Nodes[v.Self].Group]
	r := fsm.Report{
		Timeline: v.PG.Timeline, Receive: a.obs.Receive, Replay: v.PG.LSN, PGVersion: a.obs.Version, Rule: p.Rule,
		Pending: a.obs.Pending, SetAside: a.obs.SetAside, Open: v.PG.Reachable && v.Conf.Phase == decide.Open,
	}
	r.Watchdog, r.Unfit = v.Sentinel.Watchdog, a.unfitNow()
	r = a.withHealth(r)
	r.Slots = a.obs.SlotTrouble
	r.Copied, r.ToCopy = a.cfg.Postgres.Progress()
	if v.Sentinel.Adopted {
		r.Fence = "weak"
	}
	switch {
	case v.Job != "" && v.Sentinel.Postmaster == 0:
		r.State = v.Job
	case v.Sentinel.Postmaster == 0 && !v.Local.Stray:
		r.State = "stopped"
	case !v.PG.Reachable:
		r.State = "starting"
	case v.Sentinel.Primary:
		r.State, r.Role, r.Epoch = "running", "primary", v.Sentinel.Epoch
	case v.PG.Streaming:
		r.State, r.Role, r.Epoch = "streaming", "standby", v.Conf.Epoch
	default:
		r.State, r.Role = "running", "standby"
	}
	if g.Held() && g.Lease.Holder == v.Self && !g.Opened() && v.Sentinel.Primary {
		r.State = "promoting"
	}
	return r
}
