package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/conductor"
	"matriarch/transport"
)

// planner implements conductor.Planner on the nodes and the Citus metadata.
type planner struct{ n *node }

// pauser makes the clients of a formation wait; citus does, where there is Citus.
type pauser interface {
	Check(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) error
	Pause(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (conductor.Pause, error)
}

// Check implements conductor.Planner.
func (p planner) Check(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (fsm.NodeID, error) {
	if g.Op.WaitMoves > 0 && p.n.citus != nil {
		if err := p.n.awaitMoves(ctx, g); err != nil {
			return "", err
		}
		s = p.n.consensus.State()
		g = s.Groups[g.ID]
		if g.Op == nil {
			return "", errors.New("it was given up while shards moved")
		}
	}
	to := g.Lease.Holder
	if g.Op.Kind == fsm.Switchover {
		var err error
		if to, err = p.fit(ctx, s, g, g.Op.To); err != nil {
			return "", err
		}
	}
	if err := p.writeOut(ctx, s, g.Lease.Holder, to); err != nil {
		return "", err
	}
	if c := p.n.pauser(); c != nil {
		if err := c.Check(ctx, term, s, g); err != nil {
			return "", err
		}
	}
	return to, nil
}

// fitLimit is how long a check waits for members that were not heard of lately: a busy machine, or a young leader.
const fitLimit = 3 * time.Second

// fit chooses the candidate, the one asked for if any.
func (p planner) fit(ctx context.Context, s *fsm.State, g fsm.Group, asked fsm.NodeID) (fsm.NodeID, error) {
	for end := time.Now().Add(fitLimit); ; {
		heard := p.n.heard(s)
		to, err := decide.Fit(s, g, asked, heard)
		quiet := false
		for _, m := range s.Members(g.ID) {
			ago, ok := heard[m.ID]
			quiet = quiet || !ok || ago >= decide.AliveWithin && ago < fitLimit+decide.AliveWithin
		}
		if err == nil || !quiet || time.Now().After(end) {
			return to, err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// writeOut has the holder and the candidate write their dirty pages, so that neither stopping nor promoting has much left to write,
// and compares their positions.
func (p planner) writeOut(ctx context.Context, s *fsm.State, holder, to fsm.NodeID) error {
	var from, cand position
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { from, err = p.prepare(gctx, s.Nodes[holder]); return err })
	g.Go(func() (err error) { cand, err = p.prepare(gctx, s.Nodes[to]); return err })
	if err := g.Wait(); err != nil {
		return err
	}
	switch lag := int64(from.LSN) - int64(cand.LSN); {
	case from.Standby:
		return fmt.Errorf("%s is not writable", s.Name(holder))
	case holder != to && !cand.Streaming:
		return fmt.Errorf("%s does not stream", s.Name(to))
	case lag > decide.MaxPlannedLag:
		return fmt.Errorf("%s is %d MB behind %s: wait until it has caught up", s.Name(to), lag>>20, s.Name(holder))
	}
	return nil
}

func (p planner) prepare(ctx context.Context, n fsm.Node) (at position, err error) {
	if n.ID == p.n.id.NodeID {
		at, err = p.n.writeOut(ctx)
	} else {
		err = p.n.client.Call(ctx, n.Peer, string(n.ID), callWriteOut, struct{}{}, &at)
	}
	if err != nil {
		return at, fmt.Errorf("have %s write its dirty pages out: %w", n.Name, err)
	}
	return at, nil
}

// Pause implements conductor.Planner.
func (p planner) Pause(ctx context.Context, term uint64, s *fsm.State, g fsm.Group) (conductor.Pause, error) {
	c := p.n.pauser()
	if c == nil || !s.Cluster.Settings.Citus {
		return nil, nil
	}
	return c.Pause(ctx, term, s, g)
}

const (
	callWriteOut = "write_out"
	callWaitOpen = "wait_open"
	// openLimit bounds how long clients that wait wait for the new primary to let them in.
	openLimit = 2 * time.Second
)

// waitOpen waits until the group's primary lets clients in: its state says so a moment earlier.
func (n *node) waitOpen(ctx context.Context, s *fsm.State, g fsm.GroupID) error {
	p, ok := s.Primary(g)
	if !ok {
		return fmt.Errorf("group %d has no open primary", g)
	}
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	e := s.Groups[g].Epoch
	if p.ID == n.id.NodeID {
		return n.agent.WaitOpen(ctx, e)
	}
	return n.client.Call(ctx, p.Peer, string(p.ID), callWaitOpen, recruitRequest{e}, &struct{}{})
}

// position is where a node's PostgreSQL stands after a checkpoint.
type position struct {
	LSN       fsm.LSN `json:"lsn"`
	Standby   bool    `json:"standby"`
	Streaming bool    `json:"streaming"`
}

// writeOut runs a checkpoint, on a standby a restart point.
func (n *node) writeOut(ctx context.Context) (position, error) {
	if err := n.pg.FreshSegment(ctx); err != nil {
		return position{}, err
	}
	if err := n.pg.Checkpoint(ctx); err != nil {
		return position{}, err
	}
	o := n.pg.Observe(ctx)
	switch {
	case !o.Reachable:
		return position{}, errors.New("PostgreSQL does not answer: " + o.Reason)
	case o.InRecovery:
		return position{LSN: o.ReceiveLSN, Standby: true, Streaming: o.Receiver != nil}, nil
	}
	return position{LSN: o.CurrentLSN}, nil
}

// checkLimit bounds the look that a dry run takes.
const checkLimit = time.Minute

// wouldSwitch says whom a switchover would make primary, and changes nothing.
func (n *node) wouldSwitch(ctx context.Context, group fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error) {
	notLeader := &transport.Error{Code: transport.CodeNotLeader, Message: "this node is not the Raft leader"}
	l := n.leading.Load()
	if l == nil {
		return "", notLeader
	}
	s := n.consensus.State()
	g, ok := s.Groups[group]
	switch {
	case !ok:
		return "", fmt.Errorf("group %d is not known", group)
	case !g.Opened():
		return "", fmt.Errorf("group %d has no open primary", group)
	case g.Op != nil:
		return "", fmt.Errorf("a %s asked for by %s is under way", g.Op.Kind, g.Op.By)
	case g.Paused:
		return "", fmt.Errorf("group %d is paused", group)
	}
	to, err := planner{n}.fit(ctx, s, g, to)
	switch {
	case n.leading.Load() != l: // who does not lead hears nobody
		return "", notLeader
	case err != nil:
		return "", err
	}
	if c := n.pauser(); c != nil && s.Cluster.Settings.Citus {
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		defer cancel()
		return to, c.Check(ctx, l.Term, s, g)
	}
	return to, nil
}
