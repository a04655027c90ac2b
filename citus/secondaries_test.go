package citus

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
)

func TestWantStandbys(t *testing.T) {
	const mb = 1 << 20
	e := fsm.Epoch{Inc: 1, N: 2}
	now := time.Unix(1000, 0)
	streaming := func(n string, replay fsm.LSN, at time.Duration) fsm.Node {
		return fsm.Node{
			ID: fsm.NodeID(n), Group: 1, Name: n, Postgres: n + ":5432",
			Report: fsm.Report{At: now.Add(at), State: "streaming", Role: "standby", Epoch: e, Replay: replay},
		}
	}
	primary := fsm.Node{ID: "p", Group: 1, Name: "p", Postgres: "p:5432", Report: fsm.Report{At: now, State: "running", Role: "primary", Epoch: e, Replay: 100 * mb}}
	tagged := streaming("a", 100*mb, 0)
	tagged.Tags.User = map[string]string{"nodecluster": "reader"}
	tests := []struct {
		name  string
		nodes []fsm.Node
		want  []Secondary
	}{
		{"near", []fsm.Node{streaming("b", 90*mb, 0), streaming("a", 100*mb, 0)}, []Secondary{standby("a", Serving), standby("b", Serving)}},
		{"lagging beside a good one", []fsm.Node{streaming("a", 100*mb, 0), streaming("b", 50*mb, time.Second)}, []Secondary{standby("a", Serving), standby("b", Away)}},
		{"lagging and alone", []fsm.Node{streaming("a", 50*mb, time.Second)}, []Secondary{standby("a", Doubtful)}},
		{"an older report proves no lag", []fsm.Node{streaming("a", 100*mb, 0), streaming("b", 50*mb, -4*time.Second)}, []Secondary{standby("a", Serving), standby("b", Doubtful)}},
		{"a position that does not move is lag", []fsm.Node{streaming("a", 100*mb, 0), streaming("b", 50*mb, -time.Minute)}, []Secondary{standby("a", Serving), standby("b", Away)}},
		{"following an older epoch", []fsm.Node{with(streaming("a", 100*mb, 0), func(n *fsm.Node) { n.Report.Epoch = fsm.Epoch{Inc: 1, N: 1} })}, []Secondary{standby("a", Away)}},
		{"not streaming", []fsm.Node{with(streaming("a", 100*mb, 0), func(n *fsm.Node) { n.Report.State = "running" })}, []Secondary{standby("a", Away)}},
		{"not to be read from", []fsm.Node{with(streaming("a", 100*mb, 0), func(n *fsm.Node) { n.Tags.NoLoadBalance = true })}, []Secondary{}},
		{"node cluster", []fsm.Node{tagged}, []Secondary{{Addr: addr("a"), NodeCluster: "reader"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &fsm.State{
				Cluster: fsm.Cluster{Settings: fsm.DefaultSettings()}, Nodes: map[fsm.NodeID]fsm.Node{"p": primary},
				Groups: map[fsm.GroupID]fsm.Group{1: {ID: 1, SystemID: "s", Lease: fsm.Lease{Holder: "p"}, Epoch: e, Sync: fsm.Sync{Confirmed: e}}},
			}
			for _, n := range tt.nodes {
				s.Nodes[n.ID] = n
			}
			w, err := Want(s, "app")
			if d := cmp.Diff(tt.want, w.Secondaries[1]); err != nil || d != "" {
				t.Errorf("%v (-want +got):\n%s", err, d)
			}
			s.Cluster.Settings.CitusSecondaries = false
			if w, err = Want(s, "app"); err != nil || w.Secondaries != nil {
				t.Errorf("switched off: %v %v", w.Secondaries, err)
			}
		})
	}
}

// A row stays while its standby is away for a moment, and a moment only.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(Config{})
		rows := []Row{row(2, 1, "w1"), secondary(4, 1, "w1b")}
		look := func(s Standing) Standing {
			t.Helper()
			w := Wanted{Database: "app", Secondaries: map[fsm.GroupID][]Secondary{1: {standby("w1b", s)}}}
			got := p.hold(w, rows, time.Now()).Secondaries[1][0].Standing
			if w.Secondaries[1][0].Standing != s {
				t.Error("the caller's list was changed")
			}
			return got
		}
		steps := []struct {
			after    time.Duration
			is, want Standing
		}{
			{0, Serving, Serving},
			{0, Away, Doubtful},
			{graceTime - time.Second, Away, Doubtful},
			{0, Doubtful, Doubtful}, // no evidence: the clock goes on
			{time.Second, Away, Away},
			{time.Second, Doubtful, Doubtful},
			{0, Away, Away},
			{0, Serving, Serving}, // back: the clock begins anew
			{0, Away, Doubtful},
			{graceTime, Away, Away},
		}
		for i, s := range steps {
			time.Sleep(s.after)
			if got := look(s.is); got != s.want {
				t.Errorf("step %d: standing %d, want %d", i, got, s.want)
			}
		}
		rows = rows[:1]
		if got := look(Away); got != Away {
			t.Error("a standby without a row is held")
		}
	})
}

// serve registers a standby of a group.
func (f *trial) serve(g fsm.GroupID, s *server) {
	if f.standbys == nil {
		f.standbys = map[fsm.GroupID][]Secondary{}
	}
	f.standbys[g] = append(f.standbys[g], Secondary{Addr: s.addr, NodeCluster: "default"})
}

// reader opens a session that reads from standbys only.
func (s *server) reader() *pgx.Conn {
	s.t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d sslmode=disable", s.addr.Host, s.addr.Port))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.User, cfg.Password, cfg.Database = superuser, password, appDB
	cfg.RuntimeParams["citus.use_secondary_nodes"] = "always"
	c, err := pgx.ConnectConfig(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestSecondaries(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	f.items(50)
	c2, w2 := f.servers[0].standby(), f.servers[1].standby()
	f.serve(0, c2)
	f.serve(1, w2)
	f.settle()
	before := f.agreed()
	if len(before) != 4 {
		t.Fatalf("rows %v", before)
	}
	f.servers[0].caughtUp(c2)
	f.servers[1].caughtUp(w2)
	if f.servers[0].real {
		var n int
		if err := f.servers[0].reader().QueryRow(t.Context(), "SELECT count(*) FROM items").Scan(&n); err != nil || n != 50 {
			t.Errorf("through standbys: %d rows, %v", n, err)
		}
	}

	// The worker's standby takes over: the rows change places, the old primary's address stays as that of the secondary.
	old := f.servers[1]
	old.kill()
	w2.promote()
	f.servers[1], f.standbys[1] = w2, []Secondary{{Addr: old.addr, NodeCluster: "default", Standing: Away}}
	if _, err := f.round(); err != nil {
		t.Error(err)
	}
	want := maps.Clone(before)
	for id, a := range before {
		switch a {
		case old.addr.String():
			want[id] = w2.addr.String()
		case w2.addr.String():
			want[id] = old.addr.String()
		}
	}
	for g, s := range f.servers {
		if d := cmp.Diff(want, s.rows()); d != "" {
			t.Errorf("copy of group %d after the failover (-want +got):\n%s", g, d)
		}
	}

	// Another standby comes while the worker's metadata is out of sync: the row of the one that is gone becomes its row.
	w3 := w2.standby()
	f.standbys[1] = []Secondary{{Addr: w3.addr, NodeCluster: "default"}}
	if _, err := f.round(); err != nil {
		t.Error(err)
	}
	f.settle()
	for id, a := range want {
		if a == old.addr.String() {
			want[id] = w3.addr.String()
		}
	}
	if d := cmp.Diff(want, f.agreed()); d != "" {
		t.Errorf("another standby (-want +got):\n%s", d)
	}

	f.standbys = nil
	f.settle()
	if rows := f.agreed(); len(rows) != 2 {
		t.Errorf("standbys are not wanted any more: %v", rows)
	}
}

func (s *server) pools(database string) map[int]string {
	s.t.Helper()
	c := s.session(database)
	a, err := Observe(s.t.Context(), c)
	_ = c.Close(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return a.Pool
}

// Entries for every row, on every node, through a failover, a new group and a new database; none when the setting goes.
func TestPoolInfo(t *testing.T) {
	t.Parallel()
	f := newTrial(t, 1)
	check := func(when string, n int) {
		t.Helper()
		f.settle()
		for _, w := range f.wants() {
			for g, s := range f.servers {
				want := map[int]string{}
				for i := range n {
					want[i+1] = poolText(f.poolPort)
				}
				if d := cmp.Diff(want, s.pools(w.Database)); d != "" {
					t.Errorf("%s: %s of group %d (-want +got):\n%s", when, w.Database, g, d)
				}
			}
		}
	}
	b := f.servers[1].standby()
	// Entries name a port; a port that nobody listens on would cut Citus off, so it is the servers' own where one is needed.
	for _, s := range f.servers {
		s.exec(appDB, "INSERT INTO pg_dist_poolinfo VALUES (99, 'host=elsewhere')")
	}
	f.poolPort = 1
	if rep, err := f.round(); err != nil || len(rep.Differences) != 4 {
		t.Errorf("%+v, %v", rep, err)
	}
	for g, s := range f.servers {
		if got := s.pools(appDB); len(got) != 3 || got[1] != "port='1'" || got[2] != "port='1'" || got[99] != "host=elsewhere" {
			t.Errorf("group %d: %v", g, got)
		}
		s.exec(appDB, "DELETE FROM pg_dist_poolinfo WHERE nodeid = 99")
	}
	f.servers[1].exec(appDB, "UPDATE pg_dist_poolinfo SET poolinfo = 'host=x' WHERE nodeid = 1")
	check("edited by hand", 2)
	f.servers[1].caughtUp(b)
	f.servers[1].kill()
	b.promote()
	f.servers[1] = b
	if _, err := f.round(); err != nil {
		t.Error(err)
	}
	for g, s := range f.servers {
		if got := s.pools(appDB); len(got) != 2 {
			t.Errorf("after the failover, group %d: %v", g, got)
		}
	}
	f.poolPort = 0
	check("switched off", 0)
}
