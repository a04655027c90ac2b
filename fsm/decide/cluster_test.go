package decide

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

// election is a free group with all three recruited and equal.
func election(edit ...func(*GroupView)) GroupView {
	s := world(free)
	v := GroupView{
		State: s, Group: s.Groups[0], Heard: map[fsm.NodeID]time.Duration{"a": 0, "b": 0, "c": 0}, Asking: time.Second, Enough: time.Second,
		Recruits: []Recruit{rec("a", 200), rec("b", 200), rec("c", 200)}, Refusals: map[fsm.NodeID]string{}, Ailed: map[fsm.NodeID]time.Duration{},
	}
	for _, f := range edit {
		f(&v)
	}
	return v
}

func rec(id fsm.NodeID, lsn fsm.LSN) Recruit {
	return Recruit{Node: id, Instance: "i" + string(id), Timeline: 2, Lineage: ep(1), LSN: lsn}
}

func recruits(rs ...Recruit) func(*GroupView) { return func(v *GroupView) { v.Recruits = rs } }

func edit(f func(*fsm.Group)) func(*GroupView) { return func(v *GroupView) { f(&v.Group) } }

func tag(id fsm.NodeID, f func(*fsm.Tags)) func(*GroupView) {
	return func(v *GroupView) {
		n := v.State.Nodes[id]
		f(&n.Tags)
		v.State.Nodes[id] = n
	}
}

func held(v *GroupView) {
	v.State = world()
	v.Group = v.State.Groups[0]
	v.Recruits, v.Asking = nil, 0
}

func op(to fsm.NodeID, trust bool) func(*GroupView) {
	return edit(func(g *fsm.Group) { g.Op = &fsm.Operation{ID: "o", Kind: "failover", To: to, Trust: trust, By: "me"} })
}

// work is a switchover from a to b, in one of its phases.
func work(phase string, w Work) func(*GroupView) {
	return func(v *GroupView) {
		w.Phase = phase
		v.Work, v.Group.Op = w, &fsm.Operation{ID: "o", Kind: fsm.Switchover, From: "a", To: "b", Phase: phase, Epoch: v.Group.Epoch, By: "me"}
	}
}

// ended: the holder stopped in good order, its last record beginning there.
func ended(at fsm.LSN) func(*GroupView) {
	return edit(func(g *fsm.Group) {
		g.Ended = &fsm.End{Epoch: ep(1), Timeline: 2, LSN: at, Pairs: []fsm.Pair{fsm.NewPair(1, "b", "c")}}
		g.Sync.Pairs = g.Ended.Pairs
	})
}

// silent: the holder's keepalives have been missing.
func silent(ago time.Duration) func(*GroupView) { return func(v *GroupView) { v.Heard["a"] = ago } }

func probes(dead ...bool) func(*GroupView) {
	return func(v *GroupView) {
		v.Probes = map[fsm.NodeID]Probe{}
		for i, d := range dead {
			v.Probes[[]fsm.NodeID{"b", "c"}[i]] = Probe{Dead: d, Text: "no answer"}
		}
	}
}

func early(g *fsm.Group) { g.Lease.Revoked, g.Lease.Early = true, true }

func asked(v *GroupView) { v.Asking, v.Enough = time.Minute, time.Minute }

// afterEnd: after the end in good order another was granted the lease, and failed; a may have confirmed commits for it.
func afterEnd(g *fsm.Group) {
	g.Ended = &fsm.End{Epoch: ep(1), Timeline: 2, LSN: 199, Pairs: []fsm.Pair{fsm.NewPair(2, "b", "c")}}
	g.Epoch, g.LastHolder = ep(2), "c"
	g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "c"})
	g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "a")}
}

func changed(ago time.Duration) func(*GroupView) { return func(v *GroupView) { v.Changed = ago } }

func nobody(v *GroupView) { v.Recruits, v.Asking, v.Enough = nil, 0, 0 }

var clusterExamples = []struct {
	name, rule string
	view       GroupView
	want       string // of the action
}{
	{"a new group", "C100", election(edit(func(g *fsm.Group) { *g = fsm.Group{} })), "ClaimGroup{Node:a}"},
	{"the beginner died", "C100", election(edit(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} }), func(v *GroupView) { v.Heard["a"] = time.Hour }), "ClaimGroup{Node:b}"},
	{"the beginner died before this leader came", "C100", election(edit(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} }), func(v *GroupView) { delete(v.Heard, "a"); v.Leading = time.Hour }), "ClaimGroup{Node:b}"},
	{"the beginner may still come", "C110", election(edit(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} }), func(v *GroupView) { delete(v.Heard, "a"); v.Leading = time.Second }), ""},
	{"initialising", "C110", election(edit(func(g *fsm.Group) { *g = fsm.Group{ClaimedBy: "a"} })), ""},
	{"asked for", "C200", election(held, op("b", false)), "RevokeLease{Epoch:1.1"},
	{"revoked", "C210", election(held, edit(func(g *fsm.Group) { g.Lease.Revoked = true })), ""},
	{"held", "C220", election(held), ""},
	{"silent", "C135", election(held, silent(700*time.Millisecond)), "ProbeHolder{Witnesses:[b c]}"},
	{"silent, asked already", "C220", election(held, silent(700*time.Millisecond), func(v *GroupView) { v.Probing = true }), ""},
	{"silent, but its standbys see it", "C135", election(held, silent(2*time.Second), probes(true, false)), "ProbeHolder"},
	{"gone", "C130", election(held, silent(time.Second), probes(true, true)), "RevokeLease{Epoch:1.1 Reason:n-a has been silent for 1s, and n-b: no answer; n-c: no answer Early:true Sick:false}"},
	{"gone, one standby is away", "C220", election(held, silent(3*time.Second), probes(true), func(v *GroupView) { v.Heard["c"] = time.Minute }), ""},
	{"gone, but early failover is off", "C220", election(held, silent(3*time.Second), probes(true, true), edit(func(g *fsm.Group) { g.NoEarly = true })), ""},
	{"gone, but the group is paused", "C220", election(held, silent(3*time.Second), probes(true, true), edit(func(g *fsm.Group) { g.Paused = true })), ""},
	{"gone, but commits did not wait", "C220", election(held, silent(3*time.Second), probes(true, true), edit(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{{}} })), ""},
	{"gone, but a pair in force needs nobody", "C220", election(held, silent(3*time.Second), probes(true, true), edit(func(g *fsm.Group) { g.Sync.Pairs = append(g.Sync.Pairs, fsm.Pair{}) })), ""},
	{"gone, but the group has just failed over early", "C220", election(held, silent(3*time.Second), probes(true, true), func(v *GroupView) { v.LastEarly = 5 * time.Second }), ""},
	{"gone, the group has just changed otherwise", "C130", election(held, silent(3*time.Second), probes(true, true), changed(5*time.Second)), "RevokeLease"},
	{"gone before this leader came", "C130", election(held, probes(true, true), func(v *GroupView) { delete(v.Heard, "a"); v.Leading = 2 * time.Second }), "RevokeLease"},
	{"sick", "C136", election(held, sick("a", SickLogHangs)), "RevokeLease{Epoch:1.1 Reason:n-a is sick: so it is Early:true Sick:true}"},
	{"sick, early failover is off", "C136", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.NoEarly = true })), "RevokeLease{Epoch:1.1 Reason:n-a is sick: so it is Early:false Sick:true}"},
	{"sick, and silent", "C220", election(held, sick("a", SickLogHangs), silent(time.Hour), func(v *GroupView) { v.Probing = true }), ""},
	{"sick, and a failover asked for", "C200", election(held, sick("a", SickLogHangs), op("b", false)), "RevokeLease{Epoch:1.1"},
	{"sick, but planned work begins", "C150", election(held, sick("a", SickLogHangs), func(v *GroupView) { v.Due, v.Group.Planned = true, &fsm.Operation{ID: "p", Kind: fsm.Switchover} }), "MoveOperation"},
	{"sick, but switched off", "C138", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.NoSick = true })), ""},
	{"sick, but paused", "C138", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.Paused = true })), ""},
	{"sick, but asynchronous", "C138", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.Mode = fsm.Off })), ""},
	{"sick, but after a recovery", "C138", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.Sync.Unknown = true })), ""},
	{"sick, as another was", "C138", election(held, sick("a", SickLogHangs), func(v *GroupView) { v.SinceSick = 9 * time.Minute }), ""},
	{"sick, as another was long ago", "C136", election(held, sick("a", SickLogHangs), func(v *GroupView) { v.SinceSick = 11 * time.Minute }), "RevokeLease"},
	{"sick, a standby is sick, too", "C138", election(held, sick("a", SickLogHangs), sick("b", SickDiskFull)), ""},
	{"sick, a standby was so lately and may alone have commits", "C138", election(held, sick("a", SickLogHangs), func(v *GroupView) { v.Ailed["b"] = time.Minute }), ""},
	{"sick, a standby was so lately and confirms nothing", "C136", election(held, sick("a", SickLogHangs), edit(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "c")} }), func(v *GroupView) { v.Ailed["b"] = time.Minute }), "RevokeLease"},
	{"sick, a standby is no candidate, but proves", "C136", election(held, sick("a", SickLogHangs), tag("b", noFailover)), "RevokeLease"},
	{"sick, all standbys are no candidates", "C138", election(held, sick("a", SickLogHangs), tag("b", noFailover), tag("c", noFailover)), ""},
	{"sick, a standby does not stream", "C138", election(held, sick("a", SickLogHangs), func(v *GroupView) { n := v.State.Nodes["b"]; n.Report.State = "starting"; v.State.Nodes["b"] = n }), ""},
	{"sick, but writes", "C137", election(held, sick("a", SickDiskFull)), "BeginOperation{Operation:{ID:sick-0-1.1 Kind:switchover From: To:b"},
	{"sick, but writes, the first choice was sick lately", "C137", election(held, sick("a", SickDiskFull), edit(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(2, "b", "c")} }), func(v *GroupView) { v.Ailed["b"] = time.Minute }), "BeginOperation{Operation:{ID:sick-0-1.1 Kind:switchover From: To:c"},
	{"sick, but writes, tried already", "C138", election(held, sick("a", SickDiskFull), func(v *GroupView) { v.TriedSick = time.Minute }), ""},
	{"sick, but writes, another group pauses", "C138", election(held, sick("a", SickDiskFull), func(v *GroupView) {
		v.State.Groups[1] = fsm.Group{ID: 1, Op: &fsm.Operation{Kind: fsm.Switchover}}
	}), ""},
	{"the best is sick", "C400", election(recruits(rec("a", 200), ill("b", 300), rec("c", 300))), "GrantLease{To:c"},
	{"the best was sick lately", "C400", election(recruits(rec("a", 200), rec("b", 300), rec("c", 300)), func(v *GroupView) { v.Ailed["b"] = time.Minute }), "GrantLease{To:c"},
	{"only a sick one has everything", "C400", election(recruits(ill("b", 300), rec("c", 200)), silent(time.Hour)), "GrantLease{To:b"},
	{"only a sick one has everything yet", "C322", election(recruits(ill("b", 300), rec("c", 200)), func(v *GroupView) { v.Enough = time.Second }), "RecruitAll"},
	{"all are sick", "C400", election(recruits(ill("a", 300), ill("b", 300), ill("c", 300))), "GrantLease{To:b"},
	{"just changed, its holder lives and is sick", "C400", election(changed(5*time.Second), sick("a", SickReadOnly), recruits(rec("b", 200), rec("c", 200))), "GrantLease{To:b"},
	{"just changed, its holder lives and is sick as the others", "C325", election(changed(5*time.Second), sick("a", SickReadOnly), recruits(ill("b", 200), ill("c", 200)), func(v *GroupView) { v.Enough = time.Minute }), "RecruitAll"},
	{"just changed, its holder has come back sick", "C400", election(changed(5*time.Second), recruits(ill("a", 300), rec("b", 200), rec("c", 200))), "GrantLease{To:b"},
	{"revoked early", "C300", election(held, edit(early), nobody), "RecruitAll"},
	{"revoked early, not enough", "C310", election(held, edit(early), asked, recruits(rec("b", 200))), "RecruitAll"},
	{"revoked early, enough", "C400", election(held, edit(early), asked, recruits(rec("b", 200), rec("c", 200))), "GrantLease{To:b {1 [c]}}"},
	{"paused", "C230", election(edit(func(g *fsm.Group) { g.Paused = true })), ""},
	{"planned, its time has come", "C150", election(held, func(v *GroupView) { v.Due, v.Group.Planned = true, &fsm.Operation{ID: "p", Kind: fsm.Switchover} }), "MoveOperation{ID:p From: To:check"},
	{"planned, its time is long past", "C145", election(held, func(v *GroupView) {
		v.Due, v.Late, v.Group.Planned = true, time.Hour, &fsm.Operation{ID: "p", Kind: fsm.Switchover}
	}), "DropOperation{ID:p Reason:its time was 1h0m0s ago"},
	{"planned, its time has not come", "C220", election(held, edit(func(g *fsm.Group) { g.Planned = &fsm.Operation{ID: "p", Kind: fsm.Switchover} })), ""},
	{"check", "C165", election(held, work(fsm.Check, Work{})), "StartWork{Phase:check}"},
	{"checking", "C165", election(held, work(fsm.Check, Work{Busy: true})), ""},
	{"checked", "C170", election(held, work(fsm.Check, Work{Ready: true, Fit: "b"})), "MoveOperation{ID:o From:check To:pause Node:b"},
	{"refused", "C160", election(held, work(fsm.Check, Work{Ready: true, Refused: "lag"})), "DropOperation{ID:o Reason:lag}"},
	{"check takes for ever", "C160", election(held, work(fsm.Check, Work{Busy: true, For: time.Hour})), "DropOperation"},
	{"paused", "C170", election(held, work(fsm.Pause, Work{Ready: true})), "MoveOperation{ID:o From:pause To:demote"},
	{"stopping", "C190", election(held, work(fsm.Demote, Work{For: time.Second})), ""},
	{"does not stop", "C180", election(held, work(fsm.Demote, Work{For: time.Minute})), "RevokeLease{Epoch:1.1"},
	{"stopped in good order", "C300", election(work(fsm.Promote, Work{}), nobody), "RecruitAll"},
	{"the candidate has the end", "C400", election(work(fsm.Promote, Work{}), ended(199), recruits(rec("b", 200))), "GrantLease{To:b {1 [a c]}}"},
	{"the candidate lacks the end", "C310", election(work(fsm.Promote, Work{}), ended(200), recruits(rec("b", 200))), "RecruitAll"},
	{"the candidate lacks the end, the former holder is back", "C330", election(work(fsm.Promote, Work{}), ended(210), recruits(rec("a", 211), rec("b", 200)), func(v *GroupView) { v.Asking = time.Minute }), "DropOperation{ID:o"},
	{"nobody asked, somebody has the end", "C400", election(ended(199), recruits(rec("b", 200))), "GrantLease{To:b"},
	{"the end is no proof for what came after it", "C310", election(edit(afterEnd), recruits(rec("b", 200))), "RecruitAll"},
	{"the end, and who confirms what came after it", "C400", election(edit(afterEnd), asked, recruits(rec("a", 200), rec("b", 200))), "GrantLease{To:"},
	{"a restart comes back", "C400", election(work(fsm.Promote, Work{}), edit(func(g *fsm.Group) { g.Op.Kind, g.Op.To = fsm.Restart, "a" }), ended(199), recruits(rec("a", 200))), "GrantLease{To:a {1 [b c]}}"},
	{"promoting", "C190", election(held, work(fsm.Promote, Work{})), ""},
	{"open again", "C195", election(held, work(fsm.Resume, Work{})), "StartWork{Phase:resume}"},
	{"resumed", "C198", election(held, work(fsm.Resume, Work{Ready: true, Paused: 142 * time.Millisecond})), "MoveOperation{ID:o From:resume To: Node: Text:switched over group 0: n-a -> n-b, writes paused 142 ms}"},
	{"resumed, by force", "C198", election(held, work(fsm.Resume, Work{Ready: true, Paused: time.Millisecond, Ended: []string{"pid 7 of app"}})), "MoveOperation{ID:o From:resume To: Node: Text:switched over group 0: n-a -> n-b, writes paused 1 ms; ended what stood in the way: pid 7 of app}"},
	{"resumed, but not all rows", "C198", election(held, work(fsm.Resume, Work{Refused: "no answer"})), "MoveOperation{ID:o From:resume To:"},
	{"free", "C300", election(nobody), "RecruitAll"},
	{"just changed, its holder lives", "C325", election(changed(5*time.Second), recruits(rec("b", 200), rec("c", 200))), "RecruitAll"},
	{"just changed, its holder has come back behind the best", "C400", election(changed(5*time.Second), recruits(rec("a", 200), rec("b", 300), rec("c", 300))), "GrantLease{To:a"},
	{"just changed, its holder is dead", "C400", election(changed(5*time.Second), recruits(rec("b", 200), rec("c", 200)), func(v *GroupView) { v.Heard["a"] = time.Minute }), "GrantLease{To:b"},
	{"just changed, asked for", "C400", election(changed(5*time.Second), op("c", false), recruits(rec("b", 200), rec("c", 200))), "GrantLease{To:c"},
	{"changed long ago", "C400", election(changed(time.Minute), recruits(rec("b", 200), rec("c", 200))), "GrantLease{To:b"},
	{"one of two", "C310", election(recruits(rec("b", 200))), "RecruitAll"},
	{"nobody", "C310", election(recruits()), "RecruitAll"},
	{"a foreign timeline proves nothing", "C310", election(recruits(rec("b", 200), Recruit{Node: "a", Timeline: 2, Lineage: ep(0), LSN: 900})), "RecruitAll"},
	{"more may come", "C320", election(recruits(rec("b", 200), rec("c", 200)), func(v *GroupView) { v.Enough = 50 * time.Millisecond }), ""},
	{"the wanted one is behind", "C330", election(op("c", false), recruits(rec("a", 300), rec("b", 300), rec("c", 100)), func(v *GroupView) { v.Asking = time.Minute }, edit(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "b", "c")} })), "DropOperation"},
	{"all tagged", "C340", election(tag("a", noFailover), tag("b", noFailover), tag("c", noFailover)), "RecruitAll"},
	{"only a node that may not be primary has everything", "C340", election(tag("a", noFailover), recruits(rec("a", 300), rec("b", 200))), "RecruitAll"},
	{"the best", "C400", election(recruits(rec("a", 200), rec("b", 300), rec("c", 250))), "GrantLease{To:b"},
	{"the last holder alone", "C400", election(recruits(rec("a", 200))), "GrantLease{To:a"},
	{"the standbys without it", "C400", election(recruits(rec("b", 200), rec("c", 210))), "GrantLease{To:c"},
	{"trusted", "C400", election(op("b", true), recruits(rec("b", 1)), edit(func(g *fsm.Group) { g.Sync.Unknown = true })), "GrantLease{To:b"},
	{"the wanted one has enough", "C400", election(op("c", false), recruits(rec("a", 300), rec("b", 200), rec("c", 200))), "GrantLease{To:c"},
}

func noFailover(t *fsm.Tags) { t.NoFailover = true }

func TestClusterExamples(t *testing.T) {
	won := map[string]bool{}
	for _, e := range clusterExamples {
		t.Run(e.rule+" "+e.name, func(t *testing.T) {
			p := Cluster(e.view)
			won[p.Rule] = true
			if p.Rule != e.rule {
				t.Fatalf("%s won (%s), want %s", p.Rule, p.Reason, e.rule)
			}
			got := ""
			switch a := p.Action.(type) {
			case nil:
			case GrantLease:
				got = fmt.Sprintf("GrantLease{To:%s %v}", a.To.Node, a.Pair)
			default:
				got = strings.TrimPrefix(fmt.Sprintf("%T%+v", a, a), "decide.")
			}
			if (e.want == "") != (got == "") || !strings.HasPrefix(got, e.want) {
				t.Errorf("action %s, want %s", got, e.want)
			}
			if p.Reason == "" || strings.Contains(p.Reason, "%!") {
				t.Errorf("reason %q", p.Reason)
			}
		})
	}
	for _, r := range ClusterRules {
		if !won[r.ID] {
			t.Errorf("no example is won by %s (%s)", r.ID, r.Name)
		}
	}
}

func TestCandidatesOrder(t *testing.T) {
	s := world(free)
	for id, f := range map[fsm.NodeID]func(*fsm.Tags){"b": func(t *fsm.Tags) { t.FailoverPriority = 5 }} {
		n := s.Nodes[id]
		f(&n.Tags)
		s.Nodes[id] = n
	}
	s.Nodes["d"] = fsm.Node{ID: "d", Name: "n-d"}
	g := s.Groups[0]
	g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: "b", Timeline: 7, Parent: 2, Fork: 150}, fsm.Grant{Epoch: ep(3), Holder: "c", Timeline: 3, Parent: 2, Fork: 150})
	at := func(id fsm.NodeID, tl fsm.Timeline, e uint64, lsn fsm.LSN) Recruit {
		return Recruit{Node: id, Timeline: tl, Lineage: ep(e), LSN: lsn}
	}
	for _, tc := range []struct {
		name string
		in   []Recruit
		want string
	}{
		{"greatest LSN", []Recruit{at("a", 2, 1, 10), at("c", 2, 1, 30), at("b", 2, 1, 20)}, "cba"},
		{"newest epoch, not the highest number", []Recruit{at("a", 7, 2, 900), at("c", 3, 3, 160)}, "ca"},
		{"newest epoch before LSN", []Recruit{at("a", 2, 1, 900), at("c", 3, 3, 160)}, "ca"},
		{"priority at equal LSN", []Recruit{at("a", 2, 1, 10), at("b", 2, 1, 10)}, "ba"},
		{"synchronous at equal priority", []Recruit{at("a", 2, 1, 10), at("c", 2, 1, 10)}, "ca"},
		{"name at last", []Recruit{at("d", 2, 1, 10), at("a", 2, 1, 10)}, "ad"},
		{"a timeline made by another epoch is out", []Recruit{at("a", 3, 2, 900), at("c", 2, 1, 10)}, "c"},
		{"an unrecorded timeline is out", []Recruit{at("a", 9, 2, 900), at("c", 2, 1, 10)}, "c"},
		{"no member", []Recruit{at("x", 2, 1, 900), at("c", 2, 1, 10)}, "c"},
	} {
		for _, in := range [][]Recruit{tc.in, {tc.in[len(tc.in)-1], tc.in[0]}} {
			if len(in) != len(tc.in) {
				continue
			}
			got := ""
			for _, r := range Candidates(s, g, in) {
				got += string(r.Node)
			}
			if got != tc.want {
				t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
			}
		}
	}
}

func TestRelate(t *testing.T) {
	// 1 -100-> 2 (e1) -200-> 3 (e3); 2 -150-> 5 (e2, dead); 3 -300-> 4 (e4, adopted nothing)
	g := fsm.Group{Grants: []fsm.Grant{
		{Timeline: 1},
		{Epoch: ep(1), Timeline: 2, Parent: 1, Fork: 100},
		{Epoch: ep(2), Timeline: 5, Parent: 2, Fork: 150},
		{Epoch: ep(3), Timeline: 3, Parent: 2, Fork: 200},
		{Epoch: ep(4), Timeline: 4, Parent: 3, Fork: 300},
	}}
	again := g
	again.Grants = append(g.Grants[:2:2], fsm.Grant{Epoch: ep(2), Timeline: 3, Parent: 2, Fork: 120}, fsm.Grant{Epoch: ep(3), Timeline: 3, Parent: 2, Fork: 150})
	// 3 (e2) -150-> 4 (e3, dead) -160-> 6 (e4, dead); 3 (e2) -150-> 4 (e5) -400-> 5 (e6), as one who knew neither made it
	twice := fsm.Group{Grants: []fsm.Grant{
		{Timeline: 2},
		{Epoch: ep(2), Timeline: 3, Parent: 2, Fork: 120},
		{Epoch: ep(3), Timeline: 4, Parent: 3, Fork: 150},
		{Epoch: ep(4), Timeline: 6, Parent: 4, Fork: 160},
		{Epoch: ep(5), Timeline: 4, Parent: 3, Fork: 150},
		{Epoch: ep(6), Timeline: 5, Parent: 4, Fork: 400},
	}}
	back := twice // to the branch whose number was made again meanwhile
	back.Grants = append(twice.Grants[:5:5], fsm.Grant{Epoch: ep(6), Timeline: 7, Parent: 6, Fork: 170})
	chosen := twice // by an operator: 6 (e4) had been left out of 4 (e3), whose number was made again
	chosen.Grants = append(twice.Grants[:5:5], fsm.Grant{Epoch: ep(6), Timeline: 7, Parent: 6, Fork: 170, From: ep(4)})
	trusted := twice // by an operator, who was to know: 4 (e3), though another made that number later
	trusted.Grants = append(twice.Grants[:5:5], fsm.Grant{Epoch: ep(6), Timeline: 5, Parent: 4, Fork: 155, From: ep(3)})
	adoptedLater := fsm.Group{Grants: []fsm.Grant{
		{Timeline: 7},
		{Epoch: ep(1), Timeline: 8, Parent: 7, Fork: 100},
		{Epoch: ep(2), Timeline: 8, Parent: 7, Fork: 100},
		{Epoch: ep(3), Timeline: 9, Parent: 8, Fork: 300, From: ep(1)},
		{Epoch: ep(4), Timeline: 9, Parent: 9},
		{Epoch: ep(5), Timeline: 10, Parent: 9, Fork: 500},
	}}
	forgotten := fsm.Group{Grants: []fsm.Grant{
		{Epoch: ep(2), Timeline: 3, Parent: 2, Fork: 120},
		{Epoch: ep(3), Timeline: 4, Parent: 3, Fork: 150},
		{Epoch: ep(4), Timeline: 5, Parent: 3, Fork: 150},
	}}
	restored := fsm.Group{Grants: append(twice.Grants[:3:3], fsm.Grant{Epoch: fsm.Epoch{Inc: 2, N: 4}, Timeline: 5, Parent: 4, Fork: 400, From: ep(5)})}
	lost := twice // restored from an older snapshot: nobody knows what 9 came from
	lost.Grants = append(twice.Grants[:3:3], fsm.Grant{Epoch: ep(7), Timeline: 10, Parent: 9, Fork: 500})
	unrecorded := g
	unrecorded.Grants = append(g.Grants[:4:4], fsm.Grant{Epoch: ep(4)})
	adopted := fsm.Group{Grants: []fsm.Grant{{Timeline: 9}, {Epoch: ep(1), Timeline: 9, Parent: 9}}}
	for _, tc := range []struct {
		name string
		g    fsm.Group
		tl   fsm.Timeline
		lsn  fsm.LSN
		e    fsm.Epoch
		rel  Relation
		fork fsm.LSN
	}{
		{"same timeline", g, 4, 999, ep(4), Follows, 999},
		{"same number, other epoch", g, 4, 310, ep(2), Foreign, 0},
		{"parent, before the fork", g, 3, 299, ep(3), Follows, 300},
		{"parent, at the fork", g, 3, 300, ep(3), Follows, 300},
		{"parent, after the fork", g, 3, 301, ep(3), Diverged, 300},
		{"parent's number, other epoch", g, 3, 250, ep(2), Foreign, 0},
		{"grandparent, before", g, 2, 200, ep(1), Follows, 200},
		{"grandparent, after", g, 2, 201, ep(1), Diverged, 200},
		{"first timeline, before", g, 1, 100, fsm.Epoch{}, Follows, 100},
		{"first timeline, after", g, 1, 101, fsm.Epoch{}, Diverged, 100},
		{"dead branch", g, 5, 151, ep(2), Diverged, 0},
		{"dead branch by a longer number than the primary's", g, 5, 160, ep(2), Diverged, 0},
		{"number nobody made", g, 8, 1, ep(2), Foreign, 0},
		{"nothing known here", g, 0, 0, fsm.Epoch{}, Foreign, 0},
		{"number made twice: the newer", again, 3, 400, ep(3), Follows, 400},
		{"number made twice: the older", again, 3, 130, ep(2), Foreign, 0},
		{"number made twice: on the branch that did not live", back, 4, 150, ep(5), Foreign, 0},
		{"number made twice: on the branch that lived", back, 4, 160, ep(3), Foreign, 0},
		{"number made twice: below", twice, 6, 170, ep(4), Foreign, 0},
		{"number made twice: the primary's way is the older, by its record", chosen, 6, 170, ep(4), Follows, 170},
		{"number made twice: beside the way that its record tells", chosen, 4, 150, ep(5), Foreign, 0},
		{"number made twice: the older was trusted", trusted, 4, 150, ep(5), Foreign, 0},
		{"adopted since, on a branch that its number hides", adoptedLater, 8, 120, ep(2), Foreign, 0},
		{"adopted since, before it", adoptedLater, 9, 400, ep(3), Foreign, 0},
		{"beside, and where both come from is forgotten", forgotten, 4, 160, ep(3), Diverged, 0},
		{"restored: the dead branch of a number that was made again in what is lost", restored, 4, 160, ep(3), Foreign, 0},
		{"the way back is not known", lost, 4, 150, ep(3), Foreign, 0},
		{"the way back is not known, newest", lost, 10, 510, ep(7), Follows, 510},
		{"no timeline of its own yet", unrecorded, 0, 0, ep(4), Foreign, 0},
		{"promotion not recorded yet", unrecorded, 3, 10, ep(3), Foreign, 0},
		{"no grant", fsm.Group{}, 1, 1, fsm.Epoch{}, Foreign, 0},
		{"adopted", adopted, 9, 5, ep(1), Follows, 5},
	} {
		rel, fork := Relate(tc.g, tc.tl, tc.lsn, tc.e)
		if rel != tc.rel || fork != tc.fork {
			t.Errorf("%s: %s %v, want %s %v", tc.name, rel, fork, tc.rel, tc.fork)
		}
	}
}
