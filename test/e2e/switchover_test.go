package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/testkit"
)

// TestSwitchover hands a group over and restarts it while a client writes.
func TestSwitchover(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)

	c.Run("to a candidate", func(t *testing.T) {
		old := c.WaitPrimary(0)
		to := others(nodes, old)[1]
		identity := inode(t, old.DataDir())
		var log string
		var at time.Time
		var term uint64
		var op fsm.Operation
		c.Eventually("the candidate takes over", func() error { // on a busy machine it can be refused
			log, at, term = old.Log(), time.Now(), c.Status().Raft.Term
			r := others(nodes, old)[0].CLI("--output", "json", "switchover", "--group", "0", "--candidate", to.Name, "--yes")
			if err := json.Unmarshal([]byte(r.Out), &op); err != nil || r.Code != 0 {
				return fmt.Errorf("exit %d: %w\n%s%s", r.Code, err, r.Out, r.Err)
			}
			return nil
		})
		var phases []string
		for _, s := range op.Steps {
			phases = append(phases, s.Phase)
		}
		if !op.Done || op.To != to.ID() {
			t.Errorf("%+v", op)
		}
		// A leader that takes over on the way has not seen when the steps before began.
		if got := strings.Join(phases, " "); got != "check pause demote promote resume" && c.Status().Raft.Term == term {
			t.Errorf("phases %q", got)
		}
		if p := c.WaitPrimary(0); p != to {
			t.Errorf("the primary is %s, not %s", p.Name, to.Name)
		}
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, fmt.Sprintf("switching over from %s to %s", old.Name, to.Name), gap, time.Second+slack)
		c.WaitHealthy()
		if inode(t, old.DataDir()) != identity {
			t.Error("the old primary was cloned: it should just follow")
		}
		// A walreceiver that stands still for longer is not waited for, and the old primary's last record is its alone.
		if gap < 1500*time.Millisecond && strings.Contains(strings.TrimPrefix(old.Log(), log), "rewind") {
			t.Error("the old primary had nothing to take back: it should just follow")
		}
	})

	c.Run("to the best", func(t *testing.T) {
		old := c.WaitPrimary(0)
		if r, _ := switchOver(c, old, "--force"); !strings.Contains(r.Out, "switched over group 0: "+old.Name+" -> ") {
			t.Fatalf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		c.WaitPrimary(0, old)
		c.WaitHealthy()
	})

	c.Run("the candidate gets stuck", func(t *testing.T) {
		old := c.WaitPrimary(0)
		standbys, epoch := others(nodes, old), c.GroupState(0).Epoch
		to := standbys[0]
		if to == c.Leader() { // its absence would cost an election as well
			to = standbys[1]
		}
		to.Freeze(testkit.Agent)
		r := others(standbys, to)[0].CLI("switchover", "--group", "0", "--candidate", to.Name, "--force")
		to.Thaw(testkit.Agent)
		if r.Code != 1 || c.GroupState(0).Epoch != epoch && !stoodStill(c.State(), epoch) {
			t.Errorf("exit %d, epoch %s after %s\n%s%s", r.Code, c.GroupState(0).Epoch, epoch, r.Out, r.Err)
		}
		w.WaitAck()
		c.WaitHealthy()
	})

	c.Run("refused", func(t *testing.T) {
		old, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		for _, tc := range []struct{ args, want string }{
			{"--candidate " + old.Name, "is the primary of group 0 already"},
			{"--candidate nobody", `there is no node "nobody"`},
			{"--dry-run --candidate " + old.Name, "it is the primary already"},
		} {
			c.Eventually("it is refused: "+tc.args, func() error { // the leader may move in between
				r := old.CLI(append([]string{"switchover", "--group", "0", "--force"}, strings.Fields(tc.args)...)...)
				if r.Code == 0 {
					t.Fatalf("%s: it was done\n%s%s", tc.args, r.Out, r.Err)
				}
				if r.Code != 1 || !strings.Contains(r.Err, tc.want) {
					return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
				}
				return nil
			})
		}
		c.Eventually("a dry run finds nothing in the way", func() error {
			if r := old.CLI("switchover", "--group", "0", "--dry-run"); r.Code != 0 || !strings.Contains(r.Out, "nothing was changed") {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		if got := c.GroupState(0); got.Epoch != epoch && !stoodStill(c.State(), epoch) || got.Op != nil {
			t.Errorf("epoch %s became %s, operation %+v", epoch, got.Epoch, got.Op)
		}
	})

	c.Run("planned, over a restart of the leader", func(t *testing.T) {
		old, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		due := time.Now().Add(12 * time.Second).UTC().Format(time.RFC3339) // behind two commands and the end of the leader
		if r := old.CLI("switchover", "--group", "0", "--at", due, "--yes"); r.Code != 0 {
			t.Fatalf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		listSays(c, old, "planned for "+due)
		leader := c.Named(c.State().Name(c.Status().Node))
		leader.Kill9(testkit.Agent)
		leader.Start()
		c.Eventually("it has been carried out", func() error {
			g := c.GroupState(0)
			if g.LastOp == nil || g.Planned != nil || g.Op != nil || !epoch.Less(g.Epoch) {
				return fmt.Errorf("planned %+v, operation %+v, last %+v", g.Planned, g.Op, g.LastOp)
			}
			return nil
		})
		c.WaitHealthy()
	})

	c.Run("restart", func(t *testing.T) {
		var p *testkit.Node
		var at time.Time
		pids := map[string]int{}
		c.Eventually("everything is restarted", func() error {
			c.WaitHealthy()
			p = c.WaitPrimary(0)
			for _, n := range nodes {
				pids[n.Name] = n.PID(testkit.Postmaster)
			}
			at = time.Now()
			r := p.CLI("restart", "--group", "0", "--yes")
			if r.Code == 0 && (strings.Count(r.Out, "restarted") != 3 || !strings.HasSuffix(strings.TrimSpace(r.Out), "primary of group 0")) {
				t.Fatalf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			if r.Code != 0 { // a primary that comes back later than an election waits
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, "restarting", gap, 2*time.Second+slack)
		for _, n := range nodes {
			if n.PID(testkit.Postmaster) == pids[n.Name] {
				t.Errorf("%s was not restarted", n.Name)
			}
		}
		if c.WaitPrimary(0) != p {
			t.Error("the restarted primary is not the primary any more")
		}
		c.WaitHealthy()
	})

	w.Check()
	timelinesAgree(t, c)
}

// TestSwitchoverBroken kills somebody in the phases that take long enough to be met; the simulation does so in every phase.
func TestSwitchoverBroken(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)
	for _, phase := range []string{fsm.Demote, fsm.Promote} {
		for _, v := range []struct {
			name string
			kill func(old, to, leader *testkit.Node)
			mend func(old, to, leader *testkit.Node)
		}{
			{"the old primary's host", func(old, _, _ *testkit.Node) { old.PowerOff() }, func(old, _, _ *testkit.Node) { old.Start() }},
			{"the old primary's agent", func(old, _, _ *testkit.Node) { old.Kill9(testkit.Agent) }, func(old, _, _ *testkit.Node) { old.Start() }},
			{"the candidate's host", func(_, to, _ *testkit.Node) { to.PowerOff() }, func(_, to, _ *testkit.Node) { to.Start() }},
			{"the candidate's postmaster", func(_, to, _ *testkit.Node) { to.Kill9(testkit.Postmaster) }, func(_, _, _ *testkit.Node) {}},
			{"the leader's agent", func(_, _, leader *testkit.Node) { leader.Kill9(testkit.Agent) }, func(_, _, leader *testkit.Node) { leader.Start() }},
		} {
			c.Run(phase+", "+v.name, func(t *testing.T) {
				old := c.WaitPrimary(0)
				to := others(nodes, old)[0]
				leader := c.Named(c.State().Name(c.Status().Node))
				watch := leader
				asked := make(chan testkit.Result, 1)
				go func() {
					asked <- others(nodes, old)[1].CLI("switchover", "--group", "0", "--candidate", to.Name, "--force", "--wait", "20s")
				}()
				seen := ""
				for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
					st, err := watch.Status()
					if err != nil {
						continue
					}
					g := st.State.Groups[0]
					if g.Op != nil && (g.Op.Phase == phase || phase == fsm.Demote && g.Op.Forward()) {
						seen = g.Op.Phase
						break
					}
					if g.LastOp != nil && g.Lease.Holder == to.ID() {
						seen = "over already"
						break
					}
				}
				v.kill(old, to, leader)
				t.Logf("killed in phase %s", seen)
				r := <-asked
				t.Logf("exit %d: %s%s", r.Code, r.Out, strings.TrimSpace(r.Err))
				w.WaitAck()
				v.mend(old, to, leader)
				c.WaitHealthy()
				noneLeftOver(c, 0)
			})
		}
	}
	w.Check()
	timelinesAgree(t, c)
}
