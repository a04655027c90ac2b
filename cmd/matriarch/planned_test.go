package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
)

// switching is a fake whose group 1 goes through a switchover once it is asked for.
func switching(end func(op *fsm.Operation)) *fake {
	f := newFake()
	f.submit = func(r admin.Request) (fsm.Result, error) {
		if r.OperationPut != nil && r.OperationPut.Operation.Due.IsZero() {
			op := r.OperationPut.Operation
			end(&op)
			f.group(r.OperationPut.Group, func(g *fsm.Group) { g.LastOp = &op })
		}
		return fsm.Result{OK: true}, nil
	}
	return f
}

func TestSwitchover(t *testing.T) {
	f := switching(func(op *fsm.Operation) {
		op.Done, op.Outcome, op.PausedMS = true, "switched over group 1: work1-2 -> work1-1, writes paused 142 ms", 142
		op.Steps = []fsm.Step{{Phase: "check", Took: 41}, {Phase: "pause", Took: 6}, {Phase: "demote", Took: 61}, {Phase: "promote", Took: 60}, {Phase: "resume", Took: 15}}
	})
	got := invoke(t, f, "yes\n", "switchover", "--group", "1", "--candidate", "work1-1")
	if got.code != 0 {
		t.Fatal(got)
	}
	golden(t, "switchover", got.out)
	put := f.got[0].OperationPut
	want := fsm.Operation{ID: put.Operation.ID, Kind: fsm.Switchover, To: admintest.Work1, By: operator(), At: admintest.Now}
	if diff := cmp.Diff(want, put.Operation); diff != "" || put.Group != 1 {
		t.Error(diff)
	}
	if !strings.Contains(got.err, "Group 1 switches over from work1-2 to work1-1") {
		t.Errorf("asked %q", got.err)
	}
}

func TestSwitchoverIsNotAskedForTwice(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		in   string
		code int
		want string // said
		put  bool
	}{
		{"not confirmed", []string{"--group", "1"}, "no\n", 1, "nothing was changed", false},
		{"forced", []string{"--group", "1", "--force"}, "", 0, "", true},
		{"no group", nil, "", 2, "--group is missing", false},
		{"a strange group", []string{"--group", "9", "--force"}, "", 1, "there is no group 9", false},
		{"a strange node", []string{"--group", "1", "--candidate", "x", "--force"}, "", 1, `there is no node "x"`, false},
		{"a time that is over", []string{"--group", "1", "--at", "2020-01-01T00:00:00Z", "--force"}, "", 1, "is over", false},
		{"no time", []string{"--group", "1", "--at", "soon", "--force"}, "", 2, "is no time", false},
		{"nothing to cancel", []string{"--group", "1", "--cancel"}, "", 1, "nothing planned", false},
		{"an extra word", []string{"--group", "1", "now"}, "", 2, "now", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := switching(func(op *fsm.Operation) { op.Done = true })
			got := invoke(t, f, tc.in, append([]string{"switchover"}, tc.args...)...)
			if got.code != tc.code || !strings.Contains(got.err, tc.want) || (len(f.got) > 0) != tc.put {
				t.Errorf("%+v, %d requests", got, len(f.got))
			}
		})
	}
}

func TestSwitchoverGivenUp(t *testing.T) {
	f := switching(func(op *fsm.Operation) { op.Outcome = "work1-1: its agent is silent" })
	got := invoke(t, f, "", "switchover", "--group", "1", "--yes")
	if got.code != 1 || !strings.Contains(got.err, "given up: work1-1: its agent is silent") {
		t.Errorf("%+v", got)
	}
}

func TestSwitchoverPlanned(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "", "switchover", "--group", "1", "--at", "11:30", "--yes"); got.code != 0 || !strings.Contains(got.out, "planned for 2026-03-02T11:30:00Z") {
		t.Fatal(got)
	}
	op := f.got[0].OperationPut.Operation
	if want := admintest.Now.Add(23*time.Hour + 30*time.Minute); !op.Due.Equal(want) {
		t.Errorf("due %s, want %s", op.Due, want)
	}
	f.group(1, func(g *fsm.Group) { g.Planned = &op })
	list := invoke(t, f, "", "list", "--group", "1")
	if !strings.Contains(list.out, "Group 1: switchover to the best candidate planned for 2026-03-02T11:30:00Z") {
		t.Errorf("list does not show it:\n%s", list.out)
	}
	got := invoke(t, f, "", "switchover", "--group", "1", "--cancel")
	drop := f.got[1].OperationDrop
	if got.code != 0 || drop == nil || drop.ID != op.ID || !drop.Cancel {
		t.Errorf("%+v %+v", got, drop)
	}
}

func TestSwitchoverDry(t *testing.T) {
	f := newFake()
	got := invoke(t, f, "", "switchover", "--group", "1", "--candidate", "work1-1", "--dry-run")
	if got.code != 0 || !strings.Contains(got.out, "would switch over from work1-2 to work1-1; nothing was changed") || len(f.got) != 0 {
		t.Errorf("%+v", got)
	}
	f.unfit = errors.New("work1-1: it is tagged nofailover")
	got = invoke(t, f, "", "switchover", "--group", "1", "--candidate", "work1-1", "--dry-run")
	if got.code != 1 || !strings.Contains(got.err, "would be refused: work1-1: it is tagged nofailover") || len(f.got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestRestartOrder: standbys first, each for itself, then the primaries by operations.
func TestRestartOrder(t *testing.T) {
	for _, tc := range []struct {
		name     string
		args     []string
		standbys []string
		groups   []fsm.GroupID
	}{
		{"a group", []string{"--group", "1"}, []string{"work1-1"}, []fsm.GroupID{1}},
		{"a standby", []string{"--node", "coord-3"}, []string{"coord-3"}, nil},
		{"a primary", []string{"--node", "work1-2"}, nil, []fsm.GroupID{1}},
		{"everything", []string{"--all"}, []string{"coord-2", "coord-3", "work1-1"}, []fsm.GroupID{0, 1}},
		{"what is pending", []string{"--all", "--pending"}, []string{"coord-3"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := switching(func(op *fsm.Operation) { op.Done, op.Outcome = true, "restarted" })
			f.node(admintest.Coord3, func(n *fsm.Node) { n.Report.Pending = true })
			got := invoke(t, f, "", append([]string{"restart", "--yes"}, tc.args...)...)
			var groups []fsm.GroupID
			for _, r := range f.got {
				groups = append(groups, r.OperationPut.Group)
			}
			if got.code != 0 || !slices.Equal(f.restarted, tc.standbys) || !slices.Equal(groups, tc.groups) {
				t.Errorf("%+v: standbys %v, groups %v", got, f.restarted, groups)
			}
		})
	}
	for _, args := range [][]string{{}, {"--all", "--group", "1"}} {
		if got := invoke(t, newFake(), "", append([]string{"restart", "--yes"}, args...)...); got.code != 2 {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := invoke(t, newFake(), "", "restart", "--group", "0", "--node", "work1-1", "--yes"); got.code != 1 || !strings.Contains(got.err, "belongs to group 1") {
		t.Errorf("%+v", got)
	}
}
