package fsm

import (
	"encoding/json"
	"fmt"
	"time"
)

// Protocol is the highest command version this binary understands.
const Protocol = 2

// Envelope carries one command through the log. Old logs replay for ever: fields are only added.
type Envelope struct {
	V      int             `json:"v"`
	Type   string          `json:"type"`
	ID     string          `json:"id,omitempty"`     // request id; empty for ticks, which are never repeated
	Ignore bool            `json:"ignore,omitempty"` // a node that does not know the type may skip it
	At     time.Time       `json:"at,omitzero"`      // proposer's wall clock, for people
	Body   json.RawMessage `json:"body"`
}

// Command is one change of the state.
type Command interface {
	// Kind names the command in the log.
	Kind() string
}

// Bootstrap is the first entry of a cluster.
type Bootstrap struct {
	ClusterID   string   `json:"cluster_id"`
	Incarnation uint64   `json:"incarnation"`
	Settings    Settings `json:"settings"`
	Node        Node     `json:"node"`
	Token       *Token   `json:"token,omitempty"`
}

// Join adds a node on the strength of a token, or renews what a known node says of itself.
type Join struct {
	Node  Node   `json:"node"`
	Token string `json:"token"` // token id; the leader has checked secret and expiry
}

// NodePut updates what a node says of itself.
type NodePut struct {
	Node Node `json:"node"`
}

// NodeRemove takes a node out for good.
type NodeRemove struct {
	Node NodeID `json:"node"`
}

// TokenPut makes a join token known, TokenDrop revokes it.
type TokenPut struct {
	Token Token `json:"token"`
}

// TokenDrop revokes a join token.
type TokenDrop struct {
	ID string `json:"id"`
}

// SettingsPut replaces the cluster's settings.
type SettingsPut struct {
	Settings Settings `json:"settings"`
}

// Claim lets one node create a group's first data directory.
type Claim struct {
	Group GroupID `json:"group"`
	Node  NodeID  `json:"node"`
}

// Initialised records the group's system identifier and the timeline it begins with.
type Initialised struct {
	Group    GroupID  `json:"group"`
	Node     NodeID   `json:"node"`
	SystemID string   `json:"system_id"`
	Timeline Timeline `json:"timeline"`
}

// Tick renews leases by its mere place in the log and carries the reports that changed.
type Tick struct {
	Reports map[NodeID]Report `json:"reports,omitempty"`
}

// GrantCmd gives the free lease of a group away.
type GrantCmd struct {
	Group    GroupID       `json:"group"`
	Prev     Epoch         `json:"prev"` // compare-and-set: the group's epoch as the proposer saw it
	Holder   NodeID        `json:"holder"`
	Instance string        `json:"instance"`
	TTL      time.Duration `json:"ttl"`
	Pair     Pair          `json:"pair"`
	LSN      LSN           `json:"lsn"` // position the winner answered
	Reason   string        `json:"reason"`
	Adopt    Timeline      `json:"adopt,omitempty"`         // a server that is already writable, on this timeline
	From     Epoch         `json:"from,omitzero" since:"2"` // the epoch that made the timeline it stands on, by its own record
}

// Release gives a lease back: no process of that PostgreSQL is left.
type Release struct {
	Group    GroupID  `json:"group"`
	Epoch    Epoch    `json:"epoch"`
	Reason   string   `json:"reason"`
	Timeline Timeline `json:"timeline,omitempty"` // with LSN: it stopped in good order, and its last record begins there
	LSN      LSN      `json:"lsn,omitempty"`
}

// Expire ends a lease whose deadline has passed on the leader.
type Expire struct {
	Group GroupID `json:"group"`
	Epoch Epoch   `json:"epoch"`
}

// Revoke forbids every further renewal of a lease and every change of sync under it.
type Revoke struct {
	Group  GroupID `json:"group"`
	Epoch  Epoch   `json:"epoch"`
	Reason string  `json:"reason"`
	Early  bool    `json:"early,omitempty"`          // the next Grant does not wait for the end of the lease
	Sick   bool    `json:"sick,omitempty" since:"2"` // the holder is taken off for sickness
}

// Promoted records the timeline a promotion made, before anybody may follow it.
type Promoted struct {
	Group    GroupID  `json:"group"`
	Epoch    Epoch    `json:"epoch"`
	Timeline Timeline `json:"timeline"`
	Parent   Timeline `json:"parent"`
	Fork     LSN      `json:"fork"`
}

// SyncPropose begins the change to another synchronous set.
type SyncPropose struct {
	Group  GroupID `json:"group"`
	Epoch  Epoch   `json:"epoch"`
	Pair   Pair    `json:"pair"`
	Reason string  `json:"reason"`
}

// SyncConfirm ends it: the barrier has been passed.
type SyncConfirm struct {
	Group GroupID `json:"group"`
	Epoch Epoch   `json:"epoch"`
	Pair  Pair    `json:"pair"`
}

// GroupSet changes a group's policy.
type GroupSet struct {
	Group     GroupID `json:"group"`
	Mode      Mode    `json:"mode,omitempty"`
	Paused    *bool   `json:"paused,omitempty"`
	Early     *bool   `json:"early_failover,omitempty"`
	Sick      *bool   `json:"failover_on_sick,omitempty" since:"2"`
	Strict    *bool   `json:"strict,omitempty"`
	SyncCount *int    `json:"synchronous_node_count,omitempty"`
	SyncLag   *int64  `json:"maximum_lag_on_syncnode,omitempty"`
	Failsafe  *bool   `json:"failsafe,omitempty" since:"2"`
	Retired   *bool   `json:"retired,omitempty"`      // only of a worker group whose shards are elsewhere: who proposes it has looked
	By        string  `json:"by,omitempty" since:"2"` // who asked for it, for the history
}

// EligibleSet adds members to those that may be granted the group's lease. Its holder proposes it, once it knows them: from then
// on it asks them, too, before it stays up without a majority.
type EligibleSet struct {
	Group GroupID  `json:"group"`
	Epoch Epoch    `json:"epoch"`
	Nodes []NodeID `json:"nodes"`
}

// OperationPut asks for planned work on a group, OperationDrop gives it up.
type OperationPut struct {
	Group     GroupID   `json:"group"`
	Operation Operation `json:"operation"`
}

// OperationDrop gives planned work up.
type OperationDrop struct {
	Group  GroupID `json:"group"`
	ID     string  `json:"id"`
	Reason string  `json:"reason"`
	Cancel bool    `json:"cancel,omitempty"` // an operator asks: not once there is only forward
}

// OperationMove takes an operation from one phase to the next: from "" when its time has come, to "" at its end.
type OperationMove struct {
	Group    GroupID `json:"group"`
	ID       string  `json:"id"`
	From     string  `json:"from"`
	To       string  `json:"to"`
	Node     NodeID  `json:"node,omitempty"` // the candidate, when none was named
	Steps    []Step  `json:"steps,omitempty"`
	PausedMS int64   `json:"paused_ms,omitempty"`
	Text     string  `json:"text,omitempty"` // the outcome, at the end
}

// GateSet raises the version of commands that may be proposed. Older binaries stop at it.
type GateSet struct {
	Gate int `json:"gate"`
}

// Recovered begins a new incarnation after the control plane was rebuilt from one node.
type Recovered struct {
	Incarnation uint64 `json:"incarnation"`
}

// Kind implements Command.
func (Bootstrap) Kind() string { return "bootstrap" }

// Kind implements Command.
func (Join) Kind() string { return "join" }

// Kind implements Command.
func (NodePut) Kind() string { return "node_put" }

// Kind implements Command.
func (NodeRemove) Kind() string { return "node_remove" }

// Kind implements Command.
func (TokenPut) Kind() string { return "token_put" }

// Kind implements Command.
func (TokenDrop) Kind() string { return "token_drop" }

// Kind implements Command.
func (SettingsPut) Kind() string { return "settings_put" }

// Kind implements Command.
func (Claim) Kind() string { return "claim" }

// Kind implements Command.
func (Initialised) Kind() string { return "initialised" }

// Kind implements Command.
func (Tick) Kind() string { return "tick" }

// Kind implements Command.
func (GrantCmd) Kind() string { return "grant" }

// Kind implements Command.
func (Release) Kind() string { return "release" }

// Kind implements Command.
func (Expire) Kind() string { return "expire" }

// Kind implements Command.
func (Revoke) Kind() string { return "revoke" }

// Kind implements Command.
func (Promoted) Kind() string { return "promoted" }

// Kind implements Command.
func (SyncPropose) Kind() string { return "sync_propose" }

// Kind implements Command.
func (SyncConfirm) Kind() string { return "sync_confirm" }

// Kind implements Command.
func (GroupSet) Kind() string { return "group_set" }

// Kind implements Command.
func (EligibleSet) Kind() string { return "eligible_set" }

func (EligibleSet) since() int { return 2 }

// Kind implements Command.
func (OperationPut) Kind() string { return "operation_put" }

// Kind implements Command.
func (OperationDrop) Kind() string { return "operation_drop" }

// Kind implements Command.
func (OperationMove) Kind() string { return "operation_move" }

// Kind implements Command.
func (GateSet) Kind() string { return "gate_set" }

// Kind implements Command.
func (Recovered) Kind() string { return "recovered" }

// decoders know every command of this version.
var decoders = map[string]func(json.RawMessage) (Command, error){
	"bootstrap": decode[Bootstrap], "join": decode[Join], "node_put": decode[NodePut], "node_remove": decode[NodeRemove],
	"token_put": decode[TokenPut], "token_drop": decode[TokenDrop], "settings_put": decode[SettingsPut],
	"claim": decode[Claim], "initialised": decode[Initialised], "tick": decode[Tick], "grant": decode[GrantCmd],
	"release": decode[Release], "expire": decode[Expire], "revoke": decode[Revoke], "promoted": decode[Promoted],
	"sync_propose": decode[SyncPropose], "sync_confirm": decode[SyncConfirm], "group_set": decode[GroupSet],
	"operation_put": decode[OperationPut], "operation_drop": decode[OperationDrop], "operation_move": decode[OperationMove], "gate_set": decode[GateSet],
	"recovered": decode[Recovered], "eligible_set": decode[EligibleSet],
	"slot_put": decode[SlotPut], "slot_drop": decode[SlotDrop], "slot_made": decode[SlotMade],
}

func decode[C Command](b json.RawMessage) (Command, error) {
	var c C
	err := json.Unmarshal(b, &c)
	return c, err
}

// Encode wraps a command for the log. id makes it safe to propose again; at is the proposer's clock.
func Encode(c Command, id string, at time.Time) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.Kind(), err)
	}
	return json.Marshal(Envelope{V: Needs(c), Type: c.Kind(), ID: id, At: at.UTC().Truncate(time.Millisecond), Body: body})
}
