package decide

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

// subsets lists all sets of the first n nodes.
func subsets(n int) [][]fsm.NodeID {
	var out [][]fsm.NodeID
	for bits := range 1 << n {
		var s []fsm.NodeID
		for i := range n {
			if bits&(1<<i) != 0 {
				s = append(s, fsm.NodeID(rune('a'+i)))
			}
		}
		out = append(out, s)
	}
	return out
}

func meet(a, b []fsm.NodeID) bool {
	for _, x := range a {
		if slices.Contains(b, x) {
			return true
		}
	}
	return false
}

// TestSufficientSetsMeetEveryAcknowledgement: exhaustively, for one pair of up to six nodes and for two of up to four: a commit
// that any pair in force could acknowledge is on some member of every sufficient set, and no set is refused that would do.
func TestSufficientSetsMeetEveryAcknowledgement(t *testing.T) {
	const holder = "h"
	check := func(n int, pairs []fsm.Pair) {
		g := fsm.Group{LastHolder: holder, Sync: fsm.Sync{Pairs: pairs}}
		for _, r := range subsets(n) {
			got, why := Sufficient(g, nil, r, false)
			want := true
			for _, p := range pairs {
				for _, acked := range subsets(n) {
					in := 0
					for _, x := range acked {
						if p.Has(x) {
							in++
						}
					}
					if len(acked) == p.K && in == p.K && !meet(acked, r) {
						want = false
					}
				}
			}
			if got != want || got == (why != "") {
				t.Fatalf("pairs %v, recruited %v: sufficient %v (%q), want %v", pairs, r, got, why, want)
			}
			if ok, _ := Sufficient(g, nil, append(r, holder), false); !ok {
				t.Fatalf("pairs %v: the last holder does not suffice", pairs)
			}
		}
	}
	var small []fsm.Pair
	for n := range 7 {
		for _, s := range subsets(n) {
			for k := range len(s) + 1 {
				if k == 0 && len(s) > 0 {
					continue
				}
				p := fsm.NewPair(k, s...)
				check(n, []fsm.Pair{p})
				if n == 4 {
					small = append(small, p)
				}
			}
		}
	}
	for _, a := range small {
		for _, b := range small {
			check(4, []fsm.Pair{a, b})
		}
	}
	if ok, _ := Sufficient(fsm.Group{}, nil, nil, false); ok {
		t.Error("a group without any pair has a sufficient set")
	}
	unknown := fsm.Group{LastHolder: holder, Sync: fsm.Sync{Unknown: true, Pairs: []fsm.Pair{{}}}}
	if ok, _ := Sufficient(unknown, []fsm.NodeID{"a", holder}, []fsm.NodeID{holder}, false); ok {
		t.Error("with an unknown set the last holder alone suffices")
	}
	if ok, _ := Sufficient(unknown, []fsm.NodeID{"a", holder}, []fsm.NodeID{holder, "a"}, false); !ok {
		t.Error("with an unknown set all members do not suffice")
	}
}

func drawEpoch(t *rapid.T) fsm.Epoch { return ep(rapid.Uint64Range(0, 3).Draw(t, "epoch")) }

func drawState(t *rapid.T) *fsm.State {
	s := world()
	g := s.Groups[0]
	g.Epoch = drawEpoch(t)
	if rapid.Bool().Draw(t, "held") {
		g.Lease = fsm.Lease{Holder: rapid.SampledFrom([]fsm.NodeID{"a", "b", "c"}).Draw(t, "holder"), Instance: rapid.SampledFrom([]string{"h-ia", "h-ib", "o-ia"}).Draw(t, "instance"), Epoch: g.Epoch, TTL: time.Second, Revoked: rapid.Bool().Draw(t, "revoked")}
	} else {
		g.Lease = fsm.Lease{}
	}
	g.Grants = append(g.Grants, fsm.Grant{Epoch: g.Epoch, Holder: g.Lease.Holder, Timeline: fsm.Timeline(rapid.IntRange(0, 4).Draw(t, "tl")), Parent: 2, Fork: 150})
	g.Sync.Confirmed = drawEpoch(t)
	if g.Sync.Confirmed == g.Epoch && g.Grants[len(g.Grants)-1].Timeline == 0 {
		g.Sync.Confirmed = fsm.Epoch{} // only a recorded promotion is confirmed
		if g.Epoch.IsZero() {
			g.Grants[len(g.Grants)-1].Timeline = 2
		}
	}
	if rapid.Bool().Draw(t, "uninitialised") {
		g.SystemID = ""
	}
	if rapid.IntRange(0, 9).Draw(t, "removed") == 0 {
		delete(s.Nodes, "c")
		s.Removed["c"] = "n-c"
	}
	s.Groups[0] = g
	return s
}

func drawView(t *rapid.T, s *fsm.State, self fsm.NodeID) View {
	b := func(name string) bool { return rapid.Bool().Draw(t, name) }
	v := View{
		Self: self, State: s, Instance: rapid.SampledFrom([]string{"h-ia", "h-ib", "o-ia"}).Draw(t, "my instance"),
		LeaseLeft: time.Duration(rapid.IntRange(-1, 2).Draw(t, "left")) * time.Second,
		Sentinel: Sentinel{
			Connected: b("connected"), Silent: time.Duration(rapid.IntRange(0, 1).Draw(t, "silent")) * time.Second,
			Postmaster: rapid.IntRange(0, 1).Draw(t, "pid"), Primary: b("primary"), Epoch: drawEpoch(t),
		},
		PG: Postgres{
			Reachable: b("reachable"), InRecovery: b("recovery"), Timeline: fsm.Timeline(rapid.IntRange(1, 4).Draw(t, "my tl")),
			LSN: fsm.LSN(rapid.IntRange(90, 210).Draw(t, "lsn")), Settled: b("settled"), Streaming: b("streaming"), WALRemoved: b("removed wal"), SlotsWrong: b("slots"),
		},
		Local: Local{
			HasData: b("data"), Promise: drawEpoch(t), SystemID: rapid.SampledFrom([]string{"sys", "other", ""}).Draw(t, "sys"), Stray: b("stray"),
			Lineage: map[fsm.Timeline]fsm.Epoch{1: {}, 2: drawEpoch(t), 3: drawEpoch(t)},
		},
		Conf: Conf{Phase: Open, Epoch: drawEpoch(t), Upstream: rapid.SampledFrom([]fsm.NodeID{"", "a", "b"}).Draw(t, "upstream")},
	}
	if b("job") {
		v.Job = "work"
	}
	if b("unfinished") {
		v.Local.Unfinished = "unfinished clone"
	}
	return v
}

// TestNodeIsSafe: whatever the view.
func TestNodeIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawState(t)
		promoted := 0
		for _, self := range []fsm.NodeID{"a", "b", "c"} {
			v := drawView(t, s, self)
			p := Node(v)
			f := facts(v)
			switch a := p.Action.(type) {
			case Promote:
				promoted++
				if !f.Mine || v.LeaseLeft <= 0 || a.Epoch != s.Groups[0].Lease.Epoch || f.Primary || !f.Running {
					t.Fatalf("%s promotes without the right to: %+v", p.Rule, v)
				}
				if a.Conf.Phase != Closed && s.Groups[0].Grants[len(s.Groups[0].Grants)-1].Timeline == 0 {
					t.Fatalf("%s lets somebody in before the promotion is recorded: %+v", p.Rule, a)
				}
			case StartPG, Clone, Rewind, InitDB:
				if f.Primary {
					t.Fatalf("%s: %T over a primary", p.Rule, a)
				}
			case Configure:
				if a.Conf.Upstream != "" && (f.Primary || a.Conf.Epoch.Less(v.Local.Promise) || a.Conf.Upstream == self) {
					t.Fatalf("%s follows against its promise or while primary: %+v", p.Rule, v)
				}
				if a.Conf.Phase == Open && f.Primary && !s.Groups[0].Opened() {
					t.Fatalf("%s opens too early", p.Rule)
				}
			case Release:
				if f.Running || f.Local.Stray {
					t.Fatalf("%s gives the lease back while PostgreSQL runs", p.Rule)
				}
				if l := s.Groups[0].Lease.Instance; l != v.Instance && (l[0] != 'h' || v.Instance[0] != 'h') {
					t.Fatalf("%s: sentinel %s gives the lease of %s back", p.Rule, v.Instance, l)
				}
			}
			if f.Primary && v.LeaseLeft <= 0 {
				switch p.Action.(type) {
				case Fence, KillAll:
				default:
					t.Fatalf("%s leaves a primary without a lease: %+v", p.Rule, v)
				}
			}
			if again := Node(v); again.Rule != p.Rule {
				t.Fatalf("%s then %s", p.Rule, again.Rule)
			}
		}
		if promoted > 1 {
			t.Fatal("two nodes promote by one state")
		}
	})
}

// TestGrantIsSafe: whoever wins has every commit that some pair in force could have acknowledged, as far as the recruits' true
// positions tell, and its followers can follow.
func TestGrantIsSafe(t *testing.T) {
	all := []fsm.NodeID{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		s := world(free)
		g := s.Groups[0]
		g.LastHolder = rapid.SampledFrom(all).Draw(t, "last")
		g.Sync.Pairs = nil
		for range rapid.IntRange(1, 3).Draw(t, "pairs") {
			m := rapid.SampledFrom(subsets(3)).Draw(t, "S")
			p := fsm.Pair{}
			if len(m) > 0 {
				p = fsm.NewPair(rapid.IntRange(1, len(m)).Draw(t, "k"), m...)
			}
			g.Sync.Pairs = append(g.Sync.Pairs, p)
		}
		v := GroupView{State: s, Group: g, Heard: map[fsm.NodeID]time.Duration{}, Asking: time.Minute, Enough: time.Minute, Refusals: map[fsm.NodeID]string{}}
		for _, id := range all {
			n := s.Nodes[id]
			n.Tags.NoFailover = rapid.IntRange(0, 3).Draw(t, "nofailover") == 0
			s.Nodes[id] = n
			if rapid.Bool().Draw(t, "recruited") {
				r := rec(id, fsm.LSN(rapid.IntRange(100, 103).Draw(t, "lsn")))
				if rapid.IntRange(0, 4).Draw(t, "foreign") == 0 {
					r.Lineage = ep(0)
				}
				v.Recruits = append(v.Recruits, r)
			}
		}
		grant, ok := Cluster(v).Action.(GrantLease)
		if !ok {
			return
		}
		if s.Nodes[grant.To.Node].Tags.NoFailover || grant.To.Lineage != ep(1) {
			t.Fatalf("%s may not win", grant.To.Node)
		}
		var behind []fsm.NodeID // true recruits whose log the winner contains
		for _, r := range v.Recruits {
			if r.Lineage == ep(1) && r.LSN <= grant.To.LSN {
				behind = append(behind, r.Node)
			}
		}
		if ok, why := Sufficient(g, all, behind, atEnd(g, grant.To)); !ok {
			t.Fatalf("%s wins at %v, but what it has proves nothing: %s; recruits %+v, pairs %v, last %s", grant.To.Node, grant.To.LSN, why, v.Recruits, g.Sync.Pairs, g.LastHolder)
		}
		for _, id := range grant.Pair.S {
			if id == grant.To.Node || !meet([]fsm.NodeID{id}, behind) {
				t.Fatalf("%s cannot follow %s at once", id, grant.To.Node)
			}
		}
	})
}
