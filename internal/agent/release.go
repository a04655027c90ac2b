package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/fsm"
)

// While PostgreSQL stops for planned work, clients wait: what holds it up is ended, the more firmly the longer it takes.
const (
	sendersAfter   = 1500 * time.Millisecond // walsenders that wait for a standby which does not confirm
	immediateAfter = 5 * time.Second         // then whatever is left; who has the last record is still looked at
)

// stepDown stops PostgreSQL in good order, so that the standbys have everything up to its last record.
func (a *Agent) stepDown(ctx context.Context) error {
	senders := time.AfterFunc(sendersAfter, func() {
		if err := a.cfg.Postgres.EndSenders(ctx); err != nil {
			a.cfg.Log.Warn("walsenders hold up the stop", "error", err)
		}
	})
	defer senders.Stop()
	fctx, cancel := context.WithTimeout(ctx, immediateAfter)
	defer cancel()
	err := a.stopped(fctx, false)
	if err != nil && fctx.Err() != nil && ctx.Err() == nil {
		return a.stopped(ctx, true)
	}
	return err
}

// Restart stops a standby's PostgreSQL in good order; the rules start it again. A primary is restarted by an operation, whose
// clients wait.
func (a *Agent) Restart(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case a.restarts <- reply:
		return <-reply
	case <-ctx.Done():
		return fmt.Errorf("restart: %w", ctx.Err())
	}
}

// restart runs in the loop.
func (a *Agent) restart(ctx context.Context) error {
	switch st := a.sentinel.get(); {
	case a.job != nil:
		return fmt.Errorf("%s is under way here: try again later", a.job.name)
	case st.Primary:
		return errors.New("it is the primary: restart it with its group")
	case st.Postmaster == 0:
		return errors.New("PostgreSQL is not running here")
	}
	a.start(ctx, "restarting", quick, promoteTimeout, func(ctx context.Context) error { return a.stopped(ctx, false) })
	return nil
}

// release gives the lease back, with the last record of a PostgreSQL that stopped in good order. A refusal means that it is free
// already, which this node's state will show in a moment.
func (a *Agent) release(ctx context.Context, r Roster, e fsm.Epoch, why string) error {
	c := fsm.Release{Group: r.Group.ID, Epoch: e, Reason: why}
	if tl, last, ok, err := a.ended(ctx, e); err != nil {
		a.cfg.Log.Warn("how PostgreSQL ended is not known: an election will have to do without", "error", err)
	} else if ok {
		c.Timeline, c.LSN = tl, last
	}
	if _, err := a.propose(ctx, c); err != nil {
		return fmt.Errorf("give the lease back: %w", err)
	}
	return nil
}

// ended tells of an end in good order on the timeline that this very epoch made.
func (a *Agent) ended(ctx context.Context, e fsm.Epoch) (fsm.Timeline, fsm.LSN, bool, error) {
	local, err := a.cfg.Postgres.Local()
	if err != nil || !local.HasData || local.Unfinished != "" || local.Stray {
		return 0, 0, false, err
	}
	tl, last, ok, err := a.cfg.Postgres.Ended(ctx)
	return tl, last, ok && local.LineageOf(tl) == e, err
}
