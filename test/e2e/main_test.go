package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// Limits. The aims of the product are for an idle machine; tests share two cores.
const (
	ttl   = 5 * time.Second
	slack = 4 * time.Second
)

// three makes a group of three nodes that is healthy.
func three(t *testing.T) (c *testkit.Cluster, nodes []*testkit.Node) {
	t.Helper()
	t.Parallel()
	c = testkit.New(t)
	c.Bootstrap("n1")
	c.Join(0, "n2", "n3")
	c.WaitHealthy()
	return c, c.Nodes
}

// others are all nodes but some.
func others(all []*testkit.Node, but ...*testkit.Node) (out []*testkit.Node) {
	for _, n := range all {
		keep := true
		for _, b := range but {
			keep = keep && n != b
		}
		if keep {
			out = append(out, n)
		}
	}
	return out
}

// within fails when something that is just over took too long, for a machine that is slowed down like this one was meanwhile.
func within(t *testing.T, what string, took, limit time.Duration) {
	t.Helper()
	if slowed := testkit.Slowed(time.Now().Add(-took - 10*time.Second)); slowed > 1.2 {
		t.Logf("this machine was slowed down %.1f times", slowed)
		limit = time.Duration(float64(limit) * 2 * slowed) // twice: what is slowed down waits for others that are
	}
	if took > limit {
		t.Errorf("%s took %s, at most %s is allowed", what, took.Round(time.Millisecond), limit.Round(time.Millisecond))
		return
	}
	t.Logf("%s took %s", what, took.Round(time.Millisecond))
}

// allGone waits until no process of a node is left: its sentinel answers its agent before it ends.
func allGone(c *testkit.Cluster, n *testkit.Node) {
	c.T.Helper()
	c.Eventually("nothing of "+n.Name+" runs", func() error {
		if left := n.Processes(); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

// renewed waits until an agent has renewed its lease: one that has just started may not have.
func renewed(c *testkit.Cluster, p *testkit.Node) {
	c.T.Helper()
	c.Eventually("the lease of "+p.Name+" is renewed", func() error {
		st, err := p.Status()
		if err == nil && (st.Self == nil || st.Self.LeaseLeft <= ttl-time.Second) {
			err = fmt.Errorf("it says of itself: %+v", st.Self)
		}
		return err
	})
}

// returned waits until an agent that went away has renewed its lease itself, or the epoch is over. It reports whether that was in
// time: 3.5 s after the last keepalive, which may have been half a second earlier, the sentinel stops PostgreSQL, and rightly.
func returned(c *testkit.Cluster, p *testkit.Node, epoch fsm.Epoch, away time.Time) (inTime bool) {
	c.T.Helper()
	c.Eventually(p.Name+" renews its lease again", func() error {
		former := max(ttl-500*time.Millisecond-time.Since(away), 0) // what is left at most of the lease as it was
		st, err := p.Status()
		if err == nil && !epoch.Less(st.State.Groups[0].Epoch) && (st.Self == nil || st.Self.LeaseLeft <= former) {
			err = fmt.Errorf("it says of itself: %+v", st.Self)
		}
		return err
	})
	return time.Since(away) < 2500*time.Millisecond
}

// stoodStill: an epoch was revoked because a port gave no answer in half a second, which is right when the machine stood still.
func stoodStill(s *fsm.State, e fsm.Epoch) bool {
	return slices.ContainsFunc(s.History[0], func(h fsm.History) bool {
		return h.Kind == "revoked" && h.Epoch == e && strings.Contains(h.Text, "no answer within")
	})
}

// losesPostmaster kills a primary's PostgreSQL until another member takes over: its agent lives, so it is elected again if it is
// back first.
func losesPostmaster(c *testkit.Cluster, old *testkit.Node) (p *testkit.Node, at time.Time) {
	c.T.Helper()
	for range 3 {
		epoch := c.GroupState(0).Epoch
		at = old.Kill9(testkit.Postmaster)
		if p = waitNext(c, epoch); p != old {
			return p, at
		}
		c.WaitHealthy()
	}
	c.T.Fatalf("%s was elected again three times", old.Name)
	return nil, at
}

// switchOver has group 0 handed over; on a busy machine that can be refused. It returns when the last try began.
func switchOver(c *testkit.Cluster, via *testkit.Node, args ...string) (r testkit.Result, at time.Time) {
	c.T.Helper()
	c.Eventually("a switchover is carried out", func() error {
		at = time.Now()
		r = via.CLI(append([]string{"switchover", "--group", "0"}, args...)...)
		if r.Code != 0 && !strings.Contains(r.Err, "is the primary of group 0 already") { // as an earlier try made it
			return fmt.Errorf("exit %d\n%s%s", r.Code, r.Out, r.Err)
		}
		return nil
	})
	return r, at
}

// noneLeftOver waits until nothing is under way or planned in a group.
func noneLeftOver(c *testkit.Cluster, g fsm.GroupID) {
	c.T.Helper()
	c.WaitState("no operation is left over", func(st admin.Status) error {
		if g := st.State.Groups[g]; g.Op != nil || g.Planned != nil {
			return fmt.Errorf("left over: %+v, planned %+v", g.Op, g.Planned)
		}
		return nil
	})
}
