package fsm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func ask(kind string, to NodeID) OperationPut {
	return OperationPut{Group: 0, Operation: Operation{ID: "op", Kind: kind, To: to, By: "me"}}
}

func move(from, to string) OperationMove {
	return OperationMove{Group: 0, ID: "op", From: from, To: to, Node: "b", Steps: []Step{{from, 7}}}
}

func later(p OperationPut) OperationPut {
	p.Operation.Due = epochZero.Add(time.Hour)
	return p
}

// released in good order, its last record at 500.
func releasedAt(e uint64, tl Timeline) Release {
	return Release{Group: 0, Epoch: ep(e), Timeline: tl, LSN: 500}
}

// TestSwitchoverThroughItsPhases follows one from the question to the end.
func TestSwitchoverThroughItsPhases(t *testing.T) {
	s, _ := play(t, NewState(), quorate...)
	for i, st := range []struct {
		cmd   Command
		phase string
	}{
		{ask(Switchover, ""), Check},
		{move(Check, Pause), Pause},
		{move(Pause, Demote), Demote},
		{releasedAt(1, 2), Promote},
		{grantTo("b", 1, "a", "c"), Promote},
		{Promoted{0, ep(2), 3, 2, 600}, Promote},
		{SyncConfirm{0, ep(2), NewPair(1, "a", "c")}, Resume},
	} {
		var res Result
		if s, res = play(t, s, st.cmd); !res.OK {
			t.Fatalf("step %d (%s) refused: %s", i, st.cmd.Kind(), res.Reason)
		}
		op := s.Groups[0].Op
		if op == nil || op.Phase != st.phase {
			t.Fatalf("after step %d (%s): %+v, want phase %s", i, st.cmd.Kind(), op, st.phase)
		}
	}
	end := move(Resume, "")
	end.Text, end.PausedMS = "switched over", 142
	s, _ = play(t, s, end)
	g := s.Groups[0]
	if g.Op != nil || g.LastOp == nil || !g.LastOp.Done || g.LastOp.To != "b" || g.LastOp.From != "a" || g.LastOp.PausedMS != 142 || g.LastOp.Outcome != "switched over" {
		t.Errorf("op %+v, last %+v", g.Op, g.LastOp)
	}
	if g.Ended != nil {
		t.Error("the old end is of no use after the next holder has confirmed")
	}
}

// TestOperationEndsWithItsLease: whatever ends the lease ends the work that rested on it, in the same entry.
func TestOperationEndsWithItsLease(t *testing.T) {
	demoting := append(slices.Clip(quorate), ask(Switchover, "b"), move(Check, Pause), move(Pause, Demote))
	for _, tc := range []struct {
		name    string
		setup   []Command
		cmd     Command
		outcome string // of the operation; empty: it goes on
	}{
		{"expired in check", append(slices.Clip(quorate), ask(Switchover, "b")), Expire{0, ep(1)}, "in phase check"},
		{"revoked in check", append(slices.Clip(quorate), ask(Switchover, "b")), Revoke{Group: 0, Epoch: ep(1), Reason: "why"}, "was revoked: why"},
		{"expired in demote", demoting, Expire{0, ep(1)}, "in phase demote"},
		{"released without an end", demoting, Release{Group: 0, Epoch: ep(1)}, "in phase demote"},
		{"released with an end on another timeline", demoting, releasedAt(1, 9), "in phase demote"},
		{"released in good order", demoting, releasedAt(1, 2), ""},
		{"granted to another", append(slices.Clip(demoting), releasedAt(1, 2)), grantTo("c", 1, "a"), "n-c became primary instead"},
		{"granted back", append(slices.Clip(demoting), releasedAt(1, 2)), grantTo("a", 1, "b"), "n-a became primary instead"},
		{"granted as planned", append(slices.Clip(demoting), releasedAt(1, 2)), grantTo("b", 1, "a"), ""},
		{"expired before the first commit", append(slices.Clip(demoting), releasedAt(1, 2), grantTo("b", 1, "a")), Expire{0, ep(2)}, "in phase promote"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, res := play(t, NewState(), append(slices.Clip(tc.setup), tc.cmd)...)
			if !res.OK {
				t.Fatal(res.Reason)
			}
			g := s.Groups[0]
			switch {
			case tc.outcome == "" && g.Op == nil:
				t.Errorf("over: %+v", g.LastOp)
			case tc.outcome != "" && (g.Op != nil || g.LastOp == nil || g.LastOp.Done || !strings.Contains(g.LastOp.Outcome, tc.outcome)):
				t.Errorf("op %+v, last %+v, want %q", g.Op, g.LastOp, tc.outcome)
			}
		})
	}
}

// TestOperationRefusals names the reason.
func TestOperationRefusals(t *testing.T) {
	shy := with(node("b", 0), func(n *Node) { n.Tags.NoFailover = true })
	running := append(slices.Clip(quorate), ask(Switchover, "b"))
	forward := append(slices.Clip(running), move(Check, Pause), move(Pause, Demote))
	other := ask(Switchover, "b")
	other.Operation.ID = "other"
	for _, tc := range []struct {
		name  string
		setup []Command
		cmd   Command
		why   string
	}{
		{"an unknown kind", quorate, ask("dance", "b"), "use failover, switchover or restart"},
		{"to the primary", quorate, ask(Switchover, "a"), "primary of group 0 already"},
		{"to a stranger", quorate, ask(Switchover, "w"), "not a member"},
		{"to one tagged nofailover", append(slices.Clip(quorate), NodePut{shy}), ask(Switchover, "b"), "nofailover"},
		{"while paused", append(slices.Clip(quorate), GroupSet{Group: 0, Paused: new(true)}), ask(Switchover, "b"), "is paused"},
		{"without a primary", freed, ask(Switchover, "b"), "no open primary"},
		{"while a failover is under way", append(slices.Clip(quorate), Revoke{Group: 0, Epoch: ep(1)}), ask(Restart, ""), "revoked"},
		{"while another is under way", running, other, "under way"},
		{"out of order", running, move(Pause, Demote), "is in phase check, not pause"},
		{"cancelled too late", forward, OperationDrop{Group: 0, ID: "op", Cancel: true}, "only forward"},
		{"planned twice", append(slices.Clip(quorate), later(ask(Switchover, "b"))), later(other), "planned for"},
		{"begun before it is planned", quorate, OperationMove{Group: 0, ID: "op", To: Check}, "no such operation planned"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, res := play(t, NewState(), append(slices.Clip(tc.setup), tc.cmd)...); res.OK || !strings.Contains(res.Reason, tc.why) {
				t.Errorf("%+v, want %q", res, tc.why)
			}
		})
	}
}

// TestOnePauseInTheFormation: the second group has to wait.
func TestOnePauseInTheFormation(t *testing.T) {
	s, _ := play(t, NewState(), append(slices.Clip(quorate),
		Claim{1, "w"}, Initialised{1, "w", "sys1", 1},
		GrantCmd{Group: 1, Holder: "w", Instance: "i", TTL: time.Second}, Promoted{1, ep(1), 2, 1, 100}, SyncConfirm{1, ep(1), Pair{}},
		ask(Switchover, "b"))...)
	put := ask(Restart, "")
	put.Group, put.Operation.ID = 1, "second"
	if _, res := play(t, s, put); res.OK || !strings.Contains(res.Reason, "one at a time") {
		t.Errorf("%+v", res)
	}
	fail := put
	fail.Operation.Kind = Failover // of a group without a standby: it waits, but it may be asked for
	if _, res := play(t, s, fail); !res.OK {
		t.Errorf("a failover pauses nobody: %s", res.Reason)
	}
}

// TestPlannedOperation waits for its time, begins, or says why it could not.
func TestPlannedOperation(t *testing.T) {
	planned := append(slices.Clip(quorate), later(ask(Switchover, "b")))
	s, _ := play(t, NewState(), planned...)
	if g := s.Groups[0]; g.Op != nil || g.Planned == nil {
		t.Fatalf("op %+v, planned %+v", g.Op, g.Planned)
	}
	begun, _ := play(t, s, OperationMove{Group: 0, ID: "op", To: Check})
	if g := begun.Groups[0]; g.Planned != nil || g.Op == nil || g.Op.Phase != Check || g.Op.From != "a" {
		t.Errorf("op %+v, planned %+v", g.Op, g.Planned)
	}
	dropped, _ := play(t, s, OperationDrop{Group: 0, ID: "op", Reason: "thought better of it", Cancel: true})
	if g := dropped.Groups[0]; g.Planned != nil || g.LastOp == nil || g.LastOp.Done {
		t.Errorf("planned %+v, last %+v", g.Planned, g.LastOp)
	}
	late, res := play(t, s, Expire{0, ep(1)}, OperationMove{Group: 0, ID: "op", To: Check})
	if g := late.Groups[0]; !res.OK || g.Op != nil || g.Planned != nil || !strings.Contains(g.LastOp.Outcome, "no open primary") {
		t.Errorf("%+v: op %+v, planned %+v, last %+v", res, g.Op, g.Planned, g.LastOp)
	}
}

// TestRestartStays: a restart's candidate is the holder itself.
func TestRestartStays(t *testing.T) {
	s, res := play(t, NewState(), append(slices.Clip(quorate), ask(Restart, "b"), move(Check, Demote), releasedAt(1, 2), grantTo("a", 1, "b", "c"))...)
	if op := s.Groups[0].Op; !res.OK || op == nil || op.To != "a" || op.Phase != Promote {
		t.Errorf("%+v %+v", res, op)
	}
}

// TestEndKeepsEarlierPairs: a holder that ends before it has confirmed does not make the pairs before it forgotten.
func TestEndKeepsEarlierPairs(t *testing.T) {
	s, res := play(t, NewState(), append(slices.Clip(quorate), releasedAt(1, 2), grantTo("b", 1, "a"), Promoted{0, ep(2), 3, 2, 600}, releasedAt(2, 3))...)
	end := s.Groups[0].Ended
	if !res.OK || end == nil || end.Epoch != ep(2) || len(end.Pairs) != 2 || !end.Pairs[0].Equal(NewPair(1, "b", "c")) || !end.Pairs[1].Equal(NewPair(1, "a")) {
		t.Errorf("%+v %+v", res, end)
	}
}
