package pgmanager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
	"matriarch/pgmanager/pgtest"
)

// node is one real PostgreSQL under test.
type node struct {
	*Manager
	t   *testing.T
	id  fsm.NodeID
	dir string
	cmd *exec.Cmd
}

var nodeCount atomic.Int32

// everyone admits the whole loopback network as members: a client's source address is 127.0.0.1 whatever it connects to.
var everyone = []string{"127.0.0.0/8"}

func epoch(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

// newNode lays out a node without data. Tests without PostgreSQL on the machine are skipped.
func newNode(t *testing.T, edit ...func(*Config)) *node {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real PostgreSQL")
	}
	if _, err := Find(pgtest.Bin()); err != nil {
		t.Skip(err)
	}
	n := int(nodeCount.Add(1))
	dir, err := os.MkdirTemp("/tmp", "mpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // postgres has to traverse it
		t.Fatal(err)
	}
	host := fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%128, (os.Getpid()>>7)%256, n)
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	cfg := Config{
		BinDir: pgtest.Bin(), DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), SocketDir: filepath.Join(dir, "sock"),
		Host: host, Port: port, Superuser: "boss", ReplicationUser: "repl", SuperuserPassword: `s3:cr\et`,
		ReplicationPassword: "r:pl", Name: fmt.Sprintf("node %d", n), LogFile: filepath.Join(dir, "log", "postgres.log"),
		Parameters: map[string]string{"shared_buffers": "16MB", "max_connections": "40"},
	}
	for _, f := range edit {
		f(&cfg)
	}
	m, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	id := fsm.NodeID(fmt.Sprintf("%08x-aaaa-bbbb-cccc-%012d", n, n))
	return &node{Manager: m, t: t, id: id, dir: dir}
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), 60*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// start runs the postmaster as the sentinel would.
func (n *node) start() {
	n.t.Helper()
	s, err := n.StartCommand(n.ctx())
	n.must(err)
	log, err := os.OpenFile(s.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	defer log.Close()
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.Env, s.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != int(s.UID) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.UID, Gid: s.GID, Groups: s.Groups}
	}
	n.must(cmd.Start())
	n.cmd = cmd
	n.t.Cleanup(func() { n.end(syscall.SIGQUIT) })
	n.answer()
}

// end signals the postmaster and waits until it and all its children are gone.
func (n *node) end(sig syscall.Signal) {
	if n.cmd == nil {
		return
	}
	cmd := n.cmd
	n.cmd = nil
	n.Close()
	_ = cmd.Process.Signal(sig)
	_ = cmd.Process.Signal(syscall.SIGCONT)
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
	n.waitGone()
}

// waitGone waits for orphaned backends: they stand in the data directory.
func (n *node) waitGone() {
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := standingIn(n.cfg.DataDir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}

func standingIn(dir string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var pid int
		if k, _ := fmt.Sscanf(e.Name(), "%d", &pid); k != 1 {
			continue
		}
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (n *node) eventually(what string, ok func(Observation) bool) Observation {
	n.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		o := n.Observe(n.t.Context())
		if ok(o) {
			return o
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(n.cfg.LogFile)
			n.t.Fatalf("%s never %s; last seen %+v\n%s", n.cfg.Name, what, o, tail(string(log), 3000))
		}
		<-time.After(10 * time.Millisecond)
	}
}

// answer looks until the server answers: one look may take too long.
func (n *node) answer() Observation {
	n.t.Helper()
	return n.eventually("answers", func(o Observation) bool { return o.Reachable })
}

// promotionPoint is PromotionPoint of a server that answers.
func (n *node) promotionPoint() (tl, parent fsm.Timeline, fork fsm.LSN) {
	n.t.Helper()
	n.eventually("answers", func(Observation) bool {
		var err error
		tl, parent, fork, err = n.PromotionPoint(n.ctx())
		if err != nil && strings.Contains(err.Error(), "does not answer") {
			return false
		}
		n.must(err)
		return true
	})
	return tl, parent, fork
}

// unconfirmed runs a first commit, breaks it off when it has waited for standbys for a second, and returns its error.
func (n *node) unconfirmed(e fsm.Epoch) error {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := n.FirstCommit(ctx, e)
		done <- err
	}()
	const waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'matriarch first commit' AND wait_event = 'SyncRep')"
	n.eventually("waits for standbys", func(Observation) bool { return len(done) > 0 || value[bool](n, waits) })
	select {
	case err := <-done:
		return err
	case <-time.After(time.Second):
	}
	cancel()
	return <-done
}

// keepsOut ends the receiver of s, which tries to come back again and again, and fails when n lets it in.
func (n *node) keepsOut(s *node) {
	n.t.Helper()
	ended := map[int]bool{} // their processes may notice late that the receiver is gone
	for _, sender := range n.answer().Senders {
		ended[sender.PID] = true
	}
	s.must(s.EndReceiver(s.ctx()))
	begun := time.Now()
	for left := 1; left > 0 || time.Since(begun) < time.Second; <-time.After(20 * time.Millisecond) {
		o := n.answer()
		left = len(o.Senders)
		for _, sender := range o.Senders {
			if !ended[sender.PID] || time.Since(begun) > 10*time.Second {
				n.t.Fatalf("back without a credential: %+v", o.Senders)
			}
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (n *node) apply(c Conf) {
	n.t.Helper()
	_, err := n.Apply(c)
	n.must(err)
	n.must(n.Reload(n.ctx()))
}

// promote does what the sentinel does, and waits for the end of it.
func (n *node) promote() {
	n.t.Helper()
	n.sql("SELECT pg_promote(true, 30)")
	n.eventually("became primary", func(o Observation) bool { return o.Reachable && !o.InRecovery })
}

func (n *node) sql(q string, args ...any) {
	n.t.Helper()
	c, err := n.local(n.ctx())
	n.must(err)
	defer closeConn(c)
	_, err = c.Exec(n.ctx(), q, args...)
	if err != nil {
		n.t.Fatalf("%s: %v", q, err)
	}
}

func value[T any](n *node, q string, args ...any) T {
	n.t.Helper()
	c, err := n.local(n.ctx())
	n.must(err)
	defer closeConn(c)
	var v T
	if err := c.QueryRow(n.ctx(), q, args...).Scan(&v); err != nil {
		n.t.Fatalf("%s: %v", q, err)
	}
	return v
}

// primary makes a running primary of epoch 1 that admits members.
func primary(t *testing.T, edit ...func(*Config)) *node {
	t.Helper()
	n := newNode(t, edit...)
	_, err := n.InitDB(n.ctx())
	n.must(err)
	n.start()
	n.apply(Conf{Phase: pgconf.Members, Nodes: everyone})
	n.promote()
	n.must(n.SetLineage(map[fsm.Timeline]fsm.Epoch{2: epoch(1)}))
	n.must(n.EnsureRoles(n.ctx()))
	return n
}

// upstream is how standby s follows n in an epoch.
func (n *node) upstream(s *node, e fsm.Epoch) Upstream {
	s.t.Helper()
	pass, err := s.WriteCredential(e, pgconf.Passwords)
	s.must(err)
	l, err := n.Local()
	s.must(err)
	return Upstream{Lineage: l.Lineage, Host: n.cfg.Host, Port: n.cfg.Port, AppName: pgconf.AppName(s.id, e), Slot: pgconf.SlotName(s.id), PassFile: pass, Epoch: e}
}

// follow starts s as a standby of n and waits until it streams.
func (s *node) follow(n *node, e fsm.Epoch) {
	s.t.Helper()
	_, err := n.EnsureSlots(n.ctx(), []string{pgconf.SlotName(s.id)})
	n.must(err)
	up := n.upstream(s, e)
	if s.cmd == nil {
		_, err := s.Apply(Conf{Phase: pgconf.Members, Nodes: everyone, Upstream: &up})
		s.must(err)
		s.start()
	} else {
		s.apply(Conf{Phase: pgconf.Members, Nodes: everyone, Upstream: &up})
	}
	s.eventually("streams", func(o Observation) bool { return o.Receiver != nil && o.Receiver.Status == "streaming" })
}

// clone makes a running standby of n.
func clone(t *testing.T, n *node, e fsm.Epoch) *node {
	t.Helper()
	s := newNode(t)
	_, err := n.EnsureSlots(n.ctx(), []string{pgconf.SlotName(s.id)})
	n.must(err)
	s.must(s.Clone(s.ctx(), n.upstream(s, e), false, nil))
	s.follow(n, e)
	return s
}

// login tries a session over TCP and returns its SQLSTATE, empty when it is let in.
func (n *node) login(user, password, db string) string {
	n.t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d dbname=%s sslmode=disable", n.cfg.Host, n.cfg.Port, db))
	n.must(err)
	cfg.User, cfg.Password = user, password
	c, err := pgx.ConnectConfig(n.ctx(), cfg)
	if err == nil {
		closeConn(c)
		return ""
	}
	var pg interface{ SQLState() string }
	if errors.As(err, &pg) {
		return pg.SQLState()
	}
	return err.Error()
}

func contains(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("error %q does not say %q", err, w)
		}
	}
}
