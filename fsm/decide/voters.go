package decide

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"matriarch/fsm"
)

// Elector is a node as the Raft leader sees it.
type Elector struct {
	ID         fsm.NodeID
	Name       string
	Group      fsm.GroupID
	Zone       string
	NeverVoter bool
	Leader     bool          // the leader itself
	Voter      bool          // has a vote now
	Heard      time.Duration // since the leader last heard from it; 0 for the leader
	CaughtUp   bool          // has nearly the whole log
}

// aliveWithin is how recently a peer that counts as healthy was heard.
const aliveWithin = 2 * time.Second

func (p Elector) healthy() bool { return p.Leader || p.Heard <= aliveWithin }

// VoterOp is what happens to one node's vote.
type VoterOp int

// The operations.
const (
	KeepVoters  VoterOp = iota // nothing to do
	AddVoter                   // give the node a vote
	DemoteVoter                // take its vote away
)

// VoterChange is one change of the Raft configuration.
type VoterChange struct {
	Op     VoterOp
	Node   fsm.NodeID
	Reason string
}

// Voters decides the next single change of the voters. Wanted are 1, 3 or 5 of the eligible nodes, no dead one (unheard for
// deadAfter, if that is set) while a caught-up node can take its place, no group and no zone with a majority where that can be had. A
// replacement is added first; a vote is taken only while the rest has a healthy majority. Sitting voters stay unless one of
// these reasons speaks against them.
func Voters(peers []Elector, deadAfter time.Duration) VoterChange {
	e := newElectorate(peers, deadAfter)
	switch {
	case len(e.voters) > e.wanted:
		return e.demote()
	case len(e.voters) < e.wanted:
		return e.grow()
	}
	return e.replace()
}

type electorate struct {
	deadAfter  time.Duration
	voters     []Elector
	candidates []Elector
	wanted     int
	groups     int // distinct ones among the eligible nodes
	zones      int
}

func newElectorate(peers []Elector, deadAfter time.Duration) electorate {
	if deadAfter <= 0 {
		deadAfter = math.MaxInt64
	}
	e := electorate{deadAfter: deadAfter}
	groups, zones := map[fsm.GroupID]bool{}, map[string]bool{}
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b Elector) int { return cmp.Compare(a.ID, b.ID) })
	eligible := 0
	for _, p := range peers {
		if !p.NeverVoter {
			eligible++
			groups[p.Group], zones[p.Zone] = true, true
		}
		switch {
		case p.Voter:
			e.voters = append(e.voters, p)
		case !p.NeverVoter && p.CaughtUp && p.healthy():
			e.candidates = append(e.candidates, p)
		}
	}
	e.groups, e.zones = len(groups), len(zones)
	switch {
	case eligible >= 5:
		e.wanted = 5
	case eligible >= 3:
		e.wanted = 3
	default:
		e.wanted = 1
	}
	return e
}

// grow adds a voter if that leads to an odd number: two voters stand less than one.
func (e electorate) grow() VoterChange {
	within := min(e.wanted, len(e.voters)+len(e.candidates))
	if within -= 1 - within%2; len(e.voters) >= within || !e.mayAdd() {
		return VoterChange{}
	}
	best := slices.MinFunc(e.candidates, func(a, b Elector) int {
		return compareFlaws(e.flaws(withElector(e.voters, a)), e.flaws(withElector(e.voters, b)))
	})
	return VoterChange{AddVoter, best.ID, fmt.Sprintf("%d voters wanted, there are %d: %s gets a vote", e.wanted, len(e.voters), best.Name)}
}

// replace adds the node that would cure the gravest flaw in somebody's place. Taking the other's vote is the next change.
func (e electorate) replace() VoterChange {
	if !e.mayAdd() {
		return VoterChange{}
	}
	now := e.flaws(e.voters)
	var change VoterChange
	var best flaws
	for _, in := range e.candidates {
		for _, out := range e.voters {
			f := e.flaws(withElector(withoutElector(e.voters, out), in))
			if f.graver(now) >= 0 || (change.Op != KeepVoters && compareFlaws(f, best) >= 0) {
				continue
			}
			best = f
			change = VoterChange{AddVoter, in.ID, fmt.Sprintf("%s gets a vote in place of %s: %s", in.Name, out.Name, e.fault(out))}
		}
	}
	return change
}

func (e electorate) fault(out Elector) string {
	switch {
	case out.NeverVoter:
		return "it is tagged never_voter"
	case out.Heard >= e.deadAfter && !out.Leader:
		return fmt.Sprintf("it has not been heard of for %s", out.Heard.Truncate(time.Second))
	}
	return "no group or zone shall have a majority of the votes"
}

// demote takes one vote too many, unless the rest could not decide anything.
func (e electorate) demote() VoterChange {
	var rest []Elector
	var out Elector
	for _, p := range e.voters {
		r := withoutElector(e.voters, p)
		if !healthyMajority(r) {
			continue
		}
		if rest == nil || cmp.Or(compareFlaws(e.flaws(r), e.flaws(rest)), later(p, out)) < 0 {
			rest, out = r, p
		}
	}
	if rest == nil {
		return VoterChange{}
	}
	return VoterChange{DemoteVoter, out.ID, fmt.Sprintf("%d voters wanted, there are %d: %s loses its vote", e.wanted, len(e.voters), out.Name)}
}

// later prefers to demote anybody but the leader, then whoever was heard of last.
func later(a, b Elector) int {
	return cmp.Or(compareBool(!a.Leader, !b.Leader), cmp.Compare(b.Heard, a.Heard))
}

// mayAdd reports whether a change with one more, healthy, voter could be committed.
func (e electorate) mayAdd() bool {
	healthy := 1
	for _, p := range e.voters {
		if p.healthy() {
			healthy++
		}
	}
	return len(e.candidates) > 0 && healthy > (len(e.voters)+1)/2
}

func healthyMajority(voters []Elector) bool {
	healthy := 0
	for _, p := range voters {
		if p.healthy() {
			healthy++
		}
	}
	return healthy > len(voters)/2
}

// flaws of a set of voters, the gravest first. The first three are worth a change of voters, the rest only a choice.
type flaws struct {
	unfit       int // dead or tagged
	groupExcess int // votes by which a group has a majority
	zoneExcess  int
	zoneSquares int // the smaller, the more even
	sameGroup   int
}

func (e electorate) flaws(voters []Elector) flaws {
	var f flaws
	groups, zones := map[fsm.GroupID]int{}, map[string]int{}
	for _, p := range voters {
		if p.NeverVoter || (!p.Leader && p.Heard >= e.deadAfter) {
			f.unfit++
		}
		groups[p.Group]++
		zones[p.Zone]++
	}
	for _, n := range groups {
		if e.groups >= 3 {
			f.groupExcess = max(f.groupExcess, n-len(voters)/2)
		}
		f.sameGroup += n * n
	}
	for _, n := range zones {
		if e.zones >= 3 {
			f.zoneExcess = max(f.zoneExcess, n-len(voters)/2)
		}
		f.zoneSquares += n * n
	}
	return f
}

// graver compares what is worth a change of voters.
func (f flaws) graver(o flaws) int {
	return cmp.Or(cmp.Compare(f.unfit, o.unfit), cmp.Compare(f.groupExcess, o.groupExcess), cmp.Compare(f.zoneExcess, o.zoneExcess))
}

func compareFlaws(a, b flaws) int {
	return cmp.Or(a.graver(b), cmp.Compare(a.zoneSquares, b.zoneSquares), cmp.Compare(a.sameGroup, b.sameGroup))
}

func withElector(voters []Elector, p Elector) []Elector { return append(slices.Clone(voters), p) }

func withoutElector(voters []Elector, p Elector) []Elector {
	return slices.DeleteFunc(slices.Clone(voters), func(v Elector) bool { return v.ID == p.ID })
}

// MayLose reports whether the voters without one of them have a healthy majority.
func MayLose(peers []Elector, id fsm.NodeID) bool {
	return healthyMajority(slices.DeleteFunc(slices.Clone(peers), func(p Elector) bool { return !p.Voter || p.ID == id }))
}

// Successor chooses who shall lead when the leader would rather not: a fit and healthy voter, whoever was heard of last.
func Successor(peers []Elector) (Elector, bool) {
	fit := slices.DeleteFunc(slices.Clone(peers), func(p Elector) bool {
		return !p.Voter || p.Leader || p.NeverVoter || !p.CaughtUp || !p.healthy()
	})
	if len(fit) == 0 {
		return Elector{}, false
	}
	return slices.MinFunc(fit, func(a, b Elector) int { return cmp.Or(cmp.Compare(a.Heard, b.Heard), cmp.Compare(a.ID, b.ID)) }), true
}
