package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/conductor"
)

// pauser makes the clients of a formation wait at Citus' table; nil without Citus.
func (n *node) pauser() pauser {
	if n.citus == nil {
		return nil
	}
	return gate{n, n.citus, n.log}
}

// gate implements pauser.
type gate struct {
	n    *node
	pool *citus.Pool
	log  *slog.Logger
}

func wants(s *fsm.State) ([]citus.Wanted, error) {
	var out []citus.Wanted
	for _, db := range s.Cluster.Settings.Databases {
		w, err := citus.Want(s, db)
		if err != nil {
			return nil, fmt.Errorf("database %s: %w", db, err)
		}
		out = append(out, w)
	}
	return out, nil
}

// Check implements pauser.
func (p gate) Check(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) error {
	if !s.Cluster.Settings.Citus {
		return nil
	}
	ws, err := wants(s)
	if err != nil {
		return err
	}
	refusals, err := p.pool.Check(ctx, term, ws, g.ID)
	if err != nil {
		return err
	}
	var out []string
	for _, r := range refusals {
		out = append(out, r.String())
	}
	if len(out) > 0 {
		return errors.New(strings.Join(out, "; "))
	}
	return nil
}

// Pause implements pauser.
func (p gate) Pause(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (conductor.Pause, error) {
	mode := citus.PauseMode(s.Cluster.Settings.CitusPause)
	if mode == citus.PauseOff {
		return nil, nil
	}
	ws, err := wants(s)
	if err != nil {
		return nil, err
	}
	h, err := p.pool.Prepare(ctx, term, ws, g.ID, citus.PauseOptions{Mode: mode, LockTimeout: s.Cluster.Settings.PauseLockTimeout, Force: g.Op.Force})
	if err != nil {
		return nil, err
	}
	if to, ok := s.Nodes[g.Op.To]; ok {
		if addr, err := citus.ParseAddr(to.Postgres); err == nil {
			if err := h.Warm(ctx, addr); err != nil {
				p.log.Debug("no session with the candidate before the pause", "error", err)
			}
		}
	}
	if err := h.Hold(ctx); err != nil {
		h.Cancel()
		return nil, err
	}
	for _, b := range h.Ended() {
		p.log.Warn("ended a transaction in the way of the pause", "blocker", b.String())
	}
	return holding{h, p.n, g.ID, p.log}, nil
}

// holding is a Pause as the conductor knows it.
type holding struct {
	*citus.Pause
	n   *node
	g   fsm.GroupID
	log *slog.Logger
}

// Ended implements conductor.Pause.
func (h holding) Ended() []string {
	var out []string
	for _, b := range h.Pause.Ended() {
		out = append(out, b.String())
	}
	return out
}

// Resume implements conductor.Pause.
func (h holding) Resume(ctx context.Context, s *fsm.State) error {
	ws, err := wants(s)
	if err != nil {
		h.Cancel()
		return err
	}
	if err := h.n.waitOpen(ctx, s, h.g); err != nil {
		h.log.Warn("clients go on although the new primary may not let them in yet", "group", int(h.g), "error", err)
	}
	t, err := h.Pause.Resume(ctx, ws)
	h.log.Info("pause over", "lock", t.Lock.String(), "rows", t.Rows.String(), "write", t.Write.String(), "held", t.Held.String())
	return err
}

// movesPoll is how often it is looked whether shards still move: a look opens a session.
const movesPoll = 500 * time.Millisecond

// awaitMoves returns when no shard moves in any database, or says which do when the operation has waited for as long as it was
// told to, or is there no more.
func (n *node) awaitMoves(ctx context.Context, g fsm.Group) error {
	ctx, cancel := context.WithTimeout(ctx, g.Op.WaitMoves)
	defer cancel()
	t := time.NewTicker(movesPoll)
	defer t.Stop()
	for {
		s := n.consensus.State()
		if op := s.Groups[g.ID].Op; op == nil || op.ID != g.Op.ID {
			return errors.New("it was given up while shards moved")
		}
		moving, err := n.moving(ctx, s)
		if err == nil && len(moving) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("whether shards move is not known after %s: %w", g.Op.WaitMoves, err)
			}
			return fmt.Errorf("shards still move after %s: %s", g.Op.WaitMoves, strings.Join(moving, "; "))
		case <-t.C:
		}
	}
}

func (n *node) moving(ctx context.Context, s *fsm.State) ([]string, error) {
	ws, err := wants(s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, w := range ws {
		moves, err := n.citus.MovesRunning(ctx, w)
		if err != nil {
			return nil, err
		}
		out = append(out, moves...)
	}
	return out, nil
}
