package pgmanager

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// users is a node whose data directory somebody else made: with its own lines for clients and settings.
func users(t *testing.T, conf ...string) *node {
	t.Helper()
	n := newNode(t, func(c *Config) { c.Parameters = nil })
	n.must(n.makeDir(n.cfg.DataDir, 0o700))
	n.must(n.makeDir(n.cfg.SocketDir, 0o755))
	_, err := n.run(n.ctx(), tool{name: "initdb", args: []string{"-D", n.cfg.DataDir, "-U", n.os.name, "--auth=peer", "-N"}})
	n.must(err)
	conf = append([]string{
		fmt.Sprintf("port = %d", n.cfg.Port), "listen_addresses = '" + n.cfg.Host + "'", "unix_socket_directories = '" + n.cfg.SocketDir + "'",
		"max_connections = 60", "shared_buffers = 16MB", "log_statement = all",
	}, conf...)
	n.edit("postgresql.conf", func(old string) string { return old + strings.Join(conf, "\n") + "\n" })
	n.edit("pg_hba.conf", func(old string) string {
		return "# an application\nhost all app 127.0.0.0/8 md5 # with its password\n" + old
	})
	return n
}

func (n *node) edit(file string, change func(string) string) {
	n.t.Helper()
	path := filepath.Join(n.cfg.DataDir, file)
	old, err := os.ReadFile(path)
	n.must(err)
	n.must(os.WriteFile(path, []byte(change(string(old))), 0o600))
}

// serve runs the postmaster as the user did before, and makes what an application has.
func (n *node) serve(args ...string) {
	n.t.Helper()
	log, err := os.Create(filepath.Join(n.dir, "users.log"))
	n.must(err)
	defer log.Close()
	cmd := exec.Command(n.tools.Path("postgres"), append([]string{"-D", n.cfg.DataDir}, args...)...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = n.environment(), "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Credential: n.os.credential()}
	n.must(cmd.Start())
	n.cmd = cmd
	n.t.Cleanup(func() { n.end(syscall.SIGQUIT) })
	n.asOwner(`SELECT 1`)
}

func (n *node) asOwner(sql string) string {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(20 * time.Millisecond) {
		out, err := n.psql(n.ctx(), Adoption{SocketDir: n.cfg.SocketDir, Port: n.cfg.Port}, sql)
		if err == nil {
			return out
		}
		if time.Now().After(deadline) || !strings.Contains(err.Error(), "connection to server") {
			log, _ := os.ReadFile(filepath.Join(n.dir, "users.log"))
			n.t.Fatalf("%v\n%s", err, log)
		}
	}
}

const application = "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE TABLE public.t AS SELECT 7 AS a; GRANT SELECT ON public.t TO app; ALTER SYSTEM SET wal_sender_timeout = '99s'"

func (n *node) adopt() Adoption {
	n.t.Helper()
	a, err := n.AdoptCheck(n.ctx())
	n.must(err)
	n.must(n.Adopt(n.ctx(), a))
	return a
}

// underMatriarch starts the adopted server as the sentinel would, with what its owner had, and promotes it.
func (n *node) underMatriarch(a Adoption) {
	n.t.Helper()
	n.cfg.HBA, n.cfg.Parameters = a.HBA, a.Parameters
	m, err := New(n.cfg, slog.New(slog.DiscardHandler))
	n.must(err)
	n.Manager = m
	n.must(os.RemoveAll(n.cfg.managedFile()))
	n.start()
	n.promote()
	n.apply(Conf{Phase: pgconf.Open, Nodes: everyone})
	if got := value[int](n, "SELECT a FROM public.t"); got != 7 {
		n.t.Fatalf("the table holds %d", got)
	}
	if s := n.login("app", "app", "postgres"); s != "" {
		n.t.Fatalf("the application is refused: %s", s)
	}
	if s := n.login("app", "other", "postgres"); s != "28P01" {
		n.t.Fatalf("the application with another password: %q", s)
	}
	n.must(n.EnsureRoles(n.ctx()))
}

func TestAdoptStopped(t *testing.T) {
	for _, tc := range []struct {
		name string
		how  syscall.Signal
		conf []string
	}{
		{"clean", syscall.SIGINT, nil},
		{"crashed", syscall.SIGKILL, []string{"wal_level = minimal", "max_wal_senders = 0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := users(t, tc.conf...)
			n.serve()
			n.asOwner(application)
			n.end(tc.how)
			a := n.adopt()
			if a.Running || a.Port != n.cfg.Port || a.SocketDir != n.cfg.SocketDir || a.Timeline != 1 || a.Parameters["max_connections"] != "60" {
				t.Fatalf("%+v", a)
			}
			if notes := strings.Join(a.Notes, "\n"); !strings.Contains(notes, "postgresql.auto.conf: wal_sender_timeout") || strings.Contains(notes, "weak") {
				t.Errorf("notes: %s", notes)
			}
			c, err := n.ControlData(n.ctx())
			n.must(err)
			if c.State != "shut down" || c.WALLevel != "logical" {
				t.Fatalf("left %q, wal_level %s", c.State, c.WALLevel)
			}
			if exists(filepath.Join(n.cfg.DataDir, "standby.signal")) {
				t.Error("marked as a standby before its first start")
			}
			n.adopt() // a bootstrap that failed later is repeated
			n.underMatriarch(a)
			if p := value[string](n, "SELECT coalesce(rolpassword, '') FROM pg_authid WHERE rolname = '"+n.os.name+"'"); p != "" {
				t.Errorf("the owner's role got a password: %q", p)
			}
			if got := value[string](n, "SHOW max_connections"); got != "60" {
				t.Errorf("max_connections is %s", got)
			}
		})
	}
}

func TestAdoptRunning(t *testing.T) {
	n := users(t, "synchronous_standby_names = ''")
	n.serve()
	n.asOwner(application)
	hba := filepath.Join(n.cfg.DataDir, "pg_hba.conf")
	conf := filepath.Join(n.cfg.DataDir, "postgresql.conf")
	before, err := os.ReadFile(hba)
	n.must(err)
	mine, err := os.ReadFile(conf)
	n.must(err)
	a := n.adopt()
	if !a.Running || a.HBAFile != hba || a.ConfigFile != conf || !slices.Contains(a.HBA, "host all app 127.0.0.0/8 md5") {
		t.Fatalf("%+v", a)
	}
	if now, err := os.ReadFile(conf); err != nil || !bytes.Equal(now, mine) {
		t.Fatalf("postgresql.conf was touched before there is a lease: %v", err)
	}
	pid, _ := n.RunningPostmaster()
	n.cfg.HBA = a.HBA
	for _, tc := range []struct {
		phase pgconf.Phase
		boss  string // over the network; 28000: no line
	}{{pgconf.Closed, "28000"}, {pgconf.Members, ""}, {pgconf.Open, ""}} {
		n.apply(Conf{Phase: tc.phase, Nodes: everyone, SyncNames: pgconf.SyncNames(1, []string{tc.phase.String()})})
		if boss, app := n.login("boss", n.cfg.SuperuserPassword, "postgres"), n.login("app", "app", "postgres"); boss != tc.boss || app != "" {
			t.Errorf("%s: superuser %q, want %q; application %q", tc.phase, boss, tc.boss, app)
		}
		n.eventually("has our names", func(o Observation) bool { return strings.Contains(o.SyncNames, tc.phase.String()) })
	}
	if now, _ := n.RunningPostmaster(); now != pid {
		t.Fatal("the server was restarted")
	}
	n.eventually("tells what waits for a restart", func(o Observation) bool {
		n.polls = 0
		return slices.Contains(o.PendingRestart, "wal_level")
	})
	log, err := os.ReadFile(filepath.Join(n.dir, "users.log"))
	n.must(err)
	for _, secret := range []string{n.cfg.SuperuserPassword, n.cfg.ReplicationPassword, "SCRAM-SHA-256$"} {
		if strings.Contains(string(log), secret) {
			t.Errorf("the server's log shows %q", secret)
		}
	}
	n.apply(Conf{Phase: pgconf.Open, Nodes: everyone})
	if _, err := n.FirstCommit(n.ctx(), epoch(4)); err != nil {
		t.Fatal(err)
	}
	if l, err := n.Local(); err != nil || !cmp.Equal(l.Lineage, map[fsm.Timeline]fsm.Epoch{1: epoch(4)}) {
		t.Errorf("lineage %v: the timeline goes on under the epoch that adopted it (%v)", l.Lineage, err)
	}

	n.end(syscall.SIGKILL)
	n.underMatriarch(a)
	if now, err := os.ReadFile(hba); err != nil || !bytes.Equal(now, before) {
		t.Errorf("its pg_hba.conf is not as it was (%v):\n%s", err, now)
	}
	n.edit("pg_hba.conf", func(old string) string { return string(withBlock([]byte(old), []byte("local all m trust\n"))) })
	n.end(syscall.SIGINT)
	n.start() // with the file of another node's copy
	n.apply(Conf{Phase: pgconf.Members})
	if now, err := os.ReadFile(hba); err != nil || !bytes.Equal(now, before) {
		t.Errorf("its former pg_hba.conf was written again: %v", err)
	}
}

// TestAdoptRunningLacks: what standbys need from the running server is told, and a server that cannot replay its own log after
// a crash is helped over it.
func TestAdoptRunningLacks(t *testing.T) {
	n := users(t, "wal_level = minimal", "max_wal_senders = 0", "listen_addresses = 'localhost'")
	n.serve()
	n.asOwner(application)
	a := n.adopt()
	notes := strings.Join(a.Notes, "\n")
	for _, want := range []string{"wal_level is minimal", "max_wal_senders is 0", "listen_addresses is 'localhost', without " + n.cfg.Host, "weak"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes do not say %q: %s", want, notes)
		}
	}
	n.apply(Conf{Phase: pgconf.Open, Nodes: everyone})
	n.end(syscall.SIGKILL)
	n.underMatriarch(a)
}

func TestAdoptConfigurationElsewhere(t *testing.T) {
	n := users(t)
	etc := filepath.Join(n.dir, "etc")
	n.must(n.makeDir(etc, 0o755))
	for _, f := range []string{"postgresql.conf", "pg_hba.conf", "pg_ident.conf"} {
		n.must(os.Rename(filepath.Join(n.cfg.DataDir, f), filepath.Join(etc, f)))
	}
	conf := filepath.Join(etc, "postgresql.conf")
	old, err := os.ReadFile(conf)
	n.must(err)
	n.must(os.WriteFile(conf, append(old, "hba_file = '"+etc+"/pg_hba.conf'\nident_file = '"+etc+"/pg_ident.conf'\n"...), 0o600))
	n.serve("-c", "config_file="+conf)
	n.asOwner(application)
	n.end(syscall.SIGINT)
	a := n.adopt()
	if a.ConfigFile != filepath.Join(etc, "postgresql.conf") || a.HBAFile != filepath.Join(etc, "pg_hba.conf") {
		t.Fatalf("%+v", a)
	}
	n.cfg.ConfigFile = ""
	n.underMatriarch(a)
	if got := value[string](n, "SHOW config_file"); got != a.ConfigFile {
		t.Errorf("runs with %s", got)
	}
}

func TestAdoptRefusals(t *testing.T) {
	n := users(t)
	n.serve()
	n.asOwner(application)
	hba := filepath.Join(n.cfg.DataDir, "pg_hba.conf")
	before, err := os.ReadFile(hba)
	n.must(err)
	refused := func(what string, words ...string) {
		t.Helper()
		a, err := n.AdoptCheck(n.ctx())
		if err == nil {
			err = n.Adopt(n.ctx(), a)
		}
		if err == nil {
			t.Fatalf("%s: adopted", what)
		}
		contains(t, err, words...)
		now, err := os.ReadFile(hba)
		n.must(err)
		if strings.Contains(string(now), "matriarch") || exists(adoptedFile(n.cfg)) {
			t.Errorf("%s: something was changed", what)
		}
		if strings.Contains(n.asOwner("SELECT string_agg(rolname, ' ') FROM pg_roles"), "repl ") {
			t.Errorf("%s: a role was made", what)
		}
	}
	signal := filepath.Join(n.cfg.DataDir, "standby.signal")
	n.must(os.WriteFile(signal, nil, 0o600))
	refused("a standby", "adopt its primary")
	n.must(os.Remove(signal))

	port := n.cfg.Port
	n.cfg.Port = 1
	a, err := n.AdoptCheck(n.ctx())
	if err == nil {
		t.Fatalf("wrong port: %+v", a)
	}
	contains(t, err, fmt.Sprintf("listens on port %d, not 1", port), "--pg-listen")
	n.cfg.Port = port

	n.cfg.SystemID = "42"
	refused("another group", "this group has 42")
	n.cfg.SystemID = ""

	n.asOwner("CREATE ROLE boss")
	refused("a role of the user's with our name", "role boss exists", "rename")
	n.asOwner("DROP ROLE boss")

	n.must(os.WriteFile(hba, append(slices.Clone(before), "nonsense\n"...), 0o600))
	refused("mistakes in pg_hba.conf", "mistakes in lines", hba)

	n.must(os.WriteFile(hba, append([]byte("local all "+n.os.name+" reject\n"), before...), 0o600))
	n.asOwnerReload()
	_, err = n.AdoptCheck(n.ctx())
	contains(t, err, "nothing was changed", "peer", "stop the server")
}

// asOwnerReload makes the server read its files again and waits until it lets nobody in.
func (n *node) asOwnerReload() {
	n.t.Helper()
	n.must(n.cmd.Process.Signal(syscall.SIGHUP))
	a := Adoption{SocketDir: n.cfg.SocketDir, Port: n.cfg.Port}
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(20 * time.Millisecond) {
		if _, err := n.psql(n.ctx(), a, "SELECT 1"); err != nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatal("the server still lets its owner in")
		}
	}
}

func TestAdoptRefusesStoppedStandby(t *testing.T) {
	p := primary(t)
	s := clone(t, p, epoch(1))
	s.end(syscall.SIGINT)
	n := newNode(t, func(c *Config) { c.DataDir = s.cfg.DataDir })
	_, err := n.AdoptCheck(n.ctx())
	contains(t, err, "adopt its primary")
	n.must(os.Remove(filepath.Join(s.cfg.DataDir, "standby.signal")))
	_, err = n.AdoptCheck(n.ctx())
	contains(t, err, "adopt its primary")
}

func TestDataSystemID(t *testing.T) {
	n := newNode(t)
	if id, err := DataSystemID(n.cfg.DataDir); id != "" || err != nil {
		t.Fatalf("missing: %q %v", id, err)
	}
	want, err := n.InitDB(n.ctx())
	n.must(err)
	if id, err := DataSystemID(n.cfg.DataDir); id != want || err != nil {
		t.Fatalf("%q %v, want %q", id, err, want)
	}
	_, err = DataSystemID(n.dir)
	contains(t, err, "not empty", "move it away")
}
