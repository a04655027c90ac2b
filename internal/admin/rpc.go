package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"matriarch/fsm"
	"matriarch/transport"
)

// Names of the calls.
const (
	CallStatus      = "status"
	CallAdmin       = "admin"
	CallRestart     = "restart_standby"
	CallWouldSwitch = "would_switch"
	CallCitus       = "citus"
	CallReinit      = "reinit"
	CallSnapshot    = "snapshot"
)

// Source is a node, as this package needs it. Both methods may be called concurrently.
type Source interface {
	// Status does no I/O: health checks ask for it every second.
	Status(ctx context.Context) Status
	// Submit proposes a command, through the leader, and answers what became of it.
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// RestartStandby stops this node's PostgreSQL, a standby, so that it starts again.
	RestartStandby(ctx context.Context) error
	// Reinit sets this node's data directory aside and clones it anew from the node given; empty: from the primary.
	Reinit(ctx context.Context, from fsm.NodeID) error
	// Snapshot is the whole replicated state, secrets' hashes included, with everything that was committed when it was called.
	Snapshot(ctx context.Context) (*fsm.State, error)
	// WouldSwitch says, on the leader, whom a switchover would make primary. It changes nothing; an error is the refusal.
	WouldSwitch(ctx context.Context, g fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error)
	// Citus looks at the Citus metadata, or, on the leader, changes what an operator may.
	Citus(ctx context.Context, r CitusRequest) ([]CitusAnswer, error)
}

// SwitchQuestion asks what a switchover would do.
type SwitchQuestion struct {
	Group fsm.GroupID `json:"group"`
	To    fsm.NodeID  `json:"to"`
}

// ReinitRequest asks a node to be cloned anew.
type ReinitRequest struct {
	From fsm.NodeID `json:"from,omitempty"` // empty: the primary
}

// Request carries one command that an operator may give: exactly one field is set.
type Request struct {
	TokenPut      *fsm.TokenPut      `json:"token_put,omitempty"`
	TokenDrop     *fsm.TokenDrop     `json:"token_drop,omitempty"`
	NodePut       *fsm.NodePut       `json:"node_put,omitempty"` // tags only: a node is drained before it leaves
	NodeRemove    *fsm.NodeRemove    `json:"node_remove,omitempty"`
	OperationPut  *fsm.OperationPut  `json:"operation_put,omitempty"`
	OperationDrop *fsm.OperationDrop `json:"operation_drop,omitempty"`
	GroupSet      *fsm.GroupSet      `json:"group_set,omitempty"`
	SettingsPut   *fsm.SettingsPut   `json:"settings_put,omitempty"`
	GateSet       *fsm.GateSet       `json:"gate_set,omitempty"`
}

// Command is the one command of the request.
func (r Request) Command() (fsm.Command, error) {
	var out []fsm.Command
	add(&out, r.TokenPut)
	add(&out, r.TokenDrop)
	add(&out, r.NodePut)
	add(&out, r.NodeRemove)
	add(&out, r.OperationPut)
	add(&out, r.OperationDrop)
	add(&out, r.GroupSet)
	add(&out, r.SettingsPut)
	add(&out, r.GateSet)
	if len(out) != 1 {
		return nil, &transport.Error{
			Code: transport.CodeBadRequest, Message: fmt.Sprintf("request holds %d commands that this version knows, not one", len(out)),
			Hint: "use the same version of matriarch on the command line and on the nodes",
		}
	}
	return out[0], nil
}

func add[C fsm.Command](out *[]fsm.Command, c *C) {
	if c != nil {
		*out = append(*out, *c)
	}
}

// Register adds the calls to a node's RPC server.
func Register(rpc *transport.RPCServer, src Source) {
	transport.Register(rpc, CallStatus, func(ctx context.Context, _ transport.Peer, _ struct{}) (Status, error) {
		return src.Status(ctx).Public(), nil
	})
	transport.Register(rpc, CallAdmin, func(ctx context.Context, _ transport.Peer, req Request) (fsm.Result, error) {
		cmd, err := req.Command()
		if err != nil {
			return fsm.Result{}, err
		}
		if put, ok := cmd.(fsm.NodePut); ok {
			if cmd, err = retagged(src.Status(ctx).State, put); err != nil {
				return fsm.Result{}, err
			}
		}
		return src.Submit(ctx, cmd)
	})
	transport.Register(rpc, CallRestart, func(ctx context.Context, _ transport.Peer, _ struct{}) (struct{}, error) {
		return struct{}{}, refused(src.RestartStandby(ctx))
	})
	transport.Register(rpc, CallReinit, func(ctx context.Context, _ transport.Peer, r ReinitRequest) (struct{}, error) {
		return struct{}{}, refused(src.Reinit(ctx, r.From))
	})
	transport.Register(rpc, CallSnapshot, func(ctx context.Context, _ transport.Peer, _ struct{}) (json.RawMessage, error) {
		s, err := src.Snapshot(ctx)
		if err != nil {
			return nil, refused(err)
		}
		var b bytes.Buffer
		err = fsm.WriteSnapshot(&b, s)
		return b.Bytes(), err
	})
	transport.Register(rpc, CallWouldSwitch, func(ctx context.Context, _ transport.Peer, q SwitchQuestion) (fsm.NodeID, error) {
		to, err := src.WouldSwitch(ctx, q.Group, q.To)
		return to, refused(err)
	})
	transport.Register(rpc, CallCitus, func(ctx context.Context, _ transport.Peer, r CitusRequest) ([]CitusAnswer, error) {
		out, err := src.Citus(ctx, r)
		return out, refused(err)
	})
}

// refused carries an error's words to the other side.
func refused(err error) error {
	if _, already := errors.AsType[*transport.Error](err); err == nil || already {
		return err
	}
	return &transport.Error{Code: transport.CodeRefused, Message: err.Error()}
}

// retagged keeps everything of a node but its tags as the state has it.
func retagged(s *fsm.State, put fsm.NodePut) (fsm.Command, error) {
	if s != nil {
		if n, ok := s.Nodes[put.Node.ID]; ok {
			n.Tags = put.Node.Tags
			return fsm.NodePut{Node: n}, nil
		}
	}
	return nil, &transport.Error{Code: transport.CodeRefused, Message: fmt.Sprintf("node %s is not a member of this cluster", put.Node.ID)}
}
