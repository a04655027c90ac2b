package main

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/consensus"
	"matriarch/fsm"
	"matriarch/internal/config"
	"matriarch/internal/proxy"
)

var second = fsm.Epoch{Inc: 1, N: 2}

// formation has a coordinator of three, c1 its primary, and a worker of two, w1 its primary; everything works.
func castState(changes ...func(*fsm.State)) *fsm.State {
	s := fsm.NewState()
	s.Cluster.Settings = fsm.DefaultSettings()
	at := time.Unix(1000, 0)
	for i, x := range []struct {
		id    fsm.NodeID
		group fsm.GroupID
	}{{"c1", 0}, {"c2", 0}, {"c3", 0}, {"w1", 1}, {"w2", 1}} {
		r := fsm.Report{At: at, State: "streaming", Role: "standby", Epoch: second, Open: true, Replay: 1000}
		if x.id[1] == '1' {
			r.State, r.Role = "running", "primary"
		}
		s.Nodes[x.id] = fsm.Node{ID: x.id, Name: string(x.id), Group: x.group, Postgres: string(x.id) + ":5432", Joined: uint64(i), Report: r}
	}
	for g, holder := range []fsm.NodeID{"c1", "w1"} {
		id := fsm.GroupID(g)
		s.Groups[id] = fsm.Group{ID: id, Epoch: second, Lease: fsm.Lease{Holder: holder, Epoch: second}, Sync: fsm.Sync{Confirmed: second}}
	}
	for _, change := range changes {
		change(s)
	}
	return s
}

func group(id fsm.GroupID, change func(*fsm.Group)) func(*fsm.State) {
	return func(s *fsm.State) {
		g := s.Groups[id]
		change(&g)
		s.Groups[id] = g
	}
}

func report(id fsm.NodeID, change func(*fsm.Report)) func(*fsm.State) {
	return func(s *fsm.State) {
		n := s.Nodes[id]
		change(&n.Report)
		s.Nodes[id] = n
	}
}

func newTestRoles(standby config.ProxyStandby) *roles {
	return newRoles(nil, nil, func(fsm.GroupID) bool { return false }, standby)
}

// shown writes lists as text: a draining server in parentheses.
func shown(lists map[proxy.Kind][]proxy.Target) string {
	text := ""
	for _, k := range []proxy.Kind{proxy.Coordinator, proxy.Worker, proxy.Standby} {
		for _, t := range lists[k] {
			if t.Draining {
				text += "(" + t.Name + ") "
			} else {
				text += t.Name + " "
			}
		}
		text += "| "
	}
	return text
}

func TestRoles(t *testing.T) {
	limit := config.ProxyStandby{Groups: "coordinator", MaxLagBytes: 100}
	for name, tc := range map[string]struct {
		state   *fsm.State
		standby config.ProxyStandby
		stale   bool
		want    string
	}{
		"all work":               {castState(), limit, false, "c1 | w1 | (c1) c2 c3 | "},
		"standbys of workers":    {castState(), config.ProxyStandby{Groups: "workers"}, false, "c1 | w1 | (w1) w2 | "},
		"standbys of all":        {castState(), config.ProxyStandby{Groups: "all"}, false, "c1 | w1 | (c1) c2 c3 (w1) w2 | "},
		"no leader for too long": {castState(), limit, true, "(c1) | (w1) | (c1) c2 c3 | "},
		"about to stop": {castState(group(0, func(g *fsm.Group) {
			g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Demote, From: "c1", To: "c2", Epoch: second}
		})), limit, false, "(c1) | w1 | (c1) c2 c3 | "},
		"clients pause": {castState(group(0, func(g *fsm.Group) {
			g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Pause, From: "c1", To: "c2", Epoch: second}
		})), limit, false, "c1 | w1 | (c1) c2 c3 | "},
		"switched over, the rest under way": {castState(group(0, func(g *fsm.Group) {
			g.Op = &fsm.Operation{Kind: fsm.Switchover, Phase: fsm.Resume, From: "c2", To: "c1", Epoch: second}
		})), limit, false, "c1 | w1 | (c1) c2 c3 | "},
		"lease free":             {castState(group(0, func(g *fsm.Group) { g.Lease = fsm.Lease{} })), limit, false, "| w1 | (c1) c2 c3 | "},
		"lease revoked":          {castState(group(1, func(g *fsm.Group) { g.Lease.Revoked = true })), limit, false, "c1 | | (c1) c2 c3 | "},
		"not confirmed":          {castState(group(0, func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{Inc: 1, N: 1} })), limit, false, "| w1 | (c1) c2 c3 | "},
		"not open yet":           {castState(report("c1", func(r *fsm.Report) { r.Open = false })), limit, false, "(c1) | w1 | (c1) c2 c3 | "},
		"open of old":            {castState(report("c1", func(r *fsm.Report) { r.Epoch.N-- })), limit, false, "(c1) | w1 | (c1) c2 c3 | "},
		"open as standby":        {castState(report("w1", func(r *fsm.Report) { r.Role = "standby" })), limit, false, "c1 | (w1) | (c1) c2 c3 | "},
		"standby of old":         {castState(report("c2", func(r *fsm.Report) { r.Epoch.N-- })), limit, false, "c1 | w1 | (c1) (c2) c3 | "},
		"standby alone":          {castState(report("c2", func(r *fsm.Report) { r.State = "running" })), limit, false, "c1 | w1 | (c1) (c2) c3 | "},
		"standby closed":         {castState(report("c2", func(r *fsm.Report) { r.Open = false })), limit, false, "c1 | w1 | (c1) (c2) c3 | "},
		"standby stopped":        {castState(report("c2", func(r *fsm.Report) { r.State = "stopped" })), limit, false, "c1 | w1 | (c1) c3 | "},
		"standby new":            {castState(report("c2", func(r *fsm.Report) { *r = fsm.Report{} })), limit, false, "c1 | w1 | (c1) c3 | "},
		"standby at the limit":   {castState(report("c2", func(r *fsm.Report) { r.Replay = 900 })), limit, false, "c1 | w1 | (c1) c2 c3 | "},
		"standby lags":           {castState(report("c2", func(r *fsm.Report) { r.Replay = 899 })), limit, false, "c1 | w1 | (c1) (c2) c3 | "},
		"standby lags, no limit": {castState(report("c2", func(r *fsm.Report) { r.Replay = 1 })), config.ProxyStandby{Groups: "coordinator"}, false, "c1 | w1 | (c1) c2 c3 | "},
		"no readers wanted": {castState(func(s *fsm.State) {
			n := s.Nodes["c3"]
			n.Tags.NoLoadBalance = true
			s.Nodes["c3"] = n
		}), limit, false, "c1 | w1 | (c1) c2 (c3) | "},
		"node gone": {castState(func(s *fsm.State) { delete(s.Nodes, "c1") }), limit, false, "| w1 | c2 c3 | "},
		"empty":     {fsm.NewState(), limit, false, "| | | "},
	} {
		t.Run(name, func(t *testing.T) {
			lists, _ := newTestRoles(tc.standby).cast(tc.state, tc.stale, time.Unix(1000, 0))
			if got := shown(lists); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestTargetsSayWhoAndWhere(t *testing.T) {
	lists, _ := newTestRoles(config.ProxyStandby{Groups: "coordinator"}).cast(castState(), false, time.Unix(1000, 0))
	want := map[proxy.Kind][]proxy.Target{
		proxy.Coordinator: {{Node: "c1", Name: "c1", Addr: "c1:5432", Epoch: second}},
		proxy.Worker:      {{Node: "w1", Name: "w1", Addr: "w1:5432", Epoch: second}},
		proxy.Standby:     {{Node: "c1", Name: "c1", Addr: "c1:5432", Draining: true}, {Node: "c2", Name: "c2", Addr: "c2:5432"}, {Node: "c3", Name: "c3", Addr: "c3:5432"}},
	}
	if diff := cmp.Diff(want, lists); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A primary that never says that it is open is entered after a second all the same, and what it says later ends nobody's session.
func TestOpenGrace(t *testing.T) {
	r, at := newTestRoles(config.ProxyStandby{Groups: "coordinator"}), time.Unix(1000, 0)
	silent := castState(report("c1", func(r *fsm.Report) { r.Open = false }))
	lists, next := r.cast(silent, false, at)
	if !lists[proxy.Coordinator][0].Draining || next != openGrace {
		t.Errorf("at once: %s, look again after %s", shown(lists), next)
	}
	if lists, next = r.cast(silent, false, at.Add(700*time.Millisecond)); !lists[proxy.Coordinator][0].Draining || next != 300*time.Millisecond {
		t.Errorf("after 700 ms: %s, look again after %s", shown(lists), next)
	}
	if lists, _ = r.cast(silent, false, at.Add(openGrace)); lists[proxy.Coordinator][0].Draining {
		t.Errorf("after %s: %s", openGrace, shown(lists))
	}
	r.cast(castState(group(0, func(g *fsm.Group) { g.Lease = fsm.Lease{} })), false, at.Add(2*openGrace))
	if len(r.open) != 1 {
		t.Errorf("%d primaries remembered, want the worker's alone", len(r.open))
	}
}

// Reports travel seldom: an older one of the standby proves no lag, and does not take a judgement back either.
func TestLagging(t *testing.T) {
	at := func(s int, replay fsm.LSN) fsm.Report {
		return fsm.Report{At: time.Unix(int64(1000+s), 0), Replay: replay}
	}
	for _, tc := range []struct {
		primary, standby fsm.Report
		before, want     bool
	}{
		{at(0, 500), at(1, 450), true, false},
		{at(0, 500), at(1, 300), false, true},
		{at(0, 500), at(0, 300), false, true},
		{at(4, 500), at(0, 300), false, false},
		{at(4, 500), at(0, 300), true, true},
		{at(16, 500), at(0, 300), false, true},
		{at(0, 300), at(1, 500), true, false},
	} {
		if got := lagging(tc.primary, tc.standby, 100, tc.before); got != tc.want {
			t.Errorf("%+v: %t", tc, got)
		}
	}
}

func TestStale(t *testing.T) {
	s := castState()
	r := newTestRoles(config.ProxyStandby{})
	for i, step := range []struct {
		st    consensus.Status
		stale bool
		next  time.Duration
	}{
		{consensus.Status{LastContact: -1}, true, staleLook},
		{consensus.Status{LastContact: time.Second, Applied: 5, Commit: 9}, true, staleLook}, // still reading the past
		{consensus.Status{LastContact: time.Second, Applied: 9, Commit: 9}, false, 4 * time.Second},
		{consensus.Status{LastContact: 0, Applied: 9, Commit: 10}, false, 5 * time.Second},
		{consensus.Status{LastContact: 5 * time.Second, Applied: 10, Commit: 10}, true, staleLook},
		{consensus.Status{LastContact: 10 * time.Millisecond, Applied: 10, Commit: 12}, false, 4990 * time.Millisecond},
	} {
		if stale, next := r.stale(s, step.st); stale != step.stale || next != step.next {
			t.Errorf("step %d: %t, look again after %s", i, stale, next)
		}
	}
}

// The lists follow the state and the clock, and nobody is woken for nothing.
func TestRolesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var state atomic.Pointer[fsm.State]
		var heard atomic.Pointer[time.Time]
		var upheld atomic.Bool
		state.Store(castState())
		heard.Store(new(time.Now()))
		r := newRoles(state.Load, func() consensus.Status {
			return consensus.Status{Applied: 1, Commit: 1, LastContact: time.Since(*heard.Load())}
		}, func(g fsm.GroupID) bool { return g == 0 && upheld.Load() }, config.ProxyStandby{Groups: "coordinator"})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx) }()
		synctest.Wait()
		step := func(what string, wantChange bool, want string, f func()) {
			t.Helper()
			changed := r.Changed()
			f()
			synctest.Wait()
			got := false
			select {
			case <-changed:
				got = true
			default:
			}
			if now := shown(map[proxy.Kind][]proxy.Target{proxy.Coordinator: r.Targets(proxy.Coordinator)}); got != wantChange || now != want+"| | | " {
				t.Errorf("%s: changed %t, %s", what, got, now)
			}
		}
		step("nothing new", false, "c1 ", r.moved)
		step("another primary", true, "c2 ", func() {
			state.Store(castState(group(0, func(g *fsm.Group) { g.Lease.Holder = "c2" }), report("c2", func(r *fsm.Report) { r.Role = "primary" })))
			r.moved()
		})
		step("no leader for less than a TTL", false, "c2 ", func() { time.Sleep(4 * time.Second) })
		step("no leader for a TTL", true, "(c2) ", func() { time.Sleep(2 * time.Second) })
		step("a leader again", true, "c2 ", func() { heard.Store(new(time.Now())); time.Sleep(staleLook) })
		step("no leader, but failsafe in this group", true, "c2 ", func() { upheld.Store(true); time.Sleep(7 * time.Second) })
		step("the end of failsafe", true, "(c2) ", func() { upheld.Store(false); time.Sleep(staleLook) })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestProxyListeners(t *testing.T) {
	c := config.Default().Proxy
	if got := proxyListeners(c); len(got) != 0 {
		t.Errorf("a proxy nobody asked for: %v", got)
	}
	c.Worker.Listen, c.Standby.Listen, c.MaxPerClient, c.ProxyProtocol = ":6434", ":6435", 7, true
	limits := proxy.Listener{MaxConns: 1000, MaxPerClient: 7, WaitLimit: 10 * time.Second, ConnectTimeout: 3 * time.Second, ProxyProtocol: true}
	worker, standby := limits, limits
	worker.Kind, worker.Addr, worker.Setting = proxy.Worker, ":6434", "proxy.worker.listen"
	standby.Kind, standby.Addr, standby.Setting = proxy.Standby, ":6435", "proxy.standby.listen"
	if diff := cmp.Diff([]proxy.Listener{worker, standby}, proxyListeners(c)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRenderProxy(t *testing.T) {
	var b bytes.Buffer
	renderProxy(&b, []proxy.ListenerStats{
		{
			Kind: proxy.Coordinator, Addr: "10.0.0.1:6433", Active: 3, Waiting: 1, Accepted: 20, Deposed: 2, Cancels: 5, Refused: map[proxy.Reason]uint64{"no_server": 4, "limit": 1},
			Servers: []proxy.ServerStats{{Name: "c1", Addr: "10.0.0.1:5432", Sessions: 3}},
		},
		{Kind: proxy.Standby, Addr: "10.0.0.1:6435", Servers: []proxy.ServerStats{{Name: "c2", Addr: "10.0.0.2:5432", Draining: true}}},
	})
	want := `  proxy coordinator at 10.0.0.1:6433: 3 sessions, 1 waiting, 20 accepted, 1 refused (limit), 4 refused (no_server), 5 cancel requests, 2 ended with their server's role
    to c1 at 10.0.0.1:5432: 3 sessions
  proxy standby at 10.0.0.1:6435: 0 sessions, 0 waiting, 0 accepted
    to c2 at 10.0.0.2:5432: 0 sessions, takes no new ones
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
