package sim

import (
	"context"
	"time"

	"matriarch/fsm"
	"matriarch/internal/agent"
)

// Schedules for TestMutations. Each leads to the one moment that a rule is for; what breaks there is found by the checks that every
// simulation has, twin and hungHolder excepted.

// soon polls every millisecond.
func (s *scene) soon(within time.Duration, ok func() bool) bool {
	for end := time.Now().Add(within); time.Now().Before(end); {
		s.w.mu.Lock()
		yes := ok()
		s.w.mu.Unlock()
		if yes {
			return true
		}
		if pause(s.ctx, time.Millisecond) != nil {
			return false
		}
	}
	return false
}

// down switches a machine off for a fixed time.
func (s *scene) down(m *machine, long time.Duration) { s.powerCut(m, long) }

// away cuts a machine off until the answer is called.
func (s *scene) away(m *machine) (back func()) {
	s.take(m, "cut off")
	s.isolate(m, true)
	return func() { s.isolate(m, false); s.free(m) }
}

// asleep stops the agent of a machine, not its sentinel and server, until the answer is called.
func (s *scene) asleep(m *machine) (wake func()) {
	p := m.agent
	s.w.note("FAULT %s: the agent stops", m.name)
	p.gate.shut()
	s.w.net.Freeze(m.host)
	return func() {
		s.w.net.Thaw(m.host)
		p.gate.open()
		s.w.note("MENDED %s: the agent goes on", m.name)
	}
}

func (s *scene) lag(from, to *machine, d time.Duration) { s.w.net.SetDelay(from.pgHost, to.pgHost, d) }

func (s *scene) group0() []*machine {
	var out []*machine
	for _, m := range s.w.machines {
		if m.group == 0 {
			out = append(out, m)
		}
	}
	return out
}

// secondBeginner: a group's first data directory is being made when leader and maker are lost, and whoever leads next has applied
// nothing for a while.
func (s *scene) secondBeginner() string {
	w, leader := s.w, s.w.leader()
	others := []*machine{s.old, s.to}
	for i, m := range others {
		if m == leader {
			_, standbys := s.cast(0)
			others[i] = standbys[0]
			if standbys[0] == leader {
				others[i] = standbys[1]
			}
		}
	}
	var hosts []*machine
	for range 2 {
		w.mu.Lock()
		m, err := w.addMachine(1)
		w.mu.Unlock()
		if err != nil {
			return err.Error()
		}
		res, err := control{leader.agent}.Submit(s.ctx, fsm.Join{Node: m.node(), Token: "t"})
		if err != nil || !res.OK {
			return "join: " + res.Reason
		}
		hosts = append(hosts, m)
	}
	_ = pause(s.ctx, 500*time.Millisecond)
	var goOn []func()
	for _, m := range others {
		goOn = append(goOn, m.agent.stall())
	}
	for _, m := range hosts {
		if err := m.startAgent(nil); err != nil {
			return err.Error()
		}
	}
	maker := hosts[0]
	if !s.soon(20*time.Second, func() bool { return hosts[0].server.dir != nil || hosts[1].server.dir != nil }) {
		return "nobody begins"
	}
	if hosts[1].server.dir != nil {
		maker = hosts[1]
	}
	back := s.away(maker)
	s.down(leader, 25*time.Second)
	_ = pause(s.ctx, 15*time.Second)
	for _, f := range goOn {
		f()
	}
	_ = pause(s.ctx, 5*time.Second)
	back()
	w.mu.Lock()
	w.group(1)
	w.mu.Unlock()
	return ""
}

// newLeader: the primary is cut off, and the leader dies.
func (s *scene) newLeader() string {
	back := s.away(s.old)
	leader := s.w.leader()
	leader.agent.kill()
	_ = pause(s.ctx, s.w.draw(100*time.Millisecond, 400*time.Millisecond))
	s.restart(leader)
	_ = pause(s.ctx, 12*time.Second)
	back()
	return ""
}

// lateRelease: a holder cut off gives its lease back, which is heard of when another holds the next epoch and its agent is asleep.
func (s *scene) lateRelease() string {
	before, _ := s.w.lease(0)
	back := s.away(s.old)
	s.killPostgres(s.old)
	next := s.nextHolder(0, before, 15*time.Second)
	if next == nil || !s.soon(5*time.Second, func() bool { return next.server.proc != nil && next.server.proc.primary }) {
		return ""
	}
	for end := time.Now().Add(time.Minute); s.w.leader() == next && time.Now().Before(end); {
		_ = pause(s.ctx, time.Second)
	}
	wake := s.asleep(next)
	back()
	_ = pause(s.ctx, 6*time.Second)
	wake()
	return ""
}

// twin: another process with the primary's identity, as of a machine's copy, asks to renew its lease.
func (s *scene) twin() string {
	e, m := s.w.lease(0)
	for range 20 {
		_ = pause(s.ctx, s.w.draw(50*time.Millisecond, 500*time.Millisecond))
		ctx, cancel := context.WithTimeout(s.ctx, time.Second)
		a, err := control{m.agent}.Keepalive(ctx, agent.Beat{Node: m.id, Instance: "twin", Epoch: e})
		cancel()
		if err == nil && a.Held {
			s.w.mu.Lock()
			s.w.violate("two sentinels hold epoch %s", e)
			s.w.mu.Unlock()
			return ""
		}
	}
	return ""
}

// failedOver: an operator wants another primary.
func (s *scene) failedOver() string {
	if err := s.submit(s.to, 0, fsm.Operation{Kind: fsm.Failover, To: s.to.id, By: "test", At: time.Now()}); err != nil {
		return "refused: " + err.Error()
	}
	_ = pause(s.ctx, 12*time.Second)
	return ""
}

// shrunk: the standby that confirms is lost, the set shrinks to one that lags by seconds, and the primary is lost.
func (s *scene) shrunk() string {
	_, standbys := s.cast(0)
	behind, confirms := standbys[0], standbys[1]
	for lag := 2 * time.Second; lag <= 8*time.Second; lag += 2 * time.Second { // step by step, or the standby would give up
		s.lag(s.old, behind, lag)
		_ = pause(s.ctx, 2200*time.Millisecond)
	}
	s.killPostgres(confirms) // the primary notices at once
	_ = pause(s.ctx, 10*time.Millisecond)
	s.down(confirms, 30*time.Second)
	for range 4000 {
		if p := s.w.newest().Sync.Target(); !p.Has(confirms.id) || pause(s.ctx, time.Millisecond) != nil {
			break
		}
	}
	_ = pause(s.ctx, s.w.draw(50*time.Millisecond, 300*time.Millisecond))
	s.down(s.old, 30*time.Second)
	_ = pause(s.ctx, 12*time.Second)
	s.lag(s.old, behind, time.Millisecond)
	return ""
}

// passedOn: the primary is lost, and its successor just after its Grant; the third has been behind all the time.
func (s *scene) passedOn() string {
	_, standbys := s.cast(0)
	behind := standbys[0]
	s.lag(s.old, behind, 2*time.Second)
	_ = pause(s.ctx, s.w.draw(1800*time.Millisecond, 2600*time.Millisecond))
	before, _ := s.w.lease(0)
	s.down(s.old, 40*time.Second)
	next := s.nextHolder(0, before, 15*time.Second)
	if next == nil || next == behind {
		return ""
	}
	s.down(next, 30*time.Second)
	_ = pause(s.ctx, 15*time.Second)
	s.lag(s.old, behind, time.Millisecond)
	return ""
}

// sleeper: the primary's machine stands still, with its clocks, until another has the lease, and goes on without its agent. The other
// standby has promised, and its agent falls asleep then.
func (s *scene) sleeper() string {
	for range 12 { // whoever leads must not fall asleep
		l := s.w.leader()
		if l.group != s.old.group {
			break
		}
		wake := s.asleep(l)
		_ = pause(s.ctx, 3*time.Second)
		wake()
		_ = pause(s.ctx, 3*time.Second)
	}
	s.old, _ = s.cast(0)
	if why := s.w.converge(2, 60*time.Second); why != "" {
		return why
	}
	before, _ := s.w.lease(0)
	at, p := time.Now(), s.old
	wakeOld := s.asleep(p)
	s.stopMachine(p)
	var sleeps []*machine
	s.w.mu.Lock()
	s.w.watching = append(s.w.watching, func(next *fsm.State) bool {
		g := next.Groups[0]
		for _, m := range s.group0() {
			if before.Less(g.Epoch) && m != p && m.id != g.LastHolder {
				m.agent.gate.shut()
				s.w.net.Freeze(m.host)
				sleeps = append(sleeps, m)
			}
		}
		return before.Less(g.Epoch)
	})
	s.w.mu.Unlock()
	if s.nextHolder(0, before, 15*time.Second) == nil {
		return ""
	}
	p.lost.Add(int64(time.Since(at)))
	s.w.mu.Lock()
	p.frozen = false
	p.sentinel.thaw()
	if r := p.server.proc; r != nil {
		r.cond.Broadcast()
	}
	s.w.mu.Unlock()
	s.w.net.Thaw(p.pgHost)
	_ = pause(s.ctx, 4*time.Second)
	wakeOld()
	for _, m := range sleeps {
		s.w.net.Thaw(m.host)
		m.agent.gate.open()
	}
	return ""
}

// sameNumber: two successors of one primary, of which the first does not live to tell, number their timelines alike.
func (s *scene) sameNumber() string {
	before, _ := s.w.lease(0)
	s.down(s.old, 30*time.Second)
	next := s.nextHolder(0, before, 15*time.Second)
	if next == nil || !s.soon(5*time.Second, func() bool { return next.server.proc != nil && next.server.proc.primary }) {
		return ""
	}
	back := s.away(next)
	_ = pause(s.ctx, 15*time.Second)
	back()
	return ""
}

// seenTooSoon: the primary's last writes are on one standby alone, which takes over, is read, and is lost before the others have them.
func (s *scene) seenTooSoon() string {
	members := s.group0()
	ahead := s.to
	for _, a := range members {
		for _, b := range members {
			if a != b && b != ahead {
				s.lag(a, b, 2500*time.Millisecond)
			}
		}
	}
	_ = pause(s.ctx, s.w.draw(1500*time.Millisecond, 2*time.Second))
	before, _ := s.w.lease(0)
	s.down(s.old, 40*time.Second)
	next := s.nextHolder(0, before, 15*time.Second)
	if next == ahead && s.soon(5*time.Second, func() bool { return ahead.server.proc != nil && ahead.server.proc.primary }) {
		c := &client{w: s.w, host: "c0", group: 0}
		for end := time.Now().Add(800 * time.Millisecond); time.Now().Before(end); {
			if _, err := c.try(s.ctx, ahead, read{}); err == nil {
				break
			}
			_ = pause(s.ctx, 10*time.Millisecond)
		}
		c.drop()
		s.down(ahead, 30*time.Second)
	}
	_ = pause(s.ctx, 15*time.Second)
	for _, a := range members {
		for _, b := range members {
			s.lag(a, b, 500*time.Microsecond)
		}
	}
	return ""
}

// deadAgent: nobody but the sentinel watches the lease, and PostgreSQL takes its time to end.
func (s *scene) deadAgent() string {
	wake := s.asleep(s.old)
	_ = pause(s.ctx, 9*time.Second)
	wake()
	return ""
}
