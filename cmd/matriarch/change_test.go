package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/transport"
)

func TestTokenCreate(t *testing.T) {
	f := newFake()
	got := invoke(t, f, "", "token", "create", "--ttl", "2h", "--uses", "3", "--output", "json")
	if got.code != 0 {
		t.Fatal(got)
	}
	var made tokenMade
	if err := json.Unmarshal([]byte(got.out), &made); err != nil {
		t.Fatal(err)
	}
	token, err := transport.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	put := f.got[0].TokenPut.Token
	if !transport.SecretMatches(token.Secret, put.Hash) || put.ID != token.ID || put.Uses != 3 || !put.Expires.Equal(admintest.Now.Add(2*time.Hour)) {
		t.Errorf("token %+v was put as %+v", token, put)
	}
	if strings.Contains(put.Hash, token.Secret) {
		t.Error("the secret reached the state")
	}
	if made.Join != "matriarch join 10.0.0.2:7400 --token "+made.Token {
		t.Errorf("join line %q", made.Join)
	}
}

func TestConfigSet(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "", "config", "set", "ttl=8s", "databases=app,web"); got.code != 0 {
		t.Fatal(got)
	}
	want := fsm.DefaultSettings()
	want.TTL, want.Databases = 8*time.Second, []string{"app", "web"}
	if diff := cmp.Diff(want, f.got[0].SettingsPut.Settings); diff != "" {
		t.Error(diff)
	}
}

func TestRemoveAsksAndDrains(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "coord\n", "remove", "coord-2"); got.code != 1 || len(f.got) != 0 || !strings.Contains(got.err, "nothing was changed") {
		t.Fatalf("a mistyped name: %+v, %d requests", got, len(f.got))
	}
	// The primary lets go of coord-2 once it is tagged.
	f.submit = func(r admin.Request) (fsm.Result, error) {
		if r.NodePut != nil && r.NodePut.Node.Tags.NoSync {
			f.group(0, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{{}} })
		}
		return fsm.Result{OK: true}, nil
	}
	got := invoke(t, f, "coord-2\n", "remove", "coord-2")
	if got.code != 0 || !strings.Contains(got.out, "coord-2 is removed") {
		t.Fatal(got)
	}
	if len(f.got) != 2 || f.got[0].NodePut == nil || f.got[1].NodeRemove == nil || f.got[1].NodeRemove.Node != admintest.Coord2 {
		t.Errorf("%+v", f.got)
	}
}

func TestRemoveFromAStrictGroup(t *testing.T) {
	f := newFake()
	f.group(0, func(g *fsm.Group) { g.Strict = true }) // coord-3 is tagged nosync: coord-2 is the only one to confirm
	for _, node := range []string{"coord-2", "leave"} {
		args := []string{"remove", node, "--yes"}
		if node == "leave" {
			args = []string{"leave", "--yes"}
		}
		if got := invoke(t, f, "", args...); got.code != 1 || len(f.got) != 0 || !strings.Contains(got.err, "strict=false") {
			t.Errorf("%v: %+v, %d requests", args, got, len(f.got))
		}
	}
	if got := invoke(t, f, "", "remove", "coord-3", "--yes"); got.code != 0 {
		t.Errorf("one that confirms nothing: %+v", got)
	}
}

func TestRemoveRefusedPutsTheTagBack(t *testing.T) {
	f := newFake()
	f.submit = func(r admin.Request) (fsm.Result, error) {
		if r.NodeRemove != nil {
			return fsm.Result{Reason: "not today"}, nil
		}
		f.group(0, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{{}} })
		return fsm.Result{OK: true}, nil
	}
	got := invoke(t, f, "", "leave", "--yes")
	if got.code != 1 || !strings.Contains(got.err, "leave refused: not today") {
		t.Fatal(got)
	}
	if len(f.got) != 3 || f.got[2].NodePut == nil || f.got[2].NodePut.Node.Tags.NoSync {
		t.Errorf("%+v", f.got)
	}
}

// TestRemoveOfADeadNode needs no draining: the group has let it go already.
func TestRemoveOfADeadNode(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "", "remove", "coord-3", "--yes"); got.code != 0 || len(f.got) != 1 || f.got[0].NodeRemove == nil {
		t.Errorf("%+v, %+v", got, f.got)
	}
}

// failing makes a fake in which a failover of group 1 goes the given way.
func failing(after func(st *admin.Status, op fsm.Operation, asked int)) *fake {
	f := newFake()
	var op *fsm.Operation
	f.submit = func(r admin.Request) (fsm.Result, error) {
		op = &r.OperationPut.Operation
		f.count = 0
		return fsm.Result{OK: true}, nil
	}
	f.asked = func(n int) admin.Status {
		st := admintest.Status(admintest.Coord1)
		if op != nil {
			after(&st, *op, n)
		}
		return st
	}
	return f
}

func TestFailover(t *testing.T) {
	f := failing(func(st *admin.Status, op fsm.Operation, asked int) {
		g := st.State.Groups[1]
		switch {
		case asked < 2:
			g.Op = &op
		case asked < 3: // granted, not open
			g.Epoch = fsm.Epoch{Inc: 1, N: 3}
			g.Lease = fsm.Lease{Holder: op.To, Epoch: g.Epoch}
		default:
			g.Epoch = fsm.Epoch{Inc: 1, N: 3}
			g.Lease = fsm.Lease{Holder: op.To, Epoch: g.Epoch}
			g.Sync.Confirmed = g.Epoch
			g.Grants = append(g.Grants, fsm.Grant{Epoch: g.Epoch, Holder: op.To, Timeline: 3, Parent: 2})
		}
		st.State.Groups[1] = g
	})
	got := invoke(t, f, "yes\n", "failover", "--group", "1", "-o", "json")
	var v map[string]any
	if err := json.Unmarshal([]byte(got.out), &v); err != nil || got.code != 0 {
		t.Fatal(err, got)
	}
	if v["primary"] != "work1-1" || v["from"] != "work1-2" || v["epoch"] != "1.3" || v["timeline"] != 3.0 {
		t.Errorf("%v", v)
	}
	op := f.got[0].OperationPut.Operation
	if op.To != admintest.Work1 || op.Kind != "failover" || op.ID == "" || !strings.Contains(op.By, "@") {
		t.Errorf("without a candidate the best standby is named: %+v", op)
	}
	if f.count < 3 {
		t.Errorf("reported after %d looks, before the primary was open", f.count)
	}
}

func TestFailoverGivenUp(t *testing.T) {
	f := failing(func(st *admin.Status, _ fsm.Operation, _ int) {
		st.State.History[1] = append(st.State.History[1], fsm.History{Kind: "operation", Text: "failover to work1-1 asked for"}, fsm.History{Kind: "operation", Text: "given up: work1-1 lacks commits"})
	})
	got := invoke(t, f, "", "failover", "--group", "1", "--candidate", "work1-1", "--yes")
	if got.code != 1 || !strings.Contains(got.err, "failover was given up: work1-1 lacks commits") {
		t.Error(got)
	}
}

func TestFailoverTakesTooLong(t *testing.T) {
	f := failing(func(st *admin.Status, op fsm.Operation, _ int) {
		g := st.State.Groups[1]
		g.Op = &op
		st.State.Groups[1] = g
	})
	got := invoke(t, f, "", "failover", "--group", "1", "--yes", "--wait", "250ms")
	if got.code != 1 || !strings.Contains(got.err, "still asked for: work1-2 holds epoch 1.2") {
		t.Error(got)
	}
}

func TestFailoverElectsTheSameAgain(t *testing.T) {
	f := failing(func(st *admin.Status, _ fsm.Operation, _ int) {
		g := st.State.Groups[1]
		g.Epoch = fsm.Epoch{Inc: 1, N: 3}
		g.Lease.Epoch, g.Sync.Confirmed = g.Epoch, g.Epoch
		st.State.Groups[1] = g
	})
	got := invoke(t, f, "", "failover", "--group", "1", "--yes")
	if got.code != 1 || !strings.Contains(got.err, "work1-2 was elected again") {
		t.Error(got)
	}
}

func TestBestStandby(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fake)
		want   fsm.NodeID
	}{
		"in the synchronous set": {func(*fake) {}, admintest.Coord2},
		"silent":                 {func(f *fake) { f.st.Heard[admintest.Coord2] = time.Minute }, admintest.Coord3},
		"nofailover": {func(f *fake) {
			f.node(admintest.Coord2, func(n *fsm.Node) { n.Tags.NoFailover = true })
		}, admintest.Coord3},
		"priority": {func(f *fake) {
			f.group(0, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, admintest.Coord2, admintest.Coord3)} })
			f.node(admintest.Coord3, func(n *fsm.Node) { n.Tags.FailoverPriority = 9 })
		}, admintest.Coord3},
		"nobody streams": {func(f *fake) {
			for _, id := range []fsm.NodeID{admintest.Coord2, admintest.Coord3} {
				f.node(id, func(n *fsm.Node) { n.Report.State = "starting" })
			}
		}, ""},
	} {
		f := newFake()
		c.change(f)
		if got := bestStandby(f.st, 0); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestConfigSetGroup(t *testing.T) {
	f := newFake()
	if got := invoke(t, f, "", "config", "set", "--group", "1", "mode=on", "strict=true", "synchronous_node_count=2", "maximum_lag_on_syncnode=16MB", "early_failover=false"); got.code != 0 {
		t.Fatal(got)
	}
	want := &fsm.GroupSet{Group: 1, Mode: fsm.On, Strict: new(true), SyncCount: new(2), SyncLag: new(int64(16 << 20)), Early: new(false), By: operator()}
	if diff := cmp.Diff(want, f.got[0].GroupSet); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"mode=sync", "strict=yes", "synchronous_node_count=0", "synchronous_node_count=x", "maximum_lag_on_syncnode=1XB", "ttl=5s", "mode"} {
		f := newFake()
		if got := invoke(t, f, "", "config", "set", "--group", "1", bad); got.code == 0 || len(f.got) != 0 {
			t.Errorf("%s: %+v", bad, got)
		}
	}
}

// TestFailoverSaysWhatIsLost: how many bytes by the last reports, and nothing without a yes.
func TestFailoverSaysWhatIsLost(t *testing.T) {
	f := newFake()
	f.node(admintest.Work1, func(n *fsm.Node) { n.Report.Receive, n.Report.Replay = 1000, 900 })
	f.node(admintest.Work2, func(n *fsm.Node) { n.Report.Receive, n.Report.Replay = 1500, 1500 })
	got := invoke(t, f, "no\n", "failover", "--group", "1", "--candidate", "work1-1", "--accept-data-loss")
	if got.code == 0 || len(f.got) != 0 || !strings.Contains(got.out+got.err, "work1-1 lacks 500 bytes that work1-2 has") {
		t.Errorf("%+v, %d requests", got, len(f.got))
	}
	for _, args := range [][]string{{"--accept-data-loss"}, {"--accept-data-loss", "--trust", "--candidate", "work1-1"}} {
		if got := invoke(t, f, "", append([]string{"failover", "--group", "1", "--yes"}, args...)...); got.code == 0 || len(f.got) != 0 {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestLossText(t *testing.T) {
	at := func(tl fsm.Timeline, lsn fsm.LSN) fsm.Report { return fsm.Report{Timeline: tl, Receive: lsn} }
	for name, tc := range map[string]struct {
		candidate, other fsm.Report
		want             string
	}{
		"behind":           {at(2, 100), at(2, 160), "lacks 60 bytes"},
		"level":            {at(2, 100), at(2, 100), "lacks 0 bytes"},
		"another timeline": {at(2, 100), at(3, 160), "60 bytes or more"},
		"nothing reported": {at(0, 0), at(2, 160), "is not known"},
	} {
		s := fsm.NewState()
		s.Nodes["b"], s.Nodes["c"] = fsm.Node{ID: "b", Name: "b", Report: tc.other}, fsm.Node{ID: "c", Name: "c", Report: tc.candidate}
		if got := lossText(s, fsm.Group{}, "c"); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}
