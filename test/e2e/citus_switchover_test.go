package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/testkit"
)

// TestCitusSwitchoverBroken loses somebody in each phase of a worker's switchover: afterwards rows are right everywhere and what
// was acknowledged is there. A phase that is over too soon to be met is struck a moment later.
func TestCitusSwitchoverBroken(t *testing.T) {
	needsCitus(t)
	c := formation(t)
	a1 := c.Named("a1")
	coord := c.WaitPrimary(0)
	right(c, a1)
	coord.Exec("app", "CREATE TABLE facts (id bigint)", "SELECT create_distributed_table('facts', 'id', shard_count => 4)")
	acked := insertAlways(t, a1) // through a worker: neither the coordinator nor group 2 serves this client

	for _, phase := range []string{fsm.Check, fsm.Pause, fsm.Demote, fsm.Promote, fsm.Resume} {
		for _, v := range []struct {
			name string
			pick func(coord, old, to *testkit.Node) *testkit.Node
		}{
			{"coordinator", func(coord, _, _ *testkit.Node) *testkit.Node { return coord }},
			{"candidate", func(_, _, to *testkit.Node) *testkit.Node { return to }},
		} {
			c.Run(phase+", "+v.name, func(t *testing.T) {
				coord, old := c.WaitPrimary(0), c.WaitPrimary(2)
				to := c.Named("b1")
				if to == old {
					to = c.Named("b2")
				}
				victim := v.pick(coord, old, to)
				before := c.GroupState(2).LastOp
				asked := make(chan testkit.Result, 1)
				go func() {
					asked <- a1.CLI("switchover", "--group", "2", "--candidate", to.Name, "--force", "--wait", "30s")
				}()
				seen := meet(a1, 2, phase, before)
				victim.PowerOff()
				r := <-asked
				t.Logf("struck in phase %s; exit %d: %s", seen, r.Code, strings.TrimSpace(lastLine(r.Out+r.Err)))
				victim.Start()
				c.WaitHealthy()
				noneLeftOver(c, 2)
				right(c, a1)
			})
		}
	}
	want := acked()
	if got := query[int](t, c.WaitPrimary(0), "SELECT count(*)::int FROM facts"); got < want {
		t.Errorf("%d rows, but %d were acknowledged", got, want)
	}
	t.Logf("acknowledged %d", want)
}

// meet returns when a node first shows that phase of the group's operation, or a later one, or that it is over.
func meet(n *testkit.Node, g fsm.GroupID, phase string, before *fsm.Operation) string {
	order := []string{fsm.Check, fsm.Pause, fsm.Demote, fsm.Promote, fsm.Resume}
	rank := func(p string) int {
		for i, x := range order {
			if x == p {
				return i
			}
		}
		return -1
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		st, err := n.Status()
		if err != nil {
			continue
		}
		gr := st.State.Groups[g]
		switch {
		case gr.Op != nil && rank(gr.Op.Phase) >= rank(phase):
			return gr.Op.Phase
		case gr.LastOp != nil && (before == nil || gr.LastOp.ID != before.ID):
			return "over"
		}
	}
	return "none"
}

// insertAlways inserts rows through one node until the test ends, again after errors, and counts what is acknowledged.
func insertAlways(t *testing.T, n *testkit.Node) (acked func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	count, done := 0, make(chan struct{})
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			conn, err := n.Connect(ctx, "app")
			for err == nil {
				ictx, end := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
				_, err = conn.Exec(ictx, fmt.Sprintf("INSERT INTO facts VALUES (%d)", i))
				end()
				if err == nil {
					count++
					i++
				}
				if ctx.Err() != nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if conn != nil {
				_ = conn.Close(context.WithoutCancel(ctx))
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return func() int { stop(); return count }
}
