package decide

import (
	"fmt"
	"testing"

	"matriarch/fsm"
)

func TestPairFor(t *testing.T) {
	bc, abcd := []fsm.NodeID{"b", "c"}, []fsm.NodeID{"a", "b", "c", "d"}
	for _, tc := range []struct {
		g         fsm.Group
		followers []fsm.NodeID
		want      fsm.Pair
	}{
		{fsm.Group{Mode: fsm.Off, SyncCount: 2, Strict: true}, bc, fsm.Pair{}},
		{fsm.Group{Mode: fsm.Quorum}, nil, fsm.Pair{}},
		{fsm.Group{Mode: fsm.Quorum}, bc, fsm.NewPair(1, bc...)},
		{fsm.Group{Mode: fsm.On, SyncCount: 3}, bc, fsm.NewPair(2, bc...)},
		{fsm.Group{Mode: fsm.On, SyncCount: 2, Strict: true}, bc, fsm.NewPair(2, bc...)},
		{fsm.Group{Mode: fsm.Quorum, SyncCount: 3, Strict: true}, bc, fsm.NewPair(3, abcd...)},
		{fsm.Group{Mode: fsm.Quorum, Strict: true}, nil, fsm.NewPair(1, abcd...)},
	} {
		if got := PairFor(tc.g, tc.followers, abcd); !got.Equal(tc.want) {
			t.Errorf("%s with %v: %+v, want %+v", tc.g.Replication(), tc.followers, got, tc.want)
		}
	}
}

func TestSyncOrder(t *testing.T) {
	s := world()
	n := s.Nodes["c"]
	n.Tags.SyncPriority = 5
	s.Nodes["c"] = n
	if got := SyncOrder(s, fsm.Group{Mode: fsm.On}, []fsm.NodeID{"a", "b", "c"}); fmt.Sprint(got) != "[c a b]" {
		t.Errorf("order %v", got)
	}
	if got := SyncOrder(s, fsm.Group{Mode: fsm.Quorum}, []fsm.NodeID{"a"}); got != nil {
		t.Errorf("quorum has an order: %v", got)
	}
}

// TestSyncChangeFor: the rows that the property does not name.
func TestSyncChangeFor(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*View)
		want string // the pair, or ""
	}{
		{"lagging member leaves", both(group(func(g *fsm.Group) { g.SyncLag = 100 }), lags("c", 101)), "1 [b]"},
		{"at the limit it stays", both(group(func(g *fsm.Group) { g.SyncLag = 100 }), lags("c", 100)), ""},
		{"strict and enough others", both(group(func(g *fsm.Group) { g.SyncLag, g.Strict = 100, true }), lags("c", 101)), "1 [b]"},
		{"strict and too few others", both(group(func(g *fsm.Group) { g.SyncLag, g.Strict, g.SyncCount = 100, true, 2; g.Sync.Pairs[0].K = 2 }), lags("c", 101)), ""},
		{"k rises", group(func(g *fsm.Group) { g.SyncCount = 2 }), "2 [b c]"},
		{"k rises as far as it can", group(func(g *fsm.Group) { g.SyncCount = 3 }), "2 [b c]"},
		{"strict k rises beyond", group(func(g *fsm.Group) { g.SyncCount, g.Strict = 3, true }), "3 [b c]"},
		{"back only well below the limit", both(group(func(g *fsm.Group) { g.SyncLag, g.Sync.Pairs = 100, []fsm.Pair{fsm.NewPair(1, "b")} }), lags("c", 51)), ""},
		{"back", both(group(func(g *fsm.Group) { g.SyncLag, g.Sync.Pairs = 100, []fsm.Pair{fsm.NewPair(1, "b")} }), lags("c", 50)), "1 [b c]"},
		{"a member joins, then k rises", both(gated, group(func(g *fsm.Group) { g.SyncCount, g.Sync.Pairs = 2, []fsm.Pair{fsm.NewPair(1, "b")} })), "1 [b c]"},
		{"both at once with an older binary there", group(func(g *fsm.Group) { g.SyncCount, g.Sync.Pairs = 2, []fsm.Pair{fsm.NewPair(1, "b")} }), "2 [b c]"},
		{"k falls, then the member leaves", both(gated, group(func(g *fsm.Group) { g.SyncCount, g.SyncLag = 2, 100; g.Sync.Pairs[0].K = 2 }), lags("c", 101)), "1 [b c]"},
		{"now it leaves", both(gated, group(func(g *fsm.Group) {
			g.SyncCount, g.SyncLag = 2, 100
			g.Sync.Pairs = []fsm.Pair{fsm.NewPair(2, "b", "c"), fsm.NewPair(1, "b", "c")}
		}), lags("c", 101)), "1 [b]"},
		{"off lets everybody go at once", both(gated, group(func(g *fsm.Group) { g.Mode = fsm.Off })), "0 []"},
		{"off lets everybody go", group(func(g *fsm.Group) { g.Mode = fsm.Off }), "0 []"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _, ok := facts(primary(tc.edit)).syncChange()
			got := ""
			if ok {
				got = pairString(p)
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func gated(v *View) {
	s := *v.State
	s.Cluster.Gate = fsm.Protocol
	v.State = &s
}

func both(fs ...func(*View)) func(*View) {
	return func(v *View) {
		for _, f := range fs {
			f(v)
		}
	}
}

func lags(id fsm.NodeID, n int64) func(*View) {
	return func(v *View) {
		for i := range v.PG.Senders {
			if v.PG.Senders[i].Node == id {
				v.PG.Senders[i].Lag = n
			}
		}
	}
}

func pairString(p fsm.Pair) string { return fmt.Sprintf("%d %v", p.K, p.S) }
