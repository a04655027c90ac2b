package decide

import (
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

// trusting is a group whose failsafe is in force.
func trusting(g *fsm.Group) { g.Failsafe, g.Eligible = true, []fsm.NodeID{"a", "b", "c"} }

func TestHold(t *testing.T) {
	view := func(edit ...func(*HoldView, *fsm.Group)) HoldView {
		v := HoldView{
			Self: "a", Instance: "h-ia", LeaseLeft: 2 * time.Second, Confirmed: true,
			Sentinel: Sentinel{Connected: true, Postmaster: 7, Primary: true, Epoch: ep(1)},
		}
		v.State = world(append([]func(*fsm.Group){trusting}, func(g *fsm.Group) {
			for _, f := range edit {
				f(&v, g)
			}
		})...)
		return v
	}
	won := map[string]bool{}
	for _, tc := range []struct {
		name string
		rule string
		edit func(*HoldView, *fsm.Group)
	}{
		{"nobody answers", "F90", func(*HoldView, *fsm.Group) {}},
		{"just in time", "F90", func(v *HoldView, _ *fsm.Group) { v.LeaseLeft = 3 * time.Second }},
		{"off", "F10", func(_ *HoldView, g *fsm.Group) { g.Failsafe = false }},
		{"another holds the lease", "F20", func(_ *HoldView, g *fsm.Group) { g.Lease.Holder = "b" }},
		{"another sentinel of ours holds it", "F20", func(_ *HoldView, g *fsm.Group) { g.Lease.Instance = "old" }},
		{"revoked", "F20", func(_ *HoldView, g *fsm.Group) { g.Lease.Revoked = true }},
		{"not open yet", "F20", func(_ *HoldView, g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} }},
		{"PostgreSQL is a standby", "F20", func(v *HoldView, _ *fsm.Group) { v.Sentinel.Primary = false }},
		{"no PostgreSQL", "F20", func(v *HoldView, _ *fsm.Group) { v.Sentinel.Postmaster = 0 }},
		{"promoted under another epoch", "F20", func(v *HoldView, _ *fsm.Group) { v.Sentinel.Epoch = ep(9) }},
		{"too late", "F20", func(v *HoldView, _ *fsm.Group) { v.LeaseLeft = 0 }},
		{"sentinel silent", "F30", func(v *HoldView, _ *fsm.Group) { v.Sentinel.Silent = SentinelSilence }},
		{"sentinel gone", "F30", func(v *HoldView, _ *fsm.Group) { v.Sentinel.Connected = false }},
		{"agent started since the last answer", "F40", func(v *HoldView, _ *fsm.Group) { v.Confirmed = false }},
		{"the list is not in force", "F50", func(_ *HoldView, g *fsm.Group) { g.Eligible = nil }},
		{"answered a moment ago", "F60", func(v *HoldView, _ *fsm.Group) { v.LeaseLeft = 4 * time.Second }},
	} {
		r := Hold(view(tc.edit))
		won[r.ID] = true
		if r.ID != tc.rule || r.Ask != (tc.rule == "F90") {
			t.Errorf("%s: %s %s, asks %v; want %s", tc.name, r.ID, r.Name, r.Ask, tc.rule)
		}
	}
	for _, r := range HoldRules {
		if !won[r.ID] {
			t.Errorf("no example is won by %s (%s)", r.ID, r.Name)
		}
	}
}

func TestGiveWord(t *testing.T) {
	base := func() WordView {
		return WordView{
			Self: "b", State: world(trusting), Hears: -1, Sentinel: Sentinel{Connected: true, Postmaster: 8},
			Local: Local{Promise: ep(1), Lineage: map[fsm.Timeline]fsm.Epoch{2: ep(1)}},
			Asked: WordRequest{Group: 0, Holder: "a", Epoch: ep(1), Length: 5 * time.Second},
		}
	}
	group := func(v *WordView, f func(*fsm.Group)) {
		g := v.State.Groups[0]
		f(&g)
		v.State.Groups[0] = g
	}
	won := map[string]bool{}
	for _, tc := range []struct {
		name, rule, text string
		edit             func(*WordView)
	}{
		{"a standby at rest", "W90", "5s", func(*WordView) {}},
		{"without data", "W90", "", func(v *WordView) { v.Local, v.Sentinel.Postmaster = Local{}, 0 }},
		{"its copy of the state is old", "W90", "", func(v *WordView) { v.Asked.Epoch = ep(7) }},
		{"a leader was heard long ago", "W90", "", func(v *WordView) { v.Hears = time.Minute }},
		{"another group", "W10", "group 3", func(v *WordView) { v.Asked.Group = 3 }},
		{"not a member", "W10", "group 0", func(v *WordView) { v.Self = "x" }},
		{"asked by itself", "W10", "", func(v *WordView) { v.Asked.Holder = "b" }},
		{"no length", "W20", "0s", func(v *WordView) { v.Asked.Length = 0 }},
		{"for ever", "W20", "", func(v *WordView) { v.Asked.Length = time.Hour }},
		{"promoting", "W30", "being promoted", func(v *WordView) { v.Promoting = true }},
		{"primary", "W40", "writable", func(v *WordView) { v.Sentinel.Primary, v.Sentinel.Epoch = true, ep(1) }},
		{"a promotion ordered", "W40", "1.2", func(v *WordView) { v.Sentinel.Epoch = ep(2) }},
		{"a server that is not ours", "W40", "", func(v *WordView) { v.Local.Stray = true }},
		{"promised a newer epoch", "W50", "1.2", func(v *WordView) { v.Local.Promise = ep(2) }},
		{"was primary under a newer epoch", "W50", "1.3", func(v *WordView) { v.Local.Lineage[0] = ep(3) }},
		{"the state has a newer epoch", "W50", "1.2", func(v *WordView) { group(v, func(g *fsm.Group) { g.Epoch = ep(2) }) }},
		{"expired", "W60", "over", func(v *WordView) { group(v, free) }},
		{"revoked", "W60", "over", func(v *WordView) { group(v, func(g *fsm.Group) { g.Lease.Revoked = true }) }},
		{"a leader is heard", "W70", "300ms", func(v *WordView) { v.Hears = 300 * time.Millisecond }},
		{"it leads", "W70", "", func(v *WordView) { v.Hears = 0 }},
		{"its sentinel is silent", "W80", "sentinel", func(v *WordView) { v.Sentinel.Connected = false }},
	} {
		v := base()
		tc.edit(&v)
		r, text := GiveWord(v)
		won[r.ID] = true
		if r.ID != tc.rule || r.Give != (tc.rule == "W90") || !strings.Contains(text, tc.text) || text == "" {
			t.Errorf("%s: %s, gives %v: %q; want %s", tc.name, r.ID, r.Give, text, tc.rule)
		}
	}
	for _, r := range WordRules {
		if !won[r.ID] {
			t.Errorf("no example is won by %s (%s)", r.ID, r.Name)
		}
	}
}

// TestNewcomersAreNotElected: a member that the last primary did not take in is no candidate, however good, and by no way.
func TestNewcomersAreNotElected(t *testing.T) {
	listed := edit(func(g *fsm.Group) { g.Eligible = []fsm.NodeID{"a", "b"} })
	newcomer := func(v *GroupView) { v.Recruits = []Recruit{rec("b", 200), rec("c", 300)} }
	if p := Cluster(election(listed, newcomer, edit(func(g *fsm.Group) { g.Mode = fsm.Off }))); p.Rule != "C340" && !strings.Contains(p.Reason, "n-b") {
		t.Errorf("%s: %s", p.Rule, p.Reason)
	}
	trusted := election(listed, func(v *GroupView) { v.Recruits = []Recruit{rec("c", 300)} }, op("c", true))
	if p := Cluster(trusted); p.Rule != "C340" && p.Rule != "C330" || !strings.Contains(p.Reason, "failsafe") {
		t.Errorf("trusted by an operator: %s: %s", p.Rule, p.Reason)
	}
	s := world()
	g := s.Groups[0]
	g.Eligible = []fsm.NodeID{"a", "b"}
	if why := Unfit(s, g, s.Nodes["c"], nil); !strings.Contains(why, "taken it in") {
		t.Errorf("fit for a switchover: %q", why)
	}
}
