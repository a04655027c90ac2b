package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// TestOrderlyStop stops nodes of a group of two as systemctl stop does: no commit waits for who is gone, and everything comes back.
func TestOrderlyStop(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	a := c.Bootstrap("a1")
	b := c.Join(0, "a2")[0]
	c.Join(1, "b1") // a majority without one of the two
	c.WaitHealthy()
	w := c.Write(0)
	nodes := []*testkit.Node{a, b}

	c.Run("the primary hands over", func(t *testing.T) {
		old := c.WaitPrimary(0)
		to, at := others(nodes, old)[0], time.Now()
		old.Interrupt()
		if p := c.WaitPrimary(0); p != to {
			t.Fatalf("the primary is %s, not %s", p.Name, to.Name)
		}
		if log := old.Log(); strings.Contains(log, "stops without having handed over") {
			t.Log("no leader answered in time on this machine: that it was a switchover is not judged")
		} else if op := c.GroupState(0).LastOp; op == nil || !op.Done || op.By != "the stop of "+old.Name {
			t.Errorf("the last operation is no finished switchover of the stop: %+v", op)
		}
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, "stopping the primary of two", gap, 1500*time.Millisecond+slack)
		allGone(c, old)
		old.Start()
		c.WaitHealthy()
		c.WaitState("the stopped node confirms commits again", func(st admin.Status) error {
			if n := st.State.Nodes[old.ID()]; n.Tags.NoSync || !st.State.Groups[0].Sync.Target().Has(n.ID) {
				return fmt.Errorf("tags %+v, set %+v", n.Tags, st.State.Groups[0].Sync)
			}
			return nil
		})
	})

	c.Run("the standby leaves the set first", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s, at := others(nodes, p)[0], time.Now()
		s.Interrupt()
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, "stopping the only standby", gap, time.Second+slack)
		s.Start()
		c.WaitHealthy()
	})

	c.Run("all at once", func(t *testing.T) {
		var wg sync.WaitGroup
		began := time.Now()
		for _, n := range c.Nodes {
			wg.Go(n.Interrupt)
		}
		wg.Wait()
		within(t, "stopping everything", time.Since(began), 20*time.Second+slack)
		for _, n := range c.Nodes {
			allGone(c, n)
			if log := n.Log(); !strings.Contains(log, "node ends, and PostgreSQL with it") {
				t.Errorf("%s did not end in good order", n.Name)
			}
		}
		for _, n := range c.Nodes {
			n.Start()
		}
		c.WaitHealthy()
	})
	w.Check()
}
