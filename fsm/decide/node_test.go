package decide

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
)

var update = flag.Bool("update", false, "write docs/rules.md anew")

func ep(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

// world is a state of one group: nodes a, b, c; a holds epoch 1 on timeline 2, open, b and c confirm.
func world(edit ...func(*fsm.Group)) *fsm.State {
	s := fsm.NewState()
	s.Index = 10
	s.Cluster = fsm.Cluster{ID: "x", Incarnation: 1, Settings: fsm.DefaultSettings()}
	s.Cluster.Settings.PostgresTLS = "" // the examples name none, like Access and Links
	for i, id := range []fsm.NodeID{"a", "b", "c"} {
		s.Nodes[id] = fsm.Node{ID: id, Name: "n-" + string(id), Peer: string(id) + ":1", Postgres: string(id) + ":2", Joined: uint64(i + 1)}
	}
	g := fsm.Group{
		Mode: fsm.Quorum, ClaimedBy: "a", SystemID: "sys", LastHolder: "a", Epoch: ep(1),
		Lease: fsm.Lease{Holder: "a", Instance: "h-ia", Epoch: ep(1), TTL: 5 * time.Second},
		Sync:  fsm.Sync{Pairs: []fsm.Pair{fsm.NewPair(1, "b", "c")}, Confirmed: ep(1)},
		Grants: []fsm.Grant{
			{Holder: "a", Timeline: 1},
			{Epoch: ep(1), Holder: "a", Timeline: 2, Parent: 1, Fork: 100},
		},
	}
	for _, f := range edit {
		f(&g)
	}
	s.Groups[0] = g
	return s
}

const access = "a:2 b:2 c:2 " // of this world

// primary is node a at rest, standby is node b at rest.
func primary(edit ...func(*View)) View {
	v := View{
		Self: "a", State: world(), Instance: "h-ia", LeaseLeft: 4 * time.Second, Equipped: ep(1),
		Sentinel: Sentinel{Connected: true, Postmaster: 7, Primary: true, Epoch: ep(1)},
		PG: Postgres{Reachable: true, Timeline: 2, LSN: 200, Senders: []Sender{
			{Node: "b", Streaming: true}, {Node: "c", Streaming: true},
		}},
		Local: Local{HasData: true, SystemID: "sys", Promise: ep(1), Lineage: map[fsm.Timeline]fsm.Epoch{1: {}, 2: ep(1)}},
		Conf:  Conf{Phase: Open, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1), Access: access, Links: 1, Spaces: 1},
	}
	for _, f := range edit {
		f(&v)
	}
	return v
}

func standby(edit ...func(*View)) View {
	v := View{
		Self: "b", State: world(), Instance: "ib",
		Sentinel: Sentinel{Connected: true, Postmaster: 8},
		PG:       Postgres{Reachable: true, InRecovery: true, Timeline: 2, LSN: 190, Streaming: true},
		Local:    Local{HasData: true, SystemID: "sys", Promise: ep(1), Lineage: map[fsm.Timeline]fsm.Epoch{1: {}, 2: ep(1)}},
		Conf:     Conf{Phase: Open, Epoch: ep(1), Upstream: "a", Access: access, Links: 1, Spaces: 1},
	}
	for _, f := range edit {
		f(&v)
	}
	return v
}

func group(f func(*fsm.Group)) func(*View) {
	return func(v *View) {
		s := *v.State
		g := s.Groups[0]
		f(&g)
		s.Groups = map[fsm.GroupID]fsm.Group{0: g}
		v.State = &s
	}
}

func free(g *fsm.Group) { g.Lease = fsm.Lease{} }
func fresh(g *fsm.Group) { // b holds a Grant it has not promoted under
	g.Epoch, g.LastHolder = ep(2), "b"
	g.Lease = fsm.Lease{Holder: "b", Instance: "ib", Epoch: ep(2), TTL: 5 * time.Second}
	g.Sync.Pairs = append(g.Sync.Pairs, fsm.NewPair(1, "c"))
	g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b"})
}

func promotedB(g *fsm.Group) { // b is primary on timeline 3, which left 2 at 180
	fresh(g)
	g.Grants[2].Timeline, g.Grants[2].Parent, g.Grants[2].Fork = 3, 2, 180
}

func openB(g *fsm.Group) {
	promotedB(g)
	g.Sync = fsm.Sync{Pairs: []fsm.Pair{fsm.NewPair(1, "c")}, Confirmed: ep(2)}
}

func detached(v *View) { v.Conf, v.PG.Streaming, v.PG.Settled = Conf{Phase: Closed}, false, true }

// elsewhere lets another group have a primary of its own.
func elsewhere(v *View) {
	s := *v.State
	s.Groups = map[fsm.GroupID]fsm.Group{0: s.Groups[0], 1: {ID: 1, Sync: fsm.Sync{Confirmed: ep(1)}}}
	v.State = &s
}

type nodeExample struct {
	name string
	rule string
	view View
	want Action
}

var nodeExamples = []nodeExample{
	{"a frozen sentinel and no lease", "R100", primary(func(v *View) { v.Sentinel.Silent, v.LeaseLeft = time.Second, 0 }), KillAll{}},
	{"a frozen sentinel of a holder that was standby last", "R100", primary(func(v *View) { v.Sentinel.Primary, v.Sentinel.Silent, v.LeaseLeft = false, time.Second, 0 }), KillAll{}},
	{"a frozen sentinel and a lease that still runs", "R250", primary(func(v *View) { v.Sentinel.Silent = time.Second }), nil},
	{"a dead sentinel", "R105", standby(func(v *View) { v.Sentinel = Sentinel{} }), KillAll{}},
	{"no lease", "R110", primary(func(v *View) { v.LeaseLeft = -time.Second }), Fence{Late: true}},
	{"a lease during work", "R110", primary(func(v *View) { v.LeaseLeft, v.Job = 0, "confirming" }), Fence{Late: true}},
	{"promoted by hand", "R110", standby(func(v *View) { v.Sentinel.Primary = true }), Fence{Late: true}},
	{"revoked", "R112", primary(group(func(g *fsm.Group) { g.Lease.Revoked = true })), Fence{}},
	{"primary of an older epoch", "R112", primary(group(func(g *fsm.Group) { openB(g); g.Lease.Holder, g.Lease.Instance = "a", "ia" })), Fence{}},
	{"another holds the lease", "R112", primary(group(openB)), Fence{}},
	{"another sentinel's lease", "R112", primary(func(v *View) { v.Instance = "new" }), Fence{}},
	{"a restarted agent knows nothing yet", "R113", primary(func(v *View) { v.State = fsm.NewState() }), nil},
	{"a restarted agent knows an old state", "R113", primary(func(v *View) { v.Sentinel.Epoch = ep(5) }), nil},
	{"the last primary of a retired group goes", "R122", primary(func(v *View) {
		s := *v.State
		s.Nodes, s.Groups, s.Removed = map[fsm.NodeID]fsm.Node{}, map[fsm.GroupID]fsm.Group{}, map[fsm.NodeID]string{"a": "n-a"}
		v.State = &s
	}), StopPG{}},
	{"it has stopped, and its log does not tell it more", "R122", primary(func(v *View) { v.Sentinel, v.Removed = Sentinel{Connected: true}, true }), Exit{}},
	{"crashed", "R115", primary(func(v *View) { v.Sentinel = Sentinel{Connected: true, Exit: "signal 9"} }), Release{ep(1)}},
	{"crashed with the lease of an earlier sentinel", "R115", primary(func(v *View) { v.Sentinel, v.Instance = Sentinel{Connected: true}, "h-new" }), Release{ep(1)}},
	{"started with the lease of a sentinel before the boot, or of the host it is a copy of", "R150", primary(func(v *View) { v.Sentinel, v.Instance = Sentinel{Connected: true}, "copy-new" }), StartPG{}},
	{"and runs", "R900", primary(func(v *View) { v.Sentinel.Primary, v.Instance = false, "copy-new" }), nil},
	{"a switchover", "R117", primary(group(func(g *fsm.Group) { g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Demote, Epoch: ep(1)} })), StepDown{ep(1)}},
	{"a switchover that has not come so far", "R250", primary(group(func(g *fsm.Group) { g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Pause, Epoch: ep(1)} })), nil},
	{"a switchover of an older epoch", "R250", primary(group(func(g *fsm.Group) { g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Demote} })), nil},
	{"a running standby holds a lease of an earlier sentinel", "R118", primary(func(v *View) { v.Sentinel.Primary, v.Instance = false, "h-new" }), Fence{}},
	{"the same, but the state is old", "R150", standby(func(v *View) {
		v.State, v.Sentinel.Postmaster, v.Local.Lineage[3] = world(func(g *fsm.Group) { g.Lease.Holder = "b" }), 0, ep(9)
		group(free)(v)
	}), StartPG{}},
	{"restarted under the lease it was primary under", "R119", primary(func(v *View) { v.Sentinel.Primary, v.PG.InRecovery = false, true }, detached), Fence{}},
	{"restarted before the promotion was recorded", "R119", standby(group(fresh), detached, func(v *View) { v.PG.Timeline, v.Local.Lineage[0] = 3, ep(2) }), Fence{}},
	{"granted, still replaying", "R190", standby(group(fresh), detached, func(v *View) { v.LeaseLeft, v.PG.Settled = time.Second, false }), nil},
	{"work", "R120", standby(func(v *View) { v.Job = "cloning" }), nil},
	{"removed", "R122", standby(func(v *View) { s := world(); delete(s.Nodes, "b"); s.Removed["b"] = "n-b"; v.State = s }), StopPG{}},
	{"removed and stopped", "R122", standby(func(v *View) {
		s := world()
		delete(s.Nodes, "b")
		s.Removed["b"] = "n-b"
		v.State, v.Sentinel.Postmaster = s, 0
	}), Exit{}},
	{"no state yet", "R124", standby(func(v *View) { v.State, v.Local = fsm.NewState(), Local{} }), nil},
	{"after a failure", "R126", standby(func(v *View) { v.Backoff, v.Failed = time.Second, "starting: no disk" }), nil},
	{"foreign data", "R130", standby(func(v *View) { v.Local.SystemID, v.Sentinel.Postmaster = "other", 0 }), nil},
	{"foreign data running", "R130", standby(func(v *View) { v.Local.SystemID = "other" }), StopPG{}},
	{"may begin", "R140", primary(func(v *View) { v.Sentinel, v.Local = Sentinel{Connected: true}, Local{} }, group(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} })), InitDB{}},
	{"has begun", "R142", primary(func(v *View) { v.Sentinel, v.Local.Lineage = Sentinel{Connected: true}, nil }, group(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} })), Announce{}},
	{"new node", "R144", standby(func(v *View) { v.Sentinel, v.Local = Sentinel{Connected: true}, Local{} }), Clone{"a", ep(1)}},
	{"broken clone", "R144", standby(func(v *View) { v.Sentinel, v.Local.Unfinished = Sentinel{Connected: true}, "unfinished clone" }), Clone{"a", ep(1)}},
	{"broken rewind", "R144", standby(func(v *View) {
		v.Sentinel, v.Local.Unfinished = Sentinel{Connected: true}, "unfinished rewind (no such file)"
	}), Clone{"a", ep(1)}},
	{"broken rewind, not to be replaced", "R136", standby(rewindStop, func(v *View) {
		v.Sentinel, v.Local.Unfinished = Sentinel{Connected: true}, "unfinished rewind (no such file)"
	}), nil},
	{"broken clone, whatever becomes of rewinds", "R144", standby(rewindStop, func(v *View) { v.Sentinel, v.Local.Unfinished = Sentinel{Connected: true}, "unfinished clone" }), Clone{"a", ep(1)}},
	{"new node, no primary", "R146", standby(func(v *View) { v.Sentinel, v.Local = Sentinel{Connected: true}, Local{} }, group(free)), nil},
	{"stray server with a lease", "R147", primary(func(v *View) { v.Sentinel, v.Local.Stray = Sentinel{Connected: true}, true }), Adopt{ep(1)}},
	{"stray server beside a primary", "R143", primary(func(v *View) {
		v.Sentinel, v.Local.Stray, v.PG.InRecovery, v.Conf = Sentinel{Connected: true}, true, false, Conf{}
	}, group(openB)), KillAll{}},
	{"stray server", "R148", primary(func(v *View) { v.Sentinel, v.Local.Stray = Sentinel{Connected: true}, true }, group(free)), nil},
	{"stopped", "R150", standby(func(v *View) { v.Sentinel = Sentinel{Connected: true} }), StartPG{}},
	{"limits raised on the primary", "R155", standby(func(v *View) { v.PG.Starved = true }), StopPG{}},
	{"starting", "R152", standby(func(v *View) { v.PG = Postgres{Why: "refused"} }), nil},
	{
		"granted and answered", "R200", standby(group(fresh), detached, func(v *View) { v.LeaseLeft = time.Second }),
		Promote{Epoch: ep(2), From: 2, Conf: Conf{Phase: Closed, Sync: fsm.NewPair(1, "c"), Epoch: ep(2)}},
	},
	{"granted, but its word binds it", "R195", standby(detached, group(fresh), func(v *View) { v.LeaseLeft, v.WordLeft = 4*time.Second, 3*time.Second }), nil},
	{"its word binds no primary", "R250", primary(func(v *View) { v.WordLeft = 3 * time.Second }), nil},
	{
		"failsafe switched on", "R235", primary(group(func(g *fsm.Group) { g.Failsafe = true }), func(v *View) { v.Leased = true }),
		TakeIn{ep(1), []fsm.NodeID{"a", "b", "c"}},
	},
	{
		"a member joined", "R235", primary(group(func(g *fsm.Group) { g.Failsafe, g.Eligible = true, []fsm.NodeID{"a", "b"} }), func(v *View) { v.Leased = true }),
		TakeIn{ep(1), []fsm.NodeID{"a", "b", "c"}},
	},
	{
		"a member joined after failsafe was switched off", "R235", primary(group(func(g *fsm.Group) { g.Eligible = []fsm.NodeID{"a", "b"} }), func(v *View) { v.Leased = true }),
		TakeIn{ep(1), []fsm.NodeID{"a", "b", "c"}},
	},
	{"a member joined, but words keep the lease", "R250", primary(group(func(g *fsm.Group) { g.Failsafe, g.Eligible = true, []fsm.NodeID{"a", "b"} })), nil},
	{"failsafe in force", "R250", primary(group(trusting), func(v *View) { v.Leased = true }), nil},
	{"granted", "R205", standby(group(fresh), detached), nil},
	{"promoted", "R210", standby(group(fresh), detached, func(v *View) { v.LeaseLeft, v.Sentinel.Primary, v.Sentinel.Epoch = time.Second, true, ep(2) }), Record{ep(2)}},
	{
		"a standby is missing", "R215", primary(func(v *View) { v.PG.Senders[1] = Sender{Node: "c", Missing: 3 * time.Second} }),
		ProposeSync{Epoch: ep(1), Pair: fsm.NewPair(1, "b"), Reason: "n-c leaves the synchronous set: missing for 3s"},
	},
	{
		"a standby is missing while clients wait", "R215", primary(group(func(g *fsm.Group) { g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Promote, Epoch: ep(1)} }), func(v *View) { v.PG.Senders[1] = Sender{Node: "c", Missing: time.Second} }),
		ProposeSync{Epoch: ep(1), Pair: fsm.NewPair(1, "b"), Reason: "n-c leaves the synchronous set: missing for 1s"},
	},
	{"a standby is missing briefly", "R250", primary(func(v *View) { v.PG.Senders[1] = Sender{Node: "c", Missing: time.Second} }), nil},
	{
		"the last standby is missing", "R215", primary(group(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "c")} }), func(v *View) { v.PG.Senders = []Sender{{Node: "c", Missing: 3 * time.Second}} }),
		ProposeSync{Epoch: ep(1), Pair: fsm.NewPair(0), Reason: "n-c leaves the synchronous set: missing for 3s"},
	},
	{
		"a standby streams", "R215", primary(group(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "c")} })),
		ProposeSync{Epoch: ep(1), Pair: fsm.NewPair(1, "b", "c"), Reason: "n-b joins the synchronous set: streams, 0 bytes behind"},
	},
	{
		"joint", "R220", primary(group(func(g *fsm.Group) { g.Sync.Pairs = append(g.Sync.Pairs, fsm.NewPair(1, "b")) }), func(v *View) { v.PG.Senders = v.PG.Senders[:1] }),
		Confirm{ep(1), fsm.NewPair(1, "b"), Conf{Phase: Open, Sync: fsm.NewPair(1, "b"), Epoch: ep(1)}},
	},
	{
		"not open yet", "R220", primary(group(func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} })),
		Confirm{ep(1), fsm.NewPair(1, "b", "c"), Conf{Phase: Members, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1)}},
	},
	{"set otherwise", "R230", primary(func(v *View) { v.Conf.Phase = Members }), Configure{Conf{Phase: Open, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1)}}},
	{
		"a strict group's first standby comes before clients do", "R218", primary(func(v *View) { v.PG.SlotsWrong, v.PG.Senders = true, nil }, group(func(g *fsm.Group) {
			g.Strict, g.Sync.Confirmed, g.Sync.Pairs = true, fsm.Epoch{}, []fsm.Pair{fsm.NewPair(1)}
		})), Slots{},
	},
	{
		"slots can wait while enough confirm", "R220", primary(func(v *View) { v.PG.SlotsWrong = true }, group(func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} })),
		Confirm{ep(1), fsm.NewPair(1, "b", "c"), Conf{Phase: Members, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1)}},
	},
	{"slots", "R240", primary(func(v *View) { v.PG.SlotsWrong = true }), Slots{}},
	{"roles", "R245", primary(func(v *View) { v.Equipped = fsm.Epoch{} }), Equip{ep(1)}},
	{"at rest", "R250", primary(), nil},
	{"a new primary", "R300", standby(func(v *View) { v.Self, v.Instance = "c", "ic" }, group(promotedB)), Configure{Conf{Phase: Open}}},
	{"replaying", "R302", standby(func(v *View) { v.Self, v.Instance = "c", "ic" }, group(promotedB), detached, func(v *View) { v.PG.Settled = false }), nil},
	{"another timeline 2", "R310", primary(func(v *View) { v.Sentinel.Primary, v.Local.Lineage[2] = false, ep(0) }, group(openB), detached), Clone{"b", ep(2)}},
	{"has more than the fork", "R312", primary(func(v *View) { v.Sentinel.Primary = false }, group(openB), detached), Rewind{"b", ep(2), 180}},
	{"diverged, not open", "R314", primary(func(v *View) { v.Sentinel.Primary = false }, group(promotedB), detached), nil},
	{"WAL removed", "R320", standby(func(v *View) { v.PG.Streaming, v.PG.WALRemoved = false, true }), Clone{"a", ep(1)}},
	{"slots of a former primary", "R335", standby(func(v *View) { v.PG.SlotsWrong = true }), Slots{}},
	{"logical slots to copy", "R337", standby(func(v *View) { v.PG.CopySlots = true }), StopPG{}},
	{"logical slots to copy, but nobody to copy from", "R900", standby(group(free), detached, func(v *View) { v.PG.CopySlots = true }), nil},
	{"a logical slot was asked for", "R330", standby(group(func(g *fsm.Group) { g.Slots = []fsm.Slot{{Name: "cdc", Type: fsm.Logical}} })), Configure{Conf{Phase: Open, Epoch: ep(1), Upstream: "a", Logical: true}}},
	{"another primary elsewhere", "R230", primary(elsewhere), Configure{Conf{Phase: Open, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1)}}},
	{"another primary elsewhere, to a standby", "R330", standby(elsewhere), Configure{Conf{Phase: Open, Epoch: ep(1), Upstream: "a"}}},
	{"links by certificate", "R230", primary(func(v *View) {
		s := *v.State
		s.Cluster.Settings.PostgresTLS = fsm.LinksBoth
		v.State = &s
	}), Configure{Conf{Phase: Open, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1), Security: "both"}}},
	{"another database", "R230", primary(func(v *View) {
		s := *v.State
		s.Cluster.Settings.Databases = []string{"app", "web"}
		v.State = &s
	}), Configure{Conf{Phase: Open, Sync: fsm.NewPair(1, "b", "c"), Epoch: ep(1)}}},
	{"follow", "R330", primary(func(v *View) { v.Sentinel.Primary, v.PG.LSN = false, 180 }, group(promotedB), detached), Configure{Conf{Phase: Closed, Epoch: ep(2), Upstream: "b"}}},
	{"opens once it streams", "R330", standby(func(v *View) { v.Conf.Phase = Closed }), Configure{Conf{Phase: Open, Epoch: ep(1), Upstream: "a"}}},
	{"streams", "R340", standby(), nil},
	{"does not stream", "R350", standby(func(v *View) { v.PG.Streaming = false }), nil},
	{"lease free", "R900", standby(group(free), detached), nil},
	{"lease free, still attached", "R300", standby(group(free)), Configure{Conf{Phase: Open}}},
	{"granted, not recorded, still attached", "R300", standby(group(func(g *fsm.Group) {
		g.Epoch, g.Lease.Epoch = ep(2), ep(2)
		g.Grants = append(slices.Clone(g.Grants), fsm.Grant{Epoch: ep(2), Holder: "a"})
	})), Configure{Conf{Phase: Open}}},
	{"lease free, about to be recruited by plan", "R900", standby(group(free), group(func(g *fsm.Group) {
		g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Promote, To: "b", Epoch: ep(1)}
	})), nil},
	{"an old state does not lead away from the upstream", "R900", standby(func(v *View) { v.Local.Lineage[3], v.Local.Promise = ep(4), fsm.Epoch{} }), nil},
	{"an epoch below the promise is not followed", "R900", standby(detached, func(v *View) { v.Local.Promise = ep(2) }), nil},
}

func rewindStop(v *View) {
	s := *v.State
	s.Cluster.Settings.RewindFailure = RewindStop
	v.State = &s
}

// everywhere is what all nodes have alike.
var everywhere = regexp.MustCompile(`Access:[a-c:2 ]* Links:\d+ Spaces:\d+`)

func TestNodeExamples(t *testing.T) {
	won := map[string]bool{}
	for _, e := range nodeExamples {
		t.Run(e.rule+" "+e.name, func(t *testing.T) {
			before := cmp.Diff(View{}, e.view)
			p := Node(e.view)
			won[p.Rule] = true
			if p.Rule != e.rule {
				t.Fatalf("%s won (%s), want %s", p.Rule, p.Reason, e.rule)
			}
			if got, want := everywhere.ReplaceAllString(fmt.Sprintf("%T%+v", p.Action, p.Action), "Access: Links:0 Spaces:0"), fmt.Sprintf("%T%+v", e.want, e.want); got != want {
				t.Errorf("action %s, want %s", got, want)
			}
			if p.Reason == "" || strings.Contains(p.Reason, "%!") {
				t.Errorf("reason %q", p.Reason)
			}
			if cmp.Diff(View{}, e.view) != before {
				t.Error("the decision wrote to its view")
			}
		})
	}
	for _, r := range NodeRules {
		if !won[r.ID] {
			t.Errorf("no example is won by %s (%s)", r.ID, r.Name)
		}
	}
}

func TestTablesAreWellFormed(t *testing.T) {
	last := ""
	for _, r := range NodeRules {
		if r.ID <= last || r.Name == "" {
			t.Errorf("node rule %s after %s", r.ID, last)
		}
		last = r.ID
	}
	if !NodeRules[len(NodeRules)-1].When(Facts{}) {
		t.Error("the last node rule does not always hold")
	}
	for _, r := range HoldRules {
		if r.ID <= last && last[0] == 'F' || r.Name == "" {
			t.Errorf("rule %s after %s", r.ID, last)
		}
		last = r.ID
	}
	for _, r := range WordRules {
		if r.ID <= last || r.Name == "" {
			t.Errorf("rule %s after %s", r.ID, last)
		}
		last = r.ID
	}
	last = ""
	for _, r := range ClusterRules {
		if r.ID <= last || r.Name == "" {
			t.Errorf("cluster rule %s after %s", r.ID, last)
		}
		last = r.ID
	}
	if !ClusterRules[len(ClusterRules)-1].When(GroupFacts{}) {
		t.Error("the last cluster rule does not always hold")
	}
}

func TestRulesAreDocumented(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "rules.md")
	if *update {
		if err := os.WriteFile(path, []byte(Dump()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(b), Dump()); d != "" {
		t.Errorf("run `go test ./fsm/decide -update`:\n%s", d)
	}
}

// TestLinks: after every change of primary there is another number, and during a switchover's pause there is none.
func TestLinks(t *testing.T) {
	op := func(kind, phase string) *fsm.Operation { return &fsm.Operation{Kind: kind, Phase: phase} }
	links := func(confirmed uint64, op *fsm.Operation) uint64 {
		s := world(func(g *fsm.Group) { g.Sync.Confirmed, g.Op = ep(confirmed), op })
		s.Groups[1] = fsm.Group{Sync: fsm.Sync{Confirmed: ep(10)}}
		return Links(s)
	}
	type moment struct {
		confirmed uint64
		op        *fsm.Operation
		want      uint64
	}
	for name, story := range map[string][]moment{
		"a failover":   {{3, nil, 13}, {3, op(fsm.Failover, ""), 13}, {4, nil, 14}},
		"a switchover": {{3, op(fsm.Switchover, fsm.Check), 13}, {3, op(fsm.Switchover, fsm.Demote), 13}, {3, op(fsm.Switchover, fsm.Promote), 13}, {4, op(fsm.Switchover, fsm.Resume), 13}, {4, nil, 14}},
		"a restart":    {{3, op(fsm.Restart, fsm.Pause), 13}, {3, op(fsm.Restart, fsm.Demote), 14}, {3, op(fsm.Restart, fsm.Promote), 14}, {4, op(fsm.Restart, fsm.Resume), 14}, {4, nil, 14}},
	} {
		for i, m := range story {
			if got := links(m.confirmed, m.op); got != m.want {
				t.Errorf("%s, moment %d: %d, want %d", name, i, got, m.want)
			}
		}
	}
	s := world()
	s.Cluster.Settings.Citus = false
	if Links(s) != 0 {
		t.Error("a formation without Citus has nothing to forget")
	}
}
