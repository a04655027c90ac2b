package consensus

import (
	"os"
	"syscall"
	"testing"
	"time"

	"matriarch/fsm"
)

// The real network, mutual TLS and files: three nodes elect, commit, lose their leader and go on.
func TestRealNetwork(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	all := h.cluster(0, 1, 2)
	holder := all[1]
	e := h.grant(holder, 1, "i")
	h.eventually(10*time.Second, "a keepalive is answered", func() bool { a, err := holder.beat(1, "i", e); return err == nil && a.Held })
	old := h.leader()
	h.stop(old)
	rest := others(all, old)
	h.submit(rest[0], fsm.TokenPut{Token: fsm.Token{ID: "after", Uses: 1}})
	h.restart(old)
	h.eventually(10*time.Second, "it follows again", func() bool { _, ok := old.State().Tokens["after"]; return ok })
}

// With CONSENSUS_IDLE=1: what seven idle nodes cost, in percent of a core.
func TestIdleCost(t *testing.T) {
	if os.Getenv("CONSENSUS_IDLE") == "" {
		t.Skip("a measurement: set CONSENSUS_IDLE=1")
	}
	h := newHarness(t)
	defer h.close()
	all := h.cluster(0, 0, 0, 1, 1, 2, 2)
	for g, p := range map[fsm.GroupID]*peer{0: all[0], 1: all[3], 2: all[5]} {
		e := h.grant(p, g, "i")
		defer p.beats(g, "i", e)()
	}
	for _, p := range []*peer{all[1], all[2], all[4], all[6]} {
		defer p.beats(p.State().Nodes[p.id].Group, "i", fsm.Epoch{})()
	}
	time.Sleep(3 * time.Second)
	before, index, began := cpu(t), all[0].State().Index, time.Now()
	time.Sleep(20 * time.Second)
	took := time.Since(began)
	t.Logf("%.1f %% of a core for all seven, %.1f entries a second, slowest tick %s",
		100*float64(cpu(t)-before)/float64(took), float64(all[0].State().Index-index)/took.Seconds(), h.leader().Status().SlowestTick)
}

func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
