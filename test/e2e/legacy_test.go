package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/internal/testkit"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
)

// legacy is a PostgreSQL that somebody ran before there was a Matriarch: a shop with its own role, database and access rules.
type legacy struct {
	*testkit.Node
	t     *testing.T
	tools pgmanager.Tools
	sock  string
	cmd   *exec.Cmd
}

const shopPassword = "shop's own"

// newLegacy makes the server's data in the place of a node that does not exist yet, and runs it.
func newLegacy(t *testing.T, c *testkit.Cluster, name string) *legacy {
	t.Helper()
	tools, err := pgmanager.Find(pgtest.Bin())
	if err != nil {
		t.Fatal(err)
	}
	l := &legacy{Node: c.Lay(name, 0), t: t, tools: tools}
	l.sock = filepath.Join(l.Dir, "sock")
	for _, dir := range []string{l.Dir, l.DataDir(), l.sock} {
		l.must(os.MkdirAll(dir, 0o755))
	}
	l.must(os.Chmod(l.DataDir(), 0o700)) //nolint:gosec // a directory
	if os.Geteuid() == 0 {
		uid, gid := testkit.IDs(t, "postgres")
		for _, dir := range []string{l.DataDir(), l.sock} {
			l.must(os.Chown(dir, int(uid), int(gid)))
		}
	}
	l.run("initdb", "-D", l.DataDir(), "--auth=peer", "--no-sync", "--data-checksums")
	host, port, _ := strings.Cut(l.PG(), ":")
	l.change("postgresql.conf", func(s string) string {
		return s + fmt.Sprintf("listen_addresses = '%s'\nport = %s\nunix_socket_directories = '%s'\nmax_connections = 50\nshared_buffers = 16MB\n", host, port, l.sock)
	})
	l.change("pg_hba.conf", func(s string) string {
		return "local shop auditor trust # over the socket only\nhost shop shop 127.0.0.0/8 md5\n" + s
	})
	l.serve()
	l.psql("postgres", "SET password_encryption = 'md5'", "CREATE ROLE shop LOGIN PASSWORD '"+strings.ReplaceAll(shopPassword, "'", "''")+"'", "CREATE ROLE auditor LOGIN", "CREATE DATABASE shop OWNER shop")
	l.psql("shop", "SET ROLE shop", "CREATE TABLE orders (n bigint PRIMARY KEY)", "INSERT INTO orders VALUES (0)", "GRANT SELECT ON orders TO auditor")
	return l
}

func (l *legacy) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *legacy) run(name string, args ...string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), l.tools.Path(name), args...)
	cmd.Dir, cmd.SysProcAttr = "/", testkit.AsPostgres(l.t)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (l *legacy) psql(database string, statements ...string) string {
	l.t.Helper()
	args := []string{"-X", "-q", "-A", "-t", "-h", l.sock, "-p", "6432", "-d", database, "-v", "ON_ERROR_STOP=1"}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	return l.run("psql", args...)
}

func (l *legacy) change(file string, f func(string) string) {
	l.t.Helper()
	path := filepath.Join(l.DataDir(), file)
	b, err := os.ReadFile(path)
	l.must(err)
	l.must(os.WriteFile(path, []byte(f(string(b))), 0o600))
}

// serve starts the server as its owner always did.
func (l *legacy) serve() {
	l.t.Helper()
	log, err := os.OpenFile(filepath.Join(l.Dir, "legacy.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	l.must(err)
	defer log.Close()
	cmd := exec.Command(l.tools.Path("postgres"), "-D", l.DataDir())
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.SysProcAttr = log, log, "/", testkit.AsPostgres(l.t)
	l.must(cmd.Start())
	l.cmd = cmd
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(20 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(l.DataDir(), "postmaster.pid"))
		if lines := strings.Split(string(b), "\n"); len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready" {
			break
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log.Name())
			l.t.Fatalf("the server does not start:\n%s", b)
		}
	}
	go func() { _ = cmd.Wait() }() // nobody is to be left a zombie
}

// end ends the server: SIGINT in good order, SIGKILL as a crash.
func (l *legacy) end(sig syscall.Signal) {
	l.t.Helper()
	l.must(l.cmd.Process.Signal(sig))
	for deadline := time.Now().Add(30 * time.Second); l.PostgresProcesses() > 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("the server does not end: %v", l.Processes())
		}
	}
}

// adopt bootstraps on it and returns what it said.
func (l *legacy) adopt(c *testkit.Cluster) string {
	l.t.Helper()
	r := l.BootstrapOnly("--adopt")
	if r.Code != 0 {
		l.t.Fatalf("bootstrap --adopt: exit %d\n%s%s", r.Code, r.Out, r.Err)
	}
	_, rest, _ := strings.Cut(r.Out, `"token": "`)
	c.Token, _, _ = strings.Cut(rest, `"`)
	return r.Err
}

// refused tries to adopt: it must fail with these words and leave nothing behind.
func (l *legacy) refused(words ...string) {
	l.t.Helper()
	r := l.BootstrapOnly("--adopt")
	if r.Code != 1 {
		l.t.Fatalf("exit %d, want 1\n%s%s", r.Code, r.Out, r.Err)
	}
	for _, w := range words {
		if !strings.Contains(r.Err, w) {
			l.t.Errorf("the refusal does not say %q: %s", w, r.Err)
		}
	}
	for _, path := range []string{l.Config(), filepath.Join(l.Dir, "identity.json"), filepath.Join(l.Dir, "secrets"), filepath.Join(l.Dir, "pg", "adopted.json")} {
		if _, err := os.Stat(path); err == nil {
			l.t.Errorf("%s was left behind", path)
		}
	}
}

// shop connects as the application does, by its own old password, to whichever node takes writes.
func shop(ctx context.Context, nodes ...*testkit.Node) (*pgx.Conn, error) {
	var hosts []string
	for _, n := range nodes {
		hosts = append(hosts, n.PG())
	}
	cfg, err := pgx.ParseConfig("postgres://" + strings.Join(hosts, ",") + "/shop?target_session_attrs=read-write&connect_timeout=2")
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = "shop", shopPassword
	return pgx.ConnectConfig(ctx, cfg)
}

// till takes an order every 10 ms over one session as long as that lives, and over a new one after it.
type till struct {
	t      *testing.T
	nodes  []*testkit.Node
	cancel context.CancelFunc
	done   chan struct{}

	sold   []int64
	errors []error
	state  chan struct{} // guards the two above
}

func openTill(t *testing.T, nodes ...*testkit.Node) *till {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s := &till{t: t, nodes: nodes, cancel: cancel, done: make(chan struct{}), state: make(chan struct{}, 1)}
	t.Cleanup(s.shut)
	go s.run(ctx)
	return s
}

func (s *till) shut() { s.cancel(); <-s.done }

func (s *till) run(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var conn *pgx.Conn
	for n := int64(1); ; n++ {
		select {
		case <-ctx.Done():
			if conn != nil {
				_ = conn.Close(context.WithoutCancel(ctx))
			}
			return
		case <-tick.C:
		}
		octx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		err := error(nil)
		if conn == nil {
			conn, err = shop(octx, s.nodes...)
		}
		if err == nil {
			_, err = conn.Exec(octx, "INSERT INTO orders VALUES ($1)", n)
		}
		if err != nil && conn != nil {
			_ = conn.Close(octx)
			conn = nil
		}
		cancel()
		s.note(n, err)
	}
}

func (s *till) note(n int64, err error) {
	s.state <- struct{}{}
	defer func() { <-s.state }()
	if err != nil {
		s.errors = append(s.errors, err)
	} else {
		s.sold = append(s.sold, n)
	}
}

func (s *till) soFar() (sold int, errs []error) {
	s.state <- struct{}{}
	defer func() { <-s.state }()
	return len(s.sold), s.errors
}

// undisturbed fails when any order so far was refused.
func (s *till) undisturbed(when string) {
	s.t.Helper()
	if sold, errs := s.soFar(); len(errs) > 0 {
		s.t.Errorf("%s: %d orders, %d refused, the first: %v", when, sold, len(errs), errs[0])
	} else {
		s.t.Logf("%s: %d orders, none refused", when, sold)
	}
}

// sells waits for one more order.
func (s *till) sells(c *testkit.Cluster) {
	s.t.Helper()
	before, _ := s.soFar()
	c.Eventually("another order is taken", func() error {
		sold, errs := s.soFar()
		if sold > before {
			return nil
		}
		return fmt.Errorf("%d errors, last %v", len(errs), errs[max(0, len(errs)-1):])
	})
}

// check ends the till and looks for every order.
func (s *till) check() {
	s.t.Helper()
	s.shut()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 20*time.Second)
	defer cancel()
	conn, err := shop(ctx, s.nodes...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT n FROM orders")
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		s.t.Fatal(err)
	}
	have := map[int64]bool{}
	for _, n := range all {
		have[n] = true
	}
	lost := 0
	for _, n := range s.sold {
		if !have[n] {
			lost++
		}
	}
	if lost > 0 || !have[0] {
		s.t.Errorf("%d of %d orders lost, the old one there: %v", lost, len(s.sold), have[0])
	}
	s.t.Logf("acknowledged %d, lost %d", len(s.sold), lost)
}
