package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"matriarch/internal/testkit"
)

// TestColdStart cuts the power of everything and starts the nodes in any order.
func TestColdStart(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)
	for seed := range uint64(3) {
		c.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			testkit.PowerOff(t, nodes...)
			order := rand.New(rand.NewPCG(seed, 0)).Perm(len(nodes))
			t.Logf("order %v", order)
			for i, at := range order {
				n := nodes[at]
				n.Start()
				if i == 0 || seed == 2 { // the first waits alone; of the last seed all start at once
					continue
				}
				c.Eventually(n.Name+" answers", func() error {
					if get(t, n, "/liveness") == 0 {
						return errors.New("no answer")
					}
					return nil
				})
			}
			c.WaitHealthy()
			w.WaitAck()
		})
	}

	// Two standbys of which one must have every commit are as good as the primary, which stays off.
	c.Run("without the last primary", func(t *testing.T) {
		p := c.WaitPrimary(0)
		testkit.PowerOff(t, nodes...)
		for _, n := range others(nodes, p) {
			n.Start()
		}
		c.WaitPrimary(0, p)
		w.WaitAck()
		p.Start()
		c.WaitHealthy()
	})
	w.Check()
}

// TestOneStandbyIsNotEnough: with the primary gone, one of two standbys may lack a commit that the other acknowledged.
func TestOneStandbyIsNotEnough(t *testing.T) {
	c, nodes := three(t)
	// A voter more, so that the control plane goes on without two of the group.
	c.Join(1, "b1", "b2")
	c.WaitHealthy()
	w := c.Write(0)
	p := c.WaitPrimary(0)
	standbys := others(nodes[:3], p)
	testkit.PowerOff(t, p, standbys[0])
	c.WaitState("the group waits, and says for whom", waitsForMore)
	standbys[0].Start()
	c.WaitPrimary(0, p)
	w.WaitAck()
	p.Start()
	c.WaitHealthy()
	w.Check()
}
