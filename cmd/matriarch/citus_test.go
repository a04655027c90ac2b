package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"matriarch/citus"
	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/transport"
)

// rows are what every node's copy of the sample has.
func rows() []citus.NodeRow {
	return []citus.NodeRow{
		{NodeID: 1, Group: 0, Role: "primary", Addr: "10.0.0.1:5432", Cluster: "default", Active: true, HasMetadata: true, Synced: true},
		{NodeID: 2, Group: 1, Role: "primary", Addr: "10.0.0.5:5432", Cluster: "default", Active: true, HasMetadata: true, Synced: true, TakesShards: true},
		{NodeID: 3, Group: 1, Role: "secondary", Addr: "10.0.0.4:5432", Cluster: "default", Active: true, TakesShards: true},
	}
}

func databaseStatus() citus.DatabaseStatus {
	return citus.DatabaseStatus{
		Database: "app",
		Wanted: []citus.WantedRow{
			{Group: 0, Role: "primary", Addr: "10.0.0.1:5432", Cluster: "default"},
			{Group: 1, Role: "primary", Addr: "10.0.0.5:5432", Cluster: "default"},
			{Group: 1, Role: "secondary", Addr: "10.0.0.4:5432", Cluster: "default"},
		},
		Nodes: []citus.NodeStatus{
			{Group: 0, Addr: "10.0.0.1:5432", Extension: "13.2-1", Rows: rows()},
			{Group: 1, Addr: "10.0.0.5:5432", Extension: "13.2-1", Rows: rows()},
		},
	}
}

func statusAnswers(d ...citus.DatabaseStatus) []admin.CitusAnswer {
	var out []admin.CitusAnswer
	for _, x := range d {
		out = append(out, admin.CitusAnswer{Database: x.Database, Status: &x})
	}
	return out
}

// wrong is a formation in which everything is wrong that the status can show.
func wrong() citus.DatabaseStatus {
	d := databaseStatus()
	d.Wanted = append(d.Wanted, citus.WantedRow{Group: 2, Role: "primary", Addr: "10.0.0.6:5432"}, citus.WantedRow{Group: 1, Role: "secondary", Addr: "10.0.0.7:5432", Keep: true})
	have := d.Nodes[0].Rows
	have[1].Synced, have[1].Active, have[2].Cluster, have[1].Pool = false, false, "reports", "port='6432'"
	d.Nodes[0].Rows = append(have, citus.NodeRow{NodeID: 9, Group: 7, Role: "primary", Addr: "10.0.0.9:5432", Active: true, HasMetadata: true, Synced: true})
	other := d.Nodes[1].Rows
	other[0].Addr = "10.0.0.2:5432"
	d.Nodes = append(d.Nodes, citus.NodeStatus{Group: 2, Addr: "10.0.0.6:5432", Error: "connection refused"})
	d.Differences = []string{"group 1: row 1 goes from 10.0.0.2:5432 to 10.0.0.1:5432"}
	d.Problems = []string{"row 9 at 10.0.0.9:5432 belongs to group 7, which the formation does not have"}
	return d
}

func TestCitusStatus(t *testing.T) {
	for name, c := range map[string]struct {
		d    citus.DatabaseStatus
		args string
		code int
	}{
		"citus-status":       {databaseStatus(), "citus status", 0},
		"citus-status-yaml":  {databaseStatus(), "citus status -o yaml", 0},
		"citus-status-wrong": {wrong(), "citus status", 1},
	} {
		f := newFake()
		f.citus = func(to fsm.NodeID, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
			if to != "" || r.Do != admin.CitusStatus {
				t.Errorf("%s asked for %+v", to, r)
			}
			return statusAnswers(c.d), nil
		}
		got := invoke(t, f, "", strings.Fields(c.args)...)
		if got.code != c.code || got.err != "" {
			t.Errorf("%s: exit code %d, stderr %q", name, got.code, got.err)
		}
		golden(t, name, got.out)
	}
}

// moving is a job at one moment.
func moving(state string, did, all int, moves ...citus.Move) []admin.CitusAnswer {
	job := &citus.Job{ID: 5, State: state, Tasks: map[string]int{"done": did, "runnable": all - did}}
	return []admin.CitusAnswer{{Database: "app", Progress: &citus.Progress{Job: job, Moves: moves}}}
}

func move(state string, copied int64) citus.Move {
	return citus.Move{
		Table: "facts", Shard: 102008, Bytes: 40 << 20, Copied: copied, State: state, Detail: "Copying Data",
		From: citus.Addr{Host: "10.0.0.5", Port: 5432}, To: citus.Addr{Host: "10.0.0.6", Port: 5432},
	}
}

// TestRebalanceWatched: a coordinator that fails over and a leader that changes in the middle cost nothing but time.
func TestRebalanceWatched(t *testing.T) {
	f := newFake()
	looks, asked := 0, 0
	f.citus = func(to fsm.NodeID, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
		switch r.Do {
		case admin.CitusPlan:
			return []admin.CitusAnswer{{Database: "app", Moves: []citus.Move{move("planned", 0)}}}, nil
		case admin.CitusRebalance:
			if asked++; asked == 1 {
				return nil, &transport.Error{Code: transport.CodeNotLeader, Message: "this node is not the Raft leader"}
			}
			if to != admintest.Coord1 {
				t.Errorf("asked %s to write", to)
			}
			return []admin.CitusAnswer{{Database: "app", Job: 5}}, nil
		}
		looks++
		switch looks {
		case 1:
			return []admin.CitusAnswer{{Database: "app", Progress: &citus.Progress{}}}, nil
		case 2:
			return moving("running", 0, 2, move("moving", 10<<20)), nil
		case 3:
			return nil, errors.New("no node of the cluster answered")
		case 4:
			return []admin.CitusAnswer{{Database: "app", Error: "progress of app: the coordinator has no primary now"}}, nil
		case 5:
			return moving("running", 1, 2, move("moving", 30<<20)), nil
		}
		return moving("finished", 2, 2), nil
	}
	got := invoke(t, f, "", "citus", "rebalance", "--watch", "--interval", "0.05", "--strategy", "by_disk_size")
	if got.code != 0 || got.err != "" {
		t.Fatalf("%+v", got)
	}
	golden(t, "citus-rebalance", got.out)
}

func TestRebalance(t *testing.T) {
	failed := moving("failed", 1, 2)
	failed[0].Progress.Job.Errors = []string{"task 3, tried again 30 times: no such host"}
	for name, c := range map[string]struct {
		args     string
		progress []admin.CitusAnswer
		job      int64
		code     int
		did      []admin.CitusDo
		says     string
	}{
		"plan":           {"--plan", nil, 0, 0, nil, "102008"},
		"started":        {"", nil, 5, 0, []admin.CitusDo{admin.CitusRebalance}, "app: job 5 has begun"},
		"nothing to do":  {"", nil, 0, 0, []admin.CitusDo{admin.CitusRebalance}, "nothing has to move"},
		"stop":           {"--stop", nil, 0, 0, []admin.CitusDo{admin.CitusStop}, "cancelled"},
		"joined":         {"--watch --interval 0.05", moving("running", 1, 2), 0, 1, nil, "job 5 is failed: task 3, tried again 30 times: no such host"},
		"in json":        {"-o json", nil, 5, 0, []admin.CitusDo{admin.CitusRebalance}, `"job": 5`},
		"watched, json":  {"--watch --interval 0.05 -o json", moving("running", 1, 2), 0, 1, nil, `"state": "failed"`},
		"other database": {"--database web", nil, 5, 1, nil, "there is no database"},
	} {
		f := newFake()
		looks := 0
		f.citus = func(_ fsm.NodeID, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
			if r.Database == "web" {
				return nil, errors.New(`there is no database "web": there are app`)
			}
			switch r.Do {
			case admin.CitusPlan:
				return []admin.CitusAnswer{{Database: "app", Moves: []citus.Move{move("planned", 0)}}}, nil
			case admin.CitusProgress:
				if looks++; looks == 1 {
					return c.progress, nil
				}
				return failed, nil
			}
			return []admin.CitusAnswer{{Database: "app", Job: c.job}}, nil
		}
		got := invoke(t, f, "", append([]string{"citus", "rebalance"}, strings.Fields(c.args)...)...)
		if got.code != c.code || !strings.Contains(got.out+got.err, c.says) || !slices.Equal(f.did, c.did) {
			t.Errorf("%s: did %v, %+v", name, f.did, got)
		}
	}
}

func TestDrainAndRemove(t *testing.T) {
	holds := errors.New("remove group 1: it holds the only copy of shards: database app: table facts shard 102008: drain it first")
	for name, c := range map[string]struct {
		args  string
		typed string
		err   error
		code  int
		did   []admin.CitusDo
		says  string
	}{
		"drain":             {"drain 1", "", nil, 0, []admin.CitusDo{admin.CitusDrain}, "app: job 5 has begun"},
		"undrain":           {"drain 1 --undo", "", nil, 0, []admin.CitusDo{admin.CitusUndrain}, "takes shards again"},
		"drain refused":     {"drain 9", "", errors.New("there is no group 9"), 1, []admin.CitusDo{admin.CitusDrain}, "drain: there is no group 9"},
		"remove":            {"remove-group 1", "yes\n", nil, 0, []admin.CitusDo{admin.CitusRemove}, "'matriarch remove NODE'"},
		"remove, mistyped":  {"remove-group 1", "y\n", nil, 1, nil, "nothing was changed"},
		"remove with shard": {"remove-group 1 --yes", "", holds, 1, []admin.CitusDo{admin.CitusRemove}, "table facts shard 102008"},
	} {
		f := newFake()
		f.citus = func(_ fsm.NodeID, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
			if want := fsm.GroupID(1); c.err == nil && r.Group != want {
				t.Errorf("%s: group %d", name, r.Group)
			}
			return []admin.CitusAnswer{{Database: "app", Job: 5}}, c.err
		}
		got := invoke(t, f, c.typed, append([]string{"citus"}, strings.Fields(c.args)...)...)
		if got.code != c.code || !strings.Contains(got.out+got.err, c.says) || !slices.Equal(f.did, c.did) {
			t.Errorf("%s: did %v, %+v", name, f.did, got)
		}
	}
}

func TestAddGroup(t *testing.T) {
	f := newFake()
	looks := 0
	f.citus = func(fsm.NodeID, admin.CitusRequest) ([]admin.CitusAnswer, error) {
		d := databaseStatus()
		if looks++; looks == 1 {
			d.Nodes[0].Rows = d.Nodes[0].Rows[:1]
		}
		return statusAnswers(d), nil
	}
	if got := invoke(t, f, "", "citus", "add-group", "1"); got.code != 1 || !strings.Contains(got.err, "is not retired") || len(f.got) != 0 {
		t.Errorf("%+v", got)
	}
	f.group(1, func(g *fsm.Group) { g.Retired = true })
	if got := invoke(t, f, "", "list"); got.code != 0 || !strings.Contains(got.out, "group 1 is retired") {
		t.Errorf("%+v", got)
	}
	got := invoke(t, f, "", "citus", "add-group", "1")
	if got.code != 0 || looks != 2 || !strings.Contains(got.out, "group 1 is registered again") {
		t.Errorf("%+v after %d looks", got, looks)
	}
	if diff := cmp.Diff(&fsm.GroupSet{Group: 1, Retired: new(bool), By: operator()}, f.got[0].GroupSet); diff != "" {
		t.Error(diff)
	}
	if got := invoke(t, f, "", "citus", "add-group", "9"); got.code != 1 || !strings.Contains(got.err, "matriarch join --group 9") {
		t.Errorf("%+v", got)
	}
}

// TestRemoveTheLastNode: only of a group that was retired before.
func TestRemoveTheLastNode(t *testing.T) {
	f := newFake()
	delete(f.st.State.Nodes, admintest.Work1)
	f.group(1, func(g *fsm.Group) { g.Sync.Pairs = []fsm.Pair{{}} })
	if got := invoke(t, f, "", "remove", "work1-2", "--yes"); got.code != 1 || len(f.got) != 0 || !strings.Contains(got.err, "matriarch citus remove-group 1") {
		t.Errorf("%+v", got)
	}
	f.group(1, func(g *fsm.Group) { g.Retired = true })
	got := invoke(t, f, "work1-2\n", "remove", "work1-2")
	if got.code != 0 || len(f.got) != 1 || f.got[0].NodeRemove == nil || !strings.Contains(got.err, "last node of group 1") {
		t.Errorf("%+v, %+v", got, f.got)
	}
}

func TestSwitchoverWaitsForMoves(t *testing.T) {
	f := switching(func(op *fsm.Operation) { op.Done = true })
	if got := invoke(t, f, "", "switchover", "--group", "1", "--force", "--wait-moves", "10m"); got.code != 0 || f.got[0].OperationPut.Operation.WaitMoves.String() != "10m0s" {
		t.Errorf("%+v", got)
	}
}
