package decide

import (
	"slices"
	"time"

	"matriarch/fsm"
)

// View holds everything a node's decision may depend on. It is built once per tick and never changed.
type View struct {
	Self      fsm.NodeID
	State     *fsm.State
	Removed   bool          // the leader says that this node was taken out for good
	Instance  string        // of our sentinel, drawn at its start
	LeaseLeft time.Duration // how long the answered keepalive of Sentinel.Epoch or, on a standby, of our lease in State is still valid
	Leased    bool          // that rests on keepalives answered to this very process alone, and State is as new as their answers
	WordLeft  time.Duration // how long this node's word not to become primary still binds it; 0: it does not
	Sentinel  Sentinel
	PG        Postgres
	Local     Local
	Conf      Conf          // what PostgreSQL is set to, effective values
	Equipped  fsm.Epoch     // the epoch under which roles and databases were last seen to be in place
	Job       string        // action under way, empty when none
	Backoff   time.Duration // left until a failed action may be tried again
	Failed    string        // what failed last, for the reason
}

// Sentinel is what the parent of PostgreSQL says.
type Sentinel struct {
	Connected  bool
	Silent     time.Duration // since its last answer
	Postmaster int           // pid, 0 when no process of PostgreSQL is left
	Remains    bool          // the postmaster is gone, and others of its processes are not
	Primary    bool          // writable, whoever promoted it
	Epoch      fsm.Epoch     // of the promotion
	Adopted    bool          // it did not start this postmaster
	Exit       string        // how the last postmaster ended
	Watchdog   string        // mode and state; empty: off
	Unfit      string        // why it would refuse a promotion
}

// Postgres is what PostgreSQL says.
type Postgres struct {
	Reachable  bool
	Why        string // when it is not
	InRecovery bool
	Timeline   fsm.Timeline
	LSN        fsm.LSN // end of what is replayed; with Settled, of all there is
	Settled    bool    // a standby that has replayed everything it has and receives nothing
	Streaming  bool    // its walreceiver streams
	WALRemoved bool    // the upstream no longer has what it needs
	Starved    bool    // replay has stopped: a limit is lower than where the log was written
	CopySlots  bool    // logical slots of the primary can be copied while this standby is stopped
	SlotsWrong bool    // the members' slots here are not those wanted: a primary has them all, a standby none
	Senders    []Sender
}

// Sender is one standby as the primary sees it, matched by its name of this epoch.
type Sender struct {
	Node      fsm.NodeID
	Streaming bool
	Lag       int64         // bytes between the primary's end of log and what it has flushed
	Missing   time.Duration // since it was last seen streaming
}

// Local is the node's own durable record, kept outside the data directory.
type Local struct {
	HasData    bool
	Promise    fsm.Epoch                  // nothing below it is followed any more
	Lineage    map[fsm.Timeline]fsm.Epoch // see LineageOf
	Unfinished string                     // a clone or rewind that did not end
	SystemID   string
	Word       time.Duration // the longest word not to become primary that may still bind it, from its start on; 0: none
	Stray      bool          // a postmaster runs here that no sentinel of ours started or watches
}

// LineageOf is the epoch that made a timeline held here. Before a promotion, key 0 gets its epoch: a timeline that is not
// listed was made by a promotion whose end this node did not live to write down.
func (l Local) LineageOf(tl fsm.Timeline) fsm.Epoch {
	if e, ok := l.Lineage[tl]; ok {
		return e
	}
	return l.Lineage[0]
}

// Phase says whom PostgreSQL lets in.
type Phase string

// The phases of the generated pg_hba.conf.
const (
	Closed  Phase = "closed"  // the manager on the local socket
	Members Phase = "members" // and the cluster's nodes
	Open    Phase = "open"    // and everybody the user lets in
)

// Conf is the part of PostgreSQL's configuration that changes with roles.
type Conf struct {
	Phase    Phase
	Sync     fsm.Pair
	Order    []fsm.NodeID // of Sync.S: the first k connected confirm; nil: any k
	Epoch    fsm.Epoch    // names in Sync, or the upstream, are of this epoch
	Upstream fsm.NodeID   // empty: follows nobody
	Access   string       // the nodes that Members lets in, as Access names them
	Links    uint64       // when it changes, sessions give up their connections to other groups, as Links says
	Spaces   int          // how many databases need worker processes
	Logical  bool         // the group has logical slots that standbys keep, too
	Security string       // how links prove themselves, as Security says
}

// Equal compares two configurations.
func (c Conf) Equal(o Conf) bool {
	return c.Phase == o.Phase && c.Sync.Equal(o.Sync) && slices.Equal(c.Order, o.Order) && c.Epoch == o.Epoch && c.Upstream == o.Upstream && c.Access == o.Access &&
		c.Links == o.Links && c.Spaces == o.Spaces && c.Logical == o.Logical && c.Security == o.Security
}

// Plan is the outcome of a decision.
type Plan struct {
	Rule   string // id of the rule that won
	Name   string
	Reason string // one sentence, with the numbers
	Action Action // nil: nothing to do
}

// Action is one step for the node's hands; the set is closed.
type Action interface{ action() }

// Actions. Those that can hurt carry the epoch they were decided under, and are checked again before they run.
type (
	// Exit ends the agent: the node was removed.
	Exit struct{}
	// Fence stops PostgreSQL at once. Late: the sentinel was to have killed it by now; without its help soon.
	Fence struct{ Late bool }
	// KillAll kills every process of the data directory without the sentinel's help, and starts another sentinel.
	KillAll struct{}
	// Release gives the lease back; no process of PostgreSQL is left.
	Release struct{ Epoch fsm.Epoch }
	// StopPG stops PostgreSQL in good order.
	StopPG struct{}
	// StepDown does so while clients wait: soon it asks less kindly.
	StepDown struct{ Epoch fsm.Epoch }
	// InitDB creates the group's first data directory.
	InitDB struct{}
	// Announce records the group's system identifier.
	Announce struct{}
	// Clone copies another node's data directory; what was there is set aside.
	Clone struct {
		From  fsm.NodeID
		Epoch fsm.Epoch
	}
	// Rewind takes back what the new primary does not have, after setting it aside.
	Rewind struct {
		From  fsm.NodeID
		Epoch fsm.Epoch
		Fork  fsm.LSN
	}
	// StartPG starts PostgreSQL, always as a standby.
	StartPG struct{}
	// Adopt puts a running server under the sentinel's watch.
	Adopt struct{ Epoch fsm.Epoch }
	// Configure writes and reloads the configuration. With an upstream it is what following means.
	Configure struct{ Conf Conf }
	// Promote makes PostgreSQL writable under the lease of Epoch.
	Promote struct {
		Epoch fsm.Epoch
		From  fsm.Timeline // the one it leaves
		Conf  Conf
	}
	// Record tells the state which timeline the promotion made; slots stand before.
	Record struct{ Epoch fsm.Epoch }
	// Confirm passes the barrier for Pair and makes the first synchronous commit.
	Confirm struct {
		Epoch fsm.Epoch
		Pair  fsm.Pair
		Conf  Conf
	}
	// Slots creates the members' slots and drops those of strangers.
	Slots struct{}
	// Equip makes the roles and databases that every group has.
	Equip struct{ Epoch fsm.Epoch }
	// TakeIn adds all members that the state knows to those that may take over.
	TakeIn struct {
		Epoch fsm.Epoch
		Nodes []fsm.NodeID
	}
	// ProposeSync asks for another synchronous pair.
	ProposeSync struct {
		Epoch  fsm.Epoch
		Pair   fsm.Pair
		Reason string
	}
)

func (Exit) action()        {}
func (Fence) action()       {}
func (KillAll) action()     {}
func (Release) action()     {}
func (StopPG) action()      {}
func (StepDown) action()    {}
func (InitDB) action()      {}
func (Announce) action()    {}
func (Clone) action()       {}
func (Rewind) action()      {}
func (StartPG) action()     {}
func (Adopt) action()       {}
func (Configure) action()   {}
func (Promote) action()     {}
func (Record) action()      {}
func (Confirm) action()     {}
func (Slots) action()       {}
func (Equip) action()       {}
func (TakeIn) action()      {}
func (ProposeSync) action() {}
