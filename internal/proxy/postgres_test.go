package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"matriarch/fsm"
)

// postgres is one real server, which trusts everybody on 127.0.0.1.
type postgres struct {
	t         *testing.T
	bin, data string
	port      int
}

func startPostgres(t *testing.T) *postgres {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real PostgreSQL")
	}
	bin := os.Getenv("MATRIARCH_PG_BIN")
	if bin == "" {
		bin = "/usr/lib/postgresql/15/bin"
	}
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("/tmp", "matriarch-proxy")
	if err != nil {
		t.Fatal(err)
	}
	pg := &postgres{t: t, bin: bin, data: filepath.Join(dir, "data")}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pg.own(dir)
	pg.run("initdb", "-N", "-A", "trust", "-U", "app", "-D", pg.data)
	pg.certificate()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pg.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	t.Cleanup(func() { pg.command("pg_ctl", "-D", pg.data, "-m", "immediate", "stop").Run() })
	pg.start()
	return pg
}

func (pg *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(pg.bin, name), args...)
	cmd.Dir = "/tmp"
	if uid, gid := pg.user(); os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	return cmd
}

// user is PostgreSQL's own, which it insists on. (testkit cannot be used here: it imports this package by way of admin.)
func (pg *postgres) user() (uid, gid int) {
	pg.t.Helper()
	if os.Geteuid() != 0 {
		return os.Getuid(), os.Getgid()
	}
	u, err := user.Lookup("postgres")
	if err == nil {
		uid, err = strconv.Atoi(u.Uid)
	}
	if err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		pg.t.Fatal(err)
	}
	return uid, gid
}

func (pg *postgres) own(path string) {
	pg.t.Helper()
	uid, gid := pg.user()
	if err := os.Chown(path, uid, gid); err != nil {
		pg.t.Fatal(err)
	}
}

func (pg *postgres) run(name string, args ...string) {
	pg.t.Helper()
	if out, err := pg.command(name, args...).CombinedOutput(); err != nil {
		log, _ := os.ReadFile(pg.data + ".log")
		pg.t.Fatalf("%s: %v\n%s%s", name, err, out, log)
	}
}

func (pg *postgres) start() {
	pg.t.Helper()
	options := fmt.Sprintf("-p %d -h 127.0.0.1 -k '' -F -c ssl=on -c unix_socket_directories=", pg.port)
	pg.run("pg_ctl", "-D", pg.data, "-l", pg.data+".log", "-o", options, "-w", "start")
}

func (pg *postgres) certificate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		pg.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		pg.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		pg.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"server.crt": {Type: "CERTIFICATE", Bytes: der}, "server.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		path := filepath.Join(pg.data, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			pg.t.Fatal(err)
		}
		pg.own(path)
	}
}

func (pg *postgres) target(epoch uint64) Target {
	return Target{Node: "pg", Name: "pg", Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(pg.port)), Epoch: fsm.Epoch{N: epoch}}
}

func connect(t *testing.T, p *Proxy, i int, sslmode string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	host, port, _ := net.SplitHostPort(p.Stats()[i].Addr)
	c, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%s user=app dbname=postgres sslmode=%s", host, port, sslmode))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func TestPostgres(t *testing.T) {
	pg := startPostgres(t)
	src, other := newSource(), newBackend(t, "other")
	src.set(Coordinator, pg.target(1))
	p := start(t, src, Listener{Kind: Coordinator}, Listener{Kind: Worker})

	for _, sslmode := range []string{"disable", "prefer", "require"} {
		t.Run("query/"+sslmode, func(t *testing.T) {
			var encrypted bool
			c := connect(t, p, 0, sslmode)
			if err := c.QueryRow(t.Context(), "select ssl from pg_stat_ssl where pid = pg_backend_pid()").Scan(&encrypted); err != nil {
				t.Fatal(err)
			}
			if encrypted != (sslmode != "disable") {
				t.Errorf("encrypted: %t", encrypted)
			}
		})
		t.Run("copy/"+sslmode, func(t *testing.T) { copyBothWays(t, connect(t, p, 0, sslmode)) })
		t.Run("cancel/"+sslmode, func(t *testing.T) { cancelled(t, connect(t, p, 0, sslmode)) })
	}
	t.Run("cancel among several", func(t *testing.T) {
		src.set(Worker, pg.target(1))
		eventually(t, "it is listed", func() bool { return len(p.listeners[1].roster.list()) == 1 })
		c := connect(t, p, 1, "disable")
		src.set(Worker, other.target(1), pg.target(1))
		eventually(t, "both are listed", func() bool { return len(p.listeners[1].roster.list()) == 2 })
		cancelled(t, c)
	})
	t.Run("psql", func(t *testing.T) { psql(t, pg, p) })
	t.Run("waits through a restart", func(t *testing.T) { restart(t, pg, p, src) })
}

func copyBothWays(t *testing.T, c *pgx.Conn) {
	ctx := t.Context()
	if _, err := c.Exec(ctx, "create temp table t (line text)"); err != nil {
		t.Fatal(err)
	}
	in := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 300_000) // 30 MB
	if _, err := c.PgConn().CopyFrom(ctx, bytes.NewReader(in), "copy t from stdin"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := c.PgConn().CopyTo(ctx, &out, "copy t to stdout"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(in, out.Bytes()) {
		t.Errorf("%d bytes went in, %d others came out", len(in), out.Len())
	}
}

func cancelled(t *testing.T, c *pgx.Conn) {
	ended := make(chan error)
	go func() {
		_, err := c.Exec(context.Background(), "select pg_sleep(60)")
		ended <- err
	}()
	late := time.After(patience)
	for {
		if err := c.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			var pe *pgconn.PgError
			if !errors.As(err, &pe) || pe.Code != "57014" {
				t.Errorf("got %v, want a cancelled statement", err)
			}
			return
		case <-time.After(100 * time.Millisecond): // the first request may come before the statement
		case <-late:
			t.Fatal("the statement goes on")
		}
	}
}

func psql(t *testing.T, pg *postgres, p *Proxy) {
	host, port, _ := net.SplitHostPort(p.Stats()[0].Addr)
	cmd := pg.command("psql", "-XAtq", "-h", host, "-p", port, "-U", "app", "-d", "postgres", "-c", "select 6 * 7")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

// restart stops the server under a session and its successors: the session ends with PostgreSQL's own words, the others are late.
func restart(t *testing.T, pg *postgres, p *Proxy, src *source) {
	c := connect(t, p, 0, "disable")
	draining := pg.target(1)
	draining.Draining = true
	src.set(Coordinator, draining)
	eventually(t, "it drains", func() bool { return p.listeners[0].roster.list()[0].Draining })
	pg.run("pg_ctl", "-D", pg.data, "-m", "fast", "-w", "stop")
	_, err := c.Exec(t.Context(), "select 1")
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "57P01" {
		t.Errorf("got %v, want PostgreSQL's own farewell", err)
	}
	// The one is listed while it does not listen yet. The other wants encryption, which hides a server's "starting up": it has to wait for the list.
	src.set(Coordinator, pg.target(2))
	src.set(Worker)
	got := make(chan error)
	for i, sslmode := range []string{"disable", "require"} {
		host, port, _ := net.SplitHostPort(p.Stats()[i].Addr)
		go func() {
			c, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%s user=app dbname=postgres sslmode=%s", host, port, sslmode))
			if err == nil {
				err = c.Close(t.Context())
			}
			got <- err
		}()
	}
	eventually(t, "both wait", func() bool { s := p.Stats(); return s[0].Waiting == 1 && s[1].Waiting == 1 })
	pg.start()
	src.set(Worker, pg.target(2))
	for range 2 {
		if err := <-got; err != nil {
			t.Errorf("a client that came during the restart: %v", err)
		}
	}
}
