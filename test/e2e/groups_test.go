package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// TestGroups has a group of two, and a worker group that joins while everything runs.
func TestGroups(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Bootstrap("a1")
	c.Join(0, "a2")
	c.WaitHealthy()
	w0 := c.Write(0)
	group0 := c.Nodes[:2]

	var b1 *testkit.Node
	c.Run("a worker group joins", func(t *testing.T) {
		b1 = c.Join(1, "b1")[0]
		c.WaitHealthy()
		if p := c.WaitPrimary(1); p != b1 {
			t.Errorf("%s is primary of group 1", p.Name)
		}
		a, b := c.GroupState(0).SystemID, c.GroupState(1).SystemID
		if a == b || b == "" {
			t.Errorf("system identifiers %q and %q: each group has a database of its own", a, b)
		}
		if r := b1.CLI("list", "--group", "1"); r.Code != 0 || !strings.Contains(r.Out, "b1") || strings.Contains(r.Out, "| a1 ") {
			t.Errorf("list --group 1: exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
	})
	w1 := c.Write(1)

	c.Run("the only standby killed", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := others(group0, p)[0]
		at := s.PowerOff()
		c.WaitState("the group is degraded, by a committed entry", func(st admin.Status) error {
			if g := st.State.Groups[0]; g.Sync.Target().K != 0 || g.Sync.Joint() {
				return errors.New("commits still wait for a standby")
			}
			return nil
		})
		w0.WaitAck()
		gap, _ := w0.Gap(at)
		within(t, "waiting for a dead standby", gap, 2*time.Second+slack)
		s.Start()
		c.WaitHealthy()
		if k := c.GroupState(0).Sync.Target().K; k != 1 {
			t.Errorf("%d standbys confirm commits after it came back", k)
		}
	})

	c.Run("the primary of two killed", func(t *testing.T) {
		p, epoch := c.WaitPrimary(0), c.GroupState(1).Epoch
		at := p.PowerOff()
		c.WaitPrimary(0, p)
		w0.WaitAck()
		gap, _ := w0.Gap(at)
		within(t, "failing over", gap, 7*time.Second+slack)
		other, _ := w1.Gap(at)
		within(t, "the longest pause of the other group", other, ttl)
		if got := c.GroupState(1).Epoch; got != epoch {
			t.Errorf("epoch %s of the other group became %s", epoch, got)
		}
		p.Start()
		c.WaitHealthy()
	})

	c.Run("a group of one killed", func(t *testing.T) {
		before := c.GroupState(1).Epoch
		b1.PowerOff()
		b1.Start()
		c.WaitState("its node is primary again, under a lease of its own", func(st admin.Status) error {
			if g := st.State.Groups[1]; !before.Less(g.Epoch) || !g.Opened() {
				return fmt.Errorf("epoch %s", g.Epoch)
			}
			return nil
		})
		w1.WaitAck()
		c.WaitHealthy()
	})

	c.Run("stopped in good order", func(t *testing.T) {
		b1.Interrupt()
		allGone(c, b1)
		if log, err := os.ReadFile(b1.Dir + "/postgresql.log"); err != nil || !strings.Contains(string(log[len(log)-200:]), "database system is shut down") {
			t.Errorf("PostgreSQL was not shut down in good order (%v)", err)
		}
		if g := c.GroupState(1); g.Held() {
			t.Error("the lease was not given back")
		}
		b1.Start()
		c.WaitHealthy()
		w1.WaitAck()
	})
	w0.Check()
	w1.Check()

	c.Run("removed", func(t *testing.T) { remove(t, c, group0, b1) })
}

func remove(t *testing.T, c *testkit.Cluster, group0 []*testkit.Node, from *testkit.Node) {
	p := c.WaitPrimary(0)
	s := others(group0, p)[0]
	for _, bad := range []struct{ node, says string }{{p.Name, "failover --group 0"}, {"nobody", "nobody"}, {"b1", "only node"}} {
		if r := from.CLI("remove", bad.node, "--yes"); r.Code != 1 || !strings.Contains(r.Err, bad.says) {
			t.Errorf("remove %s: exit %d, %q should name %q", bad.node, r.Code, r.Err, bad.says)
		}
	}
	if r := from.CLI("remove", s.Name); r.Code != 1 || !strings.Contains(r.Err, "--yes") {
		t.Errorf("remove without confirmation: exit %d %s", r.Code, r.Err)
	}
	id := s.ID()
	c.Eventually(s.Name+" is removed", func() error { // the leader may change meanwhile
		if r := from.CLI("remove", s.Name, "--yes"); r.Code != 0 && !strings.Contains(r.Err, "there is no node") {
			return fmt.Errorf("exit %d %s", r.Code, r.Err)
		}
		return nil
	})
	if code := s.WaitExit(); code != 0 {
		t.Errorf("the removed node ended with code %d, want 0", code)
	}
	if !strings.Contains(s.Log(), "removed from the cluster for good") {
		t.Error("its log does not say why it ended")
	}
	allGone(c, s)
	if _, err := os.Stat(s.DataDir() + "/PG_VERSION"); err != nil {
		t.Errorf("its data directory: %v", err)
	}
	if _, there := c.State().Nodes[id]; there {
		t.Error("it is still a member")
	}
	s.Start()
	if code := s.WaitExit(); code != 0 || s.PID(testkit.Postmaster) != 0 {
		t.Errorf("started again it ends with code %d, postmaster %d", code, s.PID(testkit.Postmaster))
	}
	allGone(c, s)
	c.WaitState("the group goes on alone", func(st admin.Status) error {
		if g := st.State.Groups[fsm.GroupID(0)]; !g.Opened() || g.Sync.Target().K != 0 {
			return errors.New("it does not")
		}
		return nil
	})
}
