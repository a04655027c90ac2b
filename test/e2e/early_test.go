package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/testkit"
)

// TestEarlyFailover: a host that is gone is not waited for; an agent that is gone is.
func TestEarlyFailover(t *testing.T) {
	// Longer than what counts as missing; the rest of the 3 s is for an agent to start in on a busy machine.
	const missed = decide.EarlyAfter + 300*time.Millisecond
	c, nodes := three(t)
	w := c.Write(0)
	// kept: nobody took the lease from an agent that was away for less than it.
	kept := func(t *testing.T, p *testkit.Node, epoch fsm.Epoch, away time.Time) {
		t.Helper()
		inTime := returned(c, p, epoch, away)
		c.WaitHealthy()
		switch got := c.GroupState(0).Epoch; {
		case got == epoch:
		case !inTime || stoodStill(c.State(), epoch):
			t.Logf("this machine stood still: epoch %s became %s", epoch, got)
		default:
			t.Errorf("epoch %s became %s although PostgreSQL answered all the time", epoch, got)
		}
	}

	c.Run("host gone", func(t *testing.T) {
		old := c.WaitPrimary(0)
		at := old.PowerOff()
		c.WaitPrimary(0, old)
		w.WaitAck()
		gap, _ := w.Gap(at)
		// The leader may have been on that host: then another must be elected first.
		within(t, "failing over from "+old.Name, gap, ttl+2*time.Second+slack) // that it was early, the history tells
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
		renewed(c, p)
		at := p.Kill9(testkit.Agent)
		time.Sleep(missed)
		p.Start()
		kept(t, p, epoch, at)
	})

	c.Run("agent stopped for less than the lease", func(t *testing.T) {
		p, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		renewed(c, p)
		at := p.Freeze(testkit.Agent)
		time.Sleep(missed)
		p.Thaw(testkit.Agent)
		kept(t, p, epoch, at)
	})

	c.Run("switched off", func(t *testing.T) {
		if r := nodes[0].CLI("config", "set", "--group", "0", "early_failover=false"); r.Code != 0 {
			t.Fatalf("%s%s", r.Out, r.Err)
		}
		old := c.WaitPrimary(0)
		c.Eventually("list says so", func() error {
			if r := old.CLI("list"); !strings.Contains(r.Out, "could fail over only at the end of a lease just now: early_failover is off") {
				return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
			}
			return nil
		})
		renewed(c, old)
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
