package fence

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Intervals of the loop. With no server it has no timer at all.
const (
	checkEvery   = 100 * time.Millisecond // the deadline when it is near, or when there is no alarm
	rolePolling  = 250 * time.Millisecond // standby.signal, of a standby
	promotePoll  = 10 * time.Millisecond  // the same, while a promotion is under way
	lingerNotice = time.Second            // a kill that takes longer is logged
)

// Config is what Run needs.
type Config struct {
	Socket  string // path of the Unix socket; Socket+".lock" is locked while Run lives
	LogFile string // empty: standard error
	Version string // told in hello

	openWatchdog openDevice // nil: the kernel's
}

// phase is where the server's life is. It only goes forward, then back to idle.
type phase int

const (
	idle     phase = iota
	running        // watched
	stopping       // told to end; killed at killAt
	killing        // everything is being killed, until nothing is left
)

// waiter is a stop or kill that is answered when no process is left.
type waiter struct {
	c  *conn
	id uint64
}

// sentinel is the state of the loop. Only the loop's goroutine touches it.
type sentinel struct {
	cfg Config
	log *slog.Logger
	srv *server

	alarm *alarm // nil: the system has none
	dog   watchdog

	guard     guard
	pm        *postmaster
	phase     phase
	killAt    *Stamp // while stopping; nil: no limit but the guard's
	reason    string // why it was stopped or killed
	fenced    bool
	ordered   bool          // the promotion has reached the postmaster
	roleAt    Stamp         // next look at standby.signal
	exit      *Exit         // of this postmaster, once it ended
	childless bool          // wait4 found no child
	nap       time.Duration // until the next pass of the kill
	killSince Stamp
	lingers   bool // a long kill was logged

	last    *Exit
	agent   *conn
	waiters []waiter
	leave   bool
}

// Run is the sentinel. It serves the socket until an agent asks for shutdown, or SIGTERM comes or ctx ends, and refuses each of these while a
// process of PostgreSQL is left. SIGHUP, SIGINT and SIGPIPE are ignored. The error says why it could not begin.
func Run(ctx context.Context, cfg Config) error {
	runtime.LockOSThread() // for ever: the postmaster's parent-death signal hangs on this thread
	w := newLateWriter(cfg.LogFile)
	log := slog.New(slog.NewTextHandler(w, nil)).With("component", "sentinel", "pid", os.Getpid())
	defer func() {
		close(w.lines)
		<-w.done
	}()
	srv, err := listen(cfg.Socket, log)
	if err != nil {
		return err
	}
	defer srv.close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of PostgreSQL's processes: %w", err)
	}
	harden(log)
	bell, err := newAlarm()
	if err != nil {
		log.Warn("no alarm: the deadline is looked at often instead", "error", err)
	}
	defer bell.close()
	s := &sentinel{cfg: cfg, log: log, srv: srv, alarm: bell, childless: true}
	s.guard.instance = newInstance()
	s.dog = watchdog{log: log, open: cfg.openWatchdog}
	if s.dog.open == nil {
		s.dog.open = openKernelWatchdog
	}
	defer s.dog.close()
	log.Info("sentinel started", "instance", s.guard.instance, "socket", cfg.Socket, "version", cfg.Version)
	s.loop(ctx)
	log.Info("sentinel ended")
	return nil
}

func (s *sentinel) loop(ctx context.Context) {
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(sigs)
	end := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !s.leave {
		select {
		case sig := <-sigs:
			if sig == unix.SIGTERM {
				s.terminate("SIGTERM")
			}
		case <-end:
			end = nil
			s.terminate("the caller's request")
		case r := <-s.srv.requests:
			s.handle(r)
		case <-s.adoptedGone():
			s.ended(Exit{Code: -1, Reason: s.reason})
		case <-s.alarm.rings():
		case <-timer.C:
		}
		s.step(Clock())
		s.wind(Clock())
		timer.Stop()
		if d, ok := s.next(Clock()); ok {
			timer.Reset(max(d, time.Millisecond))
		}
	}
}

func (s *sentinel) terminate(by string) {
	if s.phase != idle {
		s.log.Warn("end refused while PostgreSQL runs", "by", by, "postmaster", s.pm.pid)
		return
	}
	s.leave = true
}

// adoptedGone is ready once, when the adopted postmaster has ended.
func (s *sentinel) adoptedGone() <-chan struct{} {
	if s.pm == nil || s.exit != nil {
		return nil
	}
	return s.pm.gone
}

// step does whatever is due at now. It may be called at any time.
func (s *sentinel) step(now Stamp) {
	s.reap()
	if s.phase == running || s.phase == stopping {
		s.watchRole(now)
		s.watchDeadline(now)
	}
	if s.phase == killing {
		s.killPass(now)
	}
	s.tendWatchdog(now)
}

// tendWatchdog pats while the server may run for longer than the watchdog waits.
func (s *sentinel) tendWatchdog(now Stamp) {
	end, armed := s.guard.end(now)
	if armed || s.dog.stuck {
		s.dog.tend(now, end)
	}
}

// reap collects ended children, the postmaster among them.
func (s *sentinel) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			s.childless = err == unix.ECHILD
			return
		case pid == 0:
			s.childless = false
			return
		case s.pm != nil && !s.pm.adopted() && pid == s.pm.pid:
			s.ended(exitOf(ws, s.reason))
		}
	}
}

func exitOf(ws unix.WaitStatus, reason string) Exit {
	if ws.Signaled() {
		return Exit{Code: -1, Signal: int(ws.Signal()), Reason: reason}
	}
	return Exit{Code: ws.ExitStatus(), Reason: reason}
}

// ended notes the end of the postmaster; what is left of its children is killed.
func (s *sentinel) ended(e Exit) {
	if e.Reason == "" {
		e.Reason = "the postmaster ended by itself"
	}
	e.At, e.Fenced = time.Now().UTC(), s.fenced
	s.exit = &e
	s.startKill(e.Reason)
}

// watchRole looks for a standby that became writable, whoever promoted it. A primary stays one until it is gone.
func (s *sentinel) watchRole(now Stamp) {
	if s.guard.primary || s.roleAt.Until(now) > 0 {
		return
	}
	every := rolePolling
	if promoting := !s.guard.bound.Epoch.IsZero(); promoting {
		every = promotePoll
		s.orderPromotion()
	}
	s.roleAt = now.Add(every)
	if isStandby(s.pm.dir) {
		return
	}
	s.guard.primary = true
	s.log.Info("the server is a primary", "postmaster", s.pm.pid, "epoch", s.guard.bound.Epoch.String())
	s.emit(RoleChange, "")
}

func (s *sentinel) orderPromotion() {
	if s.ordered || s.phase != running {
		return
	}
	done, err := s.pm.orderPromotion(func() bool { return s.guard.bound.Left(Clock()) > SoftStop })
	if err != nil {
		s.log.Warn("promotion not ordered yet", "error", err)
	}
	s.ordered = done
}

// watchDeadline begins or completes the stop of a server whose right to run ends.
func (s *sentinel) watchDeadline(now Stamp) {
	end, armed := s.hardEnd(now)
	switch {
	case armed && end.Until(now) <= 0:
		s.fence(now)
		s.startKill(s.reason)
	case armed && !s.fenced && end.Until(now) <= SoftStop:
		s.fence(now)
		s.stop(unix.SIGQUIT, &end)
	}
	if s.phase == stopping && s.killAt != nil && s.killAt.Until(now) <= 0 {
		s.startKill(s.reason)
	}
}

// hardEnd is when everything is killed.
func (s *sentinel) hardEnd(now Stamp) (Stamp, bool) {
	end, armed := s.guard.end(now)
	if armed && s.dog.armed() {
		end = end.Add(-killLead)
	}
	return end, armed
}

func (s *sentinel) fence(now Stamp) {
	if s.fenced {
		return
	}
	s.fenced = true
	switch {
	case !s.guard.bound.Epoch.IsZero():
		s.reason = fmt.Sprintf("the lease of epoch %s ends in %v", s.guard.bound.Epoch, s.guard.bound.Left(now).Round(time.Millisecond))
	case s.guard.grace != nil:
		s.reason = "no deadline came for the adopted primary"
	default:
		s.reason = "the server became writable without a promotion by the sentinel"
	}
	s.log.Warn("fencing", "postmaster", s.pm.pid, "reason", s.reason)
	s.emit(Fenced, s.reason)
}

// stop tells the postmaster to end. An earlier killAt stays.
func (s *sentinel) stop(sig unix.Signal, killAt *Stamp) {
	s.phase = stopping
	if err := s.pm.signal(sig); err != nil {
		s.log.Error("stop postmaster", "error", err)
	}
	if now := Clock(); killAt != nil && (s.killAt == nil || killAt.Until(now) < s.killAt.Until(now)) {
		s.killAt = killAt
	}
}

func (s *sentinel) startKill(reason string) {
	if s.phase == killing {
		return
	}
	s.phase, s.reason, s.nap, s.killSince, s.lingers = killing, reason, firstNap, Clock(), false
	if !s.pm.adopted() && s.exit == nil {
		if err := s.pm.signal(unix.SIGKILL); err != nil {
			s.log.Error("kill postmaster", "error", err)
		}
	}
}

// killPass kills what is there, and finishes when nothing is.
func (s *sentinel) killPass(now Stamp) {
	left, err := s.killOnce()
	if err != nil {
		s.log.Error("kill", "error", err)
	}
	if left == 0 && s.exit != nil {
		s.finish()
		return
	}
	s.nap = min(2*s.nap, longestNap)
	if !s.lingers && now.Until(s.killSince) > lingerNotice {
		s.lingers = true
		s.log.Error("processes do not end after SIGKILL", "left", left)
	}
}

// killOnce returns how many processes may be left; 0 is a proof.
func (s *sentinel) killOnce() (int, error) {
	if s.pm.adopted() {
		n, err := sweep(s.pm.dir)
		if err != nil {
			n = max(n, 1)
		}
		return n, err
	}
	if s.childless {
		return 0, nil
	}
	ps, err := descendants(os.Getpid())
	for _, p := range ps {
		if kerr := p.signal(unix.SIGKILL); kerr != nil {
			err = kerr
		}
	}
	s.reap()
	if s.childless {
		return 0, nil
	}
	return max(len(ps), 1), err
}

// finish reports that nothing is left.
func (s *sentinel) finish() {
	s.log.Info("server ended", "postmaster", s.pm.pid, "code", s.exit.Code, "signal", s.exit.Signal, "fenced", s.exit.Fenced, "reason", s.exit.Reason)
	if s.pm.adopted() {
		_ = unix.Close(s.pm.pidfd)
	}
	s.last, s.exit, s.pm = s.exit, nil, nil
	s.phase, s.killAt, s.reason, s.fenced, s.ordered = idle, nil, "", false, false
	s.guard.release()
	s.dog.disarm(Clock())
	s.emit(Exited, s.last.Reason)
	st := s.status()
	for _, w := range s.waiters {
		w.c.send(Response{ID: w.id, Status: &st})
	}
	s.waiters = nil
}

// next returns the time until something is due.
func (s *sentinel) next(now Stamp) (time.Duration, bool) {
	end, _ := s.guard.end(now)
	pat, tended := s.dog.next(now, end)
	switch s.phase {
	case idle:
		return pat, tended
	case killing:
		return s.nap, true
	}
	d := time.Duration(1<<63 - 1)
	if tended {
		d = pat
	}
	if at, ok := s.due(now); ok {
		d = min(d, s.nearer(at.Until(now)))
	}
	if !s.guard.primary {
		d = min(d, s.roleAt.Until(now))
	}
	return d, true
}
