package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// TestFailover kills a group's primary in every way that a process or a host can die, while a client writes.
func TestFailover(t *testing.T) {
	c, nodes := three(t)

	c.Run("set up", func(t *testing.T) {
		p := c.WaitPrimary(0)
		if p != nodes[0] {
			t.Errorf("the first node should be primary, not %s", p.Name)
		}
		names, err := testkit.Query[string](p, "postgres", "SHOW synchronous_standby_names")
		if err != nil || !strings.HasPrefix(names, "ANY 1 (") || strings.Count(names, ",") != 1 {
			t.Errorf("synchronous_standby_names is %q (%v), want ANY 1 of two", names, err)
		}
		for _, n := range nodes {
			want := http.StatusServiceUnavailable
			if n == p {
				want = http.StatusOK
			}
			c.Eventually("all know of the primary on "+n.Name, func() error {
				if got := get(t, n, "/primary"); got != want {
					return fmt.Errorf("GET /primary: %d, want %d", got, want)
				}
				if r := n.CLI("list"); r.Code != 0 || strings.Count(r.Out, "Quorum Standby") != 2 {
					return fmt.Errorf("list: exit %d\n%s%s", r.Code, r.Out, r.Err)
				}
				return nil
			})
		}
	})

	w := c.Write(0)
	var term uint64
	var changed time.Time

	c.Run("postmaster killed", func(t *testing.T) {
		old := c.WaitPrimary(0)
		sentinel, identity := old.PID(testkit.Sentinel), inode(t, old.DataDir())
		term = c.Status().Raft.Term
		p, at := losesPostmaster(c, old)
		changed = at
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, fmt.Sprintf("handing over from %s to %s", old.Name, p.Name), gap, 1500*time.Millisecond+slack)
		c.WaitHealthy()
		if got := old.PID(testkit.Sentinel); got != sentinel {
			t.Errorf("the sentinel was %d and is %d now: it should have stayed", sentinel, got)
		}
		if inode(t, old.DataDir()) != identity {
			t.Error("the old primary was cloned: following or rewinding would have done")
		}
		c.Eventually("the API says who is primary and who standby", func() error {
			if a, b := get(t, p, "/primary"), get(t, old, "/replica"); a != http.StatusOK || b != http.StatusOK {
				return fmt.Errorf("%d and %d", a, b)
			}
			return nil
		})
	})

	c.Run("postmaster killed again at once", func(t *testing.T) {
		old, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		old.Kill9(testkit.Postmaster)
		p := waitNext(c, epoch)
		w.WaitAck()
		// A new leader of Raft does not know when the group changed.
		if p != old && c.Status().Raft.Term == term && time.Since(changed) < decide.ChangeBudget {
			t.Errorf("%s took over: a group whose holder lives changes once in %s", p.Name, decide.ChangeBudget)
		}
		c.WaitHealthy()
	})

	c.Run("node killed", func(t *testing.T) {
		old := c.WaitPrimary(0)
		at := old.PowerOff()
		p := c.WaitPrimary(0, old)
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, fmt.Sprintf("failing over from %s to %s", old.Name, p.Name), gap, 7*time.Second+slack)
		old.Start()
		c.WaitHealthy()
	})

	c.Run("sentinel killed", func(t *testing.T) {
		old, epoch := c.WaitPrimary(0), c.GroupState(0).Epoch
		at := old.Kill9(testkit.Sentinel)
		c.Eventually("PostgreSQL has died with its parent", func() error {
			if pid := old.PID(testkit.Postmaster); pid != 0 && old.PID(testkit.Sentinel) == 0 {
				return fmt.Errorf("postmaster %d lives", pid)
			}
			return nil
		})
		p := waitNext(c, epoch) // which node it is depends on how long ago the group has changed
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, fmt.Sprintf("failing over from %s to %s", old.Name, p.Name), gap, ttl+2*time.Second+slack)
		c.WaitHealthy()
		if old.PID(testkit.Sentinel) == 0 {
			t.Error("no new sentinel")
		}
	})

	c.Run("by hand", func(t *testing.T) {
		var at time.Time
		c.Eventually("the candidate takes over", func() error { // one that lacks what the other has is refused
			rest := others(nodes, c.WaitPrimary(0))
			at = time.Now()
			if r := rest[0].CLI("failover", "--group", "0", "--candidate", rest[1].Name, "--yes"); r.Code != 0 {
				return fmt.Errorf("exit %d: %s%s", r.Code, r.Out, r.Err)
			}
			if p := c.WaitPrimary(0); p != rest[1] {
				return fmt.Errorf("the primary is %s, not %s", p.Name, rest[1].Name)
			}
			return nil
		})
		w.WaitAck()
		gap, _ := w.Gap(at)
		within(t, "failing over by hand", gap, ttl+slack)
		c.WaitHealthy()
	})

	w.Check()
	timelinesAgree(t, c)
}

// waitNext waits for the open primary of group 0 under a later epoch.
func waitNext(c *testkit.Cluster, after fsm.Epoch) *testkit.Node {
	c.T.Helper()
	c.WaitState("a primary under a later epoch", func(st admin.Status) error {
		if g := st.State.Groups[0]; !after.Less(g.Epoch) || !g.Opened() {
			return fmt.Errorf("epoch %s, opened %t", g.Epoch, g.Opened())
		}
		return nil
	})
	return c.WaitPrimary(0)
}

// timelinesAgree: nobody is left on a history of its own.
func timelinesAgree(t *testing.T, c *testkit.Cluster) {
	t.Helper()
	c.WaitState("all are on one timeline", func(st admin.Status) error {
		seen := map[string]bool{}
		for _, n := range st.State.Nodes {
			seen[fmt.Sprintf("group %d timeline %d", n.Group, n.Report.Timeline)] = true
		}
		if len(seen) != len(st.State.Groups) {
			return fmt.Errorf("timelines differ: %v", seen)
		}
		return nil
	})
}
