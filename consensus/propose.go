package consensus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

// How a proposal or a read may fail. A refusal by the state is no error: see fsm.Result.
var (
	// ErrNoLeader: nothing was done; no leader was found in time.
	ErrNoLeader = errors.New("no leader: a majority of the voters must run and reach each other")
	// ErrUnknownOutcome: it may have been carried out, or still be; look before you act.
	ErrUnknownOutcome = errors.New("outcome unknown: look at the state before you repeat it")
	// errNotLeading: nothing was done; another node may lead.
	errNotLeading = errors.New("this node does not lead")
)

const (
	attemptTimeout = 3 * time.Second // for one try through one node
	firstWait      = 20 * time.Millisecond
	longestWait    = 250 * time.Millisecond
	codeUnknown    = "unknown_outcome"
)

// Submit proposes a command, from any node, and answers what became of it. Until ctx ends it repeats the proposal under one
// request id, so that it is carried out at most once. Errors: ErrNoLeader, ErrUnknownOutcome, or a request that is not allowed.
func (n *Node) Submit(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	data, err := n.wrap(c, rand.Text())
	if newer, ok := errors.AsType[*fsm.Newer](err); ok {
		return fsm.Result{Reason: newer.Error()}, nil
	}
	if err != nil {
		return fsm.Result{}, err
	}
	var res fsm.Result
	err = n.insist(ctx, func(ctx context.Context) (err error) {
		res, err = n.attempt(ctx, data)
		return err
	})
	if err != nil {
		return fsm.Result{}, fmt.Errorf("propose %s: %w", c.Kind(), err)
	}
	return res, nil
}

// insist repeats do until it succeeds, fails for good, or ctx ends.
func (n *Node) insist(ctx context.Context, do func(context.Context) error) error {
	maybe := false
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		actx, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := do(actx)
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrUnknownOutcome):
			maybe = true
		case !errors.Is(err, errNotLeading):
			return err
		}
		select {
		case <-time.After(wait/2 + mrand.N(wait)):
			continue
		case <-ctx.Done():
		}
		if maybe {
			return fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
		}
		return fmt.Errorf("%w (%w)", ErrNoLeader, err)
	}
}

func (n *Node) attempt(ctx context.Context, data []byte) (fsm.Result, error) {
	if t := n.term.Load(); t != nil {
		a, err := t.propose(ctx, data)
		if err != nil {
			return fsm.Result{}, err
		}
		a.Index = a.State.Index
		return a.Result, nil
	}
	var ans proposeAnswer
	err := n.askLeader(ctx, "propose", proposeRequest{data}, &ans)
	ans.Result.Index = ans.Index
	return ans.Result, err
}

// wrap encodes a command as the formation's gate lets it be. The gate only rises, so an old view of it is too careful at worst.
func (n *Node) wrap(c fsm.Command, id string) ([]byte, error) {
	gate := n.State().Cluster.Gate
	c, err := fsm.Fit(c, gate)
	if err != nil {
		return nil, err
	}
	data, err := fsm.Encode(c, id, time.Now())
	if err != nil {
		return nil, err
	}
	return data, submittable(data, gate)
}

// submittable refuses what some node's binary may not understand, and what only the leader's own goroutine may decide: its order in
// the log is the proof of the leases.
func submittable(data []byte, gate int) error {
	var env fsm.Envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return &transport.Error{Code: transport.CodeBadRequest, Message: "decode proposal: " + err.Error()}
	}
	switch env.Type {
	case fsm.Expire{}.Kind(), fsm.Tick{}.Kind(), fsm.Recovered{}.Kind(), fsm.Bootstrap{}.Kind():
		return &transport.Error{Code: transport.CodeRefused, Message: env.Type + " is proposed by the leader itself, never for others"}
	case fsm.GateSet{}.Kind():
		return nil
	}
	if gate > 0 && env.V > gate {
		return &transport.Error{Code: transport.CodeRefused, Message: (&fsm.Newer{Kind: env.Type, Needs: env.V, Gate: gate}).Error()}
	}
	return nil
}

// Keepalive sends one keepalive to the leader, once: its sender has stamped it, so a repetition needs another stamp.
// Any error means: not renewed.
func (n *Node) Keepalive(ctx context.Context, k Keepalive) (KeepaliveAnswer, error) {
	if t := n.term.Load(); t != nil {
		return t.keepalive(ctx, k)
	}
	var ans KeepaliveAnswer
	err := n.askLeader(ctx, "keepalive", k, &ans)
	return ans, err
}

// Read waits until this node's state includes everything that was committed when Read was called, and returns it.
func (n *Node) Read(ctx context.Context) (*fsm.State, error) {
	var s *fsm.State
	err := n.insist(ctx, func(ctx context.Context) error {
		if t := n.term.Load(); t != nil {
			a, err := t.propose(ctx, encode(fsm.Tick{}))
			s = a.State
			return err
		}
		var ans readAnswer
		if err := n.askLeader(ctx, "read", struct{}{}, &ans); err != nil {
			return err
		}
		var err error
		s, err = n.Wait(ctx, ans.Index)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the newest state: %w", err)
	}
	return s, nil
}

// Wait returns this node's state once it includes the entry index.
func (n *Node) Wait(ctx context.Context, index uint64) (*fsm.State, error) {
	for {
		changed := n.applied.wait()
		if s := n.State(); s.Index >= index {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: entry %d has not arrived here: %w", errNotLeading, index, ctx.Err())
		}
	}
}

// askLeader calls the leader, or whoever may know it when this node does not: a node that was removed while it was away hears
// of no leader any more.
func (n *Node) askLeader(ctx context.Context, name string, req, resp any) error {
	id := n.leader()
	if id == "" || id == n.cfg.ID {
		peers := n.book.peers()
		if len(peers) == 0 || id != "" {
			return errNotLeading // we won the election but have not passed the Barrier, or are alone
		}
		id = peers[mrand.N(len(peers))]
	}
	err := n.book.call(ctx, id, name, req, resp)
	if e, ok := errors.AsType[*transport.Error](err); ok && e.Code == transport.CodeNotLeader && e.Leader != "" && e.Leader != n.cfg.Advertise {
		return fromWire(n.cfg.Client.Call(ctx, e.Leader, "", name, req, resp))
	}
	return err
}

// leader is whom Raft takes for the leader; empty when it knows none.
func (n *Node) leader() fsm.NodeID {
	rf := n.raft.Load()
	if rf == nil {
		return ""
	}
	_, id := rf.LeaderWithID()
	return fsm.NodeID(id)
}

// fromWire gives the error of a call its meaning here.
func fromWire(err error) error {
	if err == nil {
		return nil
	}
	e, answered := errors.AsType[*transport.Error](err)
	op, network := errors.AsType[*net.OpError](err)
	switch {
	case network && op.Op == "dial", answered && e.Code == transport.CodeNotLeader:
		return fmt.Errorf("%w: %w", errNotLeading, err)
	case answered && e.Code != codeUnknown && e.Code != transport.CodeTimeout:
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}
