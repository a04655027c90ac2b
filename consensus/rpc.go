package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

type proposeRequest struct {
	Data []byte `json:"data"` // an encoded command with its request id
}

type proposeAnswer struct {
	Result fsm.Result `json:"result"`
	Index  uint64     `json:"index"`
}

type readAnswer struct {
	Index uint64 `json:"index"` // everything committed at the time of the call is in the state of this index
}

// View is a node's state as it tells others, and how old it may be.
type View struct {
	State  *fsm.State    `json:"state"`
	Status Status        `json:"status"`
	Age    time.Duration `json:"age"` // since the leader was last heard of; 0 on the leader
}

// register makes this node's calls known.
func (n *Node) register() {
	transport.Register(n.cfg.RPC, "propose", func(ctx context.Context, _ transport.Peer, req proposeRequest) (proposeAnswer, error) {
		if err := submittable(req.Data, n.State().Cluster.Gate); err != nil {
			return proposeAnswer{}, err
		}
		t, err := n.leading()
		if err != nil {
			return proposeAnswer{}, err
		}
		a, err := t.propose(ctx, req.Data)
		if err != nil {
			return proposeAnswer{}, toWire(err)
		}
		return proposeAnswer{a.Result, a.State.Index}, nil
	})
	transport.Register(n.cfg.RPC, "keepalive", func(ctx context.Context, from transport.Peer, k Keepalive) (KeepaliveAnswer, error) {
		if string(k.Node) != from.NodeID {
			return KeepaliveAnswer{}, &transport.Error{Code: transport.CodeRefused, Message: fmt.Sprintf("node %s sent a keepalive of node %s", from.NodeID, k.Node)}
		}
		t, err := n.leading()
		if err != nil {
			return KeepaliveAnswer{}, err
		}
		ans, err := t.keepalive(ctx, k)
		return ans, toWire(err)
	})
	transport.Register(n.cfg.RPC, "read", func(ctx context.Context, _ transport.Peer, _ struct{}) (readAnswer, error) {
		t, err := n.leading()
		if err != nil {
			return readAnswer{}, err
		}
		a, err := t.propose(ctx, encode(fsm.Tick{}))
		if err != nil {
			return readAnswer{}, toWire(err)
		}
		return readAnswer{a.State.Index}, nil
	})
	transport.Register(n.cfg.RPC, "state", func(context.Context, transport.Peer, struct{}) (View, error) { return n.View(), nil })
}

// leading is the term of this node, or the error that tells who leads.
func (n *Node) leading() (*term, error) {
	if t := n.term.Load(); t != nil {
		return t, nil
	}
	return nil, n.notLeader()
}

func (n *Node) notLeader() *transport.Error {
	e := &transport.Error{Code: transport.CodeNotLeader, Message: "this node does not lead"}
	if id := n.leader(); id != "" && id != n.cfg.ID {
		e.Leader = n.book.addr(id)
	}
	return e
}

// toWire keeps the difference between "not done" and "perhaps done".
func toWire(err error) error {
	switch {
	case errors.Is(err, errNotLeading):
		return &transport.Error{Code: transport.CodeNotLeader, Message: err.Error()}
	case errors.Is(err, ErrUnknownOutcome):
		return &transport.Error{Code: codeUnknown, Message: err.Error()}
	}
	return err
}

// View is what this node knows, without asking anybody.
func (n *Node) View() View {
	st := n.Status()
	return View{State: n.State(), Status: st, Age: st.LastContact}
}

// ViewOf asks another node for its View.
func (n *Node) ViewOf(ctx context.Context, id fsm.NodeID) (View, error) {
	v := View{State: fsm.NewState()}
	err := n.book.call(ctx, id, "state", struct{}{}, &v)
	return v, err
}
