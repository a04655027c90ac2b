package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
	"matriarch/internal/config"
	"matriarch/internal/demo"
	"matriarch/internal/identity"
	"matriarch/transport"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fake is a cluster without nodes.
type fake struct {
	st     admin.Status
	nodes  map[fsm.NodeID]admin.Status // who answers StatusOf
	got    []admin.Request
	submit func(admin.Request) (fsm.Result, error)
	asked  func(n int) admin.Status // the n-th Formation, when the state moves
	count  int
	err    error

	restarted []string
	unfit     error

	citus func(to fsm.NodeID, r admin.CitusRequest) ([]admin.CitusAnswer, error)
	did   []admin.CitusDo // of the leader
}

func newFake() *fake {
	f := &fake{st: admintest.Status(admintest.Coord1), nodes: map[fsm.NodeID]admin.Status{}}
	for _, id := range f.st.State.NodeIDs() {
		f.nodes[id] = admintest.Status(id)
	}
	return f
}

func (f *fake) Self() identity.Identity {
	return identity.Identity{ClusterID: f.st.State.Cluster.ID, Incarnation: 1, NodeID: admintest.Coord2, Name: "coord-2"}
}
func (f *fake) Close()                                           {}
func (f *fake) Status(ctx context.Context) (admin.Status, error) { return f.Formation(ctx) }

func (f *fake) Formation(context.Context) (admin.Status, error) {
	f.count++
	if f.asked != nil {
		return f.asked(f.count), f.err
	}
	return f.st, f.err
}

func (f *fake) StatusOf(_ context.Context, n fsm.Node) (admin.Status, error) {
	if st, ok := f.nodes[n.ID]; ok {
		return st, nil
	}
	return admin.Status{}, errors.New("ask " + n.Name + ": connection refused; is matriarch running there?")
}

func (f *fake) Submit(_ context.Context, r admin.Request) (fsm.Result, error) {
	f.got = append(f.got, r)
	if f.submit != nil {
		return f.submit(r)
	}
	return fsm.Result{OK: true}, nil
}

func (f *fake) RestartStandby(_ context.Context, n fsm.Node) error {
	st := f.nodes[n.ID]
	self := *st.Self
	self.Postmaster++
	st.Self = &self
	f.nodes[n.ID] = st
	f.restarted = append(f.restarted, n.Name)
	return nil
}

func (f *fake) Reinit(_ context.Context, n fsm.Node, from fsm.NodeID) error {
	f.restarted = append(f.restarted, n.Name+" from "+string(from))
	return nil
}

func (f *fake) Snapshot(context.Context) ([]byte, error) {
	var b bytes.Buffer
	err := fsm.WriteSnapshot(&b, f.st.State)
	return b.Bytes(), errors.Join(err, f.err)
}

func (f *fake) WouldSwitch(_ context.Context, _ fsm.Node, _ fsm.GroupID, to fsm.NodeID) (fsm.NodeID, error) {
	return to, f.unfit
}

func (f *fake) Citus(_ context.Context, to fsm.Node, r admin.CitusRequest) ([]admin.CitusAnswer, error) {
	if r.Do.Writes() {
		f.did = append(f.did, r.Do)
	}
	return f.citus(to.ID, r)
}

// group changes a group of the fake's state.
func (f *fake) group(id fsm.GroupID, change func(*fsm.Group)) {
	g := f.st.State.Groups[id]
	change(&g)
	f.st.State.Groups[id] = g
}

func (f *fake) node(id fsm.NodeID, change func(*fsm.Node)) {
	n := f.st.State.Nodes[id]
	change(&n)
	f.st.State.Nodes[id] = n
}

// host writes a configuration and a CA, as a node has them.
func host(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Node.ID, cfg.Node.Name = "0ccccccc-0000-4000-8000-000000000001", "coord-2"
	cfg.Listen, cfg.API.Listen, cfg.PostgreSQL.Listen = "10.0.0.2:7400", "10.0.0.2:8008", "10.0.0.2:5432"
	cfg.StateDir = filepath.Join(dir, "state")
	ca, err := transport.NewCA("0aaaaaaa-0000-4000-8000-000000000001", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.Dir(cfg.StateDir).SaveMaterial(identity.Material{CA: ca.CertPEM()}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "matriarch.yml")
	if err := cfg.Save(file); err != nil {
		t.Fatal(err)
	}
	return file
}

type outcome struct {
	code     int
	out, err string
}

// invoke runs a command line against the fake; typed is what the operator types.
func invoke(t *testing.T, f *fake, typed string, args ...string) outcome {
	t.Helper()
	t.Setenv("MATRIARCH_CONFIG", host(t))
	var out, errOut bytes.Buffer
	p := &program{
		in: strings.NewReader(typed), out: &out, err: &errOut, now: func() time.Time { return admintest.Now },
		open: func(config.Config) (cluster, error) { return f, nil },
	}
	code := p.run(t.Context(), append([]string{"matriarch"}, args...))
	return outcome{code, out.String(), errOut.String()}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (go test -update rewrites it): %s", file, diff)
	}
}

// troubled is a formation in which everything is wrong that list can show.
func troubled() *fake {
	f := newFake()
	f.group(0, func(g *fsm.Group) {
		g.Op = &fsm.Operation{ID: "op", Kind: "failover", To: admintest.Coord2, By: "root@h1", At: admintest.Now.Add(-3 * time.Second)}
		g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, admintest.Coord2), fsm.NewPair(1, admintest.Coord2, admintest.Coord3)}
	})
	f.group(1, func(g *fsm.Group) {
		g.Paused = true
		g.Sync.Pairs = []fsm.Pair{{}}
	})
	f.node(admintest.Work2, func(n *fsm.Node) { n.Report.Fence, n.Report.Pending = "weak", true })
	f.node(admintest.Work1, func(n *fsm.Node) { n.Report = fsm.Report{State: "creating replica"} })
	f.st.Heard[admintest.Coord3] = 12 * time.Second
	f.st.Metadata.Synced, f.st.Metadata.Error = false, "group 1: connection refused"
	return f
}

func TestGolden(t *testing.T) {
	silent := newFake()
	delete(silent.nodes, admintest.Coord3)
	for name, c := range map[string]struct {
		f    *fake
		args string
		code int
	}{
		"list":              {newFake(), "list", 0},
		"list-group":        {newFake(), "list --group 1", 0},
		"list-yaml":         {newFake(), "list -g 1 -o yaml", 0},
		"list-troubled":     {troubled(), "list", 0},
		"topology":          {newFake(), "topology", 0},
		"status":            {newFake(), "status", 0},
		"status-troubled":   {troubled(), "status", 0},
		"status-primary":    {newFake(), "status coord-1", 0},
		"status-standby":    {newFake(), "status id-work1-1", 0},
		"status-silent":     {silent, "status coord-3", 1},
		"explain-this":      {newFake(), "explain", 0},
		"explain-node":      {newFake(), "explain work1-2", 0},
		"explain-group":     {newFake(), "explain --group 1", 0},
		"explain-group-js":  {newFake(), "explain --group 1 --output json", 0},
		"history":           {newFake(), "history", 0},
		"token-list":        {newFake(), "token list", 0},
		"config-set-help":   {newFake(), "config set --help", 0},
		"token-create-help": {newFake(), "token create --help", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, c.f, "", strings.Fields(c.args)...)
			if got.code != c.code || got.err != "" {
				t.Errorf("exit code %d, stderr %q", got.code, got.err)
			}
			golden(t, name, got.out)
		})
	}
}

func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"":                              "no verb given",
		"lst":                           `unknown verb "lst" (did you mean list?)`,
		"frobnicate":                    `unknown verb "frobnicate": see 'matriarch --help'`,
		"list --foo":                    "unknown flag --foo: see 'matriarch list --help'",
		"list -x":                       "unknown flag -x",
		"list extra":                    `unexpected argument "extra"`,
		"list --output xml":             `output "xml" must be table, json or yaml`,
		"list --interval 0":             "interval",
		"list --group one":              "invalid value",
		"list --config":                 "flag --config needs a value",
		"token":                         "say which: list, create, revoke",
		"token mint":                    `unknown verb "mint"`,
		"token revoke":                  "ID is missing: see 'matriarch token revoke --help'",
		"token create --ttl 1s":         "ttl",
		"token create --uses 0":         "uses 0",
		"remove":                        "NODE is missing",
		"failover":                      "--group is missing",
		"failover --group 1 --trust":    "--trust needs --candidate",
		"explain coord-1 --group 0":     "not both",
		"config set":                    "KEY=VALUE is missing",
		"config set ttl=1s":             "ttl: 1s must be 4s to 1m0s",
		"config set nope=1":             `unknown setting "nope"`,
		"join":                          "--token is missing",
		"sentinel":                      "--socket is missing",
		"citus":                         "say which: status, rebalance, drain, remove-group, add-group",
		"citus drain":                   "GROUP is missing",
		"citus drain two":               `GROUP "two" must be a number`,
		"citus rebalance --mode x":      `mode "x" must be auto`,
		"citus rebalance --plan --stop": "give one of them",
		"switchover --group 1 --force --wait-moves 48h": "--wait-moves 48h0m0s must be",
		"demo fly":              `unknown verb "fly"`,
		"demo kill":             "NODE is missing",
		"demo measure --runs 0": "runs 0",
	} {
		got := invoke(t, newFake(), "", strings.Fields(args)...)
		if got.code != 2 || !strings.Contains(got.err, want) || got.out != "" {
			t.Errorf("%q: exit code %d, stderr %q, stdout %q", args, got.code, got.err, got.out)
		}
		if args != "" && strings.Count(got.err, "\n") != 1 {
			t.Errorf("%q: more than one line: %q", args, got.err)
		}
	}
}

func TestRefusals(t *testing.T) {
	refusing := func() *fake {
		f := newFake()
		f.submit = func(admin.Request) (fsm.Result, error) { return fsm.Result{Reason: "not today"}, nil }
		return f
	}
	broken := newFake()
	broken.err = errors.New("no node of the cluster answered: tried coord-2 10.0.0.2:7400")
	primary := newFake()
	primary.group(0, func(g *fsm.Group) { g.Lease.Holder = admintest.Coord2 })
	for name, c := range map[string]struct {
		f    *fake
		args string
		want string
	}{
		"nobody answers":      {broken, "list", "no node of the cluster answered"},
		"unknown node":        {newFake(), "status nobody", `there is no node "nobody": nodes are coord-1, coord-2, coord-3, work1-1, work1-2`},
		"unknown group":       {newFake(), "list --group 7", "there is no group 7: groups are 0, 1"},
		"revoke refused":      {refusing(), "token revoke abc", "revoke refused: not today"},
		"remove a primary":    {newFake(), "remove work1-2 --yes", "first 'matriarch failover --group 1'"},
		"leave as primary":    {primary, "leave --yes", "leave refused: coord-2 is the primary of group 0: first 'matriarch failover --group 0'"},
		"failover refused":    {refusing(), "failover --group 1 --candidate work1-1 --yes", "failover refused: not today"},
		"failover, bad group": {newFake(), "failover --group 9 --yes", "there is no group 9"},
		"no config":           {newFake(), "list --config /nowhere/matriarch.yml", "/nowhere/matriarch.yml"},
		"bad config":          {newFake(), "config validate /dev/null", "node.id"},
		"no demo":             {newFake(), "demo status --dir /nowhere/demo", "there is no demo in /nowhere/demo"},
		"no such demo node":   {newFake(), "demo kill moon-1 --dir /nowhere/demo", "nodes are coord-1"},
		"kill what":           {newFake(), "demo kill coord-1 --only tail --dir /nowhere/demo", "must be agent, sentinel or postmaster"},
	} {
		t.Run(name, func(t *testing.T) {
			got := invoke(t, c.f, "", strings.Fields(c.args)...)
			if got.code != 1 || !strings.Contains(got.err, c.want) || got.out != "" {
				t.Errorf("exit code %d, stderr %q, stdout %q", got.code, got.err, got.out)
			}
		})
	}
}

func TestVersionInEveryForm(t *testing.T) {
	var v map[string]any
	if err := json.Unmarshal([]byte(invoke(t, newFake(), "", "version", "--output", "json").out), &v); err != nil || v["version"] != version {
		t.Errorf("%v, %v", v, err)
	}
	if got := invoke(t, newFake(), "", "--output", "yaml", "version"); !strings.HasPrefix(got.out, "version: "+version+"\n") {
		t.Error(got.out)
	}
	if got := invoke(t, newFake(), "", "version"); !strings.HasPrefix(got.out, "matriarch "+version) {
		t.Error(got.out)
	}
}

// TestEveryVerbHasAnExample: also those of other files, and each example names an existing verb.
func TestEveryVerbHasAnExample(t *testing.T) {
	p := &program{}
	var check func(path string, commands []*cli.Command)
	check = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := path + " " + c.Name
			if c.Usage == "" || !strings.Contains(c.Description, "Example:") || !strings.Contains(c.Description, "matriarch ") {
				t.Errorf("%s: no usage or no example: %q", name, c.Description)
			}
			if !strings.Contains(c.Description, name) && len(c.Subcommands) == 0 {
				t.Errorf("%s: the example shows something else: %q", name, c.Description)
			}
			check(name, c.Subcommands)
		}
	}
	check("matriarch", p.app().Commands)
}

func TestArrange(t *testing.T) {
	app := (&program{}).app()
	for in, want := range map[string]string{
		"m list":                               "m list",
		"m list --config f --group 1":          "m --config f list --group 1",
		"m --config f list":                    "m --config f list",
		"m remove work1 --yes --config=f":      "m --config=f remove --yes work1",
		"m join 1.2.3.4:1 --token t --group 1": "m join --token t --group 1 1.2.3.4:1",
		"m token revoke abc --output json":     "m --output json token revoke abc",
		"m demo kill n1 --only agent --dir d":  "m demo kill --only agent --dir d n1",
		"m demo --keep --dir d":                "m demo --keep --dir d",
		"m config set a=1 -o json b=2":         "m -o json config set a=1 b=2",
		"m remove -- --yes":                    "m remove -- --yes",
		"m remove --help":                      "m remove --help",
		"m status list":                        "m status list", // a node may be called like a verb
	} {
		got, err := arrange(app, strings.Fields(in))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s became %s, not %s (%v)", in, strings.Join(got, " "), want, err)
		}
	}
}

func TestGlobalFlagBeforeTheVerb(t *testing.T) {
	file := host(t)
	for _, args := range [][]string{{"--config", file, "config", "validate"}, {"config", "validate", "--config", file}, {"config", "validate", file}} {
		if got := invoke(t, newFake(), "", args...); got.code != 0 || !strings.Contains(got.out, file+" is valid") {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestDemoTable(t *testing.T) {
	var b bytes.Buffer
	renderDemo(&b, []demo.NodeStatus{{Name: "coord-1", Postgres: "127.0.77.11:6432", API: "127.0.77.11:8008", Pids: demo.Pids{Agent: 12}, Role: "Primary", State: "running", Dir: "/d/coord-1"}})
	golden(t, "demo-status", b.String())
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1 B", 1023: "1023 B", 1024: "1 kB", 1 << 20: "1.0 MB", 16 << 20: "16.0 MB", 3 << 30: "3.0 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	if !slices.Contains([]string{"15.20"}, pgVersion(150020)) {
		t.Error(pgVersion(150020))
	}
}
