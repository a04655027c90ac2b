package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"matriarch/fsm"
)

const (
	// drainLimit is how long a standby about to stop waits for its primary to let go of it. The primary does so in any case, once it is missing.
	drainLimit = 3 * time.Second
	// askLimit bounds one request of a node that is about to stop: without a majority there is nothing to wait for.
	askLimit = 3 * time.Second
)

// handOver prepares an orderly end: a primary switches its group over, and the primary of a standby lets go of it, so that no commit has to
// wait for who will not come back. What cannot be prepared is left, and logged: the end itself loses nothing. ctx bounds it.
func (n *node) handOver(ctx context.Context) {
	if s := n.consensus.State(); n.primaryHere(s) && len(s.Members(n.group())) > 1 {
		began := time.Now()
		switch err := n.switchAway(ctx); {
		case err != nil:
			n.log.Warn("stops without having handed over: another member takes over once PostgreSQL is down", "group", int(n.group()), "error", err)
		default:
			n.log.Info("handed over before the stop", "group", int(n.group()), "took", time.Since(began).String())
		}
	}
	if err := n.drain(ctx); err != nil {
		n.log.Info("stops without having left the synchronous set: commits may wait until it counts as missing", "error", err)
	}
}

func (n *node) group() fsm.GroupID { return fsm.GroupID(n.cfg.Node.Group) }

func (n *node) primaryHere(s *fsm.State) bool {
	g := s.Groups[n.group()]
	return g.Opened() && g.Lease.Holder == n.id.NodeID
}

// switchAway asks for a switchover until one has taken the group away from here. Only one at a time may pause the formation: when others
// stop, too, this one waits for its turn.
func (n *node) switchAway(ctx context.Context) error {
	led := n.ledLately()
	return poll(ctx, func() (bool, error) {
		s := n.consensus.State()
		switch {
		case !n.primaryHere(s):
			return true, nil
		case busy(s):
			return false, led()
		}
		op := fsm.Operation{ID: uuid.NewString(), Kind: fsm.Switchover, By: "the stop of " + n.id.Name, At: time.Now().UTC().Truncate(time.Millisecond)}
		actx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		res, err := n.consensus.Submit(actx, fsm.OperationPut{Group: n.group(), Operation: op})
		switch {
		case err != nil:
			return false, fmt.Errorf("ask for a switchover: %w", err)
		case !res.OK && busy(n.consensus.State()):
			return false, nil
		case !res.OK:
			return false, fmt.Errorf("switchover refused: %s", res.Reason)
		}
		return true, n.followOwn(ctx, op.ID)
	})
}

// ledLately answers an error once there has been no Raft leader for askLimit: nothing will move then.
func (n *node) ledLately() func() error {
	seen := time.Now()
	return func() error {
		if n.consensus.Status().Leader != "" {
			seen = time.Now()
		}
		if time.Since(seen) > askLimit {
			return errors.New("no Raft leader")
		}
		return nil
	}
}

// busy reports whether a pause of the formation is under way.
func busy(s *fsm.State) bool {
	for _, g := range s.Groups {
		if g.Op.Pausing() {
			return true
		}
	}
	return false
}

// followOwn waits for the end of this node's own switchover.
func (n *node) followOwn(ctx context.Context, op string) error {
	led := n.ledLately()
	return poll(ctx, func() (bool, error) {
		switch g := n.consensus.State().Groups[n.group()]; {
		case g.LastOp == nil || g.LastOp.ID != op:
			return false, led()
		case !g.LastOp.Done:
			return false, fmt.Errorf("switchover given up: %s", g.LastOp.Outcome)
		}
		return true, nil
	})
}

// drain has the primary let go of this standby where its commits would wait otherwise. The tag that says so is this run's own: the next
// start announces what the configuration says.
func (n *node) drain(ctx context.Context) error {
	if !n.waitedFor(n.consensus.State()) {
		return nil
	}
	n.leaving.Store(true)
	n.nodesMoved()
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	led := n.ledLately()
	return poll(ctx, func() (bool, error) { return !n.waitedFor(n.consensus.State()), led() })
}

// waitedFor reports whether the group's primary cannot commit without this standby.
func (n *node) waitedFor(s *fsm.State) bool {
	g := s.Groups[n.group()]
	if !g.Opened() || g.Lease.Holder == n.id.NodeID || g.Holds() {
		return false // a strict group does not let go before another has come
	}
	for _, p := range g.Sync.Pairs {
		if p.Has(n.id.NodeID) && p.K >= len(p.S) {
			return true
		}
	}
	return false
}
