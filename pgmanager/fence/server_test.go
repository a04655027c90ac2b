package fence

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNewestConnectionWins(t *testing.T) {
	r := newRig(t)
	old := r.c
	r.c = r.dial()
	var kinds []Kind
	for e := range old.Events() {
		kinds = append(kinds, e.Kind)
	}
	if len(kinds) != 2 || kinds[0] != Superseded || kinds[1] != Closed {
		t.Errorf("the older agent saw %v", kinds)
	}
	if err := old.Ping(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("call on the older connection: %v", err)
	}
	if old.Instance() != r.c.Instance() {
		t.Error("the instance changed")
	}
	must(t, r.c.Ping(t.Context()))
}

// Only the agent may act; looking is free and supersedes nobody.
func TestPeekSupersedesNobody(t *testing.T) {
	r := newRig(t)
	st, err := Peek(t.Context(), r.socket)
	must(t, err)
	if st.Instance != r.c.Instance() || st.Role != RoleNone || st.SentinelPID != r.cmd.Process.Pid {
		t.Errorf("peeked %+v", st)
	}
	stranger, err := connect(t.Context(), r.socket)
	must(t, err)
	defer stranger.Close()
	_, err = stranger.Kill(t.Context())
	wantCode(t, err, ErrHello)
	wantCode(t, stranger.Shutdown(t.Context()), ErrHello)
	must(t, r.c.Ping(t.Context()))
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if r.c.Version() != "test" || r.c.Greeting().Instance == "" {
		t.Errorf("greeted by %q, %+v", r.c.Version(), r.c.Greeting())
	}
	for _, c := range []struct {
		name string
		req  Request
		code Code
	}{
		{"unknown operation", Request{Op: "dance"}, ErrUnsupported},
		{"start without body", Request{Op: OpStart}, ErrInvalid},
		{"start with a relative path", Request{Op: OpStart, Start: &StartRequest{Argv: []string{"postgres", "-D", "/d"}, Dir: "/d", LogFile: "/l"}}, ErrInvalid},
		{"start of another directory", Request{Op: OpStart, Start: &StartRequest{Argv: []string{"/p", "-D", "/e"}, Dir: "/d", LogFile: "/l"}}, ErrInvalid},
		{"deadline without body", Request{Op: OpDeadline}, ErrInvalid},
		{"deadline of another instance", Request{Op: OpDeadline, Deadline: &Deadline{Instance: "x", Epoch: e1}}, ErrInstance},
		{"promote without body", Request{Op: OpPromote}, ErrInvalid},
		{"promote without server", Request{Op: OpPromote, Epoch: &e1}, ErrNotRunning},
		{"stop without body", Request{Op: OpStop}, ErrInvalid},
		{"stop of unknown mode", Request{Op: OpStop, Stop: &StopRequest{Mode: "smart"}}, ErrInvalid},
		{"stop with negative timeout", Request{Op: OpStop, Stop: &StopRequest{Mode: Fast, TimeoutMS: -1}}, ErrInvalid},
		{"adopt without body", Request{Op: OpAdopt}, ErrInvalid},
		{"adopt pid 1", Request{Op: OpAdopt, Adopt: &AdoptRequest{PID: 1, Dir: "/d"}}, ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.c.call(ctx, c.req)
			wantCode(t, err, c.code)
		})
	}
	if st, err := r.c.Stop(ctx, StopRequest{Mode: Fast}); err != nil || st.Left != 0 {
		t.Errorf("stop with nothing to stop: %+v, %v", st, err)
	}
}

func TestBadLinesEndTheConnection(t *testing.T) {
	r := newRig(t)
	for name, line := range map[string]string{
		"no JSON":  "hello?\n",
		"too long": `{"id":1,"op":"` + strings.Repeat("x", MaxLine) + `"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("unix", r.socket)
			must(t, err)
			defer nc.Close()
			must(t, nc.SetDeadline(time.Now().Add(within)))
			_, _ = nc.Write([]byte(line))
			for sc := bufio.NewScanner(nc); sc.Scan(); {
				if !strings.Contains(sc.Text(), string(ErrInvalid)) {
					t.Errorf("answer %s", sc.Text())
				}
			}
		})
	}
	must(t, r.c.Ping(t.Context()))
}

// Connections beyond the limit are closed, and the agent is not disturbed.
func TestConnectionLimit(t *testing.T) {
	r := newRig(t)
	for range 2 * maxConns {
		nc, err := net.Dial("unix", r.socket)
		must(t, err)
		defer nc.Close()
	}
	must(t, r.c.Ping(t.Context()))
}

func TestWrongUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	r := newRig(t)
	info, err := os.Stat(r.socket)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v", info.Mode())
	}
	exe := filepath.Join(r.base, "peek")
	if out, err := exec.Command("cp", executable(t), exe).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	peek := func(uid, gid uint32) error {
		cmd := asServer(exec.Command(exe), uid, gid)
		cmd.Env = []string{envPeek + "=" + r.socket}
		out, err := cmd.CombinedOutput()
		t.Logf("uid %d: %v %s", uid, err, out)
		return err
	}
	must(t, os.Chmod(r.socket, 0o666)) // only the check of the peer is left
	must(t, peek(0, 0))
	if peek(r.uid, r.gid) == nil {
		t.Error("another user was let in")
	}
}

func TestShutdownAndSignals(t *testing.T) {
	r := newRig(t)
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGPIPE} {
		must(t, r.cmd.Process.Signal(sig))
	}
	must(t, r.c.Ping(t.Context()))
	must(t, r.c.Shutdown(t.Context()))
	must(t, r.cmd.Wait())
	r.cmd = nil
	if _, err := os.Stat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	r.event(Closed)

	r.launch()
	must(t, r.cmd.Process.Signal(unix.SIGTERM))
	must(t, r.cmd.Wait())
	r.cmd = nil
}

func TestSecondSentinelIsRefused(t *testing.T) {
	r := newRig(t)
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), envSentinel+"="+r.socket)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another sentinel") {
		t.Errorf("second sentinel: %v, %s", err, out)
	}
	must(t, r.c.Ping(t.Context()))
}

// A dead sentinel's socket does not stop the next one, which is another instance.
func TestNewInstanceAfterKill(t *testing.T) {
	r := newRig(t)
	first := r.c.Instance()
	must(t, r.cmd.Process.Kill())
	_ = r.cmd.Wait()
	r.event(Closed)
	r.launch()
	r.c = r.dial()
	if r.c.Instance() == first {
		t.Error("two sentinels drew the same instance")
	}
	boot, _, ok := strings.Cut(first, "-")
	if !ok || boot == "" || !strings.HasPrefix(r.c.Instance(), boot+"-") {
		t.Errorf("instances %s and %s do not tell that they are of one boot", first, r.c.Instance())
	}
}

func TestSpawn(t *testing.T) {
	base := t.TempDir()
	cfg := SpawnConfig{
		Executable: executable(t), Args: []string{"sentinel"}, Socket: filepath.Join(base, "s"), LogFile: filepath.Join(base, "log"),
		Env: append(os.Environ(), envSentinel+"="+filepath.Join(base, "s")),
	}
	must(t, Spawn(t.Context(), cfg))
	c, err := Dial(t.Context(), cfg.Socket)
	must(t, err)
	pid := c.Greeting().SentinelPID
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of sentinel %d: %v", sid, pid, err)
	}
	must(t, Spawn(t.Context(), cfg)) // answers already: nothing to do
	if st, err := c.Status(t.Context()); err != nil || st.SentinelPID != pid {
		t.Errorf("after the second Spawn: %+v, %v", st, err)
	}
	must(t, c.Shutdown(t.Context()))
	for e := range c.Events() {
		t.Log(e.Kind, e.Reason)
	}

	cfg.Executable = "/bin/false"
	if err := Spawn(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), cfg.LogFile) {
		t.Errorf("spawn of a program that ends: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	cfg.Executable, cfg.Args = "/bin/sleep", []string{"20"}
	if err := Spawn(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("spawn of a program that does not serve: %v", err)
	}
}

// The agent's slack of timers is neither the sentinel's nor PostgreSQL's.
func TestSpawnIsPunctual(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const own = time.Millisecond
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	must(t, err)
	must(t, unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(own.Nanoseconds()), 0, 0, 0))
	defer func() { must(t, unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)) }()
	cmd := exec.Command("/bin/sleep", "60")
	must(t, startPunctually(cmd.Start))
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if got, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || got != int(own) {
		t.Errorf("the caller's slack is %d afterwards: %v", got, err)
	}
	b, err := os.ReadFile(procPath(cmd.Process.Pid, "timerslack_ns"))
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	must(t, err)
	if got := strings.TrimSpace(string(b)); got != strconv.FormatInt(usualSlack.Nanoseconds(), 10) {
		t.Errorf("the child's slack is %s ns", got)
	}
}

func TestListenRefusesLongPath(t *testing.T) {
	if err := Run(t.Context(), Config{Socket: "/tmp/" + strings.Repeat("x", 120)}); err == nil {
		t.Error("a path over the kernel's limit was taken")
	}
}

// A writer whose file hangs takes lines without waiting.
func TestLateWriterNeverWaits(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "log")
	must(t, unix.Mkfifo(fifo, 0o600)) // opening it for writing waits for a reader
	w := newLateWriter(fifo)
	begin := time.Now()
	for range 10_000 {
		_, _ = w.Write([]byte("line\n"))
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("10,000 lines took %v", d)
	}
	f, err := os.Open(fifo) // frees the writer
	must(t, err)
	close(w.lines)
	<-w.done
	must(t, f.Close())
}
