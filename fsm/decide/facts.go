package decide

import (
	"slices"
	"strings"

	"matriarch/fsm"
)

// Facts are derived once from a View, so that rules read as sentences.
type Facts struct {
	View
	Node     fsm.Node
	Group    fsm.Group
	Settings fsm.Settings

	Member    bool      // this node is in the state
	Removed   bool      // it was taken out for good, by the state or the leader's word
	Running   bool      // some process of PostgreSQL lives
	Primary   bool      // PostgreSQL is writable
	Mine      bool      // the state has the lease with this node and this sentinel, unrevoked
	HoldsAny  bool      // the state has the lease with this node, whatever the sentinel
	Ours      bool      // and we know that its sentinel is gone, and with it whatever it ran: it was ours, or lived here since the host's boot
	Stale     bool      // this node has seen a newer epoch of its group than its copy of the state: the log has not caught up yet
	Epoch     fsm.Epoch // of our lease
	Last      fsm.Grant // the group's newest grant
	HasLast   bool
	Upstream  bool // there is a primary other than us that may be followed
	Clonable  bool // and it is open, or waits for us to open, so that it may be cloned or rewound from
	Relation  Relation
	Fork      fsm.LSN // where the primary's history left ours, when Relation is not Follows
	WantSlots bool
}

func facts(v View) Facts {
	f := Facts{View: v}
	f.Node, f.Member = v.State.Nodes[v.Self]
	_, gone := v.State.Removed[v.Self]
	f.Removed = gone || v.Removed
	f.Group = v.State.Groups[f.Node.Group]
	f.Settings = v.State.Cluster.Settings
	f.Running = v.Sentinel.Postmaster != 0
	f.Primary = f.Running && v.Sentinel.Primary
	l := f.Group.Lease
	f.HoldsAny = f.Member && l.Holder == v.Self
	f.Mine = f.HoldsAny && l.Instance == v.Instance && !l.Revoked
	f.Ours = f.HoldsAny && (l.Instance == v.Instance || fsm.SameBoot(l.Instance, v.Instance))
	f.Epoch = l.Epoch
	f.Last, f.HasLast = f.Group.LastGrant()
	f.Stale = f.Group.Epoch.Less(f.newestSeen())
	f.Upstream = f.Member && !f.Stale && f.Group.Held() && !f.HoldsAny && f.HasLast && f.Last.Epoch == l.Epoch &&
		f.Last.Timeline != 0 && !l.Epoch.Less(v.Local.Promise)
	// A strict group may have nobody else to open it. Its holder has everything that was ever acknowledged, open or not.
	f.Clonable = f.Upstream && (f.Group.Opened() || f.Group.Holds())
	if f.Upstream {
		f.Relation, f.Fork = Relate(f.Group, f.PG.Timeline, f.PG.LSN, v.Local.LineageOf(f.PG.Timeline))
	}
	return f
}

// newestSeen is the newest epoch that this node has been primary under or has followed, by its own records.
func (f Facts) newestSeen() fsm.Epoch {
	var e fsm.Epoch
	if f.Primary {
		e = f.Sentinel.Epoch
	}
	for _, made := range f.Local.Lineage {
		if e.Less(made) {
			e = made
		}
	}
	return e
}

// Relation says how a node's data relates to the group's primary.
type Relation string

// How data can relate.
const (
	Follows  Relation = "follows"  // it is a prefix: stream
	Diverged Relation = "diverged" // it has something the primary lacks: rewind
	Foreign  Relation = "foreign"  // another history, which numbers do not tell from the primary's: clone, never rewind
)

// Relate compares a position with the history of the group's newest grant. lineage is the epoch that made the node's timeline,
// by its own record. fork is where the primary's history left that timeline.
func Relate(g fsm.Group, tl fsm.Timeline, lsn fsm.LSN, lineage fsm.Epoch) (Relation, fsm.LSN) {
	last, ok := g.LastGrant()
	if !ok || last.Timeline == 0 || tl == 0 || !lineageTrue(g, tl, lineage) {
		return Foreign, 0
	}
	made, _ := g.GrantOf(tl)
	if made == last {
		return Follows, lsn
	}
	theirs := g.Descent(last)
	switch i := slices.Index(theirs, made); {
	case i > 0 && lsn <= theirs[i-1].Fork:
		return Follows, theirs[i-1].Fork
	case i > 0:
		return Diverged, theirs[i-1].Fork
	case rewindable(g.Descent(made), theirs):
		return Diverged, 0
	}
	return Foreign, 0
}

// rewindable reports whether two histories are known to meet, and no number on one of them is another timeline on the other:
// PostgreSQL and pg_rewind would take the two for one.
func rewindable(ours, theirs []fsm.Grant) bool {
	for _, o := range ours {
		if slices.Contains(theirs, o) {
			return true
		}
		if slices.ContainsFunc(theirs, func(t fsm.Grant) bool { return t.Timeline == o.Timeline }) {
			return false
		}
	}
	return false
}

// newcomer reports whether there is a member that could not be elected as long as failsafe keeps a list of those that can.
func (f Facts) newcomer() bool {
	if !f.Group.Opened() || !f.Group.Failsafe && f.Group.Eligible == nil {
		return false
	}
	return f.Group.Eligible == nil || slices.ContainsFunc(f.members(), func(id fsm.NodeID) bool { return !f.Group.MayHold(id) })
}

func (f Facts) members() (ids []fsm.NodeID) {
	for _, n := range f.State.Members(f.Group.ID) {
		ids = append(ids, n.ID)
	}
	return ids
}

func (f Facts) needsClone() bool { return !f.Local.HasData || f.Local.Unfinished != "" }

// cloneSource prefers a streaming standby tagged for it, to spare the primary.
func (f Facts) cloneSource() fsm.NodeID {
	for _, n := range f.State.Members(f.Group.ID) {
		if n.Tags.CloneFrom && n.ID != f.Self && n.ID != f.Group.Lease.Holder && n.Report.State == "streaming" && n.Report.Epoch == f.Epoch {
			return n.ID
		}
	}
	return f.Group.Lease.Holder
}

// wantPrimaryConf is what a holder's PostgreSQL must be set to, at every stage from before its promotion on.
func (f Facts) wantPrimaryConf() Conf {
	target := f.Group.Sync.Target()
	c := f.shared(Conf{Phase: Closed, Sync: target, Order: SyncOrder(f.State, f.Group, target.S), Epoch: f.Epoch})
	switch {
	case f.Group.Opened():
		c.Phase = Open
	case f.Last.Epoch == f.Epoch && f.Last.Timeline != 0:
		c.Phase = Members
	}
	return c
}

// wantStandbyConf is what a follower must be set to. Clients enter once it has streamed: a former primary may have shown
// them what was never acknowledged.
func (f Facts) wantStandbyConf() Conf {
	c := f.shared(Conf{Phase: f.Conf.Phase, Epoch: f.Epoch, Upstream: f.Group.Lease.Holder})
	if f.PG.Streaming && f.Conf.Upstream == c.Upstream && f.Conf.Epoch == c.Epoch {
		c.Phase = Open
	}
	return c
}

// shared fills in what is the same on all nodes.
func (f Facts) shared(c Conf) Conf {
	c.Access, c.Links, c.Spaces, c.Logical, c.Security = Access(f.State), Links(f.State), len(f.Settings.Databases), f.Group.HasLogicalSlots(), Security(f.State)
	return c
}

// Security tells apart the ways in which links prove themselves; empty: by passwords.
func Security(s *fsm.State) string {
	how := string(s.Cluster.Settings.PostgresTLS)
	if how == string(fsm.LinksOff) {
		how = ""
	}
	if s.Cluster.Settings.CitusPoolPort != 0 {
		how += " pooled"
	}
	return how
}

// Links is a number that changes after every change of primary anywhere. Citus' sessions keep a connection to a server that was
// stopped, and COPY fails on it once that server is primary again at the same address: so they are told to forget in between.
// After a switchover that is when clients do not wait any more, since everybody connects anew then. A restart leaves no such
// time: it is told while the server is down, to those who are not waiting for it yet.
func Links(s *fsm.State) uint64 {
	if !s.Cluster.Settings.Citus {
		return 0
	}
	var n uint64
	for _, g := range s.Groups {
		n += g.Sync.Confirmed.N
		switch op := g.Op; {
		case !op.Pausing():
		case op.Kind == fsm.Restart && (op.Phase == fsm.Demote || op.Phase == fsm.Promote):
			n++
		case op.Kind == fsm.Switchover && op.Phase == fsm.Resume && g.Sync.Confirmed.N > 0:
			n--
		}
	}
	return n
}

// Access names the nodes whose addresses a PostgreSQL must let in: when it changes, the generated hba does.
func Access(s *fsm.State) string {
	var b strings.Builder
	for _, id := range s.NodeIDs() {
		b.WriteString(s.Nodes[id].Postgres + " ")
	}
	return b.String()
}

// spent: a timeline was made under our lease, by the state or by our own record, and PostgreSQL is a standby again.
func (f Facts) spent() bool {
	return f.PG.Reachable && f.PG.InRecovery && f.Last.Epoch == f.Epoch && (f.Last.Timeline != 0 || f.Local.LineageOf(f.PG.Timeline) == f.Epoch)
}

func (f Facts) sentinelSilent() bool { return f.Sentinel.Silent >= SentinelSilence }

// couldBePrimary: with a silent sentinel the last known role may be out of date.
func (f Facts) couldBePrimary() bool { return f.Primary || f.HoldsAny }

// outlived: the epoch followed is over. Whoever is asked to take over detaches by its promise.
func (f Facts) outlived() bool {
	if !f.Member || f.Stale || f.HoldsAny || f.Conf.Upstream == "" || f.Conf.Epoch == f.Epoch {
		return false
	}
	return f.Group.Held() || !f.Group.Op.Pausing() || f.Group.Op.To != f.Self
}
