package agent

import (
	"context"
	"time"

	"matriarch/consensus/lease"
	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// Control is the control plane as a node uses it.
type Control interface {
	State() *fsm.State
	// Submit proposes a command, through the leader, and answers what became of it.
	Submit(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// Read answers a state that has everything committed when it was called.
	Read(ctx context.Context) (*fsm.State, error)
	// HeardLeader is how long ago a Raft leader was heard of: 0 on the leader itself, negative when never.
	HeardLeader() time.Duration
	// Keepalive sends one keepalive to the leader and waits for its answer.
	Keepalive(ctx context.Context, b Beat) (Answer, error)
}

// Beat is one keepalive.
type Beat struct {
	Node     fsm.NodeID
	Instance string
	Group    fsm.GroupID
	Epoch    fsm.Epoch // of the lease to renew; zero: none
	Report   fsm.Report
}

// Answer is the leader's: the state right after the keepalive's own log entry.
type Answer struct {
	Held    bool
	Lease   fsm.Lease
	Index   uint64        // of that state
	NextIn  time.Duration // when the leader would like the next one
	Removed bool
	Present []fsm.NodeID // members of the group that the leader hears of; none: it does not say
}

// Roster is what PostgreSQL's hands must know of the group: whom to let in, whose slots to keep, how standbys are called.
type Roster struct {
	Self      fsm.NodeID
	Group     fsm.Group
	Members   []fsm.Node // of the group
	Nodes     []fsm.Node // of the whole cluster, whose managers and Citus nodes may connect
	Databases []string
	Citus     bool
	Absent    []fsm.NodeID     // members that have not been heard of for so long that nothing is kept for them
	Security  fsm.LinkSecurity // how links prove themselves
	Pooled    bool             // Citus' links lead to connection pools
}

// Observation is what PostgreSQL says of itself.
type Observation struct {
	PG       decide.Postgres // Senders without Missing
	Conf     decide.Conf     // effective values
	Receive  fsm.LSN
	Version  int
	Pending  bool // a setting waits for a restart
	SetAside int
	Aside    []string // where that is

	Slots       []decide.SlotSeen
	SlotTrouble string // what is wrong with them, of a primary
}

// Postgres is the hands on the node's one PostgreSQL. Every method may block; all end with ctx.
type Postgres interface {
	Observe(ctx context.Context, r Roster) Observation
	Local() (decide.Local, error)
	InitDB(ctx context.Context) error
	// Identify reads system identifier and timeline of the data directory.
	Identify(ctx context.Context) (string, fsm.Timeline, error)
	// Clone replaces the data directory. prefix says that the group has all of the old one.
	// lineage is that of the primary of epoch: see decide.Local.
	Clone(ctx context.Context, from fsm.Node, epoch fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, prefix bool) error
	// CloneRoom reports why a clone of the node could not be made now. It changes nothing.
	CloneRoom(ctx context.Context, from fsm.Node) error
	// Progress is how far the clone under way has come, in bytes; 0, 0 when there is none.
	Progress() (copied, size int64)
	Rewind(ctx context.Context, from fsm.Node, epoch fsm.Epoch, lineage map[fsm.Timeline]fsm.Epoch, fork fsm.LSN) error
	// Configure writes, reloads and verifies by the effective values. Leaving an upstream ends the walreceiver.
	Configure(ctx context.Context, r Roster, c decide.Conf) error
	// Applied is what Configure set last and saw in force.
	Applied() decide.Conf
	// Prepare gets everything ready for a start as standby with this configuration.
	Prepare(ctx context.Context, r Roster, c decide.Conf) error
	// Promise makes the promise durable and makes this server unable to follow any epoch below it.
	Promise(ctx context.Context, r Roster, e fsm.Epoch) error
	// Settle waits until everything received is replayed and says where that is.
	Settle(ctx context.Context) (fsm.Timeline, fsm.LSN, error)
	// SetLineage writes down which epoch made each of these timelines; timeline 0 stands for any that is not listed.
	SetLineage(made map[fsm.Timeline]fsm.Epoch) error
	// SetWord writes down for how long this node has given its word not to become primary; 0: it has not. See decide.Local.
	SetWord(length time.Duration) error
	// Promoted waits until the server is out of recovery and says what its promotion made.
	Promoted(ctx context.Context) (tl, parent fsm.Timeline, fork fsm.LSN, err error)
	// Origin says which timeline a timeline held here left, and where; it works on a standby, too.
	Origin(ctx context.Context, tl fsm.Timeline) (parent fsm.Timeline, fork fsm.LSN, err error)
	// Ended says on which timeline, and with which last record, a stopped primary ended in good order; ok is false for any other end.
	Ended(ctx context.Context) (tl fsm.Timeline, last fsm.LSN, ok bool, err error)
	// EndSenders ends every walsender: a fast stop waits for them.
	EndSenders(ctx context.Context) error
	// Slots makes the slots of the members on a primary, and drops them on a standby.
	Slots(ctx context.Context, r Roster) error
	// KeepSlots looks after the group's permanent slots, on its primary or on a standby of it, and says which are now made.
	KeepSlots(ctx context.Context, r Roster, primary fsm.Node) (made []string, err error)
	// DropUnready drops, on a server just promoted, copies of logical slots that are not whole.
	DropUnready(ctx context.Context, r Roster) error
	// Barrier passes when no walsender goes by an older setting and K of S have flushed what the primary has now.
	Barrier(ctx context.Context, r Roster, c decide.Conf) error
	// FirstCommit makes one synchronous commit.
	FirstCommit(ctx context.Context, e fsm.Epoch) error
	// Try opens a new session and, on a primary, writes through the log, durable here only. connected is called once the session is there.
	Try(ctx context.Context, primary bool, connected func()) decide.Trial
	// Disks looks at the file systems of the data directory and of its log. It may hang with them.
	Disks() []decide.Disk
	// Stopped reports whether the postmaster is stopped by a signal. It never hangs.
	Stopped() bool
	// Equip makes roles and databases that the group must have, on a primary.
	Equip(ctx context.Context, r Roster) error
}

// Sentinel is the parent of PostgreSQL.
type Sentinel interface {
	Instance() string
	// Ping asks for the status and answers within the context.
	Ping(ctx context.Context) (decide.Sentinel, error)
	// Remembered is the deadline an earlier agent gave to this very instance.
	Remembered() (fsm.Epoch, lease.Stamp, bool)
	Start(ctx context.Context) error
	Stop(ctx context.Context, immediate bool) error
	// Promote answers ErrUnfit when this host must not have a primary, ErrSpent when another epoch is needed.
	Promote(ctx context.Context, e fsm.Epoch) error
	Adopt(ctx context.Context, e fsm.Epoch) error
	// Renounce makes sure that this instance never promotes under e.
	Renounce(ctx context.Context, e fsm.Epoch) error
	Deadline(ctx context.Context, e fsm.Epoch, until lease.Stamp) error
	// Events fires when something changed: ping again.
	Events() <-chan struct{}
	// Reset kills every process of PostgreSQL without the sentinel's help and starts another sentinel.
	Reset(ctx context.Context) error
}

// Peers are the other members of the group.
type Peers interface {
	// Word asks a member for its word. An error says why it did not give it, or that it did not answer.
	Word(ctx context.Context, to fsm.Node, r decide.WordRequest) error
}

// Hooks are the operator's own commands.
type Hooks interface {
	// PrePromote runs before a promotion; an error gives the lease back.
	PrePromote(ctx context.Context, r Roster, e fsm.Epoch) error
	// RoleChanged tells of a new role. It never blocks.
	RoleChanged(r Roster, role string, e fsm.Epoch)
}

// NoHooks runs nothing.
type NoHooks struct{}

// PrePromote implements Hooks.
func (NoHooks) PrePromote(context.Context, Roster, fsm.Epoch) error { return nil }

// RoleChanged implements Hooks.
func (NoHooks) RoleChanged(Roster, string, fsm.Epoch) {}
