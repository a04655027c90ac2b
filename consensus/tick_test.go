package consensus

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"matriarch/fsm"
)

// grant makes the node's group ready and gives it the lease.
func (h *harness) grant(p *peer, g fsm.GroupID, instance string) fsm.Epoch {
	h.t.Helper()
	l := h.leader()
	if l.State().Groups[g].SystemID == "" {
		h.submit(l, fsm.Claim{Group: g, Node: p.id})
		h.submit(l, fsm.Initialised{Group: g, Node: p.id, SystemID: "sys", Timeline: 1})
	}
	s := l.State()
	return h.submit(l, fsm.GrantCmd{
		Group: g, Prev: s.Groups[g].Epoch, Holder: p.id, Instance: instance, TTL: s.Cluster.Settings.TTL, Reason: "test",
	}).Epoch
}

// beat sends one keepalive, with a short patience.
func (p *peer) beat(g fsm.GroupID, instance string, e fsm.Epoch) (KeepaliveAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 900*time.Millisecond)
	defer cancel()
	return p.Keepalive(ctx, Keepalive{Node: p.id, Instance: instance, Group: g, Epoch: e, Report: fsm.Report{State: "running"}})
}

// beats sends keepalives like an agent, until stop.
func (p *peer) beats(g fsm.GroupID, instance string, e fsm.Epoch) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for wait := time.Duration(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = 100 * time.Millisecond
			if a, err := p.beat(g, instance, e); err == nil {
				wait = a.NextIn
			}
		}
	}()
	return func() { cancel(); <-done }
}

func TestKeepaliveAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		holder := all[1]
		e := h.grant(holder, 1, "i1")
		tests := []struct {
			name     string
			instance string
			epoch    fsm.Epoch
			held     bool
		}{
			{"the holder", "i1", e, true},
			{"another instance", "i2", e, false},
			{"an older epoch", "i1", fsm.Epoch{Inc: e.Inc, N: e.N - 1}, false},
			{"a later epoch", "i1", fsm.Epoch{Inc: e.Inc, N: e.N + 1}, false},
			{"no lease asked for", "i1", fsm.Epoch{}, false},
		}
		for _, tt := range tests {
			a, err := holder.beat(1, tt.instance, tt.epoch)
			if err != nil || a.Held != tt.held || a.Lease.Epoch != e || a.Removed || a.Unknown {
				t.Errorf("%s: %+v, %v", tt.name, a, err)
			}
			if a.NextIn <= 0 || a.NextIn > 750*time.Millisecond {
				t.Errorf("%s: next in %s", tt.name, a.NextIn)
			}
		}
		if a, err := all[2].beat(1, "i1", e); err != nil || a.Held {
			t.Errorf("another node with the holder's instance: %+v, %v", a, err)
		}
		h.submit(all[0], fsm.Revoke{Group: 1, Epoch: e, Reason: "test"})
		if a, err := holder.beat(1, "i1", e); err != nil || a.Held || !a.Lease.Revoked {
			t.Errorf("revoked: %+v, %v", a, err)
		}
	})
}

// A node cannot speak for another.
func TestKeepaliveOfAnotherNode(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1)
		_, err := all[1].Keepalive(t.Context(), Keepalive{Node: all[0].id})
		if err == nil {
			t.Error("b spoke for a")
		}
	})
}

func TestKeepaliveRemovedAndUnknown(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		stranger := h.open("s", "host-s:7400") // has a certificate, but never joined
		stranger.run()
		if a, err := stranger.beat(0, "i", fsm.Epoch{}); err != nil || !a.Unknown || a.Removed {
			t.Errorf("stranger: %+v, %v", a, err)
		}
		gone := all[2]
		h.kill(gone) // it does not see its own removal
		h.submit(all[0], fsm.NodeRemove{Node: gone.id})
		h.eventually(10*time.Second, "the server is gone", func() bool { _, ok := h.leader().Status().Suffrage[gone.id]; return !ok })
		h.restart(gone)
		h.eventually(10*time.Second, "a removed node hears it", func() bool {
			a, err := gone.beat(2, "i", fsm.Epoch{})
			return err == nil && a.Removed && !a.Unknown
		})
	})
}

// V1, V2: a leader that reaches every non-voter but no other voter confirms nothing. VerifyLeader would.
func TestNonVotersProveNothing(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0, 0, 1, 1, 1, 2, 2, 2)
		l := h.leader()
		holder := l
		for _, p := range all {
			if l.Status().Suffrage[p.id] == "nonvoter" {
				holder = p
			}
		}
		g := l.State().Nodes[holder.id].Group
		e := h.grant(holder, g, "i")
		if a, err := holder.beat(g, "i", e); err != nil || !a.Held {
			t.Fatalf("before the cut: %+v, %v", a, err)
		}
		rf := l.raft.Load()
		term := l.term.Load()
		for _, p := range others(all, l) {
			if l.Status().Suffrage[p.id] == "voter" {
				h.fake.Cut(l.addr, p.addr)
				h.fake.Cut(p.addr, l.addr)
			}
		}
		cut := time.Now()
		verified := 0
		for rf.State() == raft.Leader {
			if rf.VerifyLeader().Error() == nil {
				verified++
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			a, err := term.keepalive(ctx, Keepalive{Node: holder.id, Instance: "i", Group: g, Epoch: e})
			cancel()
			if err == nil {
				t.Errorf("%s after the cut: %+v", time.Since(cut), a)
			}
			if time.Since(cut) > 5*time.Second {
				t.Fatal("the cut-off leader does not step down")
			}
		}
		if verified == 0 {
			t.Log("the library has learned to count voters only: the trap is closed there, too")
		}
	})
}

// No answer without a commit: while commits are impossible the keepalive waits, and gets its answer once they are possible.
func TestKeepaliveWaitsForCommit(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		h.timing.Lease, h.timing.Heartbeat, h.timing.Election = 4*time.Second, 4*time.Second, 4*time.Second // nobody steps down meanwhile
		all := h.cluster(0, 1, 2)
		l := h.leader()
		g := l.State().Nodes[l.id].Group
		e := h.grant(l, g, "i")
		for _, p := range others(all, l) {
			h.fake.Cut(l.addr, p.addr)
		}
		type answer struct {
			a   KeepaliveAnswer
			err error
		}
		got := make(chan answer, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			a, err := l.Keepalive(ctx, Keepalive{Node: l.id, Instance: "i", Group: g, Epoch: e})
			got <- answer{a, err}
		}()
		select {
		case a := <-got:
			t.Fatalf("answered without a commit: %+v", a)
		case <-time.After(time.Second):
		}
		h.fake.HealAll()
		if a := <-got; a.err != nil || !a.a.Held {
			t.Errorf("after the cut is healed: %+v, %v", a.a, a.err)
		}
	})
}

// An Expire comes no earlier than a TTL after the last keepalive, and not much later.
func TestExpireAfterTTL(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		e := h.grant(all[1], 1, "i")
		var last time.Time
		for range 30 {
			last = time.Now()
			if a, err := all[1].beat(1, "i", e); err != nil || !a.Held {
				t.Fatalf("%+v, %v", a, err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		h.eventually(time.Minute, "the lease is free", func() bool { return !all[0].State().Groups[1].Held() })
		if took := time.Since(last); took < 5*time.Second || took > 5200*time.Millisecond {
			t.Errorf("expired after %s", took)
		}
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

// Raft refuses every entry at once while it hands leadership over. The end of a lease is then proposed again now and then, not as fast as the
// processor can.
func TestExpireDuringTransfer(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		var tried atomic.Int32
		h.log = slog.New(slog.NewTextHandler(writerFunc(func(line []byte) {
			if bytes.Contains(line, []byte("lease expires")) && tried.Add(1) == 10000 {
				panic("the leader proposes without end")
			}
		}), nil))
		all := h.cluster(0, 1, 2)
		l := h.leader()
		var others []*peer
		for _, p := range all {
			if p != l {
				others = append(others, p)
			}
		}
		h.grant(others[0], 1, "i")
		time.Sleep(4900 * time.Millisecond)
		h.fake.Cut(l.addr, others[1].addr)
		id := others[1].id
		err := l.term.Load().rf.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)).Error()
		if n := tried.Load(); err == nil || n == 0 || n > 40 {
			t.Errorf("the transfer to a node that cannot be reached ended with %v, and the end of the lease was proposed %d times meanwhile", err, n)
		}
		h.fake.Heal(l.addr, others[1].addr)
		h.eventually(time.Minute, "the lease is free", func() bool { return !h.leader().State().Groups[1].Held() })
	})
}

// A new leader gives every lease a full TTL from its own beginning, however long the holder has been silent.
func TestNewLeaderGivesFullTTL(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		holder := all[1]
		h.grant(holder, 1, "i")
		time.Sleep(3 * time.Second)
		h.kill(h.leader())
		l := h.leader()
		ready := l.term.Load().ready
		h.eventually(time.Minute, "the lease is free", func() bool { return !l.State().Groups[1].Held() })
		if took := time.Since(ready); took < 5*time.Second || took > 5200*time.Millisecond {
			t.Errorf("expired %s after the new leader was ready", took)
		}
	})
}

// The TTL is the Grant's, whatever the setting has become, and the answer tells it.
func TestTTLOfTheGrant(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		settings := all[0].State().Cluster.Settings
		settings.TTL = 8 * time.Second
		h.submit(all[0], fsm.SettingsPut{Settings: settings})
		e := h.grant(all[1], 1, "i")
		settings.TTL = 4 * time.Second
		h.submit(all[0], fsm.SettingsPut{Settings: settings})
		sent := time.Now()
		if a, err := all[1].beat(1, "i", e); err != nil || a.Lease.TTL != 8*time.Second {
			t.Errorf("%+v, %v", a, err)
		}
		h.eventually(time.Minute, "the lease is free", func() bool { return !all[0].State().Groups[1].Held() })
		if took := time.Since(sent); took < 8*time.Second {
			t.Errorf("expired after %s", took)
		}
	})
}

// The leases go by their own clock: one that runs behind delays the end, time's own course does not bring it forward.
func TestLeaseClock(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		p := h.cluster(0)[0]
		h.grant(p, 0, "i")
		stop := time.Now().Add(20 * time.Second)
		for time.Now().Before(stop) { // the host's clocks stand still
			p.skew.Add(-int64(100 * time.Millisecond))
			time.Sleep(100 * time.Millisecond)
		}
		if !p.State().Groups[0].Held() {
			t.Error("expired though the lease clock stood still")
		}
		h.eventually(6*time.Second, "expired by the lease clock", func() bool { return !p.State().Groups[0].Held() })
	})
}

// Seven idle nodes share ticks: about two entries a second, nothing else.
func TestIdleTicks(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 0, 0, 1, 1, 2, 2)
		for g, p := range map[fsm.GroupID]*peer{0: all[0], 1: all[3], 2: all[5]} {
			e := h.grant(p, g, "i")
			defer p.beats(g, "i", e)()
		}
		for _, p := range []*peer{all[1], all[2], all[4], all[6]} {
			time.Sleep(70 * time.Millisecond) // off the grid
			defer p.beats(p.State().Nodes[p.id].Group, "i", fsm.Epoch{})()
		}
		time.Sleep(5 * time.Second)
		l := h.leader()
		before := l.State().Index
		time.Sleep(30 * time.Second)
		if n := l.State().Index - before; n < 55 || n > 75 {
			t.Errorf("%d entries in 30 s, want about 60", n)
		}
		for _, g := range l.State().Groups {
			if !g.Held() {
				t.Errorf("group %d lost its lease", g.ID)
			}
		}
	})
}

// What changed in a report is replicated at once, mere positions every 5 s, the same again never.
func TestReports(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		p := h.cluster(0)[0]
		send := func(r fsm.Report) fsm.Report {
			t.Helper()
			if _, err := p.Keepalive(t.Context(), Keepalive{Node: p.id, Report: r}); err != nil {
				t.Fatal(err)
			}
			got := p.State().Nodes[p.id].Report
			got.At = time.Time{}
			return got
		}
		first := fsm.Report{State: "running", Receive: 10}
		if got := send(first); got != first {
			t.Errorf("first report: %+v", got)
		}
		if got := send(fsm.Report{State: "running", Receive: 20}); got != first {
			t.Errorf("positions too soon: %+v", got)
		}
		changed := fsm.Report{State: "stopped", Receive: 21}
		if got := send(changed); got != changed {
			t.Errorf("change of state: %+v", got)
		}
		time.Sleep(5100 * time.Millisecond)
		moved := fsm.Report{State: "stopped", Receive: 30}
		if got := send(moved); got != moved {
			t.Errorf("positions after 5 s: %+v", got)
		}
		l := Leadership{t: p.term.Load()}
		live, ok := l.Live(p.id)
		if !ok || live.Report != moved {
			t.Errorf("live report: %+v", live)
		}
		time.Sleep(time.Second)
		if ago, ok := l.Heard(p.id); !ok || ago < time.Second || ago > 2*time.Second {
			t.Errorf("heard %s ago, %v", ago, ok)
		}
		if ago, ok := l.Heard("nobody"); ok || ago > time.Since(l.t.ready) {
			t.Errorf("nobody was heard %s ago", ago)
		}
	})
}

func TestSlowest(t *testing.T) {
	bubble(t, func(t *testing.T, _ *harness) {
		var s slowest
		for _, d := range []time.Duration{3, 9, 2, 5, 1} {
			s.note(d * time.Second)
			time.Sleep(time.Second)
		}
		if got := s.get(); got != 9*time.Second {
			t.Errorf("slowest %s", got)
		}
		time.Sleep(58 * time.Second) // the 9 is more than a minute ago, the 5 is not
		if got := s.get(); got != 5*time.Second {
			t.Errorf("slowest after a while %s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := s.get(); got != 0 {
			t.Errorf("slowest of nothing %s", got)
		}
	})
}

// A disk that hangs on the leader costs the leader its office, though its heartbeats could go on for ever.
func TestHungLogWriteChangesLeader(t *testing.T) {
	bubble(t, func(t *testing.T, h *harness) {
		all := h.cluster(0, 1, 2)
		l := h.leader()
		holder := others(all, l)[0]
		g := l.State().Nodes[holder.id].Group
		e := h.grant(holder, g, "i")
		release := make(chan struct{})
		l.hang.Store(&release)
		defer holder.beats(g, "i", e)()
		rest := others(all, l)
		began := time.Now()
		h.eventually(10*time.Second, "another leader", func() bool { return rest[0].term.Load() != nil || rest[1].term.Load() != nil })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("another leader after %s", took)
		}
		h.submit(rest[0], fsm.TokenPut{Token: fsm.Token{ID: "new", Uses: 1}})
		close(release)
		h.eventually(10*time.Second, "the old leader follows", func() bool { _, ok := l.State().Tokens["new"]; return ok && l.term.Load() == nil })
		if !l.State().Groups[g].Held() {
			t.Error("a healthy holder lost its lease")
		}
	})
}
