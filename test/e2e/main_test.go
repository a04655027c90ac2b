package e2e

import (
	"fmt"
	"os"
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

// within fails when something took too long.
func within(t *testing.T, what string, took, limit time.Duration) {
	t.Helper()
	if took > limit {
		t.Errorf("%s took %s, at most %s is allowed", what, took.Round(time.Millisecond), limit)
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
