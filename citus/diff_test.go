package citus

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
)

func addr(host string) Addr { return Addr{Host: host, Port: 5432} }

func row(id int, g fsm.GroupID, host string) Row {
	return Row{
		NodeID: id, Group: g, Addr: addr(host), Rack: "default", Role: "primary", Cluster: "default", Active: true,
		HasMetadata: true, Synced: true, TakesShards: g != 0,
	}
}

func secondary(id int, g fsm.GroupID, host string) Row {
	r := row(id, g, host)
	r.Role, r.HasMetadata, r.Synced = "secondary", g == 0, false
	return r
}

func standby(host string, s Standing) Secondary {
	return Secondary{Addr: addr(host), NodeCluster: "default", Standing: s}
}

func with[T any](x T, f func(*T)) T {
	f(&x)
	return x
}

// everywhere edits every copy.
func everywhere(a map[fsm.GroupID]Actual, f func(*Actual)) {
	for g := range a {
		edit(a, g, f)
	}
}

// formation is a coordinator and two workers, in order, on timeline 1.
func formation() (Wanted, map[fsm.GroupID]Actual) {
	w := Wanted{Database: "app", Primaries: map[fsm.GroupID]Primary{
		0: {Addr: addr("c"), Timeline: 1}, 1: {Addr: addr("w1"), Timeline: 1}, 2: {Addr: addr("w2"), Timeline: 1},
	}}
	a := map[fsm.GroupID]Actual{}
	for g := range w.Primaries {
		a[g] = Actual{
			Extension: "13.2-1", Ready: true, Timeline: 1, LocalGroup: g,
			Rows: []Row{row(1, 0, "c"), row(2, 1, "w1"), row(3, 2, "w2")},
		}
	}
	return w, a
}

func edit(a map[fsm.GroupID]Actual, g fsm.GroupID, f func(*Actual)) {
	x := a[g]
	x.Rows = slices.Clone(x.Rows)
	f(&x)
	a[g] = x
}

func TestDiff(t *testing.T) {
	tests := []struct {
		name string
		do   func(*Wanted, map[fsm.GroupID]Actual)
		want []Step
	}{
		{"in order", func(*Wanted, map[fsm.GroupID]Actual) {}, nil},
		{"worker moved", func(w *Wanted, _ map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 1}
		}, []Step{
			UpdateNode{NodeID: 2, Group: 1, From: addr("w1"), To: addr("w1b")},
			UpdateRow{Node: 1, NodeID: 2, From: addr("w1"), To: addr("w1b")},
			UpdateRow{Node: 2, NodeID: 2, From: addr("w1"), To: addr("w1b")},
		}},
		{"coordinator moved", func(w *Wanted, _ map[fsm.GroupID]Actual) {
			w.Primaries[0] = Primary{Addr: addr("d"), Timeline: 1}
		}, []Step{
			UpdateNode{NodeID: 1, Group: 0, From: addr("c"), To: addr("d")},
			UpdateRow{Node: 1, NodeID: 1, From: addr("c"), To: addr("d")},
			UpdateRow{Node: 2, NodeID: 1, From: addr("c"), To: addr("d")},
		}},
		{"worker moved, coordinator silent", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 1}
			delete(a, 0)
			delete(a, 1)
		}, []Step{UpdateRow{Node: 2, NodeID: 2, From: addr("w1"), To: addr("w1b")}}},
		{"group without primary keeps its row", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{}
			w.Recover = true
			delete(a, 1)
		}, nil},
		{"copy edited by hand", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.Rows[2].Addr = addr("nowhere") })
		}, []Step{UpdateRow{Node: 1, NodeID: 3, From: addr("nowhere"), To: addr("w2")}}},
		{"row deleted and another invented in a copy", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.Rows = []Row{x.Rows[0], x.Rows[1], row(9, 7, "w2")} })
		}, []Step{DropRow{Node: 1, Row: row(9, 7, "w2")}, CopyRow{Node: 1, Row: row(3, 2, "w2")}}},
		{"two rows in each other's place", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 0, func(x *Actual) { x.Rows[1].Addr, x.Rows[2].Addr = addr("w2"), addr("w1") })
		}, []Step{
			UpdateNode{NodeID: 2, Group: 1, From: addr("w2"), To: addr("matriarch-moving-2")},
			UpdateNode{NodeID: 3, Group: 2, From: addr("w1"), To: addr("w2")},
			UpdateNode{NodeID: 2, Group: 1, From: addr("matriarch-moving-2"), To: addr("w1")},
		}},
		{"registered standby promoted: the rows change places", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 1}
			for g := range a {
				edit(a, g, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			}
			delete(a, 1)
			delete(a, 2)
		}, []Step{
			UpdateNode{NodeID: 4, Group: 1, From: addr("w1b"), To: addr("matriarch-moving-4")},
			UpdateNode{NodeID: 2, Group: 1, From: addr("w1"), To: addr("w1b")},
			UpdateNode{NodeID: 4, Group: 1, From: addr("matriarch-moving-4"), To: addr("w1")},
		}},
		{"address taken by a group without primary", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w2"), Timeline: 1}
			w.Primaries[2] = Primary{}
			delete(a, 1)
			delete(a, 2)
		}, []Step{
			UpdateNode{NodeID: 3, Group: 2, From: addr("w2"), To: addr("matriarch-parked-3")},
			UpdateNode{NodeID: 2, Group: 1, From: addr("w1"), To: addr("w2")},
		}},
		{"address taken, and the name to park under as well", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w2"), Timeline: 1}
			w.Primaries[2] = Primary{}
			edit(a, 0, func(x *Actual) { x.Rows[1].Addr = addr("matriarch-parked-3") })
			delete(a, 1)
			delete(a, 2)
		}, []Step{
			UpdateNode{NodeID: 3, Group: 2, From: addr("w2"), To: addr("matriarch-parked-3x")},
			UpdateNode{NodeID: 2, Group: 1, From: addr("matriarch-parked-3"), To: addr("w2")},
		}},
		{"new formation", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			for g := range a {
				edit(a, g, func(x *Actual) { x.Rows, x.LocalGroup = nil, 0 })
			}
		}, []Step{SetCoordinatorHost{addr("c")}, AddNode{1, addr("w1")}, AddNode{2, addr("w2")}}},
		{"new group", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[3] = Primary{Addr: addr("w3")}
			a[3] = Actual{Extension: "13.2-1", Ready: true}
		}, []Step{AddNode{3, addr("w3")}}},
		{"new group without extension", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[3] = Primary{Addr: addr("w3")}
			a[3] = Actual{Missing: true}
		}, []Step{CreateExtension{3}}},
		{"extension dropped", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 2, func(x *Actual) { *x = Actual{Timeline: 1} })
		}, []Step{CreateExtension{2}}},
		{"password or table of the conductor missing", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 2, func(x *Actual) { x.Ready = false })
		}, []Step{CreateExtension{2}}},
		{"new group while a metadata node is silent", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[3] = Primary{Addr: addr("w3")}
			a[3] = Actual{Extension: "13.2-1", Ready: true}
			delete(a, 2)
		}, nil},
		{"new group while a metadata node is out of sync", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[3] = Primary{Addr: addr("w3")}
			a[3] = Actual{Extension: "13.2-1", Ready: true}
			edit(a, 0, func(x *Actual) { x.Rows[1].Synced = false })
		}, nil},
		{"group gone", func(w *Wanted, a map[fsm.GroupID]Actual) {
			delete(w.Primaries, 2)
			delete(a, 2)
			w.Gone = []fsm.GroupID{2}
		}, []Step{RemoveNode{row(3, 2, "w2")}}},
		{"unknown group stays", func(w *Wanted, a map[fsm.GroupID]Actual) {
			delete(w.Primaries, 2)
			delete(a, 2)
		}, nil},
		{"server in recovery is not written", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 1}
			for g := range a {
				edit(a, g, func(x *Actual) { x.InRecovery, x.Timeline = true, 0 })
			}
		}, nil},
		{"server of another timeline is not written", func(w *Wanted, _ map[fsm.GroupID]Actual) {
			w.Primaries[0] = Primary{Addr: addr("c2"), Timeline: 2}
			w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 2}
			w.Primaries[2] = Primary{Addr: addr("w2"), Timeline: 2}
		}, nil},
		{"standby to be registered", func(w *Wanted, _ map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{0: {standby("c2", Serving)}, 1: {standby("w1b", Serving), standby("w1c", Doubtful), standby("w1d", Away)}}
		}, []Step{AddSecondary{0, addr("c2"), "default"}, AddSecondary{1, addr("w1b"), "default"}}},
		{"standby to be registered while a metadata node is out of sync", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Serving)}}
			edit(a, 0, func(x *Actual) { x.Rows[2].Synced = false })
		}, nil},
		{"no standby of a group without primary is registered or removed", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Primaries[1] = Primary{}
			w.Secondaries = map[fsm.GroupID][]Secondary{}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			delete(a, 1)
		}, nil},
		{"registered standbys in order", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{0: {standby("c2", Serving)}, 1: {standby("w1b", Doubtful)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 0, "c2"), secondary(5, 1, "w1b")) })
		}, nil},
		{"standby gone", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Away)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
		}, []Step{RemoveNode{secondary(4, 1, "w1b")}}},
		{"no standby wanted at all", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
		}, []Step{RemoveNode{secondary(4, 1, "w1b")}}},
		{"gone standby's row goes to the new one, in sync or not", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1c", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			edit(a, 0, func(x *Actual) { x.Rows[2].Synced = false })
		}, []Step{
			UpdateNode{NodeID: 4, Group: 1, From: addr("w1b"), To: addr("w1c")},
			UpdateRow{Node: 1, NodeID: 4, From: addr("w1b"), To: addr("w1c")},
			UpdateRow{Node: 2, NodeID: 4, From: addr("w1b"), To: addr("w1c")},
		}},
		{"a standby comes while another is doubtful: added, none renamed", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Doubtful), standby("w1c", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
		}, []Step{AddSecondary{1, addr("w1c"), "default"}}},
		{"secondary's address edited by hand", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			edit(a, 0, func(x *Actual) { x.Rows[3].Addr = addr("nowhere") })
		}, []Step{UpdateNode{NodeID: 4, Group: 1, From: addr("nowhere"), To: addr("w1b")}}},
		{"standby in another cluster", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {{Addr: addr("w1b"), NodeCluster: "reader"}}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			delete(a, 1)
			delete(a, 2)
		}, []Step{FixRow{Was: secondary(4, 1, "w1b"), Row: with(secondary(4, 1, "w1b"), func(r *Row) { r.Cluster = "reader" })}}},
		{"roles exchanged by hand", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			edit(a, 0, func(x *Actual) { x.Rows[1].Role, x.Rows[3].Role = "secondary", "primary" })
		}, []Step{
			FixRow{Was: with(secondary(4, 1, "w1b"), func(r *Row) { r.Role = "primary" }), Row: secondary(4, 1, "w1b")},
			FixRow{Was: with(row(2, 1, "w1"), func(r *Row) { r.Role = "secondary" }), Row: row(2, 1, "w1")},
		}},
		{"worker made inactive by hand", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 0, func(x *Actual) { x.Rows[2].Active, x.Rows[2].Synced = false, false })
		}, []Step{ActivateNode{with(row(3, 2, "w2"), func(r *Row) { r.Active, r.Synced = false, false })}}},
		{"secondary made inactive by hand", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{1: {standby("w1b", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 1, "w1b")) })
			edit(a, 0, func(x *Actual) { x.Rows[3].Active = false })
		}, []Step{FixRow{Was: with(secondary(4, 1, "w1b"), func(r *Row) { r.Active = false }), Row: secondary(4, 1, "w1b")}}},
		{"inactive in a copy", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.Rows[2].Active = false })
		}, []Step{DropRow{1, with(row(3, 2, "w2"), func(r *Row) { r.Active = false })}, CopyRow{1, row(3, 2, "w2")}}},
		{"row deleted on the coordinator", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 0, func(x *Actual) { x.Rows = x.Rows[:2] })
		}, []Step{CopyRow{0, with(row(3, 2, "w2"), func(r *Row) { r.Active, r.Synced = false, false })}}},
		{"row's group edited on the coordinator", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 0, func(x *Actual) { x.Rows[2].Group = 8 })
		}, []Step{FixRow{
			Was: with(row(3, 2, "w2"), func(r *Row) { r.Group = 8 }),
			Row: with(row(3, 2, "w2"), func(r *Row) { r.Active, r.Synced = false, false }),
		}}},
		{"shards kept off a worker stay the operator's choice", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 0, func(x *Actual) { x.Rows[1].TakesShards = false })
		}, nil},
		{"a clone is the operator's", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Secondaries = map[fsm.GroupID][]Secondary{}
			edit(a, 0, func(x *Actual) {
				x.Rows = append(x.Rows, with(row(4, 1, "clone"), func(r *Row) { r.Role, r.Clone, r.Active = "unavailable", true, false }))
			})
		}, nil},
		{"pool port", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.PoolPort = 6432
			everywhere(a, func(x *Actual) { x.Pool = map[int]string{1: "port='6432'", 2: "port='6432'", 3: "port='6432'"} })
			edit(a, 0, func(x *Actual) {
				x.Pool = map[int]string{1: "port='6432'", 2: "port='1'", 9: "port='6432'", 10: "host=x"}
			})
		}, []Step{DropPool{0, 9}, SetPool{0, 2, "port='6432'"}, SetPool{0, 3, "port='6432'"}}},
		{"pool port gone: what others made stays", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 2, func(x *Actual) { x.Pool = map[int]string{1: "port='6432'", 2: "port=6432", 3: "host=x port='1'"} })
		}, []Step{DropPool{2, 1}}},
		{"group gone with its standbys: those first, nothing registered", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Gone = []fsm.GroupID{2}
			w.Secondaries = map[fsm.GroupID][]Secondary{2: {standby("w2b", Serving), standby("w2c", Serving)}}
			everywhere(a, func(x *Actual) { x.Rows = append(x.Rows, secondary(4, 2, "w2b")) })
		}, []Step{RemoveNode{secondary(4, 2, "w2b")}, RemoveNode{row(3, 2, "w2")}}},
		{
			"recovery", func(w *Wanted, _ map[fsm.GroupID]Actual) { w.Recover = true },
			[]Step{RecoverPrepared{0}, RecoverPrepared{1}, RecoverPrepared{2}},
		},
		{"no recovery while a primary is in recovery", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Recover = true
			edit(a, 2, func(x *Actual) { x.InRecovery, x.Timeline = true, 0 })
		}, nil},
		{"no recovery while a timeline is unknown", func(w *Wanted, _ map[fsm.GroupID]Actual) {
			w.Recover = true
			w.Primaries[2] = Primary{Addr: addr("w2")}
		}, nil},
		{"no recovery while a primary is silent", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Recover = true
			delete(a, 2)
		}, nil},
		{"no recovery where a row is wrong", func(w *Wanted, a map[fsm.GroupID]Actual) {
			w.Recover = true
			edit(a, 1, func(x *Actual) { x.Rows[2].Addr = addr("old") })
		}, []Step{UpdateRow{Node: 1, NodeID: 3, From: addr("old"), To: addr("w2")}, RecoverPrepared{0}, RecoverPrepared{2}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, a := formation()
			tt.do(&w, a)
			if d := cmp.Diff(tt.want, Diff(w, a)); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	tests := []struct {
		name string
		do   func(*Wanted, map[fsm.GroupID]Actual)
		want int
	}{
		{"none", func(*Wanted, map[fsm.GroupID]Actual) {}, 0},
		{"unknown group", func(w *Wanted, a map[fsm.GroupID]Actual) { delete(w.Primaries, 2); delete(a, 2) }, 1},
		{"standby at the primary's address", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.InRecovery, x.Timeline = true, 0 })
		}, 1},
		{"registered elsewhere", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.LocalGroup = 5 })
		}, 1},
		{"registered but empty", func(_ *Wanted, a map[fsm.GroupID]Actual) {
			edit(a, 1, func(x *Actual) { x.LocalGroup, x.Rows = 0, nil })
		}, 1},
		{"silent coordinator", func(_ *Wanted, a map[fsm.GroupID]Actual) { delete(a, 0) }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, a := formation()
			tt.do(&w, a)
			if got := Problems(w, a); len(got) != tt.want {
				t.Errorf("problems %q, want %d", got, tt.want)
			}
		})
	}
}

func TestProven(t *testing.T) {
	tests := []struct {
		name string
		do   func(*Wanted, map[fsm.GroupID]Actual)
		want bool
	}{
		{"all primaries", func(*Wanted, map[fsm.GroupID]Actual) {}, true},
		{"row elsewhere", func(w *Wanted, _ map[fsm.GroupID]Actual) { w.Primaries[1] = Primary{Addr: addr("w1b"), Timeline: 1} }, false},
		{"group without primary", func(w *Wanted, _ map[fsm.GroupID]Actual) { w.Primaries[1] = Primary{} }, false},
		{"unknown group", func(w *Wanted, _ map[fsm.GroupID]Actual) { delete(w.Primaries, 1) }, false},
		{"promotion not recorded", func(w *Wanted, _ map[fsm.GroupID]Actual) { w.Primaries[1] = Primary{Addr: addr("w1")} }, false},
		{"silent", func(_ *Wanted, a map[fsm.GroupID]Actual) { delete(a, 1) }, false},
		{"in recovery", func(_ *Wanted, a map[fsm.GroupID]Actual) { edit(a, 1, func(x *Actual) { x.InRecovery = true }) }, false},
		{"promoted once more", func(_ *Wanted, a map[fsm.GroupID]Actual) { edit(a, 1, func(x *Actual) { x.Timeline = 2 }) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, a := formation()
			rows := a[0].Rows
			tt.do(&w, a)
			if got := proven(w, rows, a); got != tt.want {
				t.Errorf("proven is %v, want %v", got, tt.want)
			}
		})
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]Addr{"h:1": {"h", 1}, "[::1]:5432": {"::1", 5432}, "h": {}, ":1": {}, "h:0x": {}, "h:70000": {}} {
		got, err := ParseAddr(in)
		if got != want || (err == nil) != (want != Addr{}) {
			t.Errorf("ParseAddr(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
}
