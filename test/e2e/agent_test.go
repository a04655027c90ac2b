package e2e

import (
	"fmt"
	"testing"
	"time"

	"matriarch/fsm/decide"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// exclusive: the old primary took its last write before the new one took its first, and no later than its lease allowed, which
// was renewed for a while after the fault.
func exclusive(t *testing.T, w *testkit.Writer, s *testkit.Stubborn, next *testkit.Node, at time.Time, renewals time.Duration) {
	t.Helper()
	last := s.WaitEnd()
	within(t, "the old primary went on writing, which", last.Sub(at), ttl+renewals)
	w.WaitAck()
	first, ok := w.FirstOn(next, at)
	switch {
	case !ok:
		t.Errorf("no write on %s", next.Name)
	case !first.After(last):
		t.Errorf("two primaries: the old one took a write %s after %s did", last.Sub(first), next.Name)
	}
	gap, _ := w.Gap(at)
	within(t, "the group without a primary", gap, ttl+2*time.Second+slack)
}

// TestAgent kills and freezes agents and sentinels of a primary.
func TestAgent(t *testing.T) {
	c, _ := three(t)
	// Revoked early, the old primary may still commit locally until its lease ends: TestEarlyFailover is about that.
	mustRun(t, c.Nodes[0], "config", "set", "--group", "0", "early_failover=false")
	w := c.Write(0)

	c.Run("killed and back within the lease", func(t *testing.T) {
		p := c.WaitPrimary(0)
		postmaster, epoch := p.PID(testkit.Postmaster), c.GroupState(0).Epoch
		renewed(c, p)
		at := p.Kill9(testkit.Agent)
		p.Start()
		inTime := returned(c, p, epoch, at)
		c.WaitHealthy()
		w.WaitAck()
		if !inTime {
			t.Logf("the agent was not back in time on this machine: whether anybody notices is not judged")
			return
		}
		if got := p.PID(testkit.Postmaster); got != postmaster {
			t.Errorf("postmaster %d became %d", postmaster, got)
		}
		if got := c.GroupState(0).Epoch; got != epoch {
			t.Errorf("epoch %s became %s", epoch, got)
		}
		gap, _ := w.Gap(at)
		within(t, "the longest pause of a client", gap, time.Second+slack)
	})

	// First of those that move the primary: while its agent lives, a group changes hands once in a while only.
	c.Run("sentinel frozen", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := p.WriteLocally()
		sentinel := p.PID(testkit.Sentinel)
		at := p.Freeze(testkit.Sentinel)
		next := c.WaitPrimary(0, p)
		exclusive(t, w, s, next, at, decide.SentinelSilence+500*time.Millisecond) // until the agent knows
		c.WaitHealthy()
		if got := p.PID(testkit.Sentinel); got == 0 || got == sentinel {
			t.Errorf("the sentinel was %d and is %d: a frozen one must be replaced", sentinel, got)
		}
	})

	c.Run("killed for good", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := p.WriteLocally()
		at := p.Kill9(testkit.Agent)
		next := c.WaitPrimary(0, p)
		exclusive(t, w, s, next, at, 0)
		nothingRuns(c, p)
		c.Eventually("the sentinel says that it fenced", func() error {
			st, err := p.SentinelStatus()
			if err == nil && (st.LastExit == nil || !st.LastExit.Fenced) {
				err = fmt.Errorf("it says %+v", st.LastExit)
			}
			return err
		})
		p.Start()
		c.WaitHealthy()
	})

	c.Run("frozen", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := p.WriteLocally()
		at := p.Freeze(testkit.Agent)
		next := c.WaitPrimary(0, p)
		exclusive(t, w, s, next, at, 0)
		nothingRuns(c, p)
		p.Thaw(testkit.Agent)
		c.WaitHealthy()
		if got := c.WaitPrimary(0); got != next {
			t.Errorf("the primary moved on to %s", got.Name)
		}
	})

	w.Check()
}

// nothingRuns waits until no process of PostgreSQL is left on a node.
func nothingRuns(c *testkit.Cluster, n *testkit.Node) {
	c.T.Helper()
	c.Eventually("PostgreSQL on "+n.Name+" has ended", func() error {
		if left := n.PostgresProcesses(); left != 0 {
			return fmt.Errorf("%d of its processes are left", left)
		}
		return nil
	})
}

// heard: the leader has had a keepalive of the node in the last second.
func heard(st admin.Status, n *testkit.Node) error {
	if ago, ok := st.Heard[n.ID()]; !ok || ago > time.Second {
		return errNotHeard
	}
	return nil
}

// TestUpgrade replaces the program under a running formation.
func TestUpgrade(t *testing.T) {
	c, nodes := three(t)
	const (
		version = "v1.0.1-test"
		absence = 1500 * time.Millisecond // of the primary's agent; the sentinel waits for about 3.5 s
	)
	bin := testkit.Build(t, version)
	w := c.Write(0)
	p, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
	at, inTime := time.Now(), true
	for _, n := range append(others(nodes, p), p) {
		postmaster, sentinel := n.PID(testkit.Postmaster), n.PID(testkit.Sentinel)
		if n == p {
			renewed(c, p)
		}
		away := time.Now()
		n.Stop()
		n.Use(bin)
		if n == p {
			time.Sleep(time.Until(away.Add(absence)))
		}
		n.Start()
		if n == p {
			inTime = returned(c, p, epoch, away)
		}
		c.WaitState(n.Name+" is known with its new version", func(st admin.Status) error {
			if have := st.State.Nodes[n.ID()].Version; have != version {
				return errVersion(have)
			}
			return heard(st, n)
		})
		c.WaitHealthy()
		if got := n.PID(testkit.Postmaster); inTime && got != postmaster {
			t.Errorf("%s: postmaster %d became %d", n.Name, postmaster, got)
		}
		if got := n.PID(testkit.Sentinel); got != sentinel {
			t.Errorf("%s: sentinel %d became %d", n.Name, sentinel, got)
		}
	}
	w.WaitAck()
	if inTime && !stoodStill(c.State(), epoch) {
		if got := c.GroupState(0).Epoch; got != epoch {
			t.Errorf("epoch %s became %s", epoch, got)
		}
		gap, _ := w.Gap(at)
		within(t, "the longest pause of a client", gap, time.Second+slack)
	} else {
		t.Logf("%s was away for too long on this machine: whether anybody notices is not judged", p.Name)
	}
	w.Check()
}
