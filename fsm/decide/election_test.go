package decide

import (
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

// unpromoted: n had the last Grant and gave it back without a promotion.
func unpromoted(n fsm.NodeID, pair fsm.Pair) func(*GroupView) {
	return edit(func(g *fsm.Group) {
		g.Epoch, g.LastHolder = ep(2), n
		g.Grants = append(g.Grants, fsm.Grant{Epoch: ep(2), Holder: n})
		g.Sync.Pairs = append(g.Sync.Pairs, pair)
	})
}

func zones(prefer string) func(*GroupView) {
	return func(v *GroupView) {
		v.State.Cluster.Settings.FailoverZone = prefer
		for id, z := range map[fsm.NodeID]string{"a": "z1", "b": "z2", "c": "z1"} {
			n := v.State.Nodes[id]
			n.Zone = z
			v.State.Nodes[id] = n
		}
	}
}

func accepts(to fsm.NodeID) func(*GroupView) {
	return edit(func(g *fsm.Group) {
		g.Op = &fsm.Operation{ID: "o", Kind: fsm.Failover, To: to, AcceptLoss: true, By: "me"}
	})
}

func TestWhoIsElected(t *testing.T) {
	late := func(v *GroupView) { v.Asking = AliveWithin }
	lost := edit(func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(2, "b", "c")} }) // a alone, or any one of them
	changed := func(v *GroupView) { v.Changed = time.Second }
	newest := func(v *GroupView) { v.State.Cluster.Settings.CheckTimeline = true }
	behind := Recruit{Node: "b", Timeline: 1, LSN: 90} // never followed the last primary
	async := func(v *GroupView) {
		v.Group.Mode, v.Group.Sync.Pairs, v.Asking = fsm.Off, []fsm.Pair{{}}, time.Hour
	}
	strict := edit(func(g *fsm.Group) { g.Strict, g.SyncCount = true, 2 })
	for _, tc := range []struct {
		name string
		view GroupView
		want fsm.NodeID // "" for nobody yet
		pair string
		says string
	}{
		{"same zone", election(recruits(rec("b", 200), rec("c", 200)), zones(ZoneSame)), "c", "1 [b]", ""},
		{"other zone", election(recruits(rec("b", 200), rec("c", 200)), zones(ZoneOther)), "b", "1 [c]", ""},
		{"no preference", election(recruits(rec("b", 200), rec("c", 200)), zones("")), "b", "1 [c]", ""},
		{"position before zone", election(recruits(rec("b", 201), rec("c", 200)), zones(ZoneSame)), "b", "1 [c]", ""},
		{"priority before zone", election(recruits(rec("b", 200), rec("c", 200)), zones(ZoneSame), tag("b", func(t *fsm.Tags) { t.FailoverPriority = 2 })), "b", "1 [c]", ""},
		{"a failed promotion tries the next", election(recruits(rec("b", 200), rec("c", 200)), unpromoted("b", fsm.NewPair(1, "c"))), "c", "1 [b]", ""},
		{"also right after a change", election(recruits(rec("b", 200), rec("c", 200)), unpromoted("b", fsm.NewPair(1, "c")), changed), "c", "1 [b]", ""},
		{"and whoever stands further, if the next is sure to have all", election(recruits(rec("a", 200), rec("b", 201), rec("c", 200)), lost, unpromoted("b", fsm.NewPair(2, "a", "c"))), "a", "1 [c]", ""},
		{"but never who may lack a commit", election(recruits(rec("b", 201), rec("c", 200)), unpromoted("b", fsm.NewPair(1, "c"))), "b", "1 [c]", ""},
		{"nor who may not", election(recruits(rec("b", 200), rec("c", 200)), unpromoted("b", fsm.NewPair(1, "c")), tag("c", func(t *fsm.Tags) { t.NoFailover = true })), "b", "1 [c]", ""},
		{"loss not accepted", election(recruits(rec("c", 100)), late, op("c", false)), "", "", ""},
		{"loss accepted", election(recruits(rec("c", 100)), late, accepts("c")), "c", "0 []", "accepts the loss"},
		{"not before others had time to answer", election(recruits(rec("c", 100)), accepts("c")), "", "", ""},
		{"behind one who answered", election(recruits(rec("b", 200), rec("c", 100)), late, accepts("c")), "c", "0 []", "accepts the loss"},
		{"nothing is lost after all", election(recruits(rec("b", 200), rec("c", 200)), late, accepts("c")), "c", "1 [b]", "best of 2"},
		{"another history is not a loss but something else", election(recruits(Recruit{Node: "c", Timeline: 2, Lineage: ep(0), LSN: 100}), late, accepts("c")), "", "", ""},
		{"the candidate has not answered", election(recruits(rec("b", 200)), late, accepts("c")), "", "", ""},
		{"loss accepted says how many bytes", election(recruits(rec("c", 100)), late, accepts("c"), func(v *GroupView) { v.Reference = 160 }), "c", "0 []", "60 bytes of what n-a"},
		{"an older timeline, asynchronous", election(recruits(behind), async), "b", "0 []", ""},
		{"check_timeline refuses it", election(recruits(behind), async, newest), "", "", "n-b: has not reached the newest timeline"},
		{"check_timeline takes the other", election(recruits(behind, rec("c", 100)), async, newest), "c", "0 []", ""},
		{"check_timeline and everybody on it", election(recruits(rec("b", 200), rec("c", 200)), newest), "b", "1 [c]", ""},
		{"any one of two suffices", election(recruits(rec("c", 200)), lost), "c", "0 []", ""},
		{"strict names those who are absent", election(recruits(rec("c", 200)), lost, strict), "c", "2 [a b]", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := Cluster(tc.view)
			g, ok := p.Action.(GrantLease)
			switch {
			case ok != (tc.want != "") || g.To.Node != tc.want:
				t.Fatalf("%s elects %q, want %q: %s", p.Rule, g.To.Node, tc.want, p.Reason)
			case ok && pairString(g.Pair) != tc.pair:
				t.Errorf("pair %s, want %s", pairString(g.Pair), tc.pair)
			case !strings.Contains(p.Reason, tc.says):
				t.Errorf("%q does not say %q", p.Reason, tc.says)
			}
		})
	}
}
