package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"matriarch/fsm/decide"
	"matriarch/internal/testkit"
)

// TestEarlyFailover: a host that is gone is not waited for; an agent that is gone is.
func TestEarlyFailover(t *testing.T) {
	// Longer than what counts as missing; the rest of the 3 s is for an agent to start in on a busy machine.
	const missed = decide.EarlyAfter + 300*time.Millisecond
	c, nodes := three(t)
	w := c.Write(0)
	renewed := func(p *testkit.Node) { // an agent that has just started may not have renewed the lease yet
		c.Eventually("the lease of "+p.Name+" is renewed", func() error {
			st, err := p.Status()
			if err == nil && (st.Self == nil || st.Self.LeaseLeft <= 4*time.Second) {
				err = fmt.Errorf("it says of itself: %+v", st.Self)
			}
			return err
		})
	}

	c.Run("host gone", func(t *testing.T) {
		old := c.WaitPrimary(0)
		at := old.PowerOff()
		c.WaitPrimary(0, old)
		w.WaitAck()
		gap, _ := w.Gap(at)
		// The leader may have been on that host: then another must be elected first.
		within(t, "failing over from "+old.Name, gap, 3500*time.Millisecond+slack)
		revoked := false
		for _, h := range c.State().History[0] {
			revoked = revoked || h.Kind == "revoked" && strings.Contains(h.Text, "silent for") && strings.Contains(h.Text, "its port")
		}
		if !revoked {
			t.Errorf("no revocation with evidence in the history: %+v", c.State().History[0])
		}
		old.Start()
		c.WaitHealthy()
	})

	c.Run("agent gone for less than the lease", func(t *testing.T) {
		p, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		renewed(p)
		p.Kill9(testkit.Agent)
		time.Sleep(missed)
		p.Start()
		c.WaitHealthy()
		if got := c.GroupState(0).Epoch; got != epoch {
			t.Errorf("epoch %s became %s although PostgreSQL answered all the time", epoch, got)
		}
	})

	c.Run("agent stopped for less than the lease", func(t *testing.T) {
		p, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		renewed(p)
		p.Freeze(testkit.Agent)
		time.Sleep(missed)
		p.Thaw(testkit.Agent)
		c.WaitHealthy()
		if got := c.GroupState(0).Epoch; got != epoch {
			t.Errorf("epoch %s became %s although PostgreSQL answered all the time", epoch, got)
		}
	})

	c.Run("switched off", func(t *testing.T) {
		if r := nodes[0].CLI("config", "set", "--group", "0", "early_failover=false"); r.Code != 0 {
			t.Fatalf("%s%s", r.Out, r.Err)
		}
		old := c.WaitPrimary(0)
		if r := old.CLI("list"); !strings.Contains(r.Out, "could fail over only at the end of a lease just now: early_failover is off") {
			t.Errorf("list does not say so:\n%s", r.Out)
		}
		at := old.PowerOff()
		c.WaitPrimary(0, old)
		w.WaitAck()
		if gap, _ := w.Gap(at); gap < 3*time.Second {
			t.Errorf("the gap was %s: the lease was not waited for", gap)
		}
		old.Start()
		c.WaitHealthy()
		for _, h := range c.State().History[0] {
			if h.Kind == "revoked" && h.Epoch == c.GroupState(0).Epoch {
				t.Error(fmt.Sprint("revoked: ", h.Text))
			}
		}
	})

	w.Check()
	timelinesAgree(t, c)
}
