package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/agent"
)

func TestSlotsChange(t *testing.T) {
	logical := fsm.Slot{Name: "cdc", Type: fsm.Logical, Database: "app", Plugin: "pgoutput"}
	for _, tc := range []struct {
		args string
		want *admin.Request // nil: refused
		says string
	}{
		{"add archive --group 1", &admin.Request{SlotPut: &fsm.SlotPut{Group: 1, Slot: fsm.Slot{Name: "archive", Type: fsm.Physical}}}, "slot archive (physical) is permanent in group 1"},
		{"add cdc --type logical --database app --plugin pgoutput", &admin.Request{SlotPut: &fsm.SlotPut{Slot: logical}}, "slot cdc (logical, database app, plugin pgoutput) is permanent in group 0"},
		{"add cdc --type logical", nil, "needs a database and a plugin"},
		{"add m_x", nil, "the members' own"},
		{"add", nil, "NAME"},
		{"drop archive --group 1", &admin.Request{SlotDrop: &fsm.SlotDrop{Group: 1, Name: "archive"}}, "dropped once nobody uses it"},
		{"reset cdc", &admin.Request{SlotPut: &fsm.SlotPut{Slot: fsm.Slot{Name: "cdc", Type: fsm.Logical, Database: "app", Plugin: "pgoutput", Made: true}, Anew: true}}, "made anew"},
		{"reset other", nil, "not a permanent slot of group 0"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			f := newFake()
			f.group(0, func(g *fsm.Group) { made := logical; made.Made = true; g.Slots = []fsm.Slot{made} })
			got := invoke(t, f, "", append([]string{"slots"}, strings.Fields(tc.args)...)...)
			if !strings.Contains(got.out+got.err, tc.says) || (got.code == 0) != (tc.want != nil) {
				t.Errorf("%+v, want %q", got, tc.says)
			}
			var want []admin.Request
			if tc.want != nil {
				want = append(want, *tc.want)
			}
			if diff := cmp.Diff(want, f.got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSlotsList(t *testing.T) {
	f := newFake()
	f.group(0, func(g *fsm.Group) { g.Slots = []fsm.Slot{{Name: "cdc", Type: fsm.Logical, Made: true}} })
	st := f.nodes[admintest.Coord1]
	st.Self.Slots = []agent.SlotSeen{{Name: "m_a", Type: fsm.Physical, Active: true, WALStatus: "reserved", Retained: 2048}, {Name: "theirs", Type: fsm.Physical, WALStatus: "lost"}}
	f.node(admintest.Coord1, func(n *fsm.Node) {
		n.Report.Slots = "slot theirs, which is none of Matriarch's, has lost the log that it needs"
	})
	delete(f.nodes, admintest.Coord3)
	got := invoke(t, f, "", "slots", "list")
	golden(t, "slots-list", got.out)
	if got := invoke(t, f, "", "list"); !strings.Contains(got.out, "- coord-1: slot theirs, which is none") {
		t.Errorf("list does not mention it:\n%s", got.out)
	}
	if got := invoke(t, f, "", "status", "coord-1"); !strings.Contains(got.out, "slot theirs (physical, other): not in use, WAL lost") {
		t.Errorf("status:\n%s", got.out)
	}
}
