package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/testkit"
	"matriarch/pgmanager/pgconf"
)

// TestModes changes how groups replicate while clients write, and takes the standbys of strict groups away. Group 0 has two nodes,
// group 1 three.
func TestModes(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Bootstrap("n1")
	c.Join(0, "n2")
	c.WaitHealthy()
	workers := c.Join(1, "w1", "w2", "w3")
	c.WaitHealthy()
	pair, trio := c.Write(0), c.Write(1)

	c.Run("quorum, on, off, quorum", func(t *testing.T) {
		// A standby that stands still for a while may cost time, not an error.
		mustRun(t, c.Nodes[0], "config", "set", "--group", "1", "early_failover=false")
		began, refused := time.Now(), len(trio.Refused())
		p := c.WaitPrimary(1)
		for _, mode := range []fsm.Mode{fsm.On, fsm.Off, fsm.Quorum, fsm.On} {
			policy(t, c, 1, "mode="+string(mode))
			waitNames(t, c, p, mode)
			trio.WaitAck()
		}
		first := others(workers, p)[0]
		c.Eventually(first.Name+" alone confirms", func() error { // each walsender reads the setting by itself
			text, err := testkit.Query[string](p, "postgres", "SELECT string_agg(sync_state, ' ' ORDER BY application_name = $1 DESC) FROM pg_stat_replication", pgconf.AppName(first.ID(), c.GroupState(1).Epoch))
			if err == nil && text != "sync potential" {
				err = fmt.Errorf("the standbys are %q", text)
			}
			return err
		})
		c.Eventually("list and status say so", func() error {
			if r, s := p.CLI("list"), p.CLI("status"); strings.Contains(r.Out, "degraded") || !strings.Contains(s.Out, "the first 1 of ("+first.Name) {
				return fmt.Errorf("%s%s%s", r.Out, r.Err, s.Out)
			}
			return nil
		})
		if now := trio.Refused(); len(now) > refused {
			t.Errorf("writes had errors: %v", now[refused:])
		}
		gap, _ := trio.Gap(began)
		within(t, "the longest pause while modes change", gap, 2*time.Second+slack)
		mustRun(t, c.Nodes[0], "config", "set", "--group", "1", "early_failover=true")
	})

	c.Run("failover in mode on", func(t *testing.T) {
		old := c.WaitPrimary(1)
		old.PowerOff()
		p := c.WaitPrimary(1, old)
		trio.WaitAck()
		waitNames(t, c, p, fsm.On)
		old.Start()
		c.WaitHealthy()
	})

	c.Run("strict without standbys", func(t *testing.T) {
		policy(t, c, 1, "mode=quorum", "strict=true")
		p := c.WaitPrimary(1)
		waitNames(t, c, p, fsm.Quorum)
		trio.WaitAck()
		gone := others(workers, p)
		testkit.PowerOff(t, gone...)
		tried := trio.Tried()
		waitList(t, c, p, "group 1 is strict and waiting for a standby")
		if late := ackedBeyond(trio, tried); late > 0 {
			t.Errorf("%d writes were acknowledged by %s alone", late, p.Name)
		}
		if got := c.GroupState(1); got.Lease.Holder != p.ID() || got.Sync.Target().K != 1 {
			t.Errorf("holder %s, pair %v", got.Lease.Holder, got.Sync.Target())
		}
		gone[0].Start()
		trio.WaitAck()
		gone[1].Start()
		c.WaitHealthy()
	})

	c.Run("a strict pair fails over", func(t *testing.T) {
		policy(t, c, 0, "strict=true")
		old := c.WaitPrimary(0)
		s := old.WriteLocally()
		s.WaitWrites(1)
		old.FreezeSenders()
		s.WaitWrites(5) // what only it has
		old.PowerOff()
		next := others(c.Nodes[:2], old)[0]
		tried := pair.Tried()
		waitList(t, c, others(workers)[0], "opens once 1 have confirmed its first commit")
		if late := ackedBeyond(pair, tried); late > 0 {
			t.Errorf("%d writes were acknowledged by %s alone", late, next.Name)
		}
		if g := c.GroupState(0); g.Opened() || g.Lease.Holder != next.ID() {
			t.Errorf("holder %s, opened %t", g.Lease.Holder, g.Opened())
		}
		identity := inode(t, old.DataDir())
		old.Start()
		pair.WaitAck()
		if inode(t, old.DataDir()) != identity || len(files(t, old.Dir+"/pg/set-aside")) == 0 {
			t.Error("the old primary should have been rewound, with its log set aside, before the new one opened")
		}
		c.WaitHealthy()
	})
	pair.Check()
	trio.Check()
}

func policy(t *testing.T, c *testkit.Cluster, group int, args ...string) {
	t.Helper()
	r := c.Nodes[0].CLI(append([]string{"config", "set", "--group", fmt.Sprint(group)}, args...)...)
	if r.Code != 0 {
		t.Fatalf("%v: %s%s", args, r.Out, r.Err)
	}
}

// waitNames waits until the primary's setting is the one that the mode asks for, with all standbys in it and the change at its end.
func waitNames(t *testing.T, c *testkit.Cluster, p *testkit.Node, mode fsm.Mode) {
	t.Helper()
	c.Eventually("synchronous_standby_names is that of mode "+string(mode), func() error {
		p := c.WaitPrimary(p.Group)
		g, s := c.GroupState(p.Group), c.State()
		ids := g.Sync.Target().S
		slices.SortFunc(ids, func(a, b fsm.NodeID) int { return cmp.Compare(s.Name(a), s.Name(b)) })
		var names []string
		for _, id := range ids {
			names = append(names, pgconf.AppName(id, g.Epoch))
		}
		got, err := testkit.Query[string](p, "postgres", "SHOW synchronous_standby_names")
		slicesEqual := func(render func(int, []string) string) bool { return len(names) > 0 && got == render(1, names) }
		ok := false
		switch mode {
		case fsm.On:
			ok = slicesEqual(pgconf.FirstSyncNames)
		case fsm.Off:
			ok = g.Sync.Target().K == 0 && got == ""
		case fsm.Quorum:
			slices.Sort(ids)
			names = names[:0]
			for _, id := range ids {
				names = append(names, pgconf.AppName(id, g.Epoch))
			}
			ok = slicesEqual(pgconf.SyncNames)
		}
		if err != nil || g.Mode != mode || g.Sync.Joint() || !ok {
			return fmt.Errorf("mode %s, pairs %v: %q (%w)", g.Mode, g.Sync.Pairs, got, err)
		}
		return nil
	})
}

func waitList(t *testing.T, c *testkit.Cluster, n *testkit.Node, want string) {
	t.Helper()
	c.Eventually("list says "+want, func() error {
		if r := n.CLI("list"); !strings.Contains(r.Out, want) {
			return fmt.Errorf("%s%s", r.Out, r.Err)
		}
		return nil
	})
}

// ackedBeyond counts the acknowledged writes that began after a number was tried: what was under way then may be acknowledged yet.
func ackedBeyond(w *testkit.Writer, tried int64) (n int) {
	for _, a := range w.Acks() {
		if a.N > tried {
			n++
		}
	}
	return n
}
