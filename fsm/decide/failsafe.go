package decide

import (
	"fmt"
	"time"

	"matriarch/fsm"
)

// Failsafe in short: a primary whose keepalives nobody answers asks every member of its group for its word not to become primary for
// the length of a lease, and has that much longer. docs/adr/0027-failsafe.md has the proof.

// HoldView is what a primary's decision to ask for words may depend on.
type HoldView struct {
	Self      fsm.NodeID
	State     *fsm.State
	Instance  string
	Sentinel  Sentinel
	LeaseLeft time.Duration
	// Confirmed: a keepalive for this epoch was answered to this very process, and State is as new as that answer. Without it there may
	// be members that State does not know.
	Confirmed bool
}

// HoldRule is one row of the table that decides whether a primary asks.
type HoldRule struct {
	ID   string
	Name string
	Why  string
	When func(HoldView, fsm.Group) bool
	Ask  bool
}

// HoldRules are searched in order; the last always holds.
var HoldRules = []HoldRule{
	{"F10", "failsafe is off", "", func(_ HoldView, g fsm.Group) bool { return !g.Failsafe }, false},
	{"F20", "not an open primary", "only who writes under a valid lease has something to prolong", HoldView.idle, false},
	{
		"F30", "its fence does not answer", "what nobody could stop must run out",
		func(v HoldView, _ fsm.Group) bool {
			return !v.Sentinel.Connected || v.Sentinel.Silent >= SentinelSilence
		}, false,
	},
	{
		"F40", "lease not confirmed since the start", "the state may be older than what an earlier agent knew: there may be members that it lacks",
		func(v HoldView, _ fsm.Group) bool { return !v.Confirmed }, false,
	},
	{
		"F50", "newcomers could be elected", "until the list of who may take over is in force, a member nobody here knows could be granted the lease",
		func(v HoldView, g fsm.Group) bool { return g.Eligible == nil || !g.MayHold(v.Self) }, false,
	},
	{
		"F60", "the lease is long enough", "a change of the Raft leader takes a second or two",
		func(v HoldView, g fsm.Group) bool { return v.LeaseLeft > askBelow(g.Lease.TTL) }, false,
	},
	{"F90", "ask every member for its word", "whoever gives it does not become primary while it lasts", func(HoldView, fsm.Group) bool { return true }, true},
}

// askBelow is what may be left of a lease before the members are asked. Asking needs time before PostgreSQL is stopped softly, a
// second before the end.
func askBelow(ttl time.Duration) time.Duration { return ttl * 6 / 10 }

func (v HoldView) idle(g fsm.Group) bool {
	l := g.Lease
	return l.Holder != v.Self || l.Instance != v.Instance || l.Revoked || !g.Opened() || v.Sentinel.Postmaster == 0 || !v.Sentinel.Primary ||
		v.Sentinel.Epoch != l.Epoch || v.LeaseLeft <= 0
}

// Hold decides whether a primary asks the members for their words.
func Hold(v HoldView) HoldRule {
	g := v.State.Groups[v.State.Nodes[v.Self].Group]
	for _, r := range HoldRules {
		if r.When(v, g) {
			return r
		}
	}
	return HoldRule{ID: "F99", Name: "no rule matched"}
}

// WordView is what a member's answer may depend on.
type WordView struct {
	Self      fsm.NodeID
	State     *fsm.State
	Hears     time.Duration // since it last heard a Raft leader; negative: it knows of none
	Local     Local
	Sentinel  Sentinel // asked after the member had bound itself
	Promoting bool     // a promotion is under way
	Asked     WordRequest
}

// WordRequest asks for a word.
type WordRequest struct {
	Group  fsm.GroupID   `json:"group"`
	Holder fsm.NodeID    `json:"holder"` // who asks
	Epoch  fsm.Epoch     `json:"epoch"`  // under which it is primary
	Length time.Duration `json:"length"` // for how long, from the receipt on
}

// WordRule is one row of the table that decides whether a member gives its word.
type WordRule struct {
	ID   string
	Name string
	Why  string
	When func(WordView, fsm.Group) bool
	Text func(WordView, fsm.Group) string
	Give bool
}

const (
	// MaxWord bounds the length of a word: leases are shorter.
	MaxWord = 10 * time.Minute
	// leaderHeard is how recently a member must have heard a leader to send the primary there.
	leaderHeard = time.Second
)

// WordRules are searched in order; the last always holds.
var WordRules = []WordRule{
	{
		"W10", "not its group", "",
		func(v WordView, _ fsm.Group) bool {
			n, ok := v.State.Nodes[v.Self]
			return !ok || n.Group != v.Asked.Group || v.Asked.Holder == v.Self
		},
		func(v WordView, _ fsm.Group) string {
			return fmt.Sprintf("it is not another member of group %d", v.Asked.Group)
		}, false,
	},
	{
		"W20", "no length for a word", "",
		func(v WordView, _ fsm.Group) bool { return v.Asked.Length <= 0 || v.Asked.Length > MaxWord },
		func(v WordView, _ fsm.Group) string { return fmt.Sprintf("%s is no length for a word", v.Asked.Length) }, false,
	},
	{
		"W30", "a promotion is under way", "",
		func(v WordView, _ fsm.Group) bool { return v.Promoting },
		func(WordView, fsm.Group) string { return "it is being promoted" }, false,
	},
	{
		"W40", "primary itself", "writable, ordered to be, or run by somebody else",
		func(v WordView, _ fsm.Group) bool {
			return v.Sentinel.Primary || !v.Sentinel.Epoch.IsZero() || v.Local.Stray
		},
		func(v WordView, _ fsm.Group) string {
			return fmt.Sprintf("its own PostgreSQL is writable, or about to be: epoch %s", v.Sentinel.Epoch)
		}, false,
	},
	{
		"W50", "a newer epoch", "by its own durable records: it promised to leave this primary, or has followed or been another",
		func(v WordView, _ fsm.Group) bool { return v.Asked.Epoch.Less(v.newest()) },
		func(v WordView, _ fsm.Group) string { return fmt.Sprintf("it knows epoch %s", v.newest()) }, false,
	},
	{
		"W60", "the lease is over", "the majority has ended it",
		func(v WordView, g fsm.Group) bool {
			return g.Epoch == v.Asked.Epoch && (g.Lease.Holder != v.Asked.Holder || g.Lease.Revoked)
		},
		func(v WordView, _ fsm.Group) string { return fmt.Sprintf("epoch %s is over", v.Asked.Epoch) }, false,
	},
	{
		"W70", "a leader is heard", "there is a majority: the primary is cut off from it, and another may take over",
		func(v WordView, _ fsm.Group) bool { return v.Hears >= 0 && v.Hears < leaderHeard },
		func(v WordView, _ fsm.Group) string {
			return fmt.Sprintf("it heard the Raft leader %s ago", round(v.Hears))
		}, false,
	},
	{
		"W80", "its fence does not answer", "a promotion ordered earlier could be hidden there",
		func(v WordView, _ fsm.Group) bool { return !v.Sentinel.Connected || v.Sentinel.Silent > 0 },
		func(WordView, fsm.Group) string { return "its sentinel does not answer" }, false,
	},
	{
		"W90", "give the word", "", func(WordView, fsm.Group) bool { return true },
		func(v WordView, _ fsm.Group) string { return fmt.Sprintf("it stays a standby for %s", v.Asked.Length) }, true,
	},
}

// newest is the newest epoch that the member has been part of.
func (v WordView) newest() fsm.Epoch {
	e := v.Local.Promise
	if g := v.State.Groups[v.Asked.Group]; e.Less(g.Epoch) {
		e = g.Epoch
	}
	for _, made := range v.Local.Lineage {
		if e.Less(made) {
			e = made
		}
	}
	return e
}

// GiveWord decides whether a member gives its word, and says why not in words that follow its name.
func GiveWord(v WordView) (WordRule, string) {
	g := v.State.Groups[v.Asked.Group]
	for _, r := range WordRules {
		if r.When(v, g) {
			return r, r.Text(v, g)
		}
	}
	return WordRule{ID: "W99", Name: "no rule matched"}, "no rule matched"
}
