package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

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
	epoch := c.GroupState(0).Epoch

	at := time.Now()
	testkit.PowerOff(t, far...)
	c.Run("whole", func(t *testing.T) {
		<-time.After(3 * ttl)
		w.WaitAck()
		if gap, _ := w.Gap(at); gap > ttl/2 {
			t.Errorf("without a majority writes stood still for %s", gap)
		}
		if err := w.LastError(); err != nil {
			t.Errorf("without a majority a write failed: %v", err)
		}
		st, err := p.Status()
		if err != nil || st.Self == nil || st.Self.Failsafe == nil || !st.Self.Failsafe.Active || st.Self.Epoch != epoch {
			t.Fatalf("its own status does not say so: %v %+v", err, st.Self)
		}
		if r := p.CLI("status", p.Name); !strings.Contains(r.Out, "active since") {
			t.Errorf("status does not say so:\n%s%s", r.Out, r.Err)
		}
		if r := p.CLI("status"); !strings.Contains(r.Out, "by failsafe the primary here, "+p.Name) {
			t.Errorf("status of the formation does not say so:\n%s%s", r.Out, r.Err)
		}
		for path, want := range map[string]string{"/failsafe": `"failsafe_active":true`, "/metrics": "matriarch_failsafe_active{", "/primary": `"failsafe_mode_is_active":true`} {
			if body := readAPI(t, p, path); !strings.Contains(body, want) {
				t.Errorf("%s does not say %q:\n%s", path, want, body)
			}
		}
		if body := readAPI(t, standby, "/failsafe"); !strings.Contains(body, "word_remaining_ms") {
			t.Errorf("the standby does not tell of its word: %s", body)
		}
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
		c.EventuallyWithin(time.Second, "the API stops calling it primary", func() error {
			if get(t, p, "/primary") == http.StatusOK {
				return errors.New("200")
			}
			return nil
		})
		c.EventuallyWithin(ttl, "the log tells", func() error {
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

// read is the body of an answer of the HTTP API.
func readAPI(t *testing.T, n *testkit.Node, path string) string {
	t.Helper()
	cl := http.Client{Timeout: 2 * time.Second}
	r, err := cl.Get("http://" + n.API() + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
