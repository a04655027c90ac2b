package decide

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"matriarch/fsm"
)

// GroupView holds everything the conductor's decision about one group may depend on.
type GroupView struct {
	State     *fsm.State
	Group     fsm.Group
	Heard     map[fsm.NodeID]time.Duration // since a node's last keepalive, counted from the leader's Ready at the earliest
	Recruits  []Recruit                    // answers for the next epoch
	Refusals  map[fsm.NodeID]string        // why others could not be recruited yet
	Asking    time.Duration                // since recruiting for this epoch began; 0: not begun
	Enough    time.Duration                // since the recruits have sufficed; 0: they do not
	Leading   time.Duration                // since the leader's Ready: nodes not in Heard have been silent for as long
	Reference fsm.LSN                      // newest position the last holder reported
	Changed   time.Duration                // since another node took over unasked; 0: not seen in this term
	Due       bool                         // the time of what is planned has come
	Late      time.Duration                // and since when
	Work      Work
	Probes    map[fsm.NodeID]Probe // fresh answers about the holder of this epoch
	LastEarly time.Duration        // since this leader last revoked a lease of the group on evidence; 0: it has not
	Probing   bool                 // some are still to come, or too new to ask again

	SinceSick time.Duration                // since the group was last taken from a primary that was sick; 0: it was not
	TriedSick time.Duration                // since this leader last began a switchover for that; 0: it has not
	Ailed     map[fsm.NodeID]time.Duration // since a member was last sick; who never was is not in it
}

// ClusterPlan is the outcome for one group.
type ClusterPlan struct {
	Rule   string
	Name   string
	Reason string
	Action ClusterAction // nil: nothing to do
}

// ClusterAction is one step of the conductor; the set is closed.
type ClusterAction interface{ clusterAction() }

type (
	// ClaimGroup lets a node create the group's first data directory.
	ClaimGroup struct{ Node fsm.NodeID }
	// RevokeLease ends the renewals of a lease.
	RevokeLease struct {
		Epoch  fsm.Epoch
		Reason string
		Early  bool // the next Grant does not wait for its end
		Sick   bool // the holder is taken off for sickness
	}
	// ProbeHolder asks members whether the holder lives.
	ProbeHolder struct{ Witnesses []fsm.NodeID }
	// RecruitAll asks every member for its promise and position.
	RecruitAll struct{}
	// GrantLease gives the lease away.
	GrantLease struct {
		To   Recruit
		Pair fsm.Pair
	}
	// DropOperation gives planned work up.
	DropOperation struct{ ID, Reason string }
	// BeginOperation asks for planned work in Matriarch's own name.
	BeginOperation struct{ Operation fsm.Operation }
	// StartWork begins what a phase of planned work consists of, beside the loop.
	StartWork struct{ Phase string }
	// MoveOperation takes planned work to its next phase: from "" when its time has come, to "" at its end.
	MoveOperation struct {
		ID, From, To string
		Node         fsm.NodeID
		Text         string // of the outcome
	}
)

func (ClaimGroup) clusterAction()     {}
func (RevokeLease) clusterAction()    {}
func (ProbeHolder) clusterAction()    {}
func (RecruitAll) clusterAction()     {}
func (GrantLease) clusterAction()     {}
func (DropOperation) clusterAction()  {}
func (BeginOperation) clusterAction() {}
func (StartWork) clusterAction()      {}
func (MoveOperation) clusterAction()  {}

const (
	// AliveWithin is how recently a node must have sent a keepalive to be waited for.
	AliveWithin = 2 * time.Second
	// RecruitGrace is how long a sufficient set waits for further answers, so that the best candidate may win and more
	// standbys may follow at once.
	RecruitGrace = 100 * time.Millisecond
	// WellGrace is how long recruits that were sick wait for one that was not.
	WellGrace = 2 * time.Second
	// firstHostWait is how long a leader waits for a group's first host before a later one may begin.
	firstHostWait = 10 * time.Second
	// ChangeBudget is the time in which a group whose holder lives changes its primary at most once without being asked.
	ChangeBudget = 30 * time.Second
	// reclaimAfter is how long a silent node keeps the right to create the first data directory.
	reclaimAfter = time.Minute
)

// GroupFacts are derived once from a GroupView.
type GroupFacts struct {
	GroupView
	Members  []fsm.Node
	True     []Recruit // those whose last timeline is the recorded one; the others prove nothing
	Suffices bool
	Lacking  string
	Ranked   []Recruit
	Pending  []fsm.NodeID // alive, not answered, not refused
}

func groupFacts(v GroupView) GroupFacts {
	f := GroupFacts{GroupView: v, Members: v.State.Members(v.Group.ID)}
	var got []fsm.NodeID
	for _, r := range v.Recruits {
		got = append(got, r.Node)
		if v.Group.Sync.Unknown || lineageTrue(v.Group, r.Timeline, r.Lineage) {
			f.True = append(f.True, r)
		}
	}
	f.Suffices, f.Lacking = Sufficient(v.Group, f.memberIDs(), nodesOf(f.True), slices.ContainsFunc(f.True, func(r Recruit) bool { return atEnd(v.Group, r) }))
	if v.Group.Mode == fsm.Off && !f.Suffices && !v.Group.Sync.Unknown && v.Group.Sync.Target().K == 0 {
		f.Suffices, f.Lacking = f.asyncSufficient()
	}
	if op := v.Group.Op; op != nil && op.Trust && slices.Contains(got, op.To) || f.acceptsLoss() && v.Asking >= AliveWithin {
		f.Suffices, f.Lacking = true, ""
	}
	f.Lacking = f.named(f.Lacking)
	f.Ranked = Candidates(v.State, v.Group, v.Recruits)
	for _, n := range f.Members {
		if ago, heard := v.Heard[n.ID]; heard && ago < AliveWithin && !slices.Contains(got, n.ID) && v.Refusals[n.ID] == "" {
			f.Pending = append(f.Pending, n.ID)
		}
	}
	return f
}

// named puts names where a sentence has ids.
func (f GroupFacts) named(text string) string {
	var pairs []string
	for _, n := range f.Members {
		pairs = append(pairs, string(n.ID)+" ", n.Name+" ", string(n.ID)+",", n.Name+",")
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

func (f GroupFacts) memberIDs() (ids []fsm.NodeID) {
	for _, n := range f.Members {
		ids = append(ids, n.ID)
	}
	return ids
}

func nodesOf(rs []Recruit) (ids []fsm.NodeID) {
	for _, r := range rs {
		ids = append(ids, r.Node)
	}
	return ids
}

// asyncSufficient: an asynchronous group may elect a standby that misses at most so many bytes of what was last reported,
// once the former primary had its chance to come back.
func (f GroupFacts) asyncSufficient() (bool, string) {
	ago, heard := f.Heard[f.Group.LastHolder]
	if heard && ago < AliveWithin && f.Asking < f.State.Cluster.Settings.RestartWait {
		return false, fmt.Sprintf("asynchronous group: giving %s %s to come back", f.State.Name(f.Group.LastHolder), (f.State.Cluster.Settings.RestartWait - f.Asking).Round(time.Second))
	}
	ranked := Candidates(f.State, f.Group, f.Recruits)
	if len(ranked) == 0 {
		return false, "no candidate has answered"
	}
	if lag := int64(f.Reference) - int64(ranked[0].LSN); lag > f.State.Cluster.Settings.MaximumLag {
		return false, fmt.Sprintf("asynchronous group: %s is %d bytes behind the last position known of %s, more than maximum_lag %d", f.State.Name(ranked[0].Node), lag, f.State.Name(f.Group.LastHolder), f.State.Cluster.Settings.MaximumLag)
	}
	return true, ""
}

// Enough reports whether the recruits of a view suffice for an election.
func Enough(v GroupView) bool { return groupFacts(v).Suffices }

// ClusterRule is one row of the table.
type ClusterRule struct {
	ID   string
	Name string
	Why  string
	When func(GroupFacts) bool
	Then func(GroupFacts) (ClusterAction, string)
}

// Cluster decides what the conductor does about one group: the first rule that holds.
func Cluster(v GroupView) ClusterPlan {
	f := groupFacts(v)
	for _, r := range ClusterRules {
		if r.When(f) {
			a, reason := r.Then(f)
			return ClusterPlan{Rule: r.ID, Name: r.Name, Reason: reason, Action: a}
		}
	}
	return ClusterPlan{Rule: "C999", Name: "nothing holds", Reason: "no rule matched"}
}

// ClusterRules is ordered: the beginning of a group, a holder that is gone, planned work, the lease, elections.
var ClusterRules = slices.Concat(beginRules, earlyRules, sickRules, plannedRules, electionRules)

var beginRules = []ClusterRule{
	{
		"C100", "let a node begin the group", "one node, and only one, creates the first data directory",
		func(f GroupFacts) bool {
			return f.Group.SystemID == "" && f.beginner() != "" && f.beginner() != f.Group.ClaimedBy
		},
		func(f GroupFacts) (ClusterAction, string) {
			return ClaimGroup{f.beginner()}, fmt.Sprintf("%s may create the data directory of group %d", f.State.Name(f.beginner()), f.Group.ID)
		},
	},
	{
		"C110", "waiting for the first data directory", "",
		func(f GroupFacts) bool { return f.Group.SystemID == "" },
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("group %d is being initialised by %s", f.Group.ID, orElse(f.State.Name(f.Group.ClaimedBy), "nobody yet"))
		},
	},
}

var electionRules = []ClusterRule{
	{
		"C200", "revoke for a failover asked for", "renewals end; the holder stops and gives the lease back, or it expires",
		func(f GroupFacts) bool {
			return f.Group.Held() && f.Group.Op != nil && !f.Group.Op.Pausing() && !f.Group.Lease.Revoked
		},
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s to %s asked for by %s", f.Group.Op.Kind, f.State.Name(f.Group.Op.To), f.Group.Op.By)
			return RevokeLease{Epoch: f.Group.Lease.Epoch, Reason: why}, why
		},
	},
	{
		"C210", "revoked, not free yet", "",
		func(f GroupFacts) bool { return f.Group.Held() && f.Group.Lease.Revoked && !f.Group.Lease.Early },
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("epoch %s of %s is revoked: waiting until it is given back or expires", f.Group.Epoch, f.State.Name(f.Group.Lease.Holder))
		},
	},
	{
		"C220", "held", "",
		func(f GroupFacts) bool { return f.Group.Held() && !f.Group.Lease.Early },
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("%s holds epoch %s, last heard %s ago", f.State.Name(f.Group.Lease.Holder), f.Group.Epoch, round(f.Heard[f.Group.Lease.Holder]))
		},
	},
	{
		"C230", "paused", "no automatic change of primary",
		func(f GroupFacts) bool { return f.Group.Paused && f.Group.Op == nil },
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("group %d is paused and has no primary: resume it, or fail over by hand", f.Group.ID)
		},
	},
	{
		"C300", "recruit", "members promise to follow no older epoch, and say where they stand",
		func(f GroupFacts) bool { return f.Asking == 0 },
		func(f GroupFacts) (ClusterAction, string) {
			return RecruitAll{}, fmt.Sprintf("the lease of group %d is free since epoch %s: recruiting %d members", f.Group.ID, f.Group.Epoch, len(f.Members))
		},
	},
	{
		"C310", "not enough to be sure of every acknowledged commit", "a set that lacks one could elect it away",
		func(f GroupFacts) bool { return !f.Suffices },
		func(f GroupFacts) (ClusterAction, string) {
			return RecruitAll{}, fmt.Sprintf("%d of %d members recruited after %s: %s%s", len(f.Recruits), len(f.Members), round(f.Asking), f.Lacking, f.refusalText())
		},
	},
	{
		"C320", "short grace for further answers", "",
		func(f GroupFacts) bool {
			return len(f.Pending) > 0 && f.Enough < RecruitGrace && (!f.Group.Op.Pausing() || f.chosen() == nil)
		},
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("%d recruited suffice; waiting %s for %d more", len(f.Recruits), RecruitGrace, len(f.Pending))
		},
	},
	{
		"C322", "waiting for a member that is well", "one that is sick, or was lately, is elected only where nobody else can be",
		func(f GroupFacts) bool {
			c := f.chosen()
			return c != nil && f.weak(*c) && c.Node != f.opCandidate() && len(f.Pending) > 0 && f.Enough < WellGrace
		},
		func(f GroupFacts) (ClusterAction, string) {
			return RecruitAll{}, fmt.Sprintf("%s could be elected, but is or was sick: waiting up to %s for %d more", f.State.Name(f.chosen().Node), WellGrace, len(f.Pending))
		},
	},
	{
		"C325", "the holder comes back, as the group has just changed", "at most one unplanned change in 30 s while the holder lives: a group must not be passed round",
		func(f GroupFacts) bool {
			return f.spent() && !f.recruited(f.Group.LastHolder) && (!f.lastIsSick() || f.chosen() == nil || f.weak(*f.chosen()))
		},
		func(f GroupFacts) (ClusterAction, string) {
			return RecruitAll{}, fmt.Sprintf("%s took over %s ago and lives: waiting up to %s for it to come back%s", f.State.Name(f.Group.LastHolder), round(f.Changed), round(ChangeBudget-f.Changed), f.refusalText())
		},
	},
	{
		"C330", "the candidate asked for cannot be", "",
		func(f GroupFacts) bool {
			return f.opCandidate() != "" && f.chosen() == nil && len(f.Ranked) > 0 && f.Asking > AliveWithin
		},
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s does not have everything that %s has%s", f.State.Name(f.opCandidate()), f.State.Name(f.Ranked[0].Node), f.refusalText())
			if !f.recruited(f.opCandidate()) {
				why = fmt.Sprintf("%s cannot be asked%s", f.State.Name(f.opCandidate()), f.refusalText())
			}
			return DropOperation{f.Group.Op.ID, why}, why
		},
	},
	{
		"C340", "no candidate", "",
		func(f GroupFacts) bool { return f.chosen() == nil },
		func(f GroupFacts) (ClusterAction, string) {
			return RecruitAll{}, fmt.Sprintf("%d members recruited, none may become primary (nofailover, a timeline that is not the recorded one, or behind a node that may not)%s", len(f.Recruits), f.refusalText())
		},
	},
	{
		"C400", "grant", "the recruits suffice and the best of them wins",
		func(GroupFacts) bool { return true },
		func(f GroupFacts) (ClusterAction, string) {
			w := *f.chosen()
			p := PairFor(f.Group, f.followers(w), f.syncable(w.Node))
			if f.Group.Op.Pausing() {
				p = f.plannedPair(w.Node)
			}
			return GrantLease{w, p}, fmt.Sprintf("%s stands at %s on timeline %d, %s of %d recruited; %d of %d will confirm", f.State.Name(w.Node), w.LSN, w.Timeline, f.merit(w), len(f.Recruits), p.K, len(p.S))
		},
	},
}

// beginner is the node that should create the group: the one with the right, unless it is silent; then the oldest alive.
func (f GroupFacts) beginner() fsm.NodeID {
	silent, heard := f.Heard[f.Group.ClaimedBy]
	if !heard {
		silent = f.Leading
	}
	if _, member := f.State.Nodes[f.Group.ClaimedBy]; member && silent < reclaimAfter {
		return f.Group.ClaimedBy
	}
	for _, n := range f.Members {
		ago, heard := f.Heard[n.ID]
		switch {
		case n.Postgres == "":
		case heard && ago < AliveWithin:
			return n.ID
		case !heard && f.Leading < firstHostWait:
			return "" // the oldest member is meant to begin: it may be starting
		}
	}
	return ""
}
