package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// promote makes PostgreSQL writable. The sentinel checks the deadline once more, by itself.
func (a *Agent) promote(ctx context.Context, r Roster, x decide.Promote) error {
	if err := a.cfg.Postgres.Configure(ctx, r, x.Conf); err != nil {
		return fmt.Errorf("configure before promotion: %w", err)
	}
	if err := a.cfg.Hooks.PrePromote(ctx, r, x.Epoch); err != nil {
		return a.giveBack(ctx, r, x.Epoch, err)
	}
	leave, err := a.word.enter(a.cfg.Clock())
	if err != nil {
		return err
	}
	defer leave()
	a.lease.mu.Lock()
	e, until, ok := a.lease.h.Until()
	a.lease.mu.Unlock()
	if !ok || e != x.Epoch {
		return errNotYet
	}
	if err := a.claim(x.Epoch, x.From); err != nil {
		return fmt.Errorf("record the promotion to come: %w", err)
	}
	if err := a.cfg.Sentinel.Deadline(ctx, e, until); err != nil {
		return fmt.Errorf("hand over the deadline: %w", err)
	}
	err = a.cfg.Sentinel.Promote(ctx, x.Epoch)
	if errors.Is(err, ErrUnfit) || errors.Is(err, ErrSpent) {
		return a.giveBack(ctx, r, x.Epoch, err)
	}
	if err != nil {
		return fmt.Errorf("promote under epoch %s: %w", x.Epoch, err)
	}
	if err := a.record(ctx, r, x.Epoch, &x.Conf); err != nil {
		return err
	}
	_ = a.ping(ctx) // the heartbeat will tell otherwise
	return nil
}

// claim writes down, before the promotion, that whatever timeline stands above the present one is of this epoch. Older claims
// on such numbers were never followed up.
func (a *Agent) claim(e fsm.Epoch, present fsm.Timeline) error {
	local, err := a.cfg.Postgres.Local()
	if err != nil {
		return err
	}
	made := map[fsm.Timeline]fsm.Epoch{0: e}
	if _, listed := local.Lineage[present]; !listed {
		made[present] = local.LineageOf(present) // it may rest on an older claim
	}
	for tl := range local.Lineage {
		if tl > present {
			made[tl] = e
		}
	}
	return a.cfg.Postgres.SetLineage(made)
}

// record makes the slots, then tells the state which timeline the promotion made. Only then may anybody follow. Members are let in
// meanwhile, so that they need not try twice; what they wrote now would wait for standbys that nobody is yet.
func (a *Agent) record(ctx context.Context, r Roster, e fsm.Epoch, c *decide.Conf) error {
	tl, parent, fork, err := a.cfg.Postgres.Promoted(ctx)
	if err != nil {
		return fmt.Errorf("wait for the end of recovery: %w", err)
	}
	if err := a.cfg.Postgres.SetLineage(map[fsm.Timeline]fsm.Epoch{tl: e}); err != nil {
		return fmt.Errorf("record the new timeline: %w", err)
	}
	if err := a.cfg.Postgres.Slots(ctx, r); err != nil {
		return fmt.Errorf("make the members' slots: %w", err)
	}
	if err := a.cfg.Postgres.DropUnready(ctx, r); err != nil {
		return fmt.Errorf("drop slots that are not whole: %w", err)
	}
	open := make(chan error, 1)
	go func() {
		if c == nil {
			open <- nil
			return
		}
		members := *c
		members.Phase = decide.Members
		open <- a.cfg.Postgres.Configure(ctx, r, members)
	}()
	err = a.submit(ctx, fsm.Promoted{Group: r.Group.ID, Epoch: e, Timeline: tl, Parent: parent, Fork: fork})
	if oerr := <-open; err == nil && oerr != nil {
		err = fmt.Errorf("let the members in: %w", oerr)
	}
	return err
}

// equip runs once per epoch; what is there already costs one look.
func (a *Agent) equip(ctx context.Context, r Roster, e fsm.Epoch) error {
	if err := a.cfg.Postgres.Equip(ctx, r); err != nil {
		return fmt.Errorf("make roles and databases: %w", err)
	}
	a.equipped.Store(&e)
	return nil
}

// confirm passes the barrier, makes the first synchronous commit of the epoch, and ends the joint phase.
func (a *Agent) confirm(ctx context.Context, r Roster, x decide.Confirm) error {
	if err := a.cfg.Postgres.Configure(ctx, r, x.Conf); err != nil {
		return fmt.Errorf("set the synchronous standbys: %w", err)
	}
	bctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	if err := a.cfg.Postgres.Barrier(bctx, r, x.Conf); err != nil {
		if ctx.Err() == nil && bctx.Err() != nil {
			return errNotYet
		}
		return fmt.Errorf("pass the barrier: %w", err)
	}
	if !r.Group.Opened() {
		if err := a.cfg.Postgres.FirstCommit(bctx, x.Epoch); err != nil {
			if ctx.Err() == nil && bctx.Err() != nil {
				return errNotYet // a standby went away: the set may have to change first
			}
			return fmt.Errorf("first synchronous commit: %w", err)
		}
	}
	if err := a.submit(ctx, fsm.SyncConfirm{Group: r.Group.ID, Epoch: x.Epoch, Pair: x.Pair}); err != nil || r.Group.Opened() {
		return err
	}
	open := x.Conf
	open.Phase = decide.Open // clients come at once
	if err := a.cfg.Postgres.Configure(ctx, r, open); err != nil {
		return fmt.Errorf("let clients in: %w", err)
	}
	return nil
}

// WaitOpen returns when clients may enter PostgreSQL under this epoch or a later one, or ctx ends.
func (a *Agent) WaitOpen(ctx context.Context, e fsm.Epoch) error {
	tick := time.NewTicker(openPoll)
	defer tick.Stop()
	for {
		if c := a.cfg.Postgres.Applied(); c.Phase == decide.Open && c.Upstream == "" && !c.Epoch.Less(e) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until clients may enter: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

const openPoll = 2 * time.Millisecond
