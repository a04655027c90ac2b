// Package standin_test states what the manager relies on, as tests that hold for Citus itself as well: MATRIARCH_PG_BIN says
// which server's Citus or stand-in they run against.
package standin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// host is where the server's programs are and as whom they run.
type host struct {
	bin  string
	cred *syscall.Credential // nil: as we are
	real bool                // Citus itself
}

var theHost = sync.OnceValues(func() (host, error) {
	h := host{bin: os.Getenv("MATRIARCH_PG_BIN")}
	if h.bin == "" {
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
		if len(found) == 0 {
			return h, errors.New("no PostgreSQL: set MATRIARCH_PG_BIN to its bin directory")
		}
		slices.SortFunc(found, func(a, b string) int { return major(a) - major(b) })
		h.bin = found[len(found)-1]
	}
	if os.Getuid() == 0 {
		id := func(flag string) uint32 {
			out, _ := exec.Command("id", flag, "postgres").Output()
			n, _ := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 32)
			return uint32(n)
		}
		h.cred = &syscall.Credential{Uid: id("-u"), Gid: id("-g")}
		if h.cred.Uid == 0 {
			return h, errors.New("no user postgres to run PostgreSQL as")
		}
	}
	return h, h.install()
})

func major(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// install puts the stand-in in place unless there is a Citus. Test programs of several packages may do so at once.
func (h *host) install() error {
	out, err := exec.Command("flock", "/tmp/matriarch-citus-standin.lock",
		"make", "-s", "install", "PG_CONFIG="+filepath.Join(h.bin, "pg_config")).CombinedOutput()
	share, _ := exec.Command(filepath.Join(h.bin, "pg_config"), "--sharedir").Output()
	control, rerr := os.ReadFile(filepath.Join(strings.TrimSpace(string(share)), "extension", "citus.control"))
	if rerr != nil {
		return fmt.Errorf("neither Citus nor the stand-in for %s: make: %w: %s", h.bin, err, out)
	}
	h.real = !strings.Contains(string(control), "Matriarch test stand-in")
	return nil
}

func (h host) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.bin, name), args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.cred, Pdeathsig: syscall.SIGQUIT}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return cmd
}

// server is one PostgreSQL. Every process of it is gone when the test ends.
type server struct {
	host
	t    *testing.T
	dir  string
	ip   string
	port int
	cmd  *exec.Cmd
}

var freeIP = struct {
	sync.Mutex
	n int
}{}

func newServer(t *testing.T) *server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real PostgreSQL")
	}
	h, err := theHost()
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/tmp", "standin")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{host: h, t: t, dir: dir}
	t.Cleanup(func() {
		s.stop(syscall.SIGQUIT)
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("%s:%d\n%s", s.ip, s.port, log[max(0, len(log)-3000):])
		}
		_ = os.RemoveAll(dir)
	})
	if h.cred != nil {
		if err := os.Chown(dir, int(h.cred.Uid), int(h.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	freeIP.Lock()
	freeIP.n++
	s.ip = fmt.Sprintf("127.%d.%d.%d", 96+os.Getpid()%32, os.Getpid()>>5%256, freeIP.n)
	freeIP.Unlock()
	l, err := net.Listen("tcp", s.ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	return s
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) must(name string, args ...string) {
	s.t.Helper()
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

const settings = `
shared_preload_libraries = 'citus'
unix_socket_directories = ''
fsync = off
wal_level = logical
max_connections = 60
max_worker_processes = 20
shared_buffers = 16MB
wal_retrieve_retry_interval = 100ms
citus.node_conninfo = 'sslmode=prefer'
citus.metadata_sync_retry_interval = 500ms
citus.recover_2pc_interval = -1
citus.node_connection_timeout = 30s
citus.background_task_queue_interval = 1s
`

// template is a data directory with an empty database app, made once.
var template struct {
	sync.Mutex
	dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if template.dir != "" {
		_ = os.RemoveAll(template.dir)
	}
	os.Exit(code)
}

// create makes a server with the extension in database app, and starts it.
func (s *server) create() *server {
	s.t.Helper()
	template.Lock()
	defer template.Unlock()
	if template.dir == "" {
		s.must("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
		s.append("postgresql.conf", settings)
		s.start()
		s.on(s.session("postgres"), "CREATE DATABASE app")
		s.stop(syscall.SIGINT)
		dir, err := os.MkdirTemp("/tmp", "standin")
		if err != nil {
			s.t.Fatal(err)
		}
		template.dir = dir
		s.copy(s.data(), dir)
	} else {
		s.copy(filepath.Join(template.dir, "data"), s.dir)
	}
	s.start()
	s.do("CREATE EXTENSION citus") // not in the template: Citus knows servers by what it makes then
	return s
}

func (s *server) copy(from, to string) {
	s.t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
}

func (s *server) append(file, lines string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.data(), file), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(lines)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) start() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = s.command("postgres", "-D", s.data(), "-c", "listen_addresses="+s.ip, "-c", "port="+strconv.Itoa(s.port), "-c", "citus.local_hostname="+s.ip)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "server accepts connections", func(ctx context.Context) bool {
		c, err := s.connect(ctx, "postgres", "")
		if err == nil {
			_ = c.Close(ctx)
		}
		return err == nil
	})
}

// stop with SIGQUIT takes the server's children along.
func (s *server) stop(sig syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// standby clones the server and streams from it.
func (s *server) standby() *server {
	s.t.Helper()
	b := newServer(s.t)
	b.must("pg_basebackup", "-D", b.data(), "-h", s.ip, "-p", strconv.Itoa(s.port), "-U", "postgres",
		"-X", "stream", "-R", "-c", "fast", "--no-sync")
	b.start()
	return b
}

func (s *server) connect(ctx context.Context, database, options string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable connect_timeout=30 options='%s'",
		s.ip, s.port, database, options))
}

// session opens a client that lives as long as the test; options are those of a connection string.
func (s *server) session(database string, options ...string) *pgx.Conn {
	s.t.Helper()
	c, err := s.connect(s.t.Context(), database, strings.Join(options, " "))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func (s *server) on(c *pgx.Conn, statements ...string) {
	s.t.Helper()
	for _, sql := range statements {
		if _, err := c.Exec(s.t.Context(), sql); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// do runs statements in a session of their own.
func (s *server) do(statements ...string) {
	s.t.Helper()
	c := s.session("app")
	s.on(c, statements...)
	_ = c.Close(s.t.Context())
}

// formation is a coordinator with two workers.
type formation struct {
	*server // the coordinator, which is node 1
	workers [2]*server
}

// newFormation has table t with 4 shards and 100 rows, table u without a key, and reference table r.
func newFormation(t *testing.T) formation {
	t.Helper()
	f := formation{server: newServer(t).create()}
	f.workers = [2]*server{newServer(t).create(), newServer(t).create()}
	f.do(fmt.Sprintf("SELECT citus_set_coordinator_host('%s', %d)", f.ip, f.port))
	for i, w := range f.workers {
		f.do(fmt.Sprintf("SELECT citus_add_node('%s', %d, %d)", w.ip, w.port, i+1))
	}
	f.do("SET citus.shard_count = 4",
		"CREATE TABLE t (k int PRIMARY KEY, v text)", "SELECT create_distributed_table('t', 'k', shard_count := 4)",
		"CREATE TABLE u (k int, v text)", "SELECT create_distributed_table('u', 'k', colocate_with := 'none', shard_count := 4)",
		"CREATE TABLE r (k int PRIMARY KEY, v text)", "SELECT create_reference_table('r')",
		"INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i", "INSERT INTO u SELECT i, 'old' FROM generate_series(1, 100) i")
	return f
}

// nodeID is the row of a group's primary.
func (f formation) nodeID(group int) int {
	f.t.Helper()
	return get[int](f.t, f.session("app"), "SELECT nodeid FROM pg_dist_node WHERE noderole = 'primary' AND groupid = $1", group)
}

// key is the first key above 1000 whose shard of t a group holds.
func (f formation) key(group int) int {
	f.t.Helper()
	return get[int](f.t, f.session("app"), `SELECT min(k) FROM generate_series(1001, 1100) k JOIN pg_dist_placement p
		ON p.shardid = get_shard_id_for_distribution_column('t', k) WHERE p.groupid = $1`, group)
}

func get[T any](t *testing.T, c *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := c.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func eventually(t *testing.T, what string, ok func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("not true in 60 s: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func code(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// refused checks that a statement fails with a text.
func refused(t *testing.T, c *pgx.Conn, text, sql string, args ...any) {
	t.Helper()
	_, err := c.Exec(t.Context(), sql, args...)
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %q", sql, err, text)
	}
}
