package fence

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// foreign starts a server as somebody else would: not as the sentinel's child.
func (r *rig) foreign(standby bool) int {
	r.t.Helper()
	if !standby {
		must(r.t, os.Remove(filepath.Join(r.data, "standby.signal")))
	}
	log, err := os.OpenFile(filepath.Join(r.base, "pg.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(r.t, err)
	defer log.Close()
	cmd := asServer(exec.Command(pgBin("postgres"), "-D", r.data), r.uid, r.gid)
	cmd.Stdout, cmd.Stderr = log, log
	must(r.t, cmd.Start())
	r.sessions.Go(func() { _ = cmd.Wait() })
	r.await("the foreign server is ready", func() bool {
		f, err := readPidFile(r.data)
		return err == nil && f.state == "ready"
	})
	return cmd.Process.Pid
}

func (r *rig) adopt(pid int, grace time.Duration) (Status, error) {
	return r.c.Adopt(r.t.Context(), AdoptRequest{PID: pid, Dir: r.data, GraceMS: grace.Milliseconds()})
}

func TestAdoptedPrimary(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.initData()
	pid := r.foreign(false)
	_, err := r.adopt(pid, 0)
	wantCode(t, err, ErrDeadline)
	if st := r.status(); st.Role != RoleNone {
		t.Fatalf("after the refusal: %+v", st)
	}
	st, err := r.adopt(pid, time.Minute)
	must(t, err)
	if st.Role != RolePrimary || !st.Weak || st.Postmaster != pid || !st.Epoch.IsZero() || st.Left < 2 {
		t.Errorf("adopted: %+v", st)
	}
	_, err = r.adopt(pid, time.Minute)
	wantCode(t, err, ErrRunning)
	_, err = r.c.Start(t.Context(), r.startRequest())
	wantCode(t, err, ErrRunning)
	wantCode(t, r.c.Shutdown(t.Context()), ErrRunning)
	r.busy()
	must(t, unix.Kill(pid, unix.SIGSTOP)) // SIGQUIT will not do: the kill has to
	dl := r.lease(e1, 6*time.Second)
	if st := r.status(); st.Epoch != e1 {
		t.Errorf("with its first deadline: %+v", st)
	}
	e := r.event(Exited)
	r.wantNone()
	late := lateness(dl, e.Status.LastExit)
	t.Logf("ended %v after the deadline", late)
	if late < 0 || late > punctual || !e.Status.LastExit.Fenced || e.Status.Left != 0 {
		t.Errorf("late by %v: %+v", late, e.Status.LastExit)
	}
}

func TestAdoptedPrimaryWithoutDeadlineIsFenced(t *testing.T) {
	r := newRig(t)
	r.initData()
	pid := r.foreign(false)
	begin := time.Now()
	_, err := r.adopt(pid, 700*time.Millisecond)
	must(t, err)
	if e := r.event(Fenced); time.Since(begin) < 700*time.Millisecond || !strings.Contains(e.Reason, "adopted") {
		t.Errorf("fenced after %v: %s", time.Since(begin), e.Reason)
	}
	r.event(Exited)
	r.wantNone()
}

// An adopted standby needs no deadline, can be promoted as any other, and its end is seen.
func TestAdoptedStandby(t *testing.T) {
	r := newRig(t)
	r.initData()
	pid := r.foreign(true)
	st, err := r.adopt(pid, 0)
	must(t, err)
	if st.Role != RoleStandby || !st.Weak {
		t.Errorf("adopted: %+v", st)
	}
	r.lease(e1, time.Minute)
	_, err = r.c.Promote(t.Context(), e1)
	must(t, err)
	r.event(RoleChange)
	r.awaitWritable()
	r.busy()
	must(t, unix.Kill(pid, unix.SIGKILL))
	e := r.event(Exited)
	r.wantNone()
	if e.Status.Left != 0 || e.Status.LastExit.Fenced {
		t.Errorf("%+v", e.Status)
	}
}

func TestAdoptedStop(t *testing.T) {
	r := newRig(t)
	r.initData()
	pid := r.foreign(true)
	_, err := r.adopt(pid, 0)
	must(t, err)
	st, err := r.c.Stop(t.Context(), StopRequest{Mode: Fast, TimeoutMS: 60_000})
	must(t, err)
	if st.Left != 0 || st.LastExit.Code != -1 {
		t.Errorf("%+v, %+v", st, st.LastExit)
	}
	r.wantNone()
}

// Whatever is not that directory's postmaster is refused, above all another process that has got its pid.
func TestAdoptChecksIdentity(t *testing.T) {
	r := newRig(t)
	r.initData()
	pid := r.foreign(true)
	file := filepath.Join(r.data, "postmaster.pid")
	genuine, err := os.ReadFile(file)
	must(t, err)
	with := func(line int, content string) func() {
		l := strings.Split(string(genuine), "\n")
		l[line] = content
		return func() { r.write("postmaster.pid", strings.Join(l, "\n")) }
	}
	sleep := exec.Command("sleep", "600")
	sleep.Dir = r.data
	must(t, sleep.Start())
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	backend, err := descendants(pid)
	must(t, err)
	f, err := parsePidFile(string(genuine))
	must(t, err)
	for _, c := range []struct {
		name  string
		setup func()
		req   AdoptRequest
	}{
		{"a backend", nil, AdoptRequest{PID: backend[0].pid, Dir: r.data}},
		{"no such process", nil, AdoptRequest{PID: 1 << 22, Dir: r.data}},
		{"another directory", nil, AdoptRequest{PID: pid, Dir: r.base}},
		{"reused by another program", with(0, strconv.Itoa(sleep.Process.Pid)), AdoptRequest{PID: sleep.Process.Pid, Dir: r.data}},
		{"reused by another start", with(2, fmt.Sprint(f.start.Unix()-3600)), AdoptRequest{PID: pid, Dir: r.data}},
		{"unreadable pid file", with(0, "x"), AdoptRequest{PID: pid, Dir: r.data}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.setup != nil {
				c.setup()
				defer func() { r.write("postmaster.pid", string(genuine)) }()
			}
			_, err := r.c.Adopt(t.Context(), c.req)
			wantCode(t, err, ErrIdentity)
			t.Log(err)
		})
	}
	t.Run("a postgres of another directory", func(t *testing.T) {
		other := filepath.Join(r.base, "other")
		must(t, os.Mkdir(other, 0o755))
		must(t, os.WriteFile(filepath.Join(other, "postmaster.pid"), genuine, 0o644))
		_, err := r.c.Adopt(t.Context(), AdoptRequest{PID: pid, Dir: other})
		wantCode(t, err, ErrIdentity)
	})
	_, err = r.adopt(pid, 0) // and the genuine one is taken
	must(t, err)
}
