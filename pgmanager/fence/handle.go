package fence

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// handle answers one request of the loop.
func (s *sentinel) handle(in incoming) {
	if in.ended {
		if s.agent == in.c {
			s.agent = nil
			s.log.Info("agent gone")
		}
		return
	}
	r := in.req
	open := r.Op == OpHello || r.Op == OpPing || r.Op == OpStatus
	if !open && in.c != s.agent {
		s.reply(in, nil, refuse(ErrHello, "%s: say hello first; another agent may have taken over", r.Op))
		return
	}
	switch r.Op {
	case OpHello:
		s.hello(in)
	case OpPing:
		in.c.send(Response{ID: r.ID})
	case OpStatus:
		st := s.status()
		s.reply(in, &st, nil)
	case OpDeadline:
		s.reply(in, nil, s.deadline(r.Deadline))
	case OpStart:
		s.replyStatus(in, s.start(r.Start))
	case OpPromote:
		s.replyStatus(in, s.promote(r.Epoch))
	case OpAdopt:
		s.replyStatus(in, s.adopt(r.Adopt))
	case OpStop:
		s.replyGone(in, s.requestStop(r.Stop))
	case OpKill:
		s.replyGone(in, s.requestKill())
	case OpWatchdog:
		s.replyStatus(in, s.setWatchdog(r.Watchdog))
	case OpRenounce:
		s.replyStatus(in, s.renounce(r.Epoch))
	case OpShutdown:
		s.reply(in, nil, s.shutdown())
	default:
		s.reply(in, nil, refuse(ErrUnsupported, "this sentinel (version %s) does not know %q", s.cfg.Version, r.Op))
	}
}

// reply sends a result or a refusal.
func (s *sentinel) reply(in incoming, st *Status, err error) {
	resp := Response{ID: in.req.ID, Status: st}
	if err != nil {
		resp.Status, resp.Code, resp.Error = nil, ErrFailed, err.Error()
		if e, ok := errors.AsType[*Error](err); ok {
			resp.Code = e.Code
		}
		s.log.Info("request refused", "op", string(in.req.Op), "code", string(resp.Code), "error", resp.Error)
	}
	in.c.send(resp)
}

func (s *sentinel) replyStatus(in incoming, err error) {
	st := s.status()
	s.reply(in, &st, err)
}

// replyGone answers when no process is left.
func (s *sentinel) replyGone(in incoming, err error) {
	if err != nil || s.phase == idle {
		s.replyStatus(in, err)
		return
	}
	s.waiters = append(s.waiters, waiter{c: in.c, id: in.req.ID})
}

// hello makes the connection the agent's; the one before is closed.
func (s *sentinel) hello(in incoming) {
	if s.agent != nil && s.agent != in.c {
		s.agent.send(Event{Kind: Superseded, Reason: "another agent connected"})
		s.agent.shut()
	}
	s.agent = in.c
	s.log.Info("agent connected")
	st := s.status()
	in.c.send(Response{ID: in.req.ID, Version: s.cfg.Version, Status: &st})
}

func (s *sentinel) emit(k Kind, reason string) {
	if s.agent == nil {
		return
	}
	st := s.status()
	s.agent.send(Event{Kind: k, Reason: reason, Status: &st})
}

func (s *sentinel) status() Status {
	st := Status{
		Instance: s.guard.instance, SentinelPID: os.Getpid(), Role: RoleNone, Epoch: s.guard.bound.Epoch, Deadline: s.guard.shown(), LastExit: s.last,
		Watchdog: s.dog.status(Clock()),
	}
	if s.pm == nil {
		return st
	}
	st.Role = RoleStandby
	if s.guard.primary {
		st.Role = RolePrimary
	}
	st.StartedAt, st.Weak, st.Left = s.pm.started.UTC(), s.pm.adopted(), 1
	if s.exit == nil {
		st.Postmaster = s.pm.pid
		st.Left += children(s.pm.pid)
	}
	return st
}

// children counts the children of a single-threaded process in one read; 0 where the kernel does not tell.
func children(pid int) int {
	b, err := os.ReadFile(procPath(pid, filepath.Join("task", strconv.Itoa(pid), "children")))
	if err != nil {
		return 0
	}
	return len(strings.Fields(string(b)))
}

func (s *sentinel) deadline(d *Deadline) error {
	if d == nil {
		return refuse(ErrInvalid, "deadline: nothing in it")
	}
	return s.guard.accept(*d, Clock())
}

func (s *sentinel) start(r *StartRequest) error {
	if r == nil {
		return refuse(ErrInvalid, "start: nothing in it")
	}
	if s.phase != idle {
		return refuse(ErrRunning, "postmaster %d is there already: stop it first", s.pm.pid)
	}
	pm, err := spawn(*r)
	if err != nil {
		return err
	}
	s.take(pm)
	s.log.Info("server started as standby", "postmaster", pm.pid, "dir", pm.dir)
	return nil
}

// take begins to watch a server.
func (s *sentinel) take(pm *postmaster) {
	s.pm, s.phase, s.childless, s.ordered = pm, running, false, false
	s.roleAt = Clock().Add(rolePolling)
}

func (s *sentinel) adopt(r *AdoptRequest) error {
	if r == nil {
		return refuse(ErrInvalid, "adopt: nothing in it")
	}
	if s.phase != idle {
		return refuse(ErrRunning, "postmaster %d is under watch already", s.pm.pid)
	}
	pm, err := adopt(*r)
	if err != nil {
		return err
	}
	if err := s.guard.adopt(!isStandby(pm.dir), time.Duration(r.GraceMS)*time.Millisecond, Clock()); err != nil {
		_ = unix.Close(pm.pidfd)
		return err
	}
	if err := s.armWatchdog(); err != nil {
		s.guard.release()
		_ = unix.Close(pm.pidfd)
		return err
	}
	pm.watch()
	s.take(pm)
	s.log.Info("server adopted", "postmaster", pm.pid, "dir", pm.dir, "primary", s.guard.primary)
	return nil
}

// promote orders the promotion. It is carried out as soon as the postmaster can hear; event role tells that it came about.
func (s *sentinel) promote(e *Epoch) error {
	if e == nil {
		return refuse(ErrInvalid, "promote: no epoch in it")
	}
	if s.phase != running {
		return refuse(ErrNotRunning, "promote: no server runs, or it is being stopped")
	}
	if !s.guard.primary && !isStandby(s.pm.dir) {
		s.guard.primary = true // promoted by another hand since the last look
	}
	again, err := s.guard.bind(*e, Clock())
	if err != nil || s.guard.primary {
		return err
	}
	if err := s.armWatchdog(); err != nil {
		if !again { // one that is under way comes about all the same
			s.guard.release()
		}
		return err
	}
	if !again {
		s.log.Info("promotion ordered", "postmaster", s.pm.pid, "epoch", e.String())
	}
	s.ordered, s.roleAt = false, Clock()
	return nil
}

// armWatchdog opens the watchdog for a server that has a deadline.
func (s *sentinel) armWatchdog() error {
	now := Clock()
	end, armed := s.guard.end(now)
	if !armed {
		return nil
	}
	return s.dog.arm(now, end)
}

func (s *sentinel) setWatchdog(r *WatchdogRequest) error {
	if r == nil || !filepath.IsAbs(r.Device) || (r.Mode != WatchdogOff && r.Mode != WatchdogAutomatic && r.Mode != WatchdogRequired) {
		return refuse(ErrInvalid, "watchdog needs mode off, automatic or required and the absolute path of the device")
	}
	if s.dog.dev == nil {
		s.dog.problem = "" // told anew: tried anew
	}
	s.dog.WatchdogRequest = *r
	return nil
}

func (s *sentinel) renounce(e *Epoch) error {
	if e == nil {
		return refuse(ErrInvalid, "renounce: no epoch in it")
	}
	return s.guard.renounce(*e)
}

func (s *sentinel) requestStop(r *StopRequest) error {
	if r == nil || r.TimeoutMS < 0 || (r.Mode != Fast && r.Mode != Immediate) {
		return refuse(ErrInvalid, "stop needs mode fast or immediate and no negative timeout")
	}
	if s.phase == idle || s.phase == killing {
		return nil
	}
	sig := unix.SIGINT
	if r.Mode == Immediate {
		sig = unix.SIGQUIT
	}
	var killAt *Stamp
	if r.TimeoutMS > 0 {
		end := Clock().Add(time.Duration(r.TimeoutMS) * time.Millisecond)
		killAt = &end
	}
	if !s.fenced {
		s.reason = "stop " + string(r.Mode) + " was requested"
	}
	s.log.Info("stopping PostgreSQL", "postmaster", s.pm.pid, "mode", string(r.Mode), "timeout_ms", r.TimeoutMS)
	s.stop(sig, killAt)
	return nil
}

func (s *sentinel) requestKill() error {
	if s.phase != idle {
		s.log.Info("killing PostgreSQL", "postmaster", s.pm.pid)
		if !s.fenced {
			s.reason = "kill was requested"
		}
		s.startKill(s.reason)
	}
	return nil
}

func (s *sentinel) shutdown() error {
	if s.phase != idle {
		return refuse(ErrRunning, "shutdown: postmaster %d still runs: stop it first", s.pm.pid)
	}
	s.leave = true
	return nil
}
