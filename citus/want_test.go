package citus

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
)

func TestWant(t *testing.T) {
	e1, e2 := fsm.Epoch{Inc: 1, N: 1}, fsm.Epoch{Inc: 1, N: 2}
	s := &fsm.State{
		Nodes: map[fsm.NodeID]fsm.Node{"a": {Name: "a", Postgres: "10.0.0.1:5432"}, "b": {Name: "b", Postgres: "10.0.0.2:5433"}},
		Groups: map[fsm.GroupID]fsm.Group{
			0: {SystemID: "s0", Lease: fsm.Lease{Holder: "a"}, Epoch: e2, Sync: fsm.Sync{Confirmed: e2}, Grants: []fsm.Grant{{Epoch: e2, Timeline: 3}}},
			1: {SystemID: "s1", Lease: fsm.Lease{Holder: "b"}, Epoch: e2, Sync: fsm.Sync{Confirmed: e2}, Grants: []fsm.Grant{{Epoch: e1, Timeline: 2}}},
			2: {SystemID: "s2", Lease: fsm.Lease{Holder: "b"}, Epoch: e2, Sync: fsm.Sync{Confirmed: e1}},
			3: {},
		},
	}
	got, err := Want(s, "app")
	want := Wanted{Database: "app", Primaries: map[fsm.GroupID]Primary{
		0: {Addr: Addr{"10.0.0.1", 5432}, Timeline: 3},
		1: {Addr: Addr{"10.0.0.2", 5433}}, // its promotion is not recorded yet
		2: {},                             // not open to clients yet
	}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	g := s.Groups[2]
	g.Retired = true
	s.Groups[2] = g
	if got, err = Want(s, "app"); err != nil || !got.gone(2) || len(got.Primaries) != 2 {
		t.Errorf("a retired group is still wanted: %+v, %v", got, err)
	}
	s.Nodes["a"] = fsm.Node{Name: "a", Postgres: "nonsense"}
	if _, err := Want(s, "app"); err == nil {
		t.Error("an address without port was taken")
	}
}

// A coordinator's own copy of the rows must be right before anybody uses it, so it counts from its recorded promotion on; a
// worker, which the rows send clients to, only once it is open.
func TestWantOfAPromotedCoordinator(t *testing.T) {
	e1, e2 := fsm.Epoch{Inc: 1, N: 1}, fsm.Epoch{Inc: 1, N: 2}
	group := func(id fsm.GroupID, holder fsm.NodeID, tl fsm.Timeline) fsm.Group {
		return fsm.Group{ID: id, SystemID: "s", Lease: fsm.Lease{Holder: holder, Epoch: e2}, Epoch: e2, Sync: fsm.Sync{Confirmed: e1}, Grants: []fsm.Grant{{Epoch: e2, Holder: holder, Timeline: tl}}}
	}
	s := &fsm.State{
		Nodes:  map[fsm.NodeID]fsm.Node{"a": {Postgres: "10.0.0.1:5432"}, "b": {Postgres: "10.0.0.2:5432"}},
		Groups: map[fsm.GroupID]fsm.Group{0: group(0, "a", 3), 1: group(1, "b", 3)},
	}
	got, err := Want(s, "app")
	if err != nil || got.Primaries[0].Addr.Host != "10.0.0.1" || !got.Primaries[1].Addr.IsZero() {
		t.Errorf("promoted, not open: %v %+v", err, got.Primaries)
	}
	s.Groups[0] = group(0, "a", 0)
	if got, err = Want(s, "app"); err != nil || !got.Primaries[0].Addr.IsZero() {
		t.Errorf("granted, not promoted: %v %+v", err, got.Primaries)
	}
}
