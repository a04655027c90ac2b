package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"matriarch/internal/admin"
	"matriarch/internal/identity"
	"matriarch/internal/testkit"
)

// TestMajority takes the majority of the control plane away, once for a while and once for good.
func TestMajority(t *testing.T) {
	c, nodes := three(t)
	w := c.Write(0)

	c.Run("lost for a while", func(t *testing.T) {
		p := c.WaitPrimary(0)
		s := p.WriteLocally()
		testkit.PowerOff(t, others(nodes, p)...)
		at := time.Now() // from here on nobody answers
		last := s.WaitEnd()
		within(t, "the primary without a majority went on writing, which", last.Sub(at), ttl)
		c.EventuallyWithin(ttl, "the API stops calling it primary", func() error {
			if get(t, p, "/primary") == http.StatusOK {
				return errors.New("200")
			}
			return nil
		})
		for _, n := range others(nodes, p) {
			n.Start()
		}
		c.WaitHealthy()
		w.WaitAck()
	})

	c.Run("lost for good", func(t *testing.T) {
		survivor := c.WaitPrimary(0)
		lost := others(nodes, survivor)
		testkit.PowerOff(t, nodes...)

		before := snapshotOf(t, survivor.Dir)
		for _, typed := range []string{"", "yes\n", lost[0].Name + "\n"} {
			if r := survivor.Type(typed, "recover"); r.Code != 1 || !strings.Contains(r.Err, "nothing was changed") {
				t.Errorf("recover with %q typed: exit %d %s", typed, r.Code, r.Err)
			}
		}
		if r := survivor.CLI("recover", "--dry-run"); r.Code != 0 || !strings.Contains(r.Out, "incarnation 1") {
			t.Errorf("recover --dry-run: exit %d %s%s", r.Code, r.Out, r.Err)
		}
		if after := snapshotOf(t, survivor.Dir); after != before {
			t.Errorf("an unconfirmed recover changed something:\n%s\n%s", before, after)
		}

		if r := survivor.Type(survivor.Name+"\n", "recover"); r.Code != 0 {
			t.Fatalf("recover: exit %d %s%s", r.Code, r.Out, r.Err)
		}
		survivor.Start()
		lost[0].Start() // and not the other, or the two would be the majority of the past
		c.WaitState("the survivor leads a new incarnation", func(st admin.Status) error {
			if st.State.Cluster.Incarnation != 2 || st.Name != survivor.Name {
				return fmt.Errorf("incarnation %d, %s leads", st.State.Cluster.Incarnation, st.Name)
			}
			return nil
		})
		c.Eventually("the old member is told why nobody listens to it", func() error {
			if !strings.Contains(lost[0].Log(), "incarnation") {
				return errors.New("its log does not say")
			}
			return nil
		})
		c.WaitState("nobody is elected on half of the truth", func(st admin.Status) error {
			if plan := st.Plans[0]; st.State.Groups[0].Held() || plan.Rule != "C310" {
				return fmt.Errorf("held %v, rule %s: %s", st.State.Groups[0].Held(), plan.Rule, plan.Reason)
			}
			return nil
		})
		lost[0].Stop()
		joinTogether(t, survivor, lost)
		c.WaitHealthy()
		w.WaitAck()
		st := c.State()
		if e := st.Groups[0].Epoch; e.Inc != 2 || st.Cluster.Incarnation != 2 || len(st.Nodes) != len(nodes) {
			t.Errorf("epoch %s, incarnation %d, %d nodes: not what was recovered", e, st.Cluster.Incarnation, len(st.Nodes))
		}
	})

	c.Run("as good as before", func(t *testing.T) {
		old := c.WaitPrimary(0)
		old.PowerOff()
		c.WaitPrimary(0, old)
		w.WaitAck()
		old.Start()
		c.WaitHealthy()
	})
	w.Check()
	timelinesAgree(t, c)
}

// enoughToElect is several times the longest election timeout.
const enoughToElect = 4 * time.Second

// joinTogether has nodes of the past join and start at one moment, while the survivor does not answer: with their old logs, which
// name them as voters, they would be the majority of then and elect one of themselves.
func joinTogether(t *testing.T, survivor *testkit.Node, lost []*testkit.Node) {
	t.Helper()
	token := survivor.NewToken("--uses", strconv.Itoa(len(lost)))
	results := make([]testkit.Result, len(lost))
	var wg sync.WaitGroup
	for i, n := range lost {
		wg.Go(func() { results[i] = n.JoinOnly(token, survivor.Peer()) })
	}
	wg.Wait()
	for i, n := range lost {
		if r := results[i]; r.Code != 0 {
			t.Fatalf("%s joins again: exit %d %s", n.Name, r.Code, r.Err)
		}
		if id, err := identity.Dir(n.Dir).Load(); err != nil || id.Incarnation != 2 {
			t.Errorf("%s: incarnation %d (%v)", n.Name, id.Incarnation, err)
		}
		if aside, err := filepath.Glob(filepath.Join(n.Dir, "raft.incarnation-1-*")); err != nil || len(aside) != 1 {
			t.Errorf("%s: the old log is not set aside: %v (%v)", n.Name, aside, err)
		}
	}
	survivor.Freeze(testkit.Agent)
	for _, n := range lost {
		n.Start()
	}
	<-time.After(enoughToElect)
	survivor.Thaw(testkit.Agent)
}

// snapshotOf lists a node's own files with sizes and times, PostgreSQL's aside.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, path := range files(t, dir) {
		if strings.HasPrefix(path, filepath.Join(dir, "pgdata")+"/") || strings.HasSuffix(path, ".lock") {
			continue
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %d %s\n", path, st.Size(), st.ModTime().Format(time.RFC3339Nano))
	}
	return b.String()
}
