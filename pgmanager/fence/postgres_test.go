package fence

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// punctual is how late a fence may be on a busy machine. The lease's own margin is 500 ms.
const punctual = 3 * time.Second

func TestStartStop(t *testing.T) {
	r := newRig(t)
	r.initData()
	ctx := t.Context()
	st := r.start()
	if st.Role != RoleStandby || st.Postmaster == 0 || st.Weak || st.Left < 1 || st.StartedAt.IsZero() {
		t.Errorf("status %+v", st)
	}
	if out, err := r.psql("SELECT pg_is_in_recovery()"); err != nil || out != "t" {
		t.Fatalf("in recovery: %q, %v", out, err)
	}
	if sid, err := unix.Getsid(st.Postmaster); err != nil || sid != st.Postmaster {
		t.Errorf("session %d: %v", sid, err)
	}
	if b, err := os.ReadFile(procPath(st.Postmaster, "oom_score_adj")); err != nil || strings.TrimSpace(string(b)) != "0" {
		t.Errorf("the server's OOM score: %q, %v", b, err)
	}
	attr, err := unix.SchedGetAttr(st.Postmaster, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		t.Errorf("the server's scheduling: %+v, %v", attr, err)
	}
	_, err = r.c.Start(ctx, r.startRequest())
	wantCode(t, err, ErrRunning)
	wantCode(t, r.c.Shutdown(ctx), ErrRunning)
	must(t, r.cmd.Process.Signal(unix.SIGTERM)) // ignored while PostgreSQL runs
	must(t, r.c.Ping(ctx))

	st, err = r.c.Stop(ctx, StopRequest{Mode: Fast, TimeoutMS: 60_000})
	must(t, err)
	if st.Left != 0 || st.Postmaster != 0 || st.Role != RoleNone || st.LastExit.Code != 0 || st.LastExit.Fenced {
		t.Errorf("after the stop: %+v %+v", st, st.LastExit)
	}
	r.wantNone()
	if e := r.event(Exited); e.Status.Left != 0 {
		t.Errorf("exited with %d left", e.Status.Left)
	}
	r.start()
	_, err = r.c.Stop(ctx, StopRequest{Mode: Immediate, TimeoutMS: 60_000})
	must(t, err)
	r.wantNone()
}

func TestStartRefused(t *testing.T) {
	r := newRig(t)
	r.initData()
	must(t, os.Remove(filepath.Join(r.data, "standby.signal")))
	_, err := r.c.Start(t.Context(), r.startRequest())
	wantCode(t, err, ErrNotStandby)

	r.write("standby.signal", "")
	bad := r.startRequest()
	bad.Argv[0] = "/nonexistent/postgres"
	_, err = r.c.Start(t.Context(), bad)
	wantCode(t, err, ErrFailed)

	bad = r.startRequest()
	bad.LogFile = filepath.Join(r.base, "link")
	must(t, os.Symlink(filepath.Join(r.base, "elsewhere"), bad.LogFile))
	_, err = r.c.Start(t.Context(), bad)
	wantCode(t, err, ErrFailed)
	if _, err := os.Lstat(filepath.Join(r.base, "elsewhere")); err == nil {
		t.Error("the log was opened through a link")
	}
	if st := r.status(); st.Role != RoleNone || st.Left != 0 {
		t.Errorf("after refusals: %+v", st)
	}
}

// A server that ends by itself, for instance over a bad setting, is reported with its exit code.
func TestStartThatFails(t *testing.T) {
	r := newRig(t)
	r.initData()
	r.write("postgresql.auto.conf", "no_such_setting = 1\n")
	_, err := r.c.Start(t.Context(), r.startRequest())
	must(t, err)
	if e := r.event(Exited); e.Status.LastExit.Code != 1 || e.Status.LastExit.Fenced {
		t.Errorf("exit %+v", e.Status.LastExit)
	}
	if b, _ := os.ReadFile(filepath.Join(r.base, "pg.log")); !strings.Contains(string(b), "no_such_setting") {
		t.Errorf("PostgreSQL's log: %s", b)
	}
}

func TestPromote(t *testing.T) {
	r := newRig(t)
	r.initData()
	ctx := t.Context()
	_, err := r.c.Start(ctx, r.startRequest())
	must(t, err)
	_, err = r.c.Promote(ctx, e1)
	wantCode(t, err, ErrDeadline)
	r.lease(e1, time.Minute)
	_, err = r.c.Promote(ctx, e2)
	wantCode(t, err, ErrDeadline)
	for range 3 { // at once, before the postmaster can hear, and again
		_, err = r.c.Promote(ctx, e1)
		must(t, err)
	}
	e := r.event(RoleChange)
	if e.Status.Role != RolePrimary || e.Status.Epoch != e1 {
		t.Errorf("role event %+v", e.Status)
	}
	_, err = r.c.Promote(ctx, e1)
	must(t, err)
	r.awaitWritable()
	_, err = r.psql("CREATE TABLE t (n int)")
	must(t, err)

	r.lease(e2, time.Minute)
	_, err = r.c.Promote(ctx, e2) // a running primary keeps its epoch
	wantCode(t, err, ErrEpoch)
	_, err = r.c.Stop(ctx, StopRequest{Mode: Fast, TimeoutMS: 60_000})
	must(t, err)
	r.write("standby.signal", "")
	r.start()
	_, err = r.c.Promote(ctx, e1)
	wantCode(t, err, ErrDeadline)
}

// The same lease does not promote twice: one epoch, one timeline.
func TestEpochPromotesOnce(t *testing.T) {
	r := newRig(t)
	r.initData()
	r.promoted(e1, time.Minute)
	_, err := r.c.Kill(t.Context())
	must(t, err)
	r.wantNone()
	r.write("standby.signal", "")
	r.start()
	_, err = r.c.Promote(t.Context(), e1)
	wantCode(t, err, ErrEpoch)
	r.lease(e2, time.Minute)
	_, err = r.c.Promote(t.Context(), e2)
	must(t, err)
	r.event(RoleChange)
}

// TestFenceAtDeadline: with busy sessions, nothing is left soon after the deadline, and a renewal before it counts.
func TestFenceAtDeadline(t *testing.T) {
	for _, c := range []struct {
		name   string
		freeze bool // SIGQUIT does nothing to a stopped postmaster: only the kill can
	}{{"running", false}, {"postmaster stopped", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.initData()
			st, _ := r.promoted(e1, 6*time.Second)
			dl := r.renewing(e1, 6*time.Second, func() {
				r.busy()
				if c.freeze {
					must(t, unix.Kill(st.Postmaster, unix.SIGSTOP))
				}
			})
			fenced := r.event(Fenced)
			if left := dl.Left(Clock()); left > SoftStop {
				t.Errorf("fenced %v before the deadline: %s", left, fenced.Reason)
			}
			e := r.event(Exited)
			late := lateness(dl, e.Status.LastExit)
			r.wantNone()
			t.Logf("ended %v after the deadline; %+v", late, e.Status.LastExit)
			if late > punctual || e.Status.Left != 0 || !e.Status.LastExit.Fenced {
				t.Errorf("late by %v, %d left, %+v", late, e.Status.Left, e.Status.LastExit)
			}
			if c.freeze && (e.Status.LastExit.Signal != int(unix.SIGKILL) || late < 0) {
				t.Errorf("a stopped postmaster ended by %+v, %v after the deadline", e.Status.LastExit, late)
			}
		})
	}
}

// A lease that is renewed holds; a later epoch's deadline does not extend it.
func TestRenewalAndLaterEpoch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.initData()
	_, _ = r.promoted(e1, 6*time.Second)
	dl := r.renewing(e1, 6*time.Second, func() { <-time.After(7 * time.Second) })
	if st := r.status(); st.Role != RolePrimary || st.Deadline.Raw != dl.Raw {
		t.Fatalf("after renewals: %+v", st)
	}
	r.lease(e2, time.Hour)
	e := r.event(Exited)
	if late := lateness(dl, e.Status.LastExit); !e.Status.LastExit.Fenced || late > punctual || late < -SoftStop-500*time.Millisecond {
		t.Errorf("ended %v after the deadline: %+v", late, e.Status.LastExit)
	}
}

func TestKilledPostmasterLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.initData()
	st, _ := r.promoted(e1, time.Minute)
	r.busy()
	begin := time.Now()
	must(t, unix.Kill(st.Postmaster, unix.SIGKILL))
	e := r.event(Exited)
	t.Logf("nothing left %v after kill -9 of the postmaster", time.Since(begin))
	r.wantNone()
	if x := e.Status.LastExit; x.Signal != int(unix.SIGKILL) || x.Fenced || e.Status.Left != 0 {
		t.Errorf("%+v, %+v", e.Status, x)
	}
}

// A fast stop that hangs is completed by force.
func TestStopTimeout(t *testing.T) {
	r := newRig(t)
	r.initData()
	st := r.start()
	must(t, unix.Kill(st.Postmaster, unix.SIGSTOP))
	st, err := r.c.Stop(t.Context(), StopRequest{Mode: Fast, TimeoutMS: 200})
	must(t, err)
	if st.LastExit.Signal != int(unix.SIGKILL) {
		t.Errorf("%+v", st.LastExit)
	}
	r.wantNone()
}

// The agent may go and come: same sentinel, same postmaster, and what happened meanwhile is in the greeting.
func TestAgentReconnects(t *testing.T) {
	r := newRig(t)
	r.initData()
	st, _ := r.promoted(e1, time.Minute)
	instance := r.c.Instance()
	must(t, r.c.Close())
	r.c = r.dial()
	if g := r.c.Greeting(); g.Instance != instance || g.Postmaster != st.Postmaster || g.Role != RolePrimary || g.Epoch != e1 {
		t.Errorf("greeted with %+v", g)
	}
	must(t, r.c.Close())
	must(t, unix.Kill(st.Postmaster, unix.SIGKILL))
	r.await("nothing is left", func() bool {
		left, err := Processes(r.data)
		return err == nil && len(left) == 0
	})
	r.await("the greeting tells", func() bool {
		r.c = r.dial()
		g := r.c.Greeting()
		if g.LastExit == nil {
			_ = r.c.Close()
		}
		return g.LastExit != nil && g.Left == 0 && g.Instance == instance
	})
}

// A promotion by another hand is fenced, lease or not.
func TestHandMadePromotionIsFenced(t *testing.T) {
	for _, leased := range []bool{false, true} {
		r := newRig(t)
		r.initData()
		r.start()
		if leased {
			r.lease(e1, time.Minute)
		}
		if out, err := r.psql("SELECT pg_promote(false)"); err != nil {
			t.Logf("pg_promote, or killed before its answer: %v: %s", err, out)
		}
		e := r.event(Exited)
		r.wantNone()
		if x := e.Status.LastExit; !x.Fenced || !strings.Contains(x.Reason, "without a promotion") {
			t.Errorf("leased %v: %+v", leased, x)
		}
	}
}

// --- the fallbacks

func TestSentinelKilled(t *testing.T) {
	r := newRig(t)
	r.initData()
	st, _ := r.promoted(e1, time.Minute)
	r.busy()
	must(t, r.cmd.Process.Kill())
	r.event(Closed)
	r.await("PostgreSQL has followed its parent", func() bool {
		left, err := Processes(r.data)
		return err == nil && len(left) == 0
	})
	if p, err := readProc(st.Postmaster); err == nil && p.state != 'Z' && p.postgres() {
		t.Errorf("postmaster %+v", p)
	}
	if b, _ := os.ReadFile(filepath.Join(r.base, "pg.log")); !strings.Contains(string(b), "immediate shutdown") {
		t.Errorf("no SIGQUIT seen in PostgreSQL's log: %s", b)
	}
}

func TestSentinelKilledWhilePostmasterStopped(t *testing.T) {
	r := newRig(t)
	r.initData()
	st, _ := r.promoted(e1, time.Minute)
	r.busy()
	must(t, unix.Kill(st.Postmaster, unix.SIGSTOP))
	must(t, r.cmd.Process.Kill())
	_ = r.cmd.Wait()
	r.cmd = nil
	if left, err := Processes(r.data); err != nil || len(left) < 3 {
		t.Fatalf("the case was not made: %v, %v", left, err)
	}
	r.killAll()
}

func TestSentinelFrozen(t *testing.T) {
	r := newRig(t)
	r.initData()
	r.promoted(e1, time.Minute)
	r.busy()
	must(t, r.cmd.Process.Signal(unix.SIGSTOP))
	r.await("each of its threads stands still", func() bool {
		threads, err := filepath.Glob(procPath(r.cmd.Process.Pid, "task/*/stat"))
		must(t, err)
		return !slices.ContainsFunc(threads, func(stat string) bool {
			b, _ := os.ReadFile(stat)
			p, err := parseStat(b)
			return err != nil || p.state != 'T'
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := r.c.Ping(ctx); err == nil {
		t.Fatal("a frozen sentinel answered")
	}
	r.killAll()
	must(t, r.cmd.Process.Signal(unix.SIGCONT))
	if e := r.event(Exited); e.Status.Left != 0 {
		t.Errorf("%+v", e.Status)
	}
}

func (r *rig) killAll() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	begin := time.Now()
	must(r.t, KillAll(ctx, r.data))
	r.t.Logf("KillAll took %v", time.Since(begin))
	r.wantNone()
}
