package decide

import (
	"fmt"
	"strings"
	"time"
)

// NodeRule is one row of the table. Ids have gaps and are never used again for something else.
type NodeRule struct {
	ID   string
	Name string
	Why  string
	When func(Facts) bool
	Then func(Facts) (Action, string)
}

// Node decides what a node does about its PostgreSQL: the first rule that holds.
func Node(v View) Plan {
	f := facts(v)
	for _, r := range NodeRules {
		if r.When(f) {
			a, reason := r.Then(f)
			return Plan{Rule: r.ID, Name: r.Name, Reason: reason, Action: a}
		}
	}
	return Plan{Rule: "R999", Name: "nothing holds", Reason: "no rule matched"}
}

// SentinelSilence is how long a sentinel may leave a heartbeat unanswered before the agent stops renewing the lease.
const SentinelSilence = 500 * time.Millisecond

// NodeRules is ordered: safety, then work under way, then data, then primary, then standby.
var NodeRules = []NodeRule{
	{
		"R100", "sentinel silent while primary, lease over", "a frozen sentinel cannot fence: the agent must",
		func(f Facts) bool { return f.Running && f.sentinelSilent() && f.LeaseLeft <= 0 && f.couldBePrimary() },
		func(f Facts) (Action, string) {
			return KillAll{}, fmt.Sprintf("the sentinel has not answered for %s and the lease is over: killing every process of PostgreSQL", round(f.Sentinel.Silent))
		},
	},
	{
		"R105", "sentinel lost", "PostgreSQL got SIGQUIT when its parent died; what is left is killed before another sentinel starts",
		func(f Facts) bool { return !f.Sentinel.Connected },
		func(Facts) (Action, string) {
			return KillAll{}, "the sentinel is gone: killing what is left of PostgreSQL and starting another sentinel"
		},
	},
	{
		"R110", "primary without a lease", "nobody may write once another node could be elected",
		func(f Facts) bool { return f.Primary && f.LeaseLeft <= 0 },
		func(f Facts) (Action, string) {
			return Fence{Late: true}, fmt.Sprintf("PostgreSQL is writable under epoch %s, whose lease is over", f.Sentinel.Epoch)
		},
	},
	{
		"R112", "primary under another epoch", "one promotion belongs to one epoch; a revoked one is never renewed",
		func(f Facts) bool { return f.Primary && !f.Stale && (!f.Mine || f.Sentinel.Epoch != f.Epoch) },
		func(f Facts) (Action, string) {
			return Fence{}, fmt.Sprintf("PostgreSQL is writable under epoch %s, but the lease of group %d is %s", f.Sentinel.Epoch, f.Group.ID, f.leaseText())
		},
	},
	{
		"R113", "primary, the state is older", "after a restart of the agent the log is read first; the sentinel keeps the deadline",
		func(f Facts) bool { return f.Primary && f.Stale && !f.Removed },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("PostgreSQL is writable under epoch %s; waiting until the state, which has epoch %s, has caught up", f.Sentinel.Epoch, f.Group.Epoch)
		},
	},
	{
		"R115", "holder without PostgreSQL", "a lease is given back at once when the last process is known to be gone; one from before a boot ends by itself: a copy of a host cannot know",
		func(f Facts) bool {
			return f.Ours && !f.Removed && !f.Running && !f.Local.Stray && f.Sentinel.Connected && !f.sentinelSilent()
		},
		func(f Facts) (Action, string) {
			return Release{f.Epoch}, "no process of PostgreSQL is left: " + orElse(f.Sentinel.Exit, "it is not running")
		},
	},
	{
		"R117", "stop for a switchover or restart", "clients wait meanwhile; the standbys get everything up to the last record",
		func(f Facts) bool {
			return f.Primary && f.Mine && f.Group.Op.Demoting(f.Epoch) && f.Job == ""
		},
		func(f Facts) (Action, string) {
			return StepDown{f.Epoch}, fmt.Sprintf("a %s was asked for by %s: stopping in good order", f.Group.Op.Kind, f.Group.Op.By)
		},
	},
	{
		"R118", "holder must give way", "a revoked lease, or one of an earlier sentinel, cannot be renewed",
		func(f Facts) bool { return f.Ours && !f.Mine && !f.Stale && f.Running && f.Job == "" },
		func(f Facts) (Action, string) {
			return Fence{}, fmt.Sprintf("epoch %s is %s: stopping so that it can be given back", f.Epoch, f.leaseText())
		},
	},
	{
		"R119", "the Grant is used up", "one epoch, one timeline: PostgreSQL that stopped under a lease needs another Grant to be promoted again",
		func(f Facts) bool { return f.Mine && !f.Primary && !f.Stale && f.Running && f.spent() && f.Job == "" },
		func(f Facts) (Action, string) {
			return Fence{}, fmt.Sprintf("epoch %s has made its timeline already: stopping so that the lease can be given back", f.Epoch)
		},
	},
	{
		"R120", "action under way", "one action at a time",
		func(f Facts) bool { return f.Job != "" },
		func(f Facts) (Action, string) { return nil, f.Job + " is under way" },
	},
	{
		"R122", "node removed", "a node taken out for good stops its PostgreSQL and itself",
		func(f Facts) bool { return f.Removed },
		func(f Facts) (Action, string) {
			if f.Running {
				return StopPG{}, "this node was removed from the cluster: stopping PostgreSQL"
			}
			return Exit{}, "this node was removed from the cluster for good"
		},
	},
	{
		"R124", "not a member yet", "the log has not reached this node",
		func(f Facts) bool { return !f.Member },
		func(Facts) (Action, string) { return nil, "waiting for the cluster's state" },
	},
	{
		"R126", "backing off", "a failed action is not repeated at once",
		func(f Facts) bool { return f.Backoff > 0 && !f.Primary }, // a primary has other duties meanwhile
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("trying again in %s after: %s", round(f.Backoff), f.Failed)
		},
	},
	{
		"R130", "foreign data directory", "another system identifier is another database",
		func(f Facts) bool {
			return f.Group.SystemID != "" && f.Local.SystemID != "" && f.Local.SystemID != f.Group.SystemID
		},
		func(f Facts) (Action, string) {
			var a Action
			if f.Running {
				a = StopPG{}
			}
			return a, fmt.Sprintf("the data directory belongs to another database cluster: its system identifier is %s, that of group %d is %s; move it away, and this node clones", f.Local.SystemID, f.Group.ID, f.Group.SystemID)
		},
	},
	{
		"R136", "failed rewind, waiting for an operator", "by the setting rewind_failure",
		func(f Facts) bool {
			return f.Settings.RewindFailure == RewindStop && !f.Running && strings.HasPrefix(f.Local.Unfinished, UnfinishedRewind)
		},
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("%s: the setting rewind_failure says stop; its data stays as it is until 'matriarch reinit %s' clones it anew", f.Local.Unfinished, f.Node.Name)
		},
	},
	{
		"R140", "create the group's first data directory", "the conductor let this node, and only this one, begin",
		func(f Facts) bool { return !f.Local.HasData && f.Group.SystemID == "" && f.Group.ClaimedBy == f.Self },
		func(f Facts) (Action, string) {
			return InitDB{}, fmt.Sprintf("group %d has no data yet and this node may create it", f.Group.ID)
		},
	},
	{
		"R142", "announce the data directory", "the system identifier decides who belongs to the group",
		func(f Facts) bool {
			return f.Local.HasData && f.Local.Unfinished == "" && f.Group.SystemID == "" && f.Group.ClaimedBy == f.Self
		},
		func(f Facts) (Action, string) {
			return Announce{}, fmt.Sprintf("recording system identifier %s for group %d", f.Local.SystemID, f.Group.ID)
		},
	},
	{
		"R143", "writable server outside the lease", "a server that something else started would take writes beside the group's primary",
		func(f Facts) bool {
			return f.Local.Stray && f.PG.Reachable && !f.PG.InRecovery && f.Group.Held() && !f.HoldsAny && !f.Stale
		},
		func(f Facts) (Action, string) {
			return KillAll{}, fmt.Sprintf("a writable PostgreSQL that matriarch did not start runs here, while the lease of group %d is %s: killing it; disable whatever starts it", f.Group.ID, f.leaseText())
		},
	},
	{
		"R144", "clone", "a node without usable data copies the primary's",
		func(f Facts) bool { return f.needsClone() && f.Clonable && (!f.Running || f.Local.Unfinished != "") },
		func(f Facts) (Action, string) {
			from := f.cloneSource()
			return Clone{from, f.Epoch}, fmt.Sprintf("%s: cloning from %s", orElse(f.Local.Unfinished, "no data directory"), f.State.Name(from))
		},
	},
	{
		"R146", "waiting for something to clone", "",
		func(f Facts) bool { return f.needsClone() && !f.Running },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("no usable data here (%s); waiting for a primary of group %d to clone from", orElse(f.Local.Unfinished, "no data directory"), f.Group.ID)
		},
	},
	{
		"R147", "adopt a running server", "it is watched from outside until its next restart",
		func(f Facts) bool { return f.Local.Stray && f.Mine && f.LeaseLeft > 0 },
		func(f Facts) (Action, string) {
			return Adopt{f.Epoch}, fmt.Sprintf("taking over the running server under epoch %s", f.Epoch)
		},
	},
	{
		"R148", "waiting to adopt", "",
		func(f Facts) bool { return f.Local.Stray },
		func(f Facts) (Action, string) {
			return nil, "a PostgreSQL that matriarch did not start runs here; waiting for a lease to take it over: group lease is " + f.leaseText()
		},
	},
	{
		"R150", "start PostgreSQL", "always as a standby; it becomes writable by promotion only",
		func(f Facts) bool { return !f.Running },
		func(f Facts) (Action, string) {
			return StartPG{}, "PostgreSQL is not running: starting it as a standby"
		},
	},
	{
		"R152", "PostgreSQL does not answer yet", "",
		func(f Facts) bool { return !f.PG.Reachable },
		func(f Facts) (Action, string) { return nil, "PostgreSQL does not answer: " + f.PG.Why },
	},
	{
		"R155", "limits too low for the log", "max_connections and others must be at least the primary's, or replay stops; the next start raises them",
		func(f Facts) bool { return f.PG.InRecovery && f.PG.Starved },
		func(f Facts) (Action, string) {
			return StopPG{}, fmt.Sprintf("replay stopped at %s, as the log was written with higher limits than those here: starting again with as much", f.PG.LSN)
		},
	},
	{
		"R190", "replaying before the promotion", "what it stands on must be known before it is left",
		func(f Facts) bool { return f.Mine && !f.Primary && !f.PG.Settled },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("epoch %s is granted; replaying, at %s", f.Epoch, f.PG.LSN)
		},
	},
	{
		"R195", "bound by its word", "a primary without a majority stays up on the strength of it, whatever the state says by now",
		func(f Facts) bool { return f.Mine && !f.Primary && f.WordLeft > 0 },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("epoch %s is granted, but this node gave a primary its word to stay a standby for another %s", f.Epoch, round(f.WordLeft))
		},
	},
	{
		"R200", "promote", "the lease is ours and its first keepalive was answered",
		func(f Facts) bool { return f.Mine && !f.Primary && f.LeaseLeft > 0 },
		func(f Facts) (Action, string) {
			return Promote{f.Epoch, f.PG.Timeline, f.wantPrimaryConf()}, fmt.Sprintf("epoch %s is ours for %s: promoting at %s", f.Epoch, round(f.LeaseLeft), f.PG.LSN)
		},
	},
	{
		"R205", "waiting for the first answered keepalive", "a fresh Grant is worth nothing until then",
		func(f Facts) bool { return f.Mine && !f.Primary },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("epoch %s is granted, its first keepalive is not answered yet", f.Epoch)
		},
	},
	{
		"R210", "record the new timeline", "nobody follows before it is recorded",
		func(f Facts) bool { return f.Primary && f.Last.Timeline == 0 },
		func(f Facts) (Action, string) {
			return Record{f.Epoch}, fmt.Sprintf("recording the timeline of epoch %s", f.Epoch)
		},
	},
	{
		"R215", "change the synchronous set", "a missing standby leaves, a streaming one enters, one at a time",
		func(f Facts) bool { _, _, ok := f.syncChange(); return f.Primary && ok },
		func(f Facts) (Action, string) {
			p, why, _ := f.syncChange()
			return ProposeSync{f.Epoch, p, why}, why
		},
	},
	{
		"R218", "slots for those who are to confirm", "without its slot a new member streams nothing, and a strict group would wait for ever",
		func(f Facts) bool {
			t := f.Group.Sync.Target()
			return f.Primary && f.PG.SlotsWrong && (f.Group.Sync.Joint() || !f.Group.Opened()) && f.present(t.S) < t.K
		},
		func(f Facts) (Action, string) {
			return Slots{}, "too few stream to confirm commits, and the members' replication slots need work"
		},
	},
	{
		"R220", "confirm the synchronous set", "a change ends only behind its barrier; clients enter after the first synchronous commit",
		func(f Facts) bool { return f.Primary && (f.Group.Sync.Joint() || !f.Group.Opened()) },
		func(f Facts) (Action, string) {
			t := f.Group.Sync.Target()
			return Confirm{f.Epoch, t, f.wantPrimaryConf()}, fmt.Sprintf("waiting until %d of %s have everything", t.K, f.names(t.S))
		},
	},
	{
		"R230", "configure the primary", "",
		func(f Facts) bool { return f.Primary && !f.Conf.Equal(f.wantPrimaryConf()) },
		func(f Facts) (Action, string) { return Configure{f.wantPrimaryConf()}, f.confText(f.wantPrimaryConf()) },
	},
	{
		"R235", "take members in among those that may take over", "with failsafe nobody is elected whom the primary would not ask for his word",
		func(f Facts) bool { return f.Primary && f.Leased && f.newcomer() },
		func(f Facts) (Action, string) {
			return TakeIn{f.Epoch, f.members()}, "failsafe: telling the formation that every member that this node knows may take over"
		},
	},
	{
		"R240", "slots of the members", "a member always streams through its own slot",
		func(f Facts) bool { return f.Primary && f.PG.SlotsWrong },
		func(Facts) (Action, string) { return Slots{}, "the members' replication slots need work" },
	},
	{
		"R245", "roles and databases", "every group has the same",
		func(f Facts) bool { return f.Primary && f.Equipped != f.Epoch },
		func(f Facts) (Action, string) { return Equip{f.Epoch}, "looking after roles and databases" },
	},
	{
		"R250", "primary", "",
		func(f Facts) bool { return f.Primary },
		func(f Facts) (Action, string) {
			t := f.Group.Sync.Target()
			return nil, fmt.Sprintf("primary of group %d, epoch %s, timeline %d, lease valid for %s, %d of %s confirm commits", f.Group.ID, f.Epoch, f.PG.Timeline, round(f.LeaseLeft), t.K, f.names(t.S))
		},
	},
	{
		"R300", "detach from a former primary", "its position is compared with the new one's once nothing more arrives, and that server may come back on another timeline",
		func(f Facts) bool { return f.outlived() },
		func(f Facts) (Action, string) {
			return Configure{Conf{Phase: f.Conf.Phase}}, fmt.Sprintf("epoch %s ended: leaving %s", f.Conf.Epoch, f.State.Name(f.Conf.Upstream))
		},
	},
	{
		"R302", "waiting for the end of replay", "",
		func(f Facts) bool { return f.Upstream && f.Conf.Upstream == "" && !f.PG.Settled },
		func(f Facts) (Action, string) { return nil, fmt.Sprintf("replaying, at %s", f.PG.LSN) },
	},
	{
		"R310", "foreign timeline", "equal numbers can hide different histories: only a clone is safe",
		func(f Facts) bool { return f.Clonable && f.Conf.Upstream == "" && f.Relation == Foreign },
		func(f Facts) (Action, string) {
			from := f.cloneSource()
			return Clone{from, f.Epoch}, fmt.Sprintf("timeline %d here was made by epoch %s, another history than the primary's: cloning from %s, the old directory is set aside", f.PG.Timeline, f.Local.LineageOf(f.PG.Timeline), f.State.Name(from))
		},
	},
	{
		"R312", "diverged", "what only this node has is set aside, then taken back",
		func(f Facts) bool { return f.Clonable && f.Conf.Upstream == "" && f.Relation == Diverged },
		func(f Facts) (Action, string) {
			return Rewind{f.Group.Lease.Holder, f.Epoch, f.Fork}, fmt.Sprintf("timeline %d stands at %s here, but %s left it at %s and is on timeline %d: rewinding, what is behind that is set aside first", f.PG.Timeline, f.PG.LSN, f.State.Name(f.Group.Lease.Holder), f.Fork, f.Last.Timeline)
		},
	},
	{
		"R314", "diverged, primary not open yet", "",
		func(f Facts) bool { return f.Upstream && f.Conf.Upstream == "" && f.Relation != Follows },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("%s from %s; waiting until it is open", f.Relation, f.State.Name(f.Group.Lease.Holder))
		},
	},
	{
		"R320", "the primary no longer has the WAL needed", "all this node has is a prefix of the primary's, so a clone loses nothing",
		func(f Facts) bool { return f.Clonable && f.PG.WALRemoved && !f.PG.Streaming },
		func(f Facts) (Action, string) {
			from := f.cloneSource()
			return Clone{from, f.Epoch}, fmt.Sprintf("%s has removed the WAL this node needs: cloning from %s", f.State.Name(f.Group.Lease.Holder), f.State.Name(from))
		},
	},
	{
		"R330", "follow", "",
		func(f Facts) bool { return f.Upstream && !f.Conf.Equal(f.wantStandbyConf()) },
		func(f Facts) (Action, string) {
			return Configure{f.wantStandbyConf()}, fmt.Sprintf("following %s, epoch %s: %s", f.State.Name(f.Group.Lease.Holder), f.Epoch, f.confText(f.wantStandbyConf()))
		},
	},
	{
		"R335", "slots of a former primary", "nothing moves them on a standby, so they would keep its log for ever",
		func(f Facts) bool { return f.Upstream && f.PG.SlotsWrong },
		func(Facts) (Action, string) {
			return Slots{}, "dropping the slots this node kept for others as primary"
		},
	},
	{
		"R337", "copy logical slots", "before PostgreSQL 17 a server reads slots at its start only",
		func(f Facts) bool { return f.Upstream && f.PG.Streaming && f.PG.CopySlots },
		func(f Facts) (Action, string) {
			return StopPG{}, fmt.Sprintf("restarting to take over logical slots of %s", f.State.Name(f.Group.Lease.Holder))
		},
	},
	{
		"R340", "standby", "",
		func(f Facts) bool { return f.Upstream && f.PG.Streaming },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("streaming from %s, epoch %s, timeline %d, at %s", f.State.Name(f.Group.Lease.Holder), f.Epoch, f.PG.Timeline, f.PG.LSN)
		},
	},
	{
		"R350", "standby that does not stream", "",
		func(f Facts) bool { return f.Upstream },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("connecting to %s, epoch %s, at %s", f.State.Name(f.Group.Lease.Holder), f.Epoch, f.PG.LSN)
		},
	},
	{
		"R900", "no primary", "",
		func(Facts) bool { return true },
		func(f Facts) (Action, string) {
			return nil, fmt.Sprintf("standing at timeline %d, %s; group %d has no primary to follow: %s", f.PG.Timeline, f.PG.LSN, f.Group.ID, f.leaseText())
		},
	},
}
