package e2e

import (
	"os"
	"testing"
	"time"

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
