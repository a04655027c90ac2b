package obs

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"matriarch/fsm"
)

// Kind says what happened.
type Kind string

// The kinds of events. Their texts are label values and API content: they never change.
const (
	Started        Kind = "started"         // the agent began to run
	Stopped        Kind = "stopped"         // the agent ended in good order
	PostgresUp     Kind = "postgres_up"     // the server accepts connections
	PostgresDown   Kind = "postgres_down"   // the server ended, asked or not
	Granted        Kind = "granted"         // a node got the lease of a group
	Promoted       Kind = "promoted"        // a standby became the writable primary
	Released       Kind = "released"        // the holder gave its lease back
	Expired        Kind = "expired"         // a lease ran out
	Fenced         Kind = "fenced"          // a server without a valid lease was stopped
	Cloned         Kind = "cloned"          // a data directory was made from another node's
	Rewound        Kind = "rewound"         // a diverged data directory was turned back
	SyncChanged    Kind = "sync_changed"    // another set of standbys acknowledges commits
	Degraded       Kind = "degraded"        // commits no longer wait for a standby
	FailoverDone   Kind = "failover"        // a group has a new primary that nobody had planned
	LeaderChanged  Kind = "leader_changed"  // another node leads the control plane
	VotersChanged  Kind = "voters_changed"  // the set of voters is another
	MemberJoined   Kind = "member_joined"   // a node entered the cluster
	MemberRemoved  Kind = "member_removed"  // a node left the cluster for good
	CitusUpdated   Kind = "citus_updated"   // rows of pg_dist_node were put right
	OperatorAsked  Kind = "operator_asked"  // somebody asked for an operation
	OperationEnded Kind = "operation_ended" // an operation finished, well or not
)

// alarming kinds are logged as warnings.
var alarming = map[Kind]bool{PostgresDown: true, Expired: true, Fenced: true, Degraded: true, FailoverDone: true}

// Event is one fact of the cluster's life. Zero values mean "does not apply", except for Group: see NoGroup.
type Event struct {
	Time    time.Time   `json:"time"` // Emit stamps it when zero
	Kind    Kind        `json:"kind"`
	Node    string      `json:"node,omitempty"` // name of the node it is about
	Group   fsm.GroupID `json:"group"`
	Epoch   fsm.Epoch   `json:"epoch,omitzero"`
	Rule    string      `json:"rule,omitempty"` // id of the rule that decided it
	Message string      `json:"message"`        // one sentence with the numbers
}

// NoGroup is the group of an event that concerns none.
const NoGroup fsm.GroupID = -1

// Events takes a node's events to its log and metrics and remembers the last ones.
type Events struct {
	log     *slog.Logger
	metrics *Metrics

	mu     sync.Mutex
	recent []Event // ring: next is the oldest once it is full
	next   int
	keep   int
}

// NewEvents returns an Events that remembers the last keep events (at least one).
func NewEvents(log *slog.Logger, metrics *Metrics, keep int) *Events {
	return &Events{log: log, metrics: metrics, keep: max(keep, 1)}
}

// Emit logs, counts and remembers the event.
func (e *Events) Emit(ctx context.Context, ev Event) {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	level := slog.LevelInfo
	if alarming[ev.Kind] {
		level = slog.LevelWarn
	}
	e.log.LogAttrs(ctx, level, ev.Message, ev.attrs()...) //nolint:sloglint // the sentence is the event; its kind is the constant
	e.metrics.event(ev.Kind)

	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.recent) < e.keep {
		e.recent = append(e.recent, ev)
		return
	}
	e.recent[e.next] = ev
	e.next = (e.next + 1) % e.keep
}

// Recent returns the remembered events, the oldest first.
func (e *Events) Recent() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Concat(e.recent[e.next:], e.recent[:e.next])
}

func (ev Event) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.String("event", string(ev.Kind))}
	if ev.Node != "" {
		attrs = append(attrs, slog.String("node", ev.Node))
	}
	if ev.Group != NoGroup {
		attrs = append(attrs, slog.Int("group", int(ev.Group)))
	}
	if !ev.Epoch.IsZero() {
		attrs = append(attrs, slog.String("epoch", ev.Epoch.String()))
	}
	if ev.Rule != "" {
		attrs = append(attrs, slog.String("rule", ev.Rule))
	}
	return attrs
}
