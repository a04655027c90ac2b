package e2e

import (
	"testing"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// exclusive: the old primary took its last write before the new one took its first, and no later than its lease allowed.
func exclusive(t *testing.T, w *testkit.Writer, s *testkit.Stubborn, next *testkit.Node, at time.Time) {
	t.Helper()
	last := s.WaitEnd()
	within(t, "the old primary went on writing, which", last.Sub(at), ttl)
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
	w := c.Write(0)

	c.Run("killed and back within the lease", func(t *testing.T) {
		p := c.WaitPrimary(0)
		postmaster, epoch := p.PID(testkit.Postmaster), c.GroupState(0).Epoch
		at := p.Kill9(testkit.Agent)
		p.Start()
		c.WaitState("the agent reports again", func(st admin.Status) error { return heard(st, p) })
		c.WaitHealthy()
		w.WaitAck()
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
		exclusive(t, w, s, next, at)
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
		exclusive(t, w, s, next, at)
		if left := p.PostgresProcesses(); left != 0 {
			t.Errorf("%d processes of PostgreSQL are left on %s", left, p.Name)
		}
		if st, err := p.SentinelStatus(); err != nil || st.LastExit == nil || !st.LastExit.Fenced {
			t.Errorf("the sentinel says %+v (%v), not that it fenced", st.LastExit, err)
		}
		p.Start()
		c.WaitHealthy()
	})

	c.Run("frozen", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := p.WriteLocally()
		at := p.Freeze(testkit.Agent)
		next := c.WaitPrimary(0, p)
		exclusive(t, w, s, next, at)
		if left := p.PostgresProcesses(); left != 0 {
			t.Errorf("%d processes of PostgreSQL are left on %s", left, p.Name)
		}
		p.Thaw(testkit.Agent)
		c.WaitHealthy()
		if got := c.WaitPrimary(0); got != next {
			t.Errorf("the primary moved on to %s", got.Name)
		}
	})

	w.Check()
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
	at := time.Now()
	for _, n := range append(others(nodes, p), p) {
		postmaster, sentinel := n.PID(testkit.Postmaster), n.PID(testkit.Sentinel)
		n.Stop()
		n.Use(bin)
		if n == p {
			time.Sleep(absence)
		}
		n.Start()
		c.WaitState(n.Name+" is known with its new version", func(st admin.Status) error {
			if have := st.State.Nodes[n.ID()].Version; have != version {
				return errVersion(have)
			}
			return heard(st, n)
		})
		c.WaitHealthy()
		if got := n.PID(testkit.Postmaster); got != postmaster {
			t.Errorf("%s: postmaster %d became %d", n.Name, postmaster, got)
		}
		if got := n.PID(testkit.Sentinel); got != sentinel {
			t.Errorf("%s: sentinel %d became %d", n.Name, sentinel, got)
		}
	}
	w.WaitAck()
	if got := c.GroupState(0).Epoch; got != epoch {
		t.Errorf("epoch %s became %s", epoch, got)
	}
	gap, _ := w.Gap(at)
	within(t, "the longest pause of a client", gap, time.Second+slack)
	w.Check()
}
