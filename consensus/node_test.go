package consensus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

func TestElectProposeForward(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0, 0, 1)
		for _, p := range all {
			h.submit(p, fsm.TokenPut{Token: fsm.Token{ID: "by-" + string(p.id), Uses: 1}})
		}
		for _, p := range all {
			s, err := p.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Tokens) != 5 {
				t.Errorf("%s knows tokens %v", p.id, s.Tokens)
			}
		}
	})
}

// A refusal of the state is a result, not an error, and reserved commands are nobody's to propose.
func TestSubmitRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0)
		for _, p := range all {
			r, err := p.Submit(t.Context(), fsm.TokenDrop{ID: "nobody knows"})
			if err != nil || r.OK || r.Reason == "" {
				t.Errorf("%s: %+v, %v", p.id, r, err)
			}
			for _, c := range []fsm.Command{fsm.Expire{}, fsm.Tick{}, fsm.Recovered{Incarnation: 9}, fsm.Bootstrap{}} {
				if r, err := p.Submit(t.Context(), c); err == nil {
					t.Errorf("%s: %s was accepted: %+v", p.id, c.Kind(), r)
				}
			}
		}
		var e *transport.Error
		err := all[1].book.call(t.Context(), "a", "propose", proposeRequest{encode(fsm.Expire{})}, nil)
		if !errors.As(err, &e) || e.Code != transport.CodeRefused {
			t.Errorf("an Expire from another node: %v", err)
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		old := h.leader()
		h.fake.Isolate(old.addr)
		rest := others(all, old)
		h.eventually(5*time.Second, "another leader", func() bool { return slices.ContainsFunc(rest, func(p *peer) bool { return p.term.Load() != nil }) })
		h.submit(rest[0], fsm.TokenPut{Token: fsm.Token{ID: "new", Uses: 1}})

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if r, err := old.Submit(ctx, fsm.TokenPut{Token: fsm.Token{ID: "lost", Uses: 1}}); err == nil {
			t.Errorf("a cut-off leader answered %+v", r)
		}
		h.fake.Rejoin(old.addr)
		h.eventually(10*time.Second, "the old leader follows", func() bool { _, ok := old.State().Tokens["new"]; return ok })
	})
}

func TestNoLeaderIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		h.kill(all[1])
		h.kill(all[2])
		time.Sleep(3 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if _, err := all[0].Submit(ctx, fsm.TokenPut{Token: fsm.Token{ID: "x"}}); !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("without a majority: %v", err)
		}
		if _, err := all[0].Read(ctx); err == nil {
			t.Error("a linearizable read succeeded without a majority")
		}
	})
}

// The same request id is carried out once, though the leader that took it dies before its answer arrives.
func TestRequestOnceAcrossLeaders(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		old := h.leader()
		follower := others(all, old)[0]
		h.submit(follower, fsm.TokenPut{Token: fsm.Token{ID: "warm", Uses: 1}}) // the connection stands
		before := old.State().Tokens["tok"].Uses
		h.fake.Cut(old.addr, follower.addr) // the request arrives and is committed with the third node's help, the answer is lost
		got := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			r, err := follower.Submit(ctx, fsm.Join{Node: node("z", "host-z:7400", 0), Token: "tok"})
			if err == nil && !r.OK {
				err = errors.New(r.Reason)
			}
			got <- err
		}()
		h.eventually(5*time.Second, "the request is committed", func() bool { _, ok := old.State().Nodes["z"]; return ok })
		h.kill(old)
		h.fake.HealAll()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		s, err := follower.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if used := before - s.Tokens["tok"].Uses; used != 1 {
			t.Errorf("the token was used %d times", used)
		}
	})
}

func TestColdStartAnyOrder(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		h.timing.SnapshotThreshold, h.timing.TrailingLogs = 20, 10
		all := h.cluster(0, 0, 0, 1, 1, 2, 2)
		for i := range 30 {
			h.submit(all[i%7], fsm.TokenPut{Token: fsm.Token{ID: "last", Uses: i + 1}})
		}
		for _, p := range all {
			h.kill(p)
		}
		for _, i := range []int{6, 4, 5, 2, 0, 3, 1} {
			h.restart(all[i])
			time.Sleep(200 * time.Millisecond)
		}
		h.leader()
		for _, p := range all {
			s, err := p.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Tokens["last"].Uses != 30 || len(s.Nodes) != 7 {
				t.Errorf("%s came back with %d nodes and token %+v", p.id, len(s.Nodes), s.Tokens["last"])
			}
		}
	})
}

func TestUnknownCommandStopsNode(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		h.cluster(0, 1, 2)
		l := h.leader()
		_, err := l.term.Load().propose(t.Context(), []byte(`{"v":9,"type":"from the future","body":{}}`))
		if err == nil {
			t.Error("the entry has an answer")
		}
		err = <-l.done // the others may never learn that it is committed
		l.cancel = nil
		if err == nil || !strings.Contains(err.Error(), "install a newer one") || l.fatal == nil {
			t.Errorf("%s ended with %v, was told %v", l.id, err, l.fatal)
		}
	})
}

// Lead runs on one node at a time as far as that node knows, begins after the Barrier, and has returned before it runs again.
func TestLeadBeginsAndEnds(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		var runs, ended atomic.Int32
		running := map[*Node]*atomic.Bool{}
		h.lead = func(ctx context.Context, l Leadership) {
			b := running[l.t.n]
			if b != nil && !b.CompareAndSwap(false, true) {
				t.Error("two leaderships of one node at once")
			}
			runs.Add(1)
			if _, err := l.Read(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("read in term %d: %v", l.Term, err)
			}
			<-ctx.Done()
			time.Sleep(500 * time.Millisecond) // slow to end
			if b != nil {
				b.Store(false)
			}
			ended.Add(1)
		}
		all := h.cluster(0, 1, 2)
		for _, p := range all {
			running[p.Node] = &atomic.Bool{}
		}
		for range 3 {
			l := h.leader()
			h.fake.Isolate(l.addr)
			time.Sleep(3 * time.Second)
			h.fake.HealAll()
			h.leader()
		}
		for _, p := range all {
			h.stop(p)
		}
		if runs.Load() < 4 || runs.Load() != ended.Load() {
			t.Errorf("Lead began %d times and ended %d times", runs.Load(), ended.Load())
		}
	})
}

// A clean stop hands leadership over: nobody has to wait for an election timeout.
func TestCleanStopHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		l := h.leader()
		rest := others(all, l)
		began := time.Now()
		l.cancel()
		h.eventually(time.Second, "a new leader", func() bool { return slices.ContainsFunc(rest, func(p *peer) bool { return p.term.Load() != nil }) })
		if took := time.Since(began); took > 400*time.Millisecond {
			t.Errorf("the next leader came after %s, as if the last had died", took)
		}
	})
}

func TestStatusAndView(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2, 2)
		l := h.leader()
		for _, p := range all {
			st := p.Status()
			if st.Leader != l.id || st.LeaderAddr != l.addr || st.Leading != (p == l) || len(st.Suffrage) != 4 || st.LastContact > time.Second || st.LastContact < 0 {
				t.Errorf("%s: %+v", p.id, st)
			}
		}
		v, err := others(all, l)[0].ViewOf(t.Context(), l.id)
		if err != nil || !v.Status.Leading || v.Age != 0 || len(v.State.Nodes) != 4 {
			t.Errorf("view of the leader: %+v, %v", v.Status, err)
		}
	})
}
