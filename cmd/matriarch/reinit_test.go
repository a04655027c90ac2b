package main

import (
	"strings"
	"testing"

	"matriarch/fsm"
	"matriarch/internal/admin/admintest"
)

func TestReinit(t *testing.T) {
	for _, tc := range []struct {
		name  string
		typed string
		args  []string
		edit  func(*fake)
		did   string // what was asked of the node; empty: nothing
		says  string
	}{
		{"from the primary", "", []string{"coord-2", "--yes"}, nil, "coord-2 from ", "coord-2 is being cloned from coord-1: 'matriarch list' shows the progress"},
		{"from a standby", "", []string{"coord-2", "--from", "coord-3", "--yes"}, nil, "coord-2 from " + string(admintest.Coord3), "coord-2 is being cloned from coord-3"},
		{"asked and agreed", "yes\n", []string{"coord-2"}, nil, "coord-2 from ", "PostgreSQL of coord-2 is stopped, cloned anew from coord-1, and its data directory set aside"},
		{"asked and not agreed", "no\n", []string{"coord-2"}, nil, "", "nothing was changed"},
		{"a primary", "", []string{"coord-1", "--yes"}, nil, "", "switch over first"},
		{"from itself", "", []string{"coord-2", "--from", "coord-2", "--yes"}, nil, "", "cannot be cloned from itself"},
		{"from another group", "", []string{"coord-2", "--from", "work1-1", "--yes"}, nil, "", "not a member of its group"},
		{"nobody", "", []string{"nobody", "--yes"}, nil, "", `there is no node "nobody": nodes are coord-1`},
		{"from nobody", "", []string{"coord-2", "--from", "nobody", "--yes"}, nil, "", `there is no node "nobody"`},
		{"from one that does not stream", "", []string{"coord-2", "--from", "coord-3", "--yes"}, func(f *fake) {
			f.node(admintest.Coord3, func(n *fsm.Node) { n.Report.State = "stopped" })
		}, "", "take another source"},
		{"the last copy", "", []string{"coord-2", "--yes"}, func(f *fake) {
			f.group(0, func(g *fsm.Group) { g.Lease = fsm.Lease{} })
		}, "", "its data may be the last copy"},
		{"unreachable", "", []string{"coord-2", "--yes"}, func(f *fake) { delete(f.nodes, admintest.Coord2) }, "", "connection refused"},
		{"without a node", "", nil, nil, "", "NODE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			if tc.edit != nil {
				tc.edit(f)
			}
			got := invoke(t, f, tc.typed, append([]string{"reinit"}, tc.args...)...)
			if did := strings.Join(f.restarted, ", "); did != tc.did || (got.code == 0) != (tc.did != "") {
				t.Errorf("code %d, did %q, want %q\n%s%s", got.code, did, tc.did, got.out, got.err)
			}
			if !strings.Contains(got.out+got.err, tc.says) {
				t.Errorf("want %q in\n%s%s", tc.says, got.out, got.err)
			}
		})
	}
}

func TestReinitWaits(t *testing.T) {
	f := newFake()
	f.reinit = func() {
		st := f.nodes[admintest.Coord2]
		self := *st.Self
		self.Postmaster, self.Report.State = self.Postmaster+1, "streaming"
		st.Self = &self
		f.nodes[admintest.Coord2] = st
	}
	got := invoke(t, f, "", "reinit", "coord-2", "--wait", "--yes")
	if got.code != 0 || !strings.Contains(got.out, "coord-2 was cloned from coord-1 in ") || !strings.Contains(got.err, "coord-2: streaming") {
		t.Errorf("%+v", got)
	}
}
