package fsm

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestThrough: whatever a walsender with one list and another's k may acknowledge on the way is covered by a pair in force.
func TestThrough(t *testing.T) {
	all := func(NodeID) bool { return true }
	pair := func(t *rapid.T, name string) Pair {
		ids := rapid.SliceOfNDistinct(rapid.SampledFrom([]NodeID{"a", "b", "c", "d"}), 1, 4, rapid.ID[NodeID]).Draw(t, name)
		return NewPair(rapid.IntRange(1, 4).Draw(t, name+" k"), ids...)
	}
	rapid.Check(t, func(t *rapid.T) {
		g := Group{Sync: Sync{Pairs: []Pair{pair(t, "first")}}}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			next := pair(t, "next")
			for steps := 0; !g.Sync.Target().Equal(next); steps++ {
				if steps > 2 {
					t.Fatalf("no end on the way to %+v: %+v", next, g.Sync.Pairs)
				}
				g.Sync.Pairs = addPair(g.Sync.Pairs, g.Through(next, all))
			}
			for _, k := range g.Sync.Pairs { // one walsender's k, everybody's lists
				mixed := Pair{K: k.K}
				for _, p := range g.Sync.Pairs {
					mixed = NewPair(mixed.K, append(mixed.S, p.S...)...)
				}
				covered := false
				for _, p := range g.Sync.Pairs {
					covered = covered || mixed.within(p)
				}
				if !covered {
					t.Fatalf("%+v may be acknowledged by, and no pair in force covers it: %+v", mixed, g.Sync.Pairs)
				}
			}
		}
	})
}

// TestChangesLeadThroughACover: Apply refuses the short way, unless an older binary is there, which would not.
func TestChangesLeadThroughACover(t *testing.T) {
	for gate, why := range map[int]string{1: "", Protocol: "leads through 1 of 2"} {
		s, _ := play(t, NewState(), append(slices.Clip(opened), SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}, SyncConfirm{0, ep(1), NewPair(1, "b")})...)
		s.Cluster.Gate = gate
		_, res := play(t, s, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(2, "b", "c")})
		if res.OK != (why == "") || !strings.Contains(res.Reason, why) {
			t.Errorf("gate %d: %+v", gate, res)
		}
	}
}
