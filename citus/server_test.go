package citus

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

	"matriarch/fsm"
)

const (
	superuser = "boss"
	password  = `s3:c'r\et`
	appDB     = "app"
)

// host is a machine's worth of test PostgreSQL: where its programs are and as whom they run.
type host struct {
	bin  string
	cred *syscall.Credential // nil: as we are
	real bool                // Citus itself, not the stand-in
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
		"make", "-s", "-C", "../test/citus-standin", "install", "PG_CONFIG="+filepath.Join(h.bin, "pg_config")).CombinedOutput()
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.cred}
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "LC_ALL=C")
	return cmd
}

// server is one PostgreSQL. Every process of it is gone when the test ends.
type server struct {
	host
	t    *testing.T
	dir  string
	addr Addr
	cmd  *exec.Cmd
}

var freeAddr = struct {
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
	dir, err := os.MkdirTemp("/tmp", "mcitus")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{host: h, t: t, dir: dir}
	t.Cleanup(func() {
		s.kill()
		_ = os.RemoveAll(dir)
	})
	if h.cred != nil {
		if err := os.Chown(dir, int(h.cred.Uid), int(h.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	freeAddr.Lock()
	freeAddr.n++
	ip := fmt.Sprintf("127.%d.%d.%d", 32+os.Getpid()%32, os.Getpid()>>5%256, freeAddr.n)
	freeAddr.Unlock()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = Addr{Host: ip, Port: l.Addr().(*net.TCPAddr).Port}
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

// create makes an empty server with Citus in front of its libraries, and starts it.
func (s *server) create(settings ...string) *server {
	s.t.Helper()
	pw := filepath.Join(s.dir, "pw")
	if err := os.WriteFile(pw, []byte(password+"\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.must("initdb", "-D", s.data(), "-U", superuser, "--pwfile", pw, "-A", "scram-sha-256", "-E", "UTF8", "--no-sync", "--locale=C")
	s.append("pg_hba.conf", "host all all 127.0.0.0/8 scram-sha-256", "host replication all 127.0.0.0/8 scram-sha-256")
	s.append("postgresql.conf", "shared_preload_libraries = 'citus'", "unix_socket_directories = ''", "fsync = off", "wal_level = logical",
		"max_connections = 60", "max_prepared_transactions = 120", "max_worker_processes = 20", "shared_buffers = 16MB",
		"citus.node_conninfo = 'sslmode=prefer'", "citus.metadata_sync_retry_interval = '500ms'", "citus.recover_2pc_interval = -1",
		"citus.node_connection_timeout = '30s'", "citus.metadata_sync_interval = '5s'",
		"wal_retrieve_retry_interval = '100ms'", "log_statement = 'all'")
	s.append("postgresql.conf", settings...)
	s.start()
	return s
}

func (s *server) append(file string, lines ...string) {
	s.t.Helper()
	path := filepath.Join(s.data(), file)
	old, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(old, strings.Join(append(lines, ""), "\n")...), 0o600)
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
	defer log.Close()
	s.cmd = s.command("postgres", "-D", s.data(), "-c", "listen_addresses="+s.addr.Host, "-c", "port="+strconv.Itoa(s.addr.Port),
		"-c", "citus.local_hostname="+s.addr.Host)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("accepts connections", func(ctx context.Context) bool {
		c, err := s.connect(ctx, "postgres")
		if err == nil {
			_ = c.Close(ctx)
		}
		return err == nil
	})
}

func (s *server) stop(sig syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// kill ends the server at once. SIGQUIT takes its children along.
func (s *server) kill() { s.stop(syscall.SIGQUIT) }

// standby clones the server and streams from it.
func (s *server) standby() *server {
	s.t.Helper()
	b := newServer(s.t)
	b.must("pg_basebackup", "-D", b.data(), "-h", s.addr.Host, "-p", strconv.Itoa(s.addr.Port), "-U", superuser,
		"-X", "stream", "-R", "-c", "fast", "--no-sync")
	b.start()
	return b
}

// caughtUp waits until a standby has replayed everything. It looks from database postgres: a session in appDB would start the
// maintenance daemon there, which goes to work by itself at the promotion.
func (s *server) caughtUp(standby *server) {
	s.t.Helper()
	var lsn string
	s.get(appDB, &lsn, "SELECT pg_current_wal_flush_lsn()::text")
	standby.eventually("has replayed "+lsn, func(ctx context.Context) bool {
		var ok bool
		return standby.query(ctx, "postgres", &ok, "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn) == nil && ok
	})
}

// promote promotes a standby. It looks from database postgres, to leave the first session in appDB to the conductor.
func (s *server) promote() {
	s.t.Helper()
	s.exec("postgres", "SELECT pg_promote(false)")
	s.eventually("is promoted", func(ctx context.Context) bool {
		var in bool
		return s.query(ctx, "postgres", &in, "SELECT pg_is_in_recovery()") == nil && !in
	})
}

func (s *server) timeline() fsm.Timeline {
	s.t.Helper()
	var tl int
	s.get("postgres", &tl, "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int")
	return fsm.Timeline(tl)
}

func (s *server) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d sslmode=disable connect_timeout=30", s.addr.Host, s.addr.Port))
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password, cfg.Database = superuser, password, database
	return pgx.ConnectConfig(ctx, cfg)
}

// session opens a client that lives as long as the test.
func (s *server) session(database string) *pgx.Conn {
	s.t.Helper()
	c, err := s.connect(s.t.Context(), database)
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

func (s *server) query(ctx context.Context, database string, into any, sql string, args ...any) error {
	c, err := s.connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	return c.QueryRow(ctx, sql, args...).Scan(into)
}

func (s *server) get(database string, into any, sql string, args ...any) {
	s.t.Helper()
	if err := s.query(s.t.Context(), database, into, sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *server) exec(database string, statements ...string) {
	s.t.Helper()
	c, err := s.connect(s.t.Context(), database)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	for _, sql := range statements {
		if _, err := c.Exec(s.t.Context(), sql); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// rows is what the server's copy says, nodeid to address.
func (s *server) rows() map[int]string {
	s.t.Helper()
	c := s.session(appDB)
	a, err := Observe(s.t.Context(), c)
	_ = c.Close(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[int]string{}
	for _, r := range a.Rows {
		out[r.NodeID] = r.Addr.String()
	}
	return out
}

func (s *server) eventually(what string, ok func(context.Context) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	for !ok(ctx) {
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("%s: not true in 30 s: %s\n%s", s.addr, what, log[max(0, len(log)-4000):])
		case <-time.After(20 * time.Millisecond):
		}
	}
}
