package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/internal/admin"
	"matriarch/internal/testkit"
)

// TestFailsafe: without a majority the primary of a group that is whole stays up; once a member is gone it stops in time.
func TestFailsafe(t *testing.T) {
	t.Parallel()
	c := testkit.New(t)
	c.Bootstrap("n1")
	c.Join(0, "n2")
	far := c.Join(1, "w1", "w2", "w3")
	c.WaitHealthy()
	c.WaitState("all five vote", func(st admin.Status) error {
		voters := 0
		for _, s := range st.Raft.Suffrage {
			if s == "voter" {
				voters++
			}
		}
		if voters != 5 {
			return fmt.Errorf("%d voters", voters)
		}
		return nil
	})
	p := c.WaitPrimary(0)
	standby := others(c.Nodes, append(far, p)...)[0]
	if r := p.CLI("config", "set", "--group", "0", "failsafe=true"); r.Code != 0 {
		t.Fatalf("%s%s", r.Out, r.Err)
	}
	c.WaitState("failsafe is in force", func(st admin.Status) error {
		if n := len(st.State.Groups[0].Eligible); n != 2 {
			return fmt.Errorf("%d of 2 members are listed", n)
		}
		return nil
	})
	w := c.Write(0)
	before, epoch := w.LastError(), c.GroupState(0).Epoch

	at := time.Now()
	testkit.PowerOff(t, far...)
	c.Run("whole", func(t *testing.T) {
		<-time.After(3 * ttl)
		w.WaitAck()
		// A server that stopped would not come back without a majority.
		if gap, _ := w.Gap(at); gap > ttl {
			t.Errorf("without a majority writes stood still for %s", gap)
		}
		if err := w.LastError(); err != before && !pgconn.Timeout(err) { //nolint:errorlint // the same one, or none
			t.Errorf("without a majority a write failed: %v", err)
		}
		c.Eventually("its own status says so", func() error {
			st, err := p.Status()
			if err == nil && (st.Self == nil || st.Self.Failsafe == nil || !st.Self.Failsafe.Active || st.Self.Epoch != epoch) {
				err = fmt.Errorf("it says %+v", st.Self)
			}
			return err
		})
		for _, says := range []struct {
			args []string
			text string
		}{{[]string{"status", p.Name}, "active since"}, {[]string{"status"}, "by failsafe the primary here, " + p.Name}} {
			c.Eventually(fmt.Sprint(says.args, " says so"), func() error { // a standby may answer first
				if r := p.CLI(says.args...); !strings.Contains(r.Out, says.text) {
					return fmt.Errorf("no %q in:\n%s%s", says.text, r.Out, r.Err)
				}
				return nil
			})
		}
		for path, want := range map[string]string{"/failsafe": `"failsafe_active":true`, "/metrics": "matriarch_failsafe_active{", "/primary": `"failsafe_mode_is_active":true`} {
			apiSays(c, p, path, want)
		}
		apiSays(c, standby, "/failsafe", "word_remaining_ms")
		if !strings.Contains(p.Log(), "failsafe begins") {
			t.Error("the log does not tell")
		}
	})

	c.Run("one gone", func(t *testing.T) {
		s := p.WriteLocally()
		s.WaitWrites(5)
		gone := standby.PowerOff()
		last := s.WaitEnd()
		within(t, "the primary that lost a member went on writing, which", last.Sub(gone), ttl)
		c.EventuallyWithin(ttl, "the API stops calling it primary", func() error {
			if get(t, p, "/primary") == http.StatusOK {
				return errors.New("200")
			}
			return nil
		})
		c.Eventually("the log tells", func() error {
			if !strings.Contains(p.Log(), "failsafe ends") {
				return errors.New("it does not")
			}
			return nil
		})
	})

	c.Run("majority back", func(t *testing.T) {
		for _, n := range append(far, standby) {
			n.Start()
		}
		c.WaitHealthy()
		w.WaitAck()
		if e := c.GroupState(0).Epoch; !epoch.Less(e) {
			t.Errorf("epoch %s: PostgreSQL had stopped under %s", e, epoch)
		}
	})
	w.Check()
	timelinesAgree(t, c)
}

// apiSays waits until an answer of the HTTP API has these words.
func apiSays(c *testkit.Cluster, n *testkit.Node, path, words string) {
	c.T.Helper()
	cl := http.Client{Timeout: 2 * time.Second}
	c.Eventually(fmt.Sprintf("%s on %s says %q", path, n.Name, words), func() error {
		r, err := cl.Get("http://" + n.API() + path)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err == nil && !strings.Contains(string(b), words) {
			err = fmt.Errorf("it says:\n%s", b)
		}
		return err
	})
}
