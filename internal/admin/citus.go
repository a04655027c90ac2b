package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/transport"
)

// CitusDo is what is asked of the Citus metadata.
type CitusDo string

// What any node answers, and what only the leader does, since it writes in its term.
const (
	CitusStatus    CitusDo = "status"
	CitusPlan      CitusDo = "plan"
	CitusProgress  CitusDo = "progress"
	CitusRebalance CitusDo = "rebalance"
	CitusStop      CitusDo = "stop"
	CitusDrain     CitusDo = "drain"
	CitusUndrain   CitusDo = "undrain"
	CitusRemove    CitusDo = "remove_group"
)

// Writes reports whether it is the leader's.
func (d CitusDo) Writes() bool {
	return !slices.Contains([]CitusDo{CitusStatus, CitusPlan, CitusProgress}, d)
}

// CitusRequest is one question, or one piece of work.
type CitusRequest struct {
	Do       CitusDo                `json:"do"`
	Database string                 `json:"database,omitempty"` // empty: all that are listed
	Group    fsm.GroupID            `json:"group,omitempty"`
	Options  citus.RebalanceOptions `json:"options,omitzero"`
}

// CitusAnswer is what became of it in one database.
type CitusAnswer struct {
	Database string                `json:"database"`
	Error    string                `json:"error,omitempty"`
	Job      int64                 `json:"job,omitempty"` // of what was started; 0: nothing has to move
	Moves    []citus.Move          `json:"moves,omitempty"`
	Progress *citus.Progress       `json:"progress,omitempty"`
	Status   *citus.DatabaseStatus `json:"status,omitempty"`
}

// Citus planning asks every node for sizes, in one database after the other.
const (
	citusLook = 15 * time.Second
	citusWork = 3 * time.Minute
)

// Citus asks one node, or the first that answers when none is given. After an error of work its outcome is open.
func (c *Client) Citus(ctx context.Context, to fsm.Node, req CitusRequest) ([]CitusAnswer, error) {
	limit := citusWork
	if req.Do == CitusStatus || req.Do == CitusProgress {
		limit = citusLook
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if to.ID == "" {
		r, err := c.first(ctx)
		if err != nil {
			return nil, err
		}
		to = fsm.Node{ID: r.peer.ID, Peer: r.peer.Addr}
	}
	var out []CitusAnswer
	err := c.rpc.Call(ctx, to.Peer, string(to.ID), CallCitus, req, &out)
	refusal, answered := errors.AsType[*transport.Error](err)
	switch {
	case answered:
		err = refusal // its words need no address
	case err != nil && req.Do.Writes():
		err = fmt.Errorf("%w: whether it was done is not known, look with 'matriarch citus status' and 'matriarch citus rebalance --watch'", err)
	}
	return out, err
}
