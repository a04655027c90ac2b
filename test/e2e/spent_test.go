package e2e

import (
	"strings"
	"testing"

	"matriarch/fsm"
	"matriarch/internal/testkit"
	"matriarch/pgmanager/fence"
)

// TestSpentEpoch: an agent makes its sentinel refuse an epoch and is killed before it gives the lease back. The one after it does.
func TestSpentEpoch(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)
	old, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
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
