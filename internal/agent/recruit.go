package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

type recruitCall struct {
	ctx   context.Context
	epoch fsm.Epoch
	reply chan recruitReply
}

type recruitReply struct {
	r   decide.Recruit
	err error
}

// Recruit answers the conductor: this node promises to follow no epoch below e and says where it stands.
func (a *Agent) Recruit(ctx context.Context, e fsm.Epoch) (decide.Recruit, error) {
	c := recruitCall{ctx: ctx, epoch: e, reply: make(chan recruitReply, 1)}
	select {
	case a.recruits <- c:
	case <-ctx.Done():
		return decide.Recruit{}, fmt.Errorf("recruit: %w", ctx.Err())
	}
	select {
	case rep := <-c.reply:
		return rep.r, rep.err
	case <-ctx.Done():
		return decide.Recruit{}, fmt.Errorf("recruit: %w", ctx.Err())
	}
}

// longJobs make a node useless for an election until they end.
var longJobs = []string{"initdb", "creating replica", "rewinding"}

// recruit runs in the loop. It takes the place of a job, after the one under way.
func (a *Agent) recruit(ctx context.Context, c recruitCall) {
	if a.job != nil {
		if slices.Contains(longJobs, a.job.name) {
			c.reply <- recruitReply{err: errors.New(a.job.name + " is under way")}
			return
		}
		if a.job.force > quick { // waiting for it would keep the safety rules waiting
			c.reply <- recruitReply{err: errors.New(a.job.name + " is under way")}
			return
		}
		a.job.cancel() // whatever it was, it belongs to an epoch that has ended
		a.finish(<-a.jobs)
	}
	s := a.cfg.Control.State()
	if err := a.recruitable(c.ctx, s, c.epoch); err != nil {
		c.reply <- recruitReply{err: err}
		return
	}
	r := a.roster(s)
	a.start(ctx, "promising", quick, quickTimeout, func(jctx context.Context) error {
		jctx, cancel := context.WithTimeout(jctx, quickTimeout)
		defer cancel()
		defer context.AfterFunc(c.ctx, cancel)()
		rec, err := a.promise(jctx, r, c.epoch)
		c.reply <- recruitReply{rec, err}
		if err != nil {
			return errNotYet
		}
		return nil
	})
}

// recruitable says why this node cannot promise now, if so.
func (a *Agent) recruitable(ctx context.Context, s *fsm.State, e fsm.Epoch) error {
	local, err := a.cfg.Postgres.Local()
	if err != nil {
		return err
	}
	pctx, cancel := context.WithTimeout(ctx, decide.SentinelSilence)
	defer cancel()
	if err := a.ping(pctx); err != nil {
		return fmt.Errorf("its sentinel does not answer: %w", err)
	}
	st := a.sentinel.get()
	g := s.Groups[s.Nodes[a.cfg.Self].Group]
	word := a.word.left(a.cfg.Clock())
	switch {
	case word > 0: // a promise would leave that primary, which is up
		return fmt.Errorf("it gave a primary without a majority its word to stay its standby for another %s", word.Round(100*time.Millisecond))
	case e.N != g.Epoch.N+1:
		return fmt.Errorf("its copy of the state, with epoch %s, is not the one this election rests on", g.Epoch)
	case !local.HasData:
		return errors.New("no data directory")
	case local.Unfinished != "":
		return fmt.Errorf("unfinished %s", local.Unfinished)
	case local.SystemID != g.SystemID:
		return errors.New("its data directory belongs to another database cluster")
	case e.Less(local.Promise):
		return fmt.Errorf("it has promised epoch %s already", local.Promise)
	case st.Primary:
		return fmt.Errorf("it is still primary under epoch %s", st.Epoch)
	case g.Held() && !g.Epoch.Less(e):
		return fmt.Errorf("epoch %s is granted already", g.Epoch)
	case st.Postmaster == 0 && !local.Stray:
		return errors.New("PostgreSQL is not running yet")
	}
	return nil
}

func (a *Agent) promise(ctx context.Context, r Roster, e fsm.Epoch) (decide.Recruit, error) {
	rec := decide.Recruit{Node: a.cfg.Self, Instance: a.cfg.Sentinel.Instance(), Promise: e, Unfit: a.unfitNow(), Sick: a.sickness().Text}
	local, err := a.cfg.Postgres.Local()
	if err != nil {
		return rec, err
	}
	if local.Stray {
		return a.strayRecruit(ctx, r, rec, local)
	}
	if err := a.cfg.Postgres.Promise(ctx, r, e); err != nil {
		return rec, fmt.Errorf("promise epoch %s: %w", e, err)
	}
	tl, lsn, err := a.cfg.Postgres.Settle(ctx)
	if err != nil {
		return rec, fmt.Errorf("replay to the end: %w", err)
	}
	rec.Timeline, rec.LSN, rec.Lineage = tl, lsn, local.LineageOf(tl)
	if last, ok := r.Group.LastGrant(); ok && last.Holder == a.cfg.Self && last.Timeline == 0 && rec.Lineage == last.Epoch {
		return rec, a.recordLate(ctx, r, tl, last.Epoch)
	}
	return a.adoptedLate(r, rec)
}

// recordLate records a promotion that this node did not live to record: its data is true, and may be the only copy.
func (a *Agent) recordLate(ctx context.Context, r Roster, tl fsm.Timeline, e fsm.Epoch) error {
	parent, fork, err := a.cfg.Postgres.Origin(ctx, tl)
	if err != nil {
		return fmt.Errorf("find where timeline %d began: %w", tl, err)
	}
	// So far it rests on the claim, which the next promotion takes over.
	if err := a.cfg.Postgres.SetLineage(map[fsm.Timeline]fsm.Epoch{tl: e}); err != nil {
		return fmt.Errorf("record the timeline found: %w", err)
	}
	return a.submit(ctx, fsm.Promoted{Group: r.Group.ID, Epoch: e, Timeline: tl, Parent: parent, Fork: fork})
}

// strayRecruit answers for a running server that waits to be adopted.
func (a *Agent) strayRecruit(ctx context.Context, r Roster, rec decide.Recruit, local decide.Local) (decide.Recruit, error) {
	obs := a.cfg.Postgres.Observe(ctx, r)
	if !obs.PG.Reachable {
		return rec, fmt.Errorf("the running server does not answer: %s", obs.PG.Why)
	}
	if obs.PG.InRecovery {
		return rec, errors.New("the running server is a standby: stop it, matriarch starts it itself")
	}
	rec.Primary, rec.Timeline, rec.LSN, rec.Lineage = true, obs.PG.Timeline, obs.PG.LSN, local.LineageOf(obs.PG.Timeline)
	return a.adoptedLate(r, rec)
}

// adoptedLate records an adoption that this node did not live to record: the grant made no timeline, so that the data here, its
// holder's, is the whole of it.
func (a *Agent) adoptedLate(r Roster, rec decide.Recruit) (decide.Recruit, error) {
	last, ok := r.Group.LastGrant()
	if !ok || last.Holder != a.cfg.Self || last.Timeline != rec.Timeline || last.Parent != last.Timeline || rec.Lineage == last.Epoch {
		return rec, nil
	}
	if err := a.cfg.Postgres.SetLineage(map[fsm.Timeline]fsm.Epoch{rec.Timeline: last.Epoch}); err != nil {
		return rec, fmt.Errorf("record the timeline that goes on: %w", err)
	}
	rec.Lineage = last.Epoch
	return rec, nil
}

// Stop ends PostgreSQL in good order, or at once after orderly, and gives the lease back; Run must have returned.
func (a *Agent) Stop(ctx context.Context, orderly time.Duration) error {
	if err := a.ping(ctx); err != nil {
		return fmt.Errorf("ask the sentinel: %w", err)
	}
	if a.sentinel.get().Postmaster != 0 {
		octx, cancel := context.WithTimeout(ctx, orderly)
		err := a.stopped(octx, false)
		cancel()
		if err != nil && octx.Err() != nil {
			err = a.stopped(ctx, true)
		}
		if err != nil {
			return err
		}
	}
	s := a.cfg.Control.State()
	g := s.Groups[s.Nodes[a.cfg.Self].Group]
	if !g.Held() || g.Lease.Holder != a.cfg.Self {
		return nil
	}
	rctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return a.release(rctx, a.roster(s), g.Lease.Epoch, "the node is being stopped")
}
