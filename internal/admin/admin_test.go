package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/agent"
	"matriarch/internal/config"
	"matriarch/internal/identity"
	"matriarch/transport"
)

func TestMembersInOrder(t *testing.T) {
	var got []string
	for _, m := range admin.Members(admintest.Status(admintest.Coord1)) {
		got = append(got, m.Name+" "+m.Role+" "+m.State)
	}
	want := []string{
		"coord-1 Primary running", "coord-2 Quorum Standby streaming", "coord-3 Standby streaming", "work1-2 Primary running", "work1-1 Quorum Standby streaming",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLag(t *testing.T) {
	for _, m := range admin.Members(admintest.Status(admintest.Coord1)) {
		switch m.Name {
		case "coord-1":
			if m.ReplayLag != nil || m.ReceiveLag != nil {
				t.Error("a primary lags behind itself")
			}
		case "coord-3":
			if m.ReplayLag == nil || *m.ReplayLag != 16<<20 {
				t.Errorf("lag of coord-3: %v", m.ReplayLag)
			}
		}
	}
}

func TestTroubles(t *testing.T) {
	change := func(g fsm.GroupID, f func(*fsm.Group)) func(*admin.Status) {
		return func(st *admin.Status) {
			gr := st.State.Groups[g]
			f(&gr)
			st.State.Groups[g] = gr
		}
	}
	for name, c := range map[string]struct {
		change func(*admin.Status)
		want   string // empty: healthy
	}{
		"healthy":         {func(*admin.Status) {}, ""},
		"no leader":       {func(st *admin.Status) { st.Raft.Leader, st.Raft.Leads = "", false }, "no Raft leader"},
		"leader silent":   {func(st *admin.Status) { st.Raft.Leads = false }, "coord-1 did not answer"},
		"silent":          {func(st *admin.Status) { st.Heard[admintest.Work1] = 12 * time.Second }, "work1-1 is silent for 12s"},
		"never heard":     {func(st *admin.Status) { delete(st.Heard, admintest.Work1) }, "work1-1 is silent"},
		"no primary":      {change(1, func(g *fsm.Group) { g.Lease = fsm.Lease{} }), "group 1 has no primary"},
		"not open":        {change(1, func(g *fsm.Group) { g.Sync.Confirmed = fsm.Epoch{} }), "work1-2 is about to become primary"},
		"not initialised": {change(1, func(g *fsm.Group) { g.SystemID = "" }), "group 1 is not initialised"},
		"unknown":         {change(1, func(g *fsm.Group) { g.Sync.Unknown = true }), "unknown since the control plane was rebuilt"},
		"degraded":        {change(1, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{{}} }), "group 1 is degraded"},
		"degraded below k": {func(st *admin.Status) {
			n := st.State.Nodes[admintest.Coord3]
			n.Tags.NoSync = false
			st.State.Nodes[n.ID] = n
			change(0, func(g *fsm.Group) { g.SyncCount = 2 })(st)
		}, "wait for 1 standby instead of 2"},
		"strict, waiting": {change(1, func(g *fsm.Group) { g.Strict, g.SyncCount, g.Sync.Pairs[0].K = true, 2, 2 }), "strict and waiting for a standby: commits of work1-2 need any 2 of (work1-1)"},
		"strict, waiting to open": {change(1, func(g *fsm.Group) {
			g.Strict, g.SyncCount, g.Sync.Pairs[0].K, g.Sync.Confirmed = true, 2, 2, fsm.Epoch{}
		}), "strict and waiting for a standby: work1-2 opens once 2"},
		"joint, by priority": {change(1, func(g *fsm.Group) {
			g.Mode, g.Sync.Pairs = fsm.On, append([]fsm.Pair{{}}, g.Sync.Pairs...)
		}), "no standby and the first 1 of (work1-1)"},
		"joint": {change(1, func(g *fsm.Group) { g.Sync.Pairs = append([]fsm.Pair{{}}, g.Sync.Pairs...) }), "no standby and any 1 of (work1-1)"},
		"metadata": {func(st *admin.Status) {
			st.Metadata.Synced, st.Metadata.Differences = false, []string{"row of group 1"}
		}, "row of group 1"},
		"no metadata yet": {func(st *admin.Status) { st.Metadata = nil }, "has not been looked at"},
		"not streaming": {func(st *admin.Status) {
			n := st.State.Nodes[admintest.Coord2]
			n.Report.State = "starting"
			st.State.Nodes[n.ID] = n
		}, "coord-2 does not stream: starting"},
	} {
		st := admintest.Status(admintest.Coord1)
		c.change(&st)
		f := admin.NewFormation(st)
		switch {
		case c.want == "" && !f.Healthy:
			t.Errorf("%s: %v", name, f.Troubles)
		case c.want != "" && !slices.ContainsFunc(f.Troubles, func(s string) bool { return strings.Contains(s, c.want) }):
			t.Errorf("%s: %q not among %q", name, c.want, f.Troubles)
		}
	}
}

func TestNotesAreNoTroubles(t *testing.T) {
	st := admintest.Status(admintest.Coord1)
	g, n := st.State.Groups[1], st.State.Nodes[admintest.Coord2]
	g.Retired, st.Metadata.Left = true, []string{"old"}
	g.Paused, n.Report.Fence, n.Report.SetAside = true, "weak", 2
	st.State.Groups[1], st.State.Nodes[n.ID] = g, n
	f := admin.NewFormation(st)
	if !f.Healthy || len(f.Notes) != 5 {
		t.Errorf("troubles %q, notes %q", f.Troubles, f.Notes)
	}
}

// TestWritableNeedsEverything: each single fact missing is enough to say no.
func TestWritableNeedsEverything(t *testing.T) {
	if ok, why := admintest.Status(admintest.Coord1).Writable(); !ok {
		t.Fatal(why)
	}
	rapid.Check(t, func(t *rapid.T) {
		st := admintest.Status(admintest.Coord1)
		g := st.State.Groups[0]
		broken := map[string]func(){
			"holder":   func() { g.Lease.Holder = admintest.Coord2 },
			"free":     func() { g.Lease = fsm.Lease{} },
			"revoked":  func() { g.Lease.Revoked = true },
			"opened":   func() { g.Sync.Confirmed = fsm.Epoch{Inc: 1, N: 1} },
			"epoch":    func() { st.Self.Epoch = fsm.Epoch{Inc: 1, N: 1} },
			"lease":    func() { st.Self.LeaseLeft = 0 },
			"sentinel": func() { st.Self.Writable = false },
			"down":     func() { st.Self.Postgres.Reachable = false },
			"recovery": func() { st.Self.Postgres.InRecovery = true },
		}
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(maps.Keys(broken))), 1, 4, rapid.ID).Draw(t, "broken") {
			broken[name]()
		}
		if rapid.Bool().Draw(t, "no self") {
			st.Self = nil
		}
		st.State.Groups[0] = g
		if ok, why := st.Writable(); ok || why == "" {
			t.Fatalf("writable %v, because %q", ok, why)
		}
	})
}

func TestNewSelfAgesTheLease(t *testing.T) {
	snap := &agent.Snapshot{
		At:   admintest.Now,
		View: decide.View{LeaseLeft: 4 * time.Second, Sentinel: decide.Sentinel{Connected: true, Primary: true}},
		Plan: decide.Plan{Rule: "R300"},
		Past: []agent.Decision{{At: admintest.Now.Add(-time.Hour), Rule: "R300"}},
	}
	s := admin.NewSelf(snap, admintest.Now.Add(time.Second), admin.Processes{})
	if s.LeaseLeft != 3*time.Second || s.Age != time.Second || !s.Since.Equal(admintest.Now.Add(-time.Hour)) {
		t.Errorf("%+v", s)
	}
	if s := admin.NewSelf(snap, admintest.Now.Add(time.Minute), admin.Processes{}); s.LeaseLeft != 0 {
		t.Errorf("a stuck loop has %s of its lease left", s.LeaseLeft)
	}
	if admin.NewSelf(nil, admintest.Now, admin.Processes{}) != nil {
		t.Error("something of nothing")
	}
}

func TestSettingsRoundTrip(t *testing.T) {
	want := fsm.DefaultSettings()
	var got fsm.Settings
	for _, x := range admin.ClusterSettings() {
		if err := admin.SetSetting(&got, x.Key+"="+x.Get(want)); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("a setting is missing:", diff)
	}
}

func TestSettingsRefuse(t *testing.T) {
	for _, bad := range []string{
		"ttl", "ttl=3s", "ttl=5", "ttl=", "tll=5s", "maximum_lag=-1", "maximum_lag=1.5MB", "maximum_lag=99999999999TB", "leader_avoid=perhaps", "databases=", "databases=a,a",
		"databases=postgres", "databases=a;b", "default_mode=sync", "degrade_after=1ms",
	} {
		s := fsm.DefaultSettings()
		if err := admin.SetSetting(&s, bad); err == nil {
			t.Errorf("%s accepted", bad)
		}
		if diff := cmp.Diff(fsm.DefaultSettings(), s); diff != "" {
			t.Errorf("%s changed something: %s", bad, diff)
		}
	}
}

func TestBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<50).Draw(t, "n")
		if got, err := admin.ParseBytes(admin.FormatBytes(n)); err != nil || got != n {
			t.Fatalf("%d became %q became %d (%v)", n, admin.FormatBytes(n), got, err)
		}
	})
}

func TestRequestIsOneCommand(t *testing.T) {
	for name, r := range map[string]admin.Request{
		"none": {}, "two": {TokenDrop: &fsm.TokenDrop{ID: "a"}, NodeRemove: &fsm.NodeRemove{Node: "b"}},
	} {
		if cmd, err := r.Command(); err == nil {
			t.Errorf("%s: %v", name, cmd)
		}
	}
	cmd, err := admin.Request{GroupSet: &fsm.GroupSet{Group: 1}}.Command()
	if diff := cmp.Diff(fsm.Command(fsm.GroupSet{Group: 1}), cmd); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// node serves the two calls like a real one.
type node struct {
	st  admin.Status
	got chan fsm.Command
}

func (n *node) Status(context.Context) admin.Status { return n.st }

func (n *node) RestartStandby(context.Context) error {
	return errors.New("it is the primary: restart it with its group")
}

func (n *node) Reinit(context.Context, fsm.NodeID) error {
	return errors.New("it is a primary: switch over first")
}

func (n *node) Citus(_ context.Context, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
	if r.Do.Writes() {
		return nil, errors.New("group 1 holds the only copy of shards")
	}
	return []admin.CitusAnswer{{Database: r.Database, Error: n.st.Name}}, nil
}

func (n *node) Snapshot(context.Context) (*fsm.State, error) { return n.st.State, nil }

func (n *node) WouldSwitch(_ context.Context, g fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error) {
	return to, fmt.Errorf("group %d is paused", g)
}

func (n *node) Submit(_ context.Context, c fsm.Command) (fsm.Result, error) {
	n.got <- c
	if _, ok := c.(fsm.TokenDrop); ok {
		return fsm.Result{}, &transport.Error{Code: "no_leader", Message: "no Raft leader", Hint: "wait"}
	}
	return fsm.Result{OK: true}, nil
}

const clusterID = "0aaaaaaa-0000-4000-8000-000000000001"

// host makes a state directory for a node of the cluster.
func host(t *testing.T, ca *transport.CA, id fsm.NodeID) config.Config {
	t.Helper()
	key, csr, err := transport.NewKeyAndCSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignCSR(csr, string(id), string(id), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	d := identity.Dir(dir)
	err = errors.Join(
		d.SaveMaterial(identity.Material{Cert: cert, Key: key, CA: ca.CertPEM()}),
		d.Save(identity.Identity{ClusterID: clusterID, Incarnation: 1, NodeID: id, Name: string(id)}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return config.Config{StateDir: dir, Advertise: "127.0.0.1:1"} // nobody listens there
}

// serve runs a node's port and returns its address.
func serve(t *testing.T, cfg config.Config, n *node) string {
	t.Helper()
	tls, err := identity.Dir(cfg.StateDir).TLS()
	if err != nil {
		t.Fatal(err)
	}
	mux, err := transport.Listen(transport.TCP{}, "127.0.0.1:0", transport.ServerConfig{Identity: tls})
	if err != nil {
		t.Fatal(err)
	}
	rpc := transport.NewRPCServer(slog.New(slog.DiscardHandler))
	admin.Register(rpc, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = rpc.Serve(mux.Listener(transport.KindRPC))
	}()
	t.Cleanup(func() {
		rpc.Close()
		mux.Close()
		<-done
	})
	return mux.Addr().String()
}

func TestClient(t *testing.T) {
	ca, err := transport.NewCA(clusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mine, leader := host(t, ca, "n1"), &node{st: admintest.Status(admintest.Coord1), got: make(chan fsm.Command, 1)}
	leaderHost := host(t, ca, admintest.Coord1)
	leaderAddr := serve(t, leaderHost, leader)
	other := &node{st: admintest.Status(admintest.Work1), got: make(chan fsm.Command, 1)}
	n := other.st.State.Nodes[admintest.Coord1]
	n.Peer = leaderAddr
	other.st.State.Nodes[n.ID] = n
	otherAddr := serve(t, host(t, ca, admintest.Work1), other)

	// A silent listener and a dead address come before the node that answers.
	hung, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	err = identity.Dir(mine.StateDir).SavePeers([]identity.Peer{{ID: "hung", Name: "hung", Addr: hung.Addr().String()}, {ID: admintest.Work1, Name: "work1-1", Addr: otherAddr}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := admin.Open(mine)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	st, err := c.Status(t.Context())
	if err != nil || st.Name != "work1-1" {
		t.Fatalf("%s, %v", st.Name, err)
	}
	if st.State.Tokens["a1b2c3d4"].Hash != "" || st.State.Tokens["a1b2c3d4"].Uses != 3 {
		t.Errorf("token on the wire: %+v", st.State.Tokens["a1b2c3d4"])
	}
	if st, err = c.Formation(t.Context()); err != nil || !st.Raft.Leads {
		t.Errorf("formation comes from %s, %v", st.Name, err)
	}
	testSubmit(t, c, other)
	ans, err := c.Citus(t.Context(), fsm.Node{}, admin.CitusRequest{Do: admin.CitusProgress, Database: "app"})
	if err != nil || len(ans) != 1 || ans[0].Database != "app" || ans[0].Error != "work1-1" {
		t.Errorf("a look at the metadata: %+v, %v", ans, err)
	}
	_, err = c.Citus(t.Context(), n, admin.CitusRequest{Do: admin.CitusRemove, Group: 1})
	if err == nil || err.Error() != "group 1 holds the only copy of shards" {
		t.Errorf("a refusal became %v", err)
	}
}

func testSubmit(t *testing.T, c *admin.Client, n *node) {
	t.Helper()
	res, err := c.Submit(t.Context(), admin.Request{NodeRemove: &fsm.NodeRemove{Node: "x"}})
	if err != nil || !res.OK {
		t.Errorf("%+v, %v", res, err)
	}
	if diff := cmp.Diff(fsm.Command(fsm.NodeRemove{Node: "x"}), <-n.got); diff != "" {
		t.Error(diff)
	}
	_, err = c.Submit(t.Context(), admin.Request{TokenDrop: &fsm.TokenDrop{ID: "x"}})
	<-n.got
	if e, ok := errors.AsType[*transport.Error](err); !ok || e.Code != "no_leader" {
		t.Errorf("error became %v", err)
	}
	// Only the tags of a node can be changed this way.
	put := fsm.NodePut{Node: fsm.Node{ID: admintest.Coord2, Name: "evil", Tags: fsm.Tags{NoSync: true}}}
	if _, err := c.Submit(t.Context(), admin.Request{NodePut: &put}); err != nil {
		t.Fatal(err)
	}
	got := (<-n.got).(fsm.NodePut).Node
	if got.Name != "coord-2" || !got.Tags.NoSync || got.Peer == "" {
		t.Errorf("%+v", got)
	}
}

func TestClientSaysWhoDidNotAnswer(t *testing.T) {
	ca, err := transport.NewCA(clusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := host(t, ca, "n1")
	c, err := admin.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Status(t.Context())
	for _, want := range []string{"no node of the cluster answered", "n1 127.0.0.1:1", "systemctl status matriarch"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q not in %v", want, err)
		}
	}
	if _, err := admin.Open(config.Config{StateDir: t.TempDir()}); !errors.Is(err, identity.ErrNone) {
		t.Error(err)
	}
}

func TestStatusSurvivesTheWire(t *testing.T) {
	want := admintest.Status(admintest.Coord1).Public()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got admin.Status
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want.State.Requests = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
