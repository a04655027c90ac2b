package e2e

import (
	"fmt"
	"strings"
	"testing"

	"matriarch/fsm"
	"matriarch/internal/testkit"
	"matriarch/pgmanager/fence"
)

// TestSpentEpoch: an agent makes its sentinel refuse an epoch and is killed before it gives the lease back. The one after it does.
func TestSpentEpoch(t *testing.T) {
	c, nodes := three(t)
	w, old := c.Write(0), c.WaitPrimary(0)
	// The agents that are killed shall cost no election, nor the lease.
	mustRun(t, old, "config", "set", "leader_avoid=false")
	mustRun(t, old, "config", "set", "--group", "0", "early_failover=false")
	c.Eventually(old.Name+" leads", func() error {
		if c.Leader() == old {
			return nil
		}
		r := old.CLI("transfer-leader", old.Name)
		return fmt.Errorf("exit %d %s", r.Code, r.Err)
	})
	epoch := c.GroupState(0).Epoch
	spent := fsm.Epoch{Inc: epoch.Inc, N: epoch.N + 1}
	for _, n := range others(nodes, old) {
		n.Kill9(testkit.Agent)
		s, err := fence.Dial(t.Context(), n.Socket())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Renounce(t.Context(), fence.Epoch(spent)); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		n.Start()
		c.WaitHealthy()
	}
	old.PowerOff()
	p := waitNext(c, spent)
	w.WaitAck()
	told := false
	for _, h := range c.State().History[0] {
		told = told || h.Kind == "released" && h.Epoch == spent && strings.Contains(h.Text, "used up")
	}
	if !told {
		t.Errorf("the history does not tell why %s was given back: %+v", spent, c.State().History[0])
	}
	for _, m := range c.State().Nodes {
		if m.Report.Unfit != "" {
			t.Errorf("%s may not become primary: %s", m.Name, m.Report.Unfit)
		}
	}
	if p == old {
		t.Errorf("%s is off, and primary", p.Name)
	}
	old.Start()
	c.WaitHealthy()
	w.Check()
	timelinesAgree(t, c)
}
