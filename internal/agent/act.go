package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// job is the one action under way.
type job struct {
	name   string
	cancel context.CancelFunc
	force  force
}

// force orders actions: one of greater force cancels the one under way.
type force int

const (
	quick   force = iota // anything but safety
	fencing              // through the sentinel
	killing              // without it
)

type jobDone struct {
	name  string
	force force
	err   error
}

// Times an action may take before it is given up and looked at again. A clone or rewind has none: it shows progress.
const (
	quickTimeout   = 10 * time.Second
	barrierTimeout = time.Second
	promoteTimeout = time.Minute
	initTimeout    = 5 * time.Minute
	longTimeout    = 24 * time.Hour
	maxBackoff     = 10 * time.Second
	breath         = 50 * time.Millisecond
	safetyBackoff  = 100 * time.Millisecond
	echoTimeout    = 100 * time.Millisecond
)

// errNotYet is no failure: the same action will be decided again.
var errNotYet = errors.New("not yet")

// act starts the plan's action as the job. A safety action cancels the job under way first.
func (a *Agent) act(ctx context.Context, v decide.View, p decide.Plan) {
	if p.Action == nil {
		return
	}
	name, f, timeout, run := a.hands(v, p.Action)
	if v.Backoff > 0 && name == a.failedJob {
		return // safety rules stand above the one that waits
	}
	if a.job != nil {
		if f <= a.job.force {
			return
		}
		a.job.cancel()
		a.finish(<-a.jobs)
	}
	a.start(ctx, name, f, timeout, run)
}

func (a *Agent) start(ctx context.Context, name string, f force, timeout time.Duration, run func(context.Context) error) {
	jctx, cancel := context.WithTimeout(ctx, timeout)
	a.job = &job{name: name, cancel: cancel, force: f}
	go func() {
		err := run(jctx)
		if err != nil && jctx.Err() != nil && ctx.Err() == nil && errors.Is(jctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%s took longer than %s: %w", name, timeout, err)
		}
		cancel()
		a.jobs <- jobDone{name, f, err}
	}()
}

// finish takes a job's outcome: failures back off, growing to ten seconds.
func (a *Agent) finish(d jobDone) {
	a.job = nil
	switch {
	case d.err == nil:
		a.failures, a.failed, a.failedJob, a.backoff = 0, "", "", time.Time{}
	case errors.Is(d.err, errNotYet) || errors.Is(d.err, context.Canceled):
	default:
		a.failures++
		a.failed, a.failedJob = fmt.Sprintf("%s: %v", d.name, d.err), d.name
		limit := maxBackoff
		if d.force > quick {
			limit = safetyBackoff
		}
		a.backoff = time.Now().Add(min(100*time.Millisecond<<min(a.failures, 10), limit))
		a.cfg.Log.Error("action ended with an error", "action", d.name, "error", d.err, "again_in", time.Until(a.backoff).String())
	}
	nudge(a.wake)
}

// hands maps an action to what is done. Everything that can hurt checks its epoch again.
func (a *Agent) hands(v decide.View, action decide.Action) (name string, f force, timeout time.Duration, run func(context.Context) error) {
	pg := a.cfg.Postgres
	r := a.roster(v.State)
	switch x := action.(type) {
	case decide.Fence:
		if x.Late {
			return "stopping PostgreSQL at once", fencing, quickTimeout, a.fenceLate
		}
		return "stopping PostgreSQL at once", fencing, quickTimeout, func(ctx context.Context) error { return a.stopped(ctx, true) }
	case decide.KillAll:
		return "killing PostgreSQL", killing, quickTimeout, a.killAll
	case decide.StopPG:
		return "stopping PostgreSQL", fencing, promoteTimeout, func(ctx context.Context) error { return a.stopped(ctx, false) }
	case decide.StepDown:
		return "stopping for planned work", quick, promoteTimeout, a.stepDown
	case decide.Release:
		return "giving the lease back", quick, quickTimeout, func(ctx context.Context) error { return a.release(ctx, r, x.Epoch, v.Sentinel.Exit) }
	case decide.InitDB:
		return "initdb", quick, initTimeout, func(ctx context.Context) error { return a.initDB(ctx, r) }
	case decide.Announce:
		return "announcing", quick, quickTimeout, func(ctx context.Context) error { return a.announce(ctx, r) }
	case decide.Clone:
		return "creating replica", quick, longTimeout, func(ctx context.Context) error { return a.clone(ctx, v, x) }
	case decide.Rewind:
		return "rewinding", quick, longTimeout, func(ctx context.Context) error { return a.rewind(ctx, v, x) }
	case decide.StartPG:
		return "starting", quick, quickTimeout, func(ctx context.Context) error { return a.startPG(ctx, r) }
	case decide.Adopt:
		return "adopting", quick, quickTimeout, func(ctx context.Context) error { return a.adopt(ctx, r, x.Epoch) }
	case decide.Configure:
		return "configuring", quick, quickTimeout, func(ctx context.Context) error { return a.configure(ctx, r, x.Conf) }
	case decide.Promote:
		return "promoting", quick, promoteTimeout, func(ctx context.Context) error { return a.promote(ctx, r, x) }
	case decide.Record:
		return "recording", quick, quickTimeout, func(ctx context.Context) error { return a.record(ctx, r, x.Epoch, nil) }
	case decide.Confirm:
		return "confirming", quick, quickTimeout, func(ctx context.Context) error { return a.confirm(ctx, r, x) }
	case decide.Slots:
		return "slots", quick, quickTimeout, func(ctx context.Context) error { return pg.Slots(ctx, r) }
	case decide.Equip:
		return "equipping", quick, promoteTimeout, func(ctx context.Context) error { return a.equip(ctx, r, x.Epoch) }
	case decide.TakeIn:
		return "taking members in", quick, quickTimeout, func(ctx context.Context) error { return a.takeIn(ctx, r, x) }
	case decide.ProposeSync:
		return "changing the synchronous set", quick, quickTimeout, func(ctx context.Context) error {
			return a.submit(ctx, fsm.SyncPropose{Group: r.Group.ID, Epoch: x.Epoch, Pair: x.Pair, Reason: x.Reason})
		}
	}
	return "nothing", quick, quickTimeout, func(context.Context) error { return fmt.Errorf("action %T has no hands", action) }
}

// submit proposes; a refusal is an error.
func (a *Agent) submit(ctx context.Context, c fsm.Command) error {
	res, err := a.propose(ctx, c)
	if err != nil {
		return fmt.Errorf("propose %s: %w", c.Kind(), err)
	}
	if !res.OK {
		return fmt.Errorf("propose %s: refused: %s", c.Kind(), res.Reason)
	}
	return nil
}

// propose waits a moment for the log to bring the command here, too: by an older state the same would be decided again.
func (a *Agent) propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	res, err := a.cfg.Control.Submit(ctx, c)
	if err != nil {
		return res, err
	}
	t := time.NewTimer(echoTimeout)
	defer t.Stop()
	for a.cfg.Control.State().Index < res.Index {
		select {
		case <-a.moved:
		case <-t.C:
			return res, nil
		case <-ctx.Done():
			return res, nil
		}
	}
	return res, nil
}

// stopped stops PostgreSQL and returns when the sentinel has seen the last process go.
func (a *Agent) stopped(ctx context.Context, immediate bool) error {
	a.stopping.Add(1)
	defer a.stopping.Add(-1)
	if err := a.cfg.Sentinel.Stop(ctx, immediate); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	_ = a.ping(ctx) // the heartbeat will tell otherwise
	return nil
}

// lateStop is how long the sentinel is given for what it should have done by itself. The next primary opens half a second later at the
// earliest: a lease is given to others only that long after its holder must have stopped.
const lateStop = 100 * time.Millisecond

// fenceLate ends a server that outlived its lease, without the sentinel if need be: it may be frozen since a moment ago.
func (a *Agent) fenceLate(ctx context.Context) error {
	sctx, cancel := context.WithTimeout(ctx, lateStop)
	defer cancel()
	err := a.stopped(sctx, true)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return a.killAll(ctx)
}

func (a *Agent) killAll(ctx context.Context) error {
	if err := a.cfg.Sentinel.Reset(ctx); err != nil {
		return fmt.Errorf("kill PostgreSQL and start another sentinel: %w", err)
	}
	_ = a.ping(ctx) // the heartbeat will tell otherwise
	return nil
}

func (a *Agent) announce(ctx context.Context, r Roster) error {
	s, err := a.cfg.Control.Read(ctx) // a starting node replays the past, in which the group had no data yet
	if err != nil {
		return fmt.Errorf("read the newest state first: %w", err)
	}
	if g := s.Groups[r.Group.ID]; g.SystemID != "" || g.ClaimedBy != r.Self {
		return errNotYet
	}
	id, tl, err := a.cfg.Postgres.Identify(ctx)
	if err != nil {
		return fmt.Errorf("identify the data directory: %w", err)
	}
	if err := a.cfg.Postgres.SetLineage(map[fsm.Timeline]fsm.Epoch{tl: {}}); err != nil {
		return fmt.Errorf("record the first timeline: %w", err)
	}
	return a.submit(ctx, fsm.Initialised{Group: r.Group.ID, Node: r.Self, SystemID: id, Timeline: tl})
}

// still reads the newest state before something that cannot be taken back, and checks that the primary decided on is still
// the primary. What this node knows may be old.
func (a *Agent) still(ctx context.Context, r Roster, e fsm.Epoch) error {
	s, err := a.cfg.Control.Read(ctx)
	if err != nil {
		return fmt.Errorf("read the newest state first: %w", err)
	}
	g := s.Groups[r.Group.ID]
	_, promoted := s.Promoted(g.ID)
	if ready := g.Opened() || promoted && g.Holds(); !ready || g.Epoch != e { // a strict group may need this node to open
		return errNotYet
	}
	return nil
}

func (a *Agent) initDB(ctx context.Context, r Roster) error {
	s, err := a.cfg.Control.Read(ctx)
	if err != nil {
		return fmt.Errorf("read the newest state first: %w", err)
	}
	if g := s.Groups[r.Group.ID]; g.SystemID != "" || g.ClaimedBy != r.Self {
		return errNotYet
	}
	return a.cfg.Postgres.InitDB(ctx)
}

func (a *Agent) clone(ctx context.Context, v decide.View, x decide.Clone) error {
	if err := a.still(ctx, a.roster(v.State), x.Epoch); err != nil {
		return err
	}
	if v.Sentinel.Postmaster != 0 {
		// While it runs it answers clients, and has what it has.
		if err := a.cfg.Postgres.CloneRoom(ctx, v.State.Nodes[x.From]); err != nil {
			return err
		}
		if err := a.stopped(ctx, false); err != nil {
			return err
		}
	}
	// A standby that follows and finds the log gone has nothing of its own.
	prefix := v.PG.WALRemoved && v.Conf.Upstream != ""
	return a.cfg.Postgres.Clone(ctx, v.State.Nodes[x.From], x.Epoch, a.roster(v.State).Group.Lineage(), prefix)
}

func (a *Agent) rewind(ctx context.Context, v decide.View, x decide.Rewind) error {
	if err := a.still(ctx, a.roster(v.State), x.Epoch); err != nil {
		return err
	}
	if v.Sentinel.Postmaster != 0 {
		if err := a.stopped(ctx, false); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go a.whileHeld(ctx, cancel, a.roster(v.State).Group.ID, x.Epoch)
	err := a.cfg.Postgres.Rewind(ctx, v.State.Nodes[x.From], x.Epoch, a.roster(v.State).Group.Lineage(), x.Fork)
	_ = a.ping(ctx) // the heartbeat will tell otherwise
	return err
}

// whileHeld ends work that needs the primary of an epoch when that epoch ends: what is missing will not come any more.
func (a *Agent) whileHeld(ctx context.Context, end context.CancelFunc, g fsm.GroupID, e fsm.Epoch) {
	t := time.NewTicker(slowPace)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if l := a.cfg.Control.State().Groups[g].Lease; l.Holder == "" || l.Epoch != e {
			end()
			return
		}
	}
}

// startPG starts a standby that follows nobody and lets nobody in: what it has may be unacknowledged.
func (a *Agent) startPG(ctx context.Context, r Roster) error {
	if err := a.cfg.Postgres.Prepare(ctx, r, decide.Conf{Phase: decide.Closed}); err != nil {
		return fmt.Errorf("prepare the start: %w", err)
	}
	if err := a.cfg.Sentinel.Start(ctx); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	return a.firstBreath(ctx)
}

// firstBreath waits until the new postmaster has outlived the moment in which most failed starts end, so that one that
// cannot start is not started again at once.
func (a *Agent) firstBreath(ctx context.Context) error {
	t := time.NewTimer(breath)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := a.ping(ctx); err != nil {
		return fmt.Errorf("ask the sentinel after the start: %w", err)
	}
	if st := a.sentinel.get(); st.Postmaster == 0 {
		return fmt.Errorf("PostgreSQL ended at once (%s): its log tells why", st.Exit)
	}
	return nil
}

func (a *Agent) adopt(ctx context.Context, r Roster, e fsm.Epoch) error {
	a.lease.mu.Lock()
	held, until, ok := a.lease.h.Until()
	a.lease.mu.Unlock()
	leave, err := a.word.enter(a.cfg.Clock())
	if err != nil {
		return err
	}
	defer leave()
	last, granted := r.Group.LastGrant()
	if !ok || held != e || !granted || last.Epoch != e {
		return errNotYet
	}
	if err := a.cfg.Postgres.SetLineage(map[fsm.Timeline]fsm.Epoch{last.Timeline: e}); err != nil {
		return fmt.Errorf("record the timeline that goes on: %w", err)
	}
	// Before the server: a sentinel that has it under no epoch would show a primary under another one, which is fenced.
	if err := a.cfg.Sentinel.Deadline(ctx, e, until); err != nil {
		return fmt.Errorf("hand over the deadline: %w", err)
	}
	if err := a.cfg.Sentinel.Adopt(ctx, e); err != nil {
		return fmt.Errorf("adopt the running server: %w", err)
	}
	_ = a.ping(ctx) // the heartbeat will tell otherwise
	return a.cfg.Postgres.Configure(ctx, r, decide.Conf{Phase: decide.Members, Epoch: e})
}

// configure applies a configuration. Following an epoch is written down before the first byte of it can arrive.
func (a *Agent) configure(ctx context.Context, r Roster, c decide.Conf) error {
	if c.Upstream != "" {
		local, err := a.cfg.Postgres.Local()
		if err != nil {
			return err
		}
		last, _ := r.Group.LastGrant()
		if c.Epoch.Less(local.Promise) || last.Epoch != c.Epoch || last.Timeline == 0 {
			return errNotYet
		}
		// All of the way: it may stop anywhere on it.
		if err := a.cfg.Postgres.SetLineage(r.Group.Lineage()); err != nil {
			return fmt.Errorf("record the timelines followed: %w", err)
		}
	}
	return a.cfg.Postgres.Configure(ctx, r, c)
}
