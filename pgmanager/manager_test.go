package pgmanager

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

func TestFind(t *testing.T) {
	empty := t.TempDir()
	_, err := search([]string{filepath.Join(empty, "*")}, empty, 0)
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatal(err)
	}
	contains(t, err, "install", "postgresql-17", "--pg-bin")
	_, err = Find(empty)
	contains(t, err, "lacks postgres, initdb", "--pg-bin")

	bins := t.TempDir()
	fake := func(version string) string {
		dir := filepath.Join(bins, version)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
		for _, n := range needed {
			if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) "+version+" (Debian)'\n"), 0o755); err != nil { //nolint:gosec // programs
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, v := range []string{"13.9", "14.11", "16.2", "17.1", "19beta1"} {
		fake(v)
	}
	for _, tc := range []struct {
		major int
		want  string
	}{{0, "17.1"}, {14, "14.11"}, {16, "16.2"}} {
		got, err := search([]string{filepath.Join(bins, "*")}, "", tc.major)
		if err != nil || got.Version.String() != tc.want || got.Dir != filepath.Join(bins, tc.want) {
			t.Errorf("major %d: %+v %v", tc.major, got, err)
		}
	}
	_, err = search([]string{filepath.Join(bins, "*")}, "", 15)
	contains(t, err, "version 15", "postgresql-15", "the data directory needs 15")
	_, err = Find(filepath.Join(bins, "13.9"))
	contains(t, err, "13.9", "14 to 18")
}

func TestConfigRefusals(t *testing.T) {
	if _, err := Find(""); err != nil {
		t.Skip(err)
	}
	good := Config{
		DataDir: "/tmp/x/data", RunDir: "/tmp/x/run", SocketDir: "/tmp/x", Host: "127.0.0.1", Port: 5432, LogFile: "/tmp/x/log",
		Superuser: "boss", ReplicationUser: "repl", SuperuserPassword: "p", ReplicationPassword: "q",
	}
	if _, err := New(good, nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		edit func(*Config)
		want []string
	}{
		{"relative path", func(c *Config) { c.DataDir = "data" }, []string{"data_dir", "absolute"}},
		{"run folder in the data", func(c *Config) { c.RunDir = "/tmp/x/data/run" }, []string{"inside data_dir"}},
		{"run folder is the data", func(c *Config) { c.RunDir = c.DataDir }, []string{"inside data_dir"}},
		{"port", func(c *Config) { c.Port = 0 }, []string{"port 0"}},
		{"long socket", func(c *Config) { c.SocketDir = "/" + strings.Repeat("s", 100) }, []string{"socket_dir", "shorter"}},
		{"one role", func(c *Config) { c.ReplicationUser = "boss" }, []string{"differ"}},
		{"no password", func(c *Config) { c.SuperuserPassword = "" }, []string{"passwords"}},
		{"managed parameter", func(c *Config) { c.Parameters = map[string]string{"Hot_Standby": "off"} }, []string{"parameter hot_standby"}},
		{"unknown user", func(c *Config) { c.User = "nobody-has-this-name" }, []string{"nobody-has-this-name", "postgresql.user"}},
		{"root", func(c *Config) { c.User = "root" }, []string{"postgresql.user"}},
		{"bin folder", func(c *Config) { c.BinDir = "/nowhere" }, []string{"/nowhere"}},
	} {
		c := good
		tc.edit(&c)
		_, err := New(c, nil)
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
			continue
		}
		contains(t, err, tc.want...)
	}
}

func TestLocalRecord(t *testing.T) {
	n := newNode(t)
	n.must(n.Promise(epoch(3)))
	n.must(n.Promise(epoch(3)))
	if err := n.Promise(epoch(2)); !errors.Is(err, ErrPromised) {
		t.Fatalf("a promise went back: %v", err)
	}
	n.must(n.Promise(fsm.Epoch{Inc: 2, N: 1}))
	n.must(n.SetLineage(map[fsm.Timeline]fsm.Epoch{4: epoch(3)}))
	l, err := n.Local()
	n.must(err)
	if diff := cmp.Diff(Local{Promise: fsm.Epoch{Inc: 2, N: 1}, Lineage: map[fsm.Timeline]fsm.Epoch{4: epoch(3)}}, l); diff != "" {
		t.Fatal(diff)
	}
	n.must(os.WriteFile(n.localFile(), []byte("{"), 0o600))
	contains(t, n.Promise(epoch(9)), "local.json", "restore")
}

func TestCredentials(t *testing.T) {
	n := newNode(t)
	var paths []string
	for _, e := range []fsm.Epoch{{Inc: 1, N: 9}, {Inc: 1, N: 10}, {Inc: 2, N: 1}} {
		p, err := n.WriteCredential(e, pgconf.Passwords)
		n.must(err)
		paths = append(paths, p)
	}
	st, err := os.Stat(paths[0])
	n.must(err)
	if uid, _ := owner(paths[0]); st.Mode().Perm() != 0o600 || uid != n.os.uid {
		t.Fatalf("mode %v, uid %d", st.Mode(), uid)
	}
	n.must(n.DropCredentialsBelow(fsm.Epoch{Inc: 1, N: 10}))
	got := []bool{exists(paths[0]), exists(paths[1]), exists(paths[2])}
	if !slices.Equal(got, []bool{false, true, true}) {
		t.Fatalf("left: %v", got)
	}
}

func TestSlots(t *testing.T) {
	p := primary(t)
	p.sql("SELECT pg_create_physical_replication_slot('users_own')")
	p.sql("SELECT pg_create_logical_replication_slot('m_logical', 'test_decoding')")
	s := clone(t, p, epoch(1))
	mine := pgconf.SlotName(s.id)
	names := func() (out []string) {
		for _, x := range p.answer().Slots {
			out = append(out, x.Name)
		}
		return out
	}
	for _, tc := range []struct{ want, made, left []string }{
		{[]string{mine, "m_b", "m_c"}, []string{"m_b", "m_c"}, []string{mine, "m_b", "m_c", "m_logical", "users_own"}},
		{[]string{mine, "m_c"}, nil, []string{mine, "m_c", "m_logical", "users_own"}},
		{nil, nil, []string{mine, "m_logical", "users_own"}}, // in use
	} {
		made, err := p.EnsureSlots(p.ctx(), tc.want)
		p.must(err)
		slices.Sort(tc.left)
		if got := names(); !slices.Equal(made, tc.made) || !slices.Equal(got, tc.left) {
			t.Fatalf("want %v: made %v, left %v", tc.want, made, got)
		}
	}
	if _, err := p.EnsureSlots(p.ctx(), []string{"theirs"}); err == nil {
		t.Fatal("made a slot without our prefix")
	}
	if err := p.DropSlot(p.ctx(), "users_own"); err == nil {
		t.Fatal("dropped the user's slot")
	}
	before := p.eventually("has a sender", func(o Observation) bool { return len(o.Senders) == 1 }).Senders[0].PID
	ended, err := p.TerminateSenders(p.ctx(), nil, []int{before})
	p.must(err)
	if ended != 1 {
		t.Fatalf("ended %d walsenders", ended)
	}
	p.eventually("has a new sender", func(o Observation) bool { return len(o.Senders) == 1 && o.Senders[0].PID != before })
	s.end(syscall.SIGQUIT)
	p.eventually("drops the slot", func(Observation) bool { return p.DropSlot(p.ctx(), mine) == nil }) // its sender may take long to end
	p.must(p.DropSlot(p.ctx(), mine))
	if slices.Contains(names(), mine) {
		t.Fatal("slot still there")
	}
}

func TestRolesAndDatabases(t *testing.T) {
	p := primary(t, func(c *Config) { c.Parameters["log_statement"] = "all" })
	stored := func() string {
		return value[string](p, "SELECT string_agg(rolpassword, ',' ORDER BY rolname) FROM pg_authid WHERE rolname IN ('boss', 'repl')")
	}
	before := stored()
	p.must(p.EnsureRoles(p.ctx()))
	if stored() != before {
		t.Fatal("roles that fit were written again")
	}
	p.sql("ALTER ROLE repl NOLOGIN")
	p.passwords.Store(&passwords{super: p.cfg.SuperuserPassword, repl: "a new one"})
	p.must(p.EnsureRoles(p.ctx()))
	if s := p.login("repl", "a new one", "postgres"); s != "28000" { // the password is right, the database is not for it
		t.Fatalf("replication role: %q", s)
	}
	s := newNode(t, func(c *Config) { c.ReplicationPassword = "a new one" })
	s.must(s.Clone(s.ctx(), p.upstream(s, epoch(1)), false, nil))
	log, err := os.ReadFile(p.cfg.LogFile)
	p.must(err)
	for _, secret := range []string{"a new one", p.cfg.SuperuserPassword, "r:pl"} {
		if strings.Contains(string(log), secret) {
			t.Errorf("PostgreSQL's log shows %q", secret)
		}
	}
	for range 2 {
		p.must(p.EnsureDatabase(p.ctx(), `odd "name`))
	}
	if n := value[int](p, `SELECT count(*)::int FROM pg_database WHERE datname = 'odd "name'`); n != 1 {
		t.Fatalf("%d databases", n)
	}
}

func TestObserveOfAServerThatDoesNotAnswer(t *testing.T) {
	n := newNode(t)
	if o := n.Observe(n.ctx()); o.Running || o.Reachable || o.Reason != "not running" {
		t.Fatalf("no data: %+v", o)
	}
	_, err := n.InitDB(n.ctx())
	n.must(err)
	n.start()
	pid, ok := n.RunningPostmaster()
	if !ok || pid != n.cmd.Process.Pid {
		t.Fatalf("postmaster %d %v", pid, ok)
	}
	n.Close()
	n.must(n.cmd.Process.Signal(syscall.SIGSTOP))
	begun := time.Now()
	o := n.Observe(n.ctx())
	if took := time.Since(begun); !o.Running || o.Reachable || o.Reason == "" || took > 30*time.Second {
		t.Fatalf("frozen, after %s: %+v", took, o)
	}
	n.must(n.cmd.Process.Signal(syscall.SIGCONT))
	n.eventually("answers again", func(o Observation) bool { return o.Reachable })

	good := n.passwords.Load()
	n.Close()
	n.passwords.Store(&passwords{super: "wrong"})
	n.eventually("refuses a wrong password", func(o Observation) bool { return !o.Reachable && strings.Contains(o.Reason, "28P01") })
	n.passwords.Store(good)

	n.end(syscall.SIGKILL)
	file := filepath.Join(n.cfg.DataDir, "postmaster.pid")
	b, err := os.ReadFile(file)
	n.must(err)
	if _, ok := n.RunningPostmaster(); ok {
		t.Fatal("a dead postmaster counts as running")
	}
	_, rest, _ := strings.Cut(string(b), "\n")
	n.must(os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())+"\n"+rest), 0o600))
	if _, ok := n.RunningPostmaster(); ok {
		t.Fatal("another program with the old number counts as running")
	}
}

func TestEndSendersLetsAShutdownEnd(t *testing.T) {
	p := primary(t)
	p.sql("ALTER SYSTEM SET wal_sender_timeout = 0") // it would wait for ever
	p.sql("SELECT pg_reload_conf()")
	s := clone(t, p, epoch(1))
	rec := s.eventually("streams", func(o Observation) bool { return o.Receiver != nil }).Receiver
	s.must(syscall.Kill(rec.PID, syscall.SIGSTOP))
	defer syscall.Kill(rec.PID, syscall.SIGCONT)
	p.Close()
	p.must(p.cmd.Process.Signal(syscall.SIGINT))
	<-time.After(300 * time.Millisecond)
	if _, ok := p.RunningPostmaster(); !ok {
		t.Skip("the shutdown did not wait for the frozen standby")
	}
	p.must(p.EndSenders(p.ctx()))
	server := p.cmd
	p.end(syscall.SIGINT)
	c, err := p.ControlData(p.ctx())
	p.must(err)
	if !server.ProcessState.Success() || c.State != "shut down" {
		t.Fatalf("%s, state %q", server.ProcessState, c.State)
	}
}

// TestTimelineOfAStandby: what a standby reports has to follow from the log it holds, not from what its receiver or its
// control file was told.
func TestTimelineOfAStandby(t *testing.T) {
	a := primary(t)
	b := clone(t, a, epoch(1))
	c := clone(t, a, epoch(1))
	a.end(syscall.SIGINT)
	want := b.eventually("settles", func(o Observation) bool { return o.Settled && o.Receiver == nil })
	c.eventually("settles", func(o Observation) bool { return o.Settled && o.Receiver == nil && o.Position == want.Position })
	if want.Timeline != 2 {
		t.Fatalf("%+v", want)
	}
	c.sql("SELECT pg_wal_replay_pause()")
	b.must(b.ClearUpstream(b.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	b.promote()
	_, _, fork := b.promotionPoint()
	c.sql("SELECT pg_wal_replay_resume()")
	c.follow(b, epoch(2))
	c.eventually("is on the new timeline", func(o Observation) bool { return o.Timeline == 3 && o.Position > fork })
	c.must(c.ClearUpstream(c.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	o := c.answer()
	if o.Receiver != nil || o.Timeline != 3 {
		t.Fatalf("without a receiver: %+v", o)
	}
}

func TestToolsAreStoppedByTheContext(t *testing.T) {
	n := newNode(t)
	n.tools.Dir = toolsWith(t, n.tools, "pg_controldata", "#!/bin/sh\ntrap 'echo bye; exit 1' INT\necho started >&2\nwhile :; do sleep 0.05; done\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begun := time.Now()
	_, err := n.run(ctx, tool{name: "pg_controldata", onLine: func(string) { cancel() }})
	if !errors.Is(err, context.Canceled) || time.Since(begun) > toolGrace/2 {
		t.Fatalf("after %s: %v", time.Since(begun), err)
	}
}
