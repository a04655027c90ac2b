package fsm

import (
	"fmt"
	"slices"
	"time"
)

// Operation is work on a group that somebody asked for.
type Operation struct {
	ID         string    `json:"id"`
	Kind       string    `json:"kind"`           // failover, switchover or restart
	From       NodeID    `json:"from,omitempty"` // the holder when it began
	To         NodeID    `json:"to"`             // empty: the best standby
	Trust      bool      `json:"trust,omitempty"`
	AcceptLoss bool      `json:"accept_loss,omitempty"` // To wins whatever others may have
	Force      bool      `json:"force,omitempty"`       // transactions in the way of the pause are ended
	Phase      string    `json:"phase"`
	Epoch      Epoch     `json:"epoch,omitzero"` // under which it works; it ends with it
	By         string    `json:"by"`
	At         time.Time `json:"at"`
	Due        time.Time `json:"due,omitzero"` // not before

	Steps    []Step `json:"steps,omitempty"`     // phases that are over
	PausedMS int64  `json:"paused_ms,omitempty"` // how long writes waited
	Done     bool   `json:"done,omitempty"`      // it reached its end
	Outcome  string `json:"outcome,omitempty"`   // one sentence, once it is over

	Sick bool `json:"sick,omitempty" since:"2"` // Matriarch's own switchover: the primary is sick, but still stops in good order

	WaitMoves time.Duration `json:"wait_moves,omitempty"` // how long the check waits for shards on the move; 0: they are a refusal
}

// Step is one phase that is over. Took is of the leader's clock; 0 when the leader changed meanwhile.
type Step struct {
	Phase string `json:"phase"`
	Took  int64  `json:"ms"`
}

// The kinds of operations.
const (
	Failover   = "failover"
	Switchover = "switchover"
	Restart    = "restart" // of a primary, which stays one
)

// The phases of a switchover or a restart. Check and pause roll back; from demote on there is only forward.
const (
	Check   = "check"
	Pause   = "pause"
	Demote  = "demote"
	Promote = "promote"
	Resume  = "resume"
)

// Pausing reports whether the operation makes the formation's clients wait.
func (o *Operation) Pausing() bool {
	return o != nil && (o.Kind == Switchover || o.Kind == Restart)
}

// Demoting reports whether the holder of an epoch has been asked to stop in good order.
func (o *Operation) Demoting(e Epoch) bool { return o.Pausing() && o.Phase == Demote && o.Epoch == e }

// Forward reports whether the operation cannot be taken back any more.
func (o *Operation) Forward() bool {
	return o.Pausing() && slices.Contains([]string{Demote, Promote, Resume}, o.Phase)
}

// promotes reports whether the operation waits for this holder to open.
func (o *Operation) promotes(holder NodeID) bool {
	return o.Pausing() && o.Phase == Promote && o.To == holder
}

// End is where a holder stopped in good order: its last record begins at LSN. Who has that record has everything that was ever
// acknowledged up to that epoch, whatever the pairs in force then would say.
type End struct {
	Epoch    Epoch    `json:"epoch"`
	Timeline Timeline `json:"timeline"`
	LSN      LSN      `json:"lsn"`
	Pairs    []Pair   `json:"pairs"` // in force then, for recruits that lack the record
}

// pairs are all that an election may have to satisfy.
func (g Group) pairs() []Pair {
	if g.Ended == nil {
		return g.Sync.Pairs
	}
	return append(slices.Clone(g.Ended.Pairs), g.Sync.Pairs...)
}

// over ends the group's operation.
func (e entry) over(g *Group, ok bool, outcome string) {
	op := *g.Op
	op.Done, op.Outcome = ok, outcome
	g.Op, g.LastOp = nil, &op
	text := outcome
	if !ok {
		text = "given up: " + outcome
	}
	e.note(g.ID, History{Kind: "operation", Node: op.To, Epoch: g.Epoch, Text: text})
}

func (e entry) operationPut(c OperationPut) Result {
	g, ok := e.Groups[c.Group]
	op := c.Operation
	switch {
	case !ok:
		return refuse("group %d is not known", c.Group)
	case !slices.Contains([]string{Failover, Switchover, Restart}, op.Kind):
		return refuse("operation %q: use failover, switchover or restart", op.Kind)
	case g.Op != nil && g.Op.ID == op.ID || g.Planned != nil && g.Planned.ID == op.ID:
		return done
	case op.Pausing() && !op.Due.IsZero():
		return e.plan(g, op)
	}
	return e.begin(g, op)
}

// plan keeps an operation until its time has come.
func (e entry) plan(g Group, op Operation) Result {
	if g.Planned != nil {
		return refuse("group %d: a %s is planned for %s already: cancel it first", g.ID, g.Planned.Kind, g.Planned.Due.Format(time.RFC3339))
	}
	if res := e.fits(g, op); !res.OK {
		return res
	}
	op.Phase, op.Steps, op.Outcome, op.Done = "", nil, "", false
	g.Planned = &op
	e.Groups[g.ID] = g
	e.note(g.ID, History{Kind: "operation", Node: op.To, Epoch: g.Epoch, Text: fmt.Sprintf("%s planned for %s by %s", op.Kind, op.Due.Format(time.RFC3339), op.By)})
	return done
}

// fits checks what does not change with time.
func (e entry) fits(g Group, op Operation) Result {
	n, member := e.Nodes[op.To]
	switch {
	case op.To != "" && (!member || n.Group != g.ID):
		return refuse("%s is not a member of group %d", e.Name(op.To), g.ID)
	case op.Kind == Failover:
		return done
	case op.Kind == Switchover && op.To != "" && (n.Tags.NoFailover || n.Tags.FailoverPriority < 0):
		return refuse("%s is tagged nofailover: it may not become primary", n.Name)
	}
	return done
}

func (e entry) begin(g Group, op Operation) Result {
	if res := e.fits(g, op); !res.OK {
		return res
	}
	switch {
	case op.Trust && (!g.Sync.Unknown || op.To == ""):
		return refuse("group %d: a data directory to trust is named only after the control plane was rebuilt, together with the node", g.ID)
	case op.AcceptLoss && (op.Kind != Failover || op.To == ""):
		return refuse("group %d: the loss of data is accepted only for a failover to a node that is named", g.ID)
	case g.Op != nil:
		return refuse("group %d: a %s asked for by %s is under way", g.ID, g.Op.Kind, g.Op.By)
	case g.Held() && g.Lease.Holder == op.To && op.Kind != Restart:
		return refuse("%s is the primary of group %d already", e.Name(op.To), g.ID)
	}
	if op.Pausing() {
		if res := e.mayPause(g, op); !res.OK {
			return res
		}
		op.From, op.Epoch, op.Phase = g.Lease.Holder, g.Epoch, Check
		if op.Kind == Restart {
			op.To = op.From
		}
	}
	op.Steps, op.Outcome, op.Done = nil, "", false
	g.Op = &op
	e.Groups[g.ID] = g
	to := ""
	if op.To != "" && op.Kind != Restart {
		to = " to " + e.Name(op.To)
	}
	text := fmt.Sprintf("%s%s asked for by %s", op.Kind, to, op.By)
	if op.AcceptLoss {
		text += ", who accepts the loss of data"
	}
	e.note(g.ID, History{Kind: "operation", Node: op.To, Epoch: g.Epoch, Text: text})
	return done
}

// mayPause: a group that works as it should, and no other pause in the formation.
func (e entry) mayPause(g Group, op Operation) Result {
	switch {
	case g.Paused:
		return refuse("group %d is paused: resume it first (matriarch config set --group %d paused=false)", g.ID, g.ID)
	case !g.Opened():
		return refuse("group %d has no open primary to take over from: use `matriarch failover --group %d`", g.ID, g.ID)
	case g.Lease.Revoked:
		return refuse("group %d: the lease of %s is revoked, a failover is under way", g.ID, e.Name(g.Lease.Holder))
	}
	for _, id := range e.GroupIDs() {
		if o := e.Groups[id].Op; o.Pausing() {
			return refuse("group %d: a %s of group %d is under way, and one at a time may pause the formation", g.ID, o.Kind, id)
		}
	}
	return done
}

func (e entry) operationMove(c OperationMove) Result {
	g := e.Groups[c.Group]
	if c.From == "" {
		return e.due(g, c)
	}
	switch {
	case g.Op == nil || g.Op.ID != c.ID:
		return refuse("group %d has no such operation", c.Group)
	case !g.Op.Pausing() || g.Op.Phase != c.From:
		return refuse("group %d: the %s is in phase %s, not %s", c.Group, g.Op.Kind, g.Op.Phase, c.From)
	case g.Op.Epoch != g.Epoch:
		return refuse("group %d: the %s belongs to epoch %s, which has ended", c.Group, g.Op.Kind, g.Op.Epoch)
	}
	op := *g.Op
	if op.To == "" {
		op.To = c.Node
	}
	if n, ok := e.Nodes[op.To]; !ok || n.Group != g.ID {
		return refuse("group %d: the candidate is not a member", c.Group)
	}
	op.Steps = append(slices.Clone(op.Steps), c.Steps...)
	op.PausedMS = max(op.PausedMS, c.PausedMS)
	op.Phase = c.To
	g.Op = &op
	if op.Sick && c.To == Demote {
		g.SickMoved = e.at
	}
	if c.To == "" {
		e.over(&g, true, c.Text)
	}
	e.Groups[g.ID] = g
	return done
}

// due begins what was planned. What cannot begin is dropped: its time is over.
func (e entry) due(g Group, c OperationMove) Result {
	if g.Planned == nil || g.Planned.ID != c.ID {
		return refuse("group %d has no such operation planned", c.Group)
	}
	op := *g.Planned
	g.Planned = nil
	e.Groups[g.ID] = g
	if res := e.begin(g, op); !res.OK {
		g = e.Groups[g.ID]
		op.Outcome = res.Reason
		g.LastOp = &op
		e.Groups[g.ID] = g
		e.note(g.ID, History{Kind: "operation", Node: op.To, Epoch: g.Epoch, Text: fmt.Sprintf("given up: the planned %s could not begin: %s", op.Kind, res.Reason)})
	}
	return done
}

func (e entry) operationDrop(c OperationDrop) Result {
	g := e.Groups[c.Group]
	switch {
	case g.Planned != nil && g.Planned.ID == c.ID:
		op := *g.Planned
		op.Outcome = c.Reason
		g.Planned, g.LastOp = nil, &op
		e.note(c.Group, History{Kind: "operation", Epoch: g.Epoch, Text: fmt.Sprintf("planned %s cancelled: %s", op.Kind, c.Reason)})
	case g.Op == nil || g.Op.ID != c.ID:
		return refuse("group %d has no such operation", c.Group)
	case c.Cancel && g.Op.Forward():
		return refuse("group %d: the %s is in phase %s, from which there is only forward", c.Group, g.Op.Kind, g.Op.Phase)
	default:
		e.over(&g, false, c.Reason)
	}
	e.Groups[c.Group] = g
	return done
}
