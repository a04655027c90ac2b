package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/citus"
	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/transport"
)

// Citus implements admin.Source.
func (s source) Citus(ctx context.Context, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
	n := s.n
	state := n.consensus.State()
	if n.citus == nil || !state.Cluster.Settings.Citus {
		return nil, errors.New("this formation has no Citus: see citus and citus.enabled in 'matriarch config show'")
	}
	ws, err := chosen(state, r.Database)
	if err != nil {
		return nil, err
	}
	if !r.Do.Writes() {
		return n.citusLook(ctx, ws, r)
	}
	l := n.leading.Load()
	if l == nil {
		return nil, &transport.Error{Code: transport.CodeNotLeader, Message: "this node is not the Raft leader"}
	}
	if _, ok := state.Groups[r.Group]; !ok {
		return nil, fmt.Errorf("there is no group %d", r.Group)
	}
	out, err := n.citusWork(ctx, l, ws, r)
	return out, superseded(err)
}

const adminShutdown = "57P01"

// superseded says in other words that the conductor of a newer term has ended this one's session.
func superseded(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == adminShutdown {
		return &transport.Error{Code: transport.CodeRefused, Message: "the Raft leader changed meanwhile, and the new one ended what this one had begun", Hint: "look with 'matriarch citus status', then repeat it"}
	}
	return err
}

// chosen is what is wanted of one database, or of all.
func chosen(s *fsm.State, database string) ([]citus.Wanted, error) {
	ws, err := wants(s)
	if err != nil || database == "" {
		return ws, err
	}
	i := slices.IndexFunc(ws, func(w citus.Wanted) bool { return w.Database == database })
	if i < 0 {
		return nil, fmt.Errorf("there is no database %q: there are %s", database, strings.Join(s.Cluster.Settings.Databases, ", "))
	}
	return ws[i : i+1], nil
}

// inEach collects answers; what fails in one database holds up no other.
func inEach(ws []citus.Wanted, do func(citus.Wanted, *admin.CitusAnswer) error) []admin.CitusAnswer {
	var out []admin.CitusAnswer
	for _, w := range ws {
		a := admin.CitusAnswer{Database: w.Database}
		if err := do(w, &a); err != nil {
			a.Error = superseded(err).Error()
		}
		out = append(out, a)
	}
	return out
}

func (n *node) citusLook(ctx context.Context, ws []citus.Wanted, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
	switch r.Do {
	case admin.CitusStatus:
		var out []admin.CitusAnswer
		for _, d := range n.citus.Status(ctx, ws) {
			out = append(out, admin.CitusAnswer{Database: d.Database, Status: &d})
		}
		return out, nil
	case admin.CitusPlan:
		return inEach(ws, func(w citus.Wanted, a *admin.CitusAnswer) (err error) {
			a.Moves, err = n.citus.Plan(ctx, w, r.Options)
			return err
		}), nil
	}
	return inEach(ws, func(w citus.Wanted, a *admin.CitusAnswer) error {
		g, err := n.citus.Progress(ctx, w)
		a.Progress = &g
		return err
	}), nil
}

func (n *node) citusWork(ctx context.Context, l *consensus.Leadership, ws []citus.Wanted, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
	switch r.Do {
	case admin.CitusRebalance:
		return inEach(ws, func(w citus.Wanted, a *admin.CitusAnswer) (err error) {
			a.Job, err = n.citus.Rebalance(ctx, leadership{*l}.Term(), w, r.Options)
			return err
		}), nil
	case admin.CitusStop:
		return inEach(ws, func(w citus.Wanted, _ *admin.CitusAnswer) error {
			return n.citus.StopRebalance(ctx, leadership{*l}.Term(), w)
		}), nil
	case admin.CitusDrain:
		return inEach(ws, func(w citus.Wanted, a *admin.CitusAnswer) (err error) {
			a.Job, err = n.citus.Drain(ctx, leadership{*l}.Term(), w, r.Group, r.Options)
			return err
		}), nil
	case admin.CitusUndrain:
		return inEach(ws, func(w citus.Wanted, _ *admin.CitusAnswer) error {
			return n.citus.Undrain(ctx, leadership{*l}.Term(), w, r.Group)
		}), nil
	case admin.CitusRemove:
		return nil, n.retire(ctx, l, r.Group)
	}
	return nil, &transport.Error{Code: transport.CodeBadRequest, Message: fmt.Sprintf("%q is not known here", r.Do), Hint: "use the same version of matriarch everywhere"}
}

// retire takes a group out of the metadata of every database: first out of what is wanted, or the next round would register it
// again while its rows go.
func (n *node) retire(ctx context.Context, l *consensus.Leadership, g fsm.GroupID) error {
	ws, err := wants(n.consensus.State())
	if err == nil {
		err = n.citus.Removable(ctx, ws, g)
	}
	if err == nil {
		err = n.setRetired(ctx, g, true)
	}
	if err != nil {
		return err
	}
	if ws, err = wants(n.consensus.State()); err == nil {
		err = n.citus.RemoveGroup(ctx, leadership{*l}.Term(), ws, g)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, citus.ErrHolds): // it got shards meanwhile
		return errors.Join(err, n.setRetired(ctx, g, false))
	}
	return fmt.Errorf("%w: the group is retired, and its rows go as soon as that is over: see 'matriarch citus status'", err)
}

func (n *node) setRetired(ctx context.Context, g fsm.GroupID, retired bool) error {
	res, err := n.consensus.Submit(ctx, fsm.GroupSet{Group: g, Retired: &retired})
	if err == nil && !res.OK {
		err = errors.New(res.Reason)
	}
	return err
}
