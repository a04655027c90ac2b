package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime/coverage"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"matriarch/pgmanager"
	"matriarch/pgmanager/pgtest"
)

// Environment variables that turn the test binary into another program.
const (
	envSentinel = "FENCE_TEST_SENTINEL" // its value is the socket
	envPeek     = "FENCE_TEST_PEEK"     // its value is the socket
)

// within is how long a test waits for what should take milliseconds: the machine may stall.
const within = 20 * time.Second

func TestMain(m *testing.M) {
	if socket := os.Getenv(envSentinel); socket != "" {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) // a test that dies leaves nothing behind
		err := Run(context.Background(), Config{Socket: socket, LogFile: socket + ".log", Version: "test", openWatchdog: plainFile})
		if dir := os.Getenv("GOCOVERDIR"); dir != "" {
			_ = errors.Join(coverage.WriteMetaDir(dir), coverage.WriteCountersDir(dir))
		}
		exit(err)
	}
	if socket := os.Getenv(envPeek); socket != "" {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		_, err := Peek(ctx, socket)
		exit(err)
	}
	code := m.Run()
	if base := templateDir; base != "" {
		_ = os.RemoveAll(base)
	}
	os.Exit(code)
}

func exit(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// rig is a sentinel in a process of its own, with an agent connected, and room for one data directory.
type rig struct {
	t        *testing.T
	base     string
	data     string
	socket   string
	uid, gid uint32
	cmd      *exec.Cmd
	c        *Client
	sessions sync.WaitGroup // psql processes; they end with the server
}

func newRig(t *testing.T) *rig {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "fence-")
	must(t, err)
	must(t, os.Chmod(base, 0o755))
	r := &rig{t: t, base: base, data: filepath.Join(base, "data"), socket: filepath.Join(base, "s")}
	r.uid, r.gid = serverUser()
	t.Cleanup(r.clean)
	r.launch()
	r.c = r.dial()
	return r
}

func (r *rig) clean() {
	if r.t.Failed() {
		for _, f := range []string{"s.log", "pg.log"} {
			b, _ := os.ReadFile(filepath.Join(r.base, f))
			r.t.Logf("%s:\n%s", f, b)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := KillAll(ctx, r.data); err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	r.sessions.Wait()
	if r.c != nil {
		_ = r.c.Close()
	}
	r.endSentinel()
	_ = os.RemoveAll(r.base)
}

func (r *rig) launch() {
	r.t.Helper()
	r.cmd = exec.Command(executable(r.t))
	r.cmd.Env = append(os.Environ(), envSentinel+"="+r.socket, "GORACE=atexit_sleep_ms=0")
	r.cmd.Stdout, r.cmd.Stderr = os.Stderr, os.Stderr
	must(r.t, r.cmd.Start())
	r.await("the sentinel answers", func() bool {
		_, err := Peek(r.t.Context(), r.socket)
		return err == nil
	})
}

func (r *rig) endSentinel() {
	if r.cmd != nil {
		_ = r.cmd.Process.Signal(unix.SIGCONT)
		_ = r.cmd.Process.Signal(unix.SIGTERM) // idle by now: it ends in order and writes its coverage
		timer := time.AfterFunc(within, func() { _ = r.cmd.Process.Kill() })
		_ = r.cmd.Wait()
		timer.Stop()
		if code := r.cmd.ProcessState.ExitCode(); code > 0 {
			r.t.Errorf("the sentinel exited with code %d", code)
		}
		r.cmd = nil
	}
}

func (r *rig) dial() *Client {
	r.t.Helper()
	c, err := Dial(r.t.Context(), r.socket)
	must(r.t, err)
	return c
}

func (r *rig) status() Status {
	r.t.Helper()
	st, err := r.c.Status(r.t.Context())
	must(r.t, err)
	return st
}

// await polls for something that cannot be waited for.
func (r *rig) await(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			r.t.Fatalf("waited %v in vain until %s", within, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// event waits for the next event of one kind and returns it.
func (r *rig) event(k Kind) Event {
	r.t.Helper()
	timeout := time.After(within)
	for {
		select {
		case e, ok := <-r.c.Events():
			if !ok {
				r.t.Fatalf("the events ended before %s", k)
			}
			if e.Kind == k {
				return e
			}
		case <-timeout:
			r.t.Fatalf("no event %s within %v", k, within)
		}
	}
}

// lease sends a deadline d from now and returns it.
func (r *rig) lease(e Epoch, d time.Duration) Deadline {
	r.t.Helper()
	dl := NewDeadline(r.c.Instance(), e, Clock().Add(d))
	must(r.t, r.c.SetDeadline(r.t.Context(), dl))
	return dl
}

// renewing extends the lease again and again while f runs, and a last time after it.
func (r *rig) renewing(e Epoch, d time.Duration, f func()) Deadline {
	r.t.Helper()
	r.lease(e, d)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			case <-time.After(250 * time.Millisecond):
			}
			if err := r.c.SetDeadline(r.t.Context(), NewDeadline(r.c.Instance(), e, Clock().Add(d))); err != nil {
				stopped <- err
				return
			}
		}
	}()
	f()
	close(stop)
	must(r.t, <-stopped)
	return r.lease(e, d)
}

// lateness is how long after the deadline the server ended, by the sentinel's account: this process may hear of it late.
func lateness(dl Deadline, x *Exit) time.Duration { return -dl.Left(Clock().Add(-time.Since(x.At))) }

// wantNone checks that no process of the PostgreSQL is left.
func (r *rig) wantNone() {
	r.t.Helper()
	left, err := Processes(r.data)
	must(r.t, err)
	if len(left) > 0 {
		r.t.Fatalf("processes left: %v", left)
	}
}

// --- real PostgreSQL

var (
	templateDir string
	template    = sync.OnceValues(initTemplate)
)

var postgres = sync.OnceValues(func() (pgmanager.Tools, error) { return pgmanager.Find(pgtest.Bin()) })

// pgBin returns a tool of the PostgreSQL under test.
func pgBin(tool string) string {
	tools, _ := postgres() // initData has looked
	return tools.Path(tool)
}

// serverUser is who PostgreSQL runs as, since it refuses root.
func serverUser() (uid, gid uint32) {
	if os.Geteuid() != 0 {
		return uint32(os.Geteuid()), uint32(os.Getegid())
	}
	if u, err := user.Lookup("postgres"); err == nil {
		id, err1 := strconv.ParseUint(u.Uid, 10, 32)
		group, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if errors.Join(err1, err2) == nil {
			return uint32(id), uint32(group)
		}
	}
	return 65534, 65534
}

func asServer(cmd *exec.Cmd, uid, gid uint32) *exec.Cmd {
	if int(uid) != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
	cmd.Dir = "/"
	return cmd
}

// initTemplate makes one data directory, to be copied by each test.
func initTemplate() (string, error) {
	base, err := os.MkdirTemp("/tmp", "fence-template-")
	if err != nil {
		return "", err
	}
	templateDir = base
	uid, gid := serverUser()
	if err := errors.Join(os.Chmod(base, 0o755), os.Chown(base, int(uid), int(gid))); err != nil {
		return "", err
	}
	dir := filepath.Join(base, "data")
	out, err := asServer(exec.Command(pgBin("initdb"), "-D", dir, "-N", "-U", "postgres", "-A", "trust", "--locale=C"), uid, gid).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	return dir, nil
}

// initData gives the rig a data directory that is marked as a standby's.
func (r *rig) initData() {
	r.t.Helper()
	if _, err := postgres(); err != nil {
		r.t.Skip(err)
	}
	from, err := template()
	must(r.t, err)
	if out, err := exec.Command("cp", "-a", from, r.data).CombinedOutput(); err != nil {
		r.t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	must(r.t, os.Chown(r.base, int(r.uid), int(r.gid)))
	conf := fmt.Sprintf("listen_addresses = ''\nunix_socket_directories = '%s'\nfsync = off\nshared_buffers = '8MB'\n", r.base)
	r.write("postgresql.auto.conf", conf)
	r.write("standby.signal", "")
}

func (r *rig) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.data, name)
	must(r.t, os.WriteFile(path, []byte(content), 0o600))
	must(r.t, os.Chown(path, int(r.uid), int(r.gid)))
}

func (r *rig) startRequest() StartRequest {
	return StartRequest{
		Argv: []string{pgBin("postgres"), "-D", r.data}, Env: []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}, Dir: r.data,
		UID: r.uid, GID: r.gid, LogFile: filepath.Join(r.base, "pg.log"),
	}
}

// start starts PostgreSQL and waits until it answers queries as a standby.
func (r *rig) start() Status {
	r.t.Helper()
	st, err := r.c.Start(r.t.Context(), r.startRequest())
	must(r.t, err)
	r.awaitReady(st.Postmaster)
	return st
}

// awaitReady waits until the server takes connections, as whatever it is.
func (r *rig) awaitReady(pid int) {
	r.t.Helper()
	r.await("postmaster.pid says ready", func() bool {
		if st, err := Peek(r.t.Context(), r.socket); err == nil && st.Postmaster != pid {
			r.t.Fatalf("the postmaster ended: %+v", st.LastExit)
		}
		f, err := readPidFile(r.data)
		return err == nil && f.pid == pid && f.state == "ready"
	})
}

// awaitWritable waits until a promoted server has left recovery.
func (r *rig) awaitWritable() {
	r.t.Helper()
	r.await("the server is writable", func() bool {
		out, err := r.psql("SELECT pg_is_in_recovery()")
		return err == nil && out == "f"
	})
}

// promoted starts PostgreSQL and promotes it under epoch e, and returns when it is writable and has a lease of d.
func (r *rig) promoted(e Epoch, d time.Duration) (Status, Deadline) {
	r.t.Helper()
	st := r.start()
	dl := r.renewing(e, d, func() {
		_, err := r.c.Promote(r.t.Context(), e)
		must(r.t, err)
		if got := r.event(RoleChange).Status.Role; got != RolePrimary {
			r.t.Fatalf("role %s after the promotion", got)
		}
		r.awaitWritable()
	})
	return st, dl
}

func (r *rig) psql(sql string) (string, error) {
	cmd := asServer(exec.Command(pgBin("psql"), "-XAtq", "-h", r.base, "-U", "postgres", "-d", "postgres", "-c", sql), r.uid, r.gid)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// busy runs one session that writes without pause and one that sleeps, and returns when both are at it.
func (r *rig) busy() {
	r.t.Helper()
	_, err := r.psql("CREATE TABLE busy (n int)")
	must(r.t, err)
	for _, sql := range []string{
		"DO $$ BEGIN LOOP INSERT INTO busy VALUES (1); COMMIT; END LOOP; END $$",
		"SELECT pg_sleep(600)",
	} {
		r.sessions.Go(func() { _, _ = r.psql(sql) })
	}
	r.await("both sessions are busy", func() bool {
		out, err := r.psql("SELECT count(*) FROM pg_stat_activity WHERE query ~ '^(DO|SELECT pg_sleep)' AND state = 'active'")
		return err == nil && out == "2"
	})
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exe
}

func must(t *testing.T, err error) {
	if err != nil {
		t.Helper()
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code Code) {
	t.Helper()
	if !errors.Is(err, code) {
		t.Fatalf("got %v, want %v", err, code)
	}
}
