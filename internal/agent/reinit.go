package agent

import (
	"context"
	"errors"
	"fmt"

	"matriarch/fsm"
)

type reinitCall struct {
	from  fsm.NodeID
	reply chan error
}

// Reinit clones this standby anew, from the node given or, when that is empty, from the primary. It returns when the work is on its way, or
// why it cannot be. Once begun it is carried on after a restart of the agent, by the rules.
func (a *Agent) Reinit(ctx context.Context, from fsm.NodeID) error {
	c := reinitCall{from, make(chan error, 1)}
	select {
	case a.reinits <- c:
		return <-c.reply
	case <-ctx.Done():
		return fmt.Errorf("reinit: %w", ctx.Err())
	}
}

// reinit runs in the loop.
func (a *Agent) reinit(ctx context.Context, from fsm.NodeID) error {
	s := a.cfg.Control.State()
	r := a.roster(s)
	src, err := CloneSource(s, a.cfg.Self, from)
	if err != nil {
		return err
	}
	st := a.sentinel.get()
	switch {
	case a.job != nil:
		return fmt.Errorf("%s is under way here: try again later", a.job.name)
	case st.Primary:
		return errors.New("it is a primary: switch over first")
	}
	local, err := a.cfg.Postgres.Local()
	switch {
	case err != nil:
		return err
	case local.Stray:
		return errors.New("a PostgreSQL runs here that matriarch did not start: stop it first")
	}
	epoch := r.Group.Epoch
	// Whatever streams under this epoch came from its primary.
	prefix := a.obs.PG.Streaming && a.obs.Conf.Epoch == epoch && local.LineageOf(a.obs.PG.Timeline) == epoch
	a.start(ctx, "creating replica", quick, longTimeout, func(ctx context.Context) error {
		if err := a.still(ctx, r, epoch); err != nil {
			return err
		}
		if st.Postmaster != 0 {
			if err := a.stopped(ctx, false); err != nil {
				return err
			}
		}
		return a.cfg.Postgres.Clone(ctx, src, epoch, r.Group.Lineage(), prefix)
	})
	return nil
}

// CloneSource checks that node self may be cloned anew from the given node; empty: from the primary.
func CloneSource(s *fsm.State, self, from fsm.NodeID) (fsm.Node, error) {
	me := s.Nodes[self]
	g := s.Groups[me.Group]
	if from == "" {
		from = g.Lease.Holder
	}
	src, ok := s.Nodes[from]
	switch {
	case g.Lease.Holder == self:
		return src, errors.New("it is the primary of its group: switch over first")
	case !g.Opened():
		return src, fmt.Errorf("group %d has no open primary: its data may be the last copy", me.Group)
	case !ok || src.Group != me.Group:
		return src, errors.New("the source is not a member of its group")
	case from == self:
		return src, errors.New("a node cannot be cloned from itself")
	case from != g.Lease.Holder && (src.Report.State != "streaming" || src.Report.Epoch != g.Epoch):
		return src, fmt.Errorf("%s does not stream from the primary: take another source", src.Name)
	}
	return src, nil
}
