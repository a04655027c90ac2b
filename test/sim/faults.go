package sim

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// nemesis breaks things by the seed's order and mends each after a while.
type nemesis struct {
	w       *World
	ctx     context.Context
	pending sync.WaitGroup      // of repairs
	busy    map[*machine]string // what is wrong with a machine's processes
}

func (n *nemesis) later(wait time.Duration, mend func()) {
	n.pending.Go(func() {
		_ = pause(n.ctx, wait) // at the end of the faults everything is mended at once
		mend()
	})
}

// take reserves a machine: combinations that no fence but a watchdog covers must not come up by chance.
func (n *nemesis) take(m *machine, what string) bool {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.busy[m] != "" {
		return false
	}
	n.busy[m] = what
	n.w.noteLocked("FAULT %s: %s", m.name, what)
	return true
}

func (n *nemesis) free(m *machine) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.noteLocked("MENDED %s: %s", m.name, n.busy[m])
	delete(n.busy, m)
}

// run breaks things for a while, then waits until all is mended.
func (n *nemesis) run(long time.Duration) {
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	n.ctx = ctx
	n.refuse(0.05)
	for pause(ctx, n.w.draw(200*time.Millisecond, 5*time.Second)) == nil && n.w.violated() == "" {
		n.one()
	}
	<-ctx.Done()
	n.pending.Wait()
	n.refuse(0)
	n.w.net.HealAll()
	n.w.net.SetDefaultDelay(500*time.Microsecond, time.Millisecond)
	n.w.note("all faults mended")
}

// refuse sets how often sentinels refuse to promote: each time costs half a minute, where there is nobody else.
func (n *nemesis) refuse(often float64) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.unfit = often
}

func (n *nemesis) any() *machine {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return n.w.machines[n.w.rng.IntN(len(n.w.machines))]
}

// target prefers primaries and the Raft leader.
func (n *nemesis) target() *machine {
	m := n.any()
	if n.w.chance(0.5) {
		return m
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, o := range n.w.machines {
		if p := o.server.proc; p != nil && p.primary && o.group == m.group {
			return o
		}
		if p := o.agent; p != nil && p.leads.Load() && n.w.rng.IntN(2) == 0 {
			return o
		}
	}
	return m
}

func (n *nemesis) one() {
	w, m := n.w, n.target()
	if w.chance(0.25) {
		n.plan(m.group)
	}
	if w.chance(0.08) {
		n.resettle(m.group)
	}
	if w.chance(0.4) {
		recipe := n.twice
		switch {
		case w.liars && w.chance(0.5):
			recipe = n.lateThaw
		case w.sickly && w.chance(0.4):
			recipe = n.sicken
		case w.chance(0.3):
			recipe = n.shrink
		case w.chance(0.5):
			recipe = n.handover
		}
		n.pending.Go(func() { recipe(m.group) })
		return
	}
	dice := int(w.draw(0, 99))
	switch {
	case dice < 12:
		n.crashAgent(m)
	case dice < 18:
		n.killSentinel(m)
	case dice < 30:
		n.killPostgres(m)
	case dice < 45:
		n.powerCut(m, w.draw(100*time.Millisecond, 15*time.Second))
	case dice < 53:
		n.freezeAgent(m)
	case dice < 60:
		n.freezeSentinel(m)
	case dice < 68:
		n.freezeMachine(m)
	case dice < 88 && (dice < 80 || !w.sickly):
		n.partition(m)
	case dice < 90:
		n.hungDisk(m)
	case dice < 92:
		n.slowLog(m)
	case dice < 94:
		n.hungLog(m)
	case dice < 96:
		n.hungDisk(m)
	case dice < 98:
		n.slowLink(m, n.any())
	default:
		for _, o := range w.machines {
			n.powerCut(o, w.draw(100*time.Millisecond, 8*time.Second))
		}
	}
}

func (n *nemesis) killPostgres(m *machine) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if p := m.server.proc; p != nil {
		n.w.noteLocked("FAULT %s: kill -9 of the postmaster", m.name)
		p.kill("killed")
	}
}

func (n *nemesis) crashAgent(m *machine) {
	if !n.take(m, "kill -9 of the agent") {
		return
	}
	wait := n.w.draw(50*time.Millisecond, 8*time.Second)
	n.pending.Go(func() {
		m.agent.kill()
		_ = pause(n.ctx, wait)
		n.restart(m)
		n.free(m)
	})
}

func (n *nemesis) restart(m *machine) {
	if err := m.startAgent(nil); err != nil {
		n.w.mu.Lock()
		n.w.violate("%s does not start: %v", m.name, err)
		n.w.mu.Unlock()
	}
}

func (n *nemesis) killSentinel(m *machine) {
	if !n.take(m, "kill -9 of the sentinel") {
		return
	}
	n.w.mu.Lock()
	m.sentinel.die()
	n.w.mu.Unlock()
	n.later(0, func() { n.free(m) })
}

// powerCut ends everything at once; what was on its way is lost.
func (n *nemesis) powerCut(m *machine, wait time.Duration) {
	if n.take(m, "power cut") {
		n.off(m, wait)
	}
}

// off is a power cut of a machine that is taken, and frees it.
func (n *nemesis) off(m *machine, wait time.Duration) {
	w := n.w
	n.isolate(m, true)
	w.mu.Lock()
	n.busy[m] = "power cut"
	m.boots++
	m.sentinel.dead = true
	m.sentinel.thaw()
	if p := m.server.proc; p != nil {
		p.kill("power cut")
	}
	m.diskBack()
	w.mu.Unlock()
	n.pending.Go(func() {
		m.agent.kill()
		w.net.Kill(m.pgHost)
		_ = pause(n.ctx, wait)
		n.isolate(m, false)
		n.restart(m)
		n.free(m)
	})
}

func (n *nemesis) freezeAgent(m *machine) {
	if !n.take(m, "SIGSTOP of the agent") {
		return
	}
	p := m.agent
	p.gate.shut()
	n.w.net.Freeze(m.host)
	n.later(n.w.draw(200*time.Millisecond, 9*time.Second), func() {
		n.w.net.Thaw(m.host)
		p.gate.open()
		n.free(m)
	})
}

func (n *nemesis) freezeSentinel(m *machine) {
	if !n.take(m, "SIGSTOP of the sentinel") {
		return
	}
	n.w.mu.Lock()
	s := m.sentinel
	s.freeze()
	n.w.mu.Unlock()
	n.later(n.w.draw(200*time.Millisecond, 9*time.Second), func() {
		n.w.mu.Lock()
		s.thaw()
		n.w.mu.Unlock()
		n.free(m)
	})
}

func (n *nemesis) freezeMachine(m *machine) {
	if !n.take(m, "everything stops") {
		return
	}
	n.stopMachine(m)
	n.later(n.w.draw(200*time.Millisecond, 9*time.Second), func() { n.goOn(m); n.free(m) })
}

func (n *nemesis) stopMachine(m *machine) {
	w := n.w
	m.agent.gate.shut()
	w.net.Freeze(m.host)
	w.net.Freeze(m.pgHost)
	w.mu.Lock()
	defer w.mu.Unlock()
	m.frozen = true
	m.sentinel.freeze()
	w.judgeWriters(m)
}

func (n *nemesis) goOn(m *machine) {
	w := n.w
	w.mu.Lock()
	if r := m.server.proc; r != nil && !r.epoch.IsZero() && m.sentinel.left(r.epoch) <= 0 {
		r.kill("fenced as the machine goes on") // the sentinel has priority over everything it watches
	}
	m.frozen = false
	m.sentinel.thaw()
	if r := m.server.proc; r != nil {
		r.cond.Broadcast()
	}
	w.judgeWriters(m)
	w.mu.Unlock()
	w.net.Thaw(m.host)
	w.net.Thaw(m.pgHost)
	m.agent.gate.open()
}

// isolate cuts a machine off from everybody, its own two halves excepted.
func (n *nemesis) isolate(m *machine, on bool) {
	for _, o := range n.w.machines {
		if o != m {
			n.cut(m, o, on)
			n.cut(o, m, on)
		}
	}
	for _, g := range []string{"c", "r"} {
		other := fmt.Sprint(g, int(m.group))
		for _, l := range [][2]string{{m.pgHost, other}, {other, m.pgHost}} {
			n.link(l[0], l[1], on)
		}
	}
}

func (n *nemesis) link(from, to string, cut bool) {
	if cut {
		n.w.net.Cut(from, to)
	} else {
		n.w.net.Heal(from, to)
	}
}

func (n *nemesis) cut(a, b *machine, on bool) {
	for _, from := range []string{a.host, a.pgHost} {
		for _, to := range []string{b.host, b.pgHost} {
			n.link(from, to, on)
		}
	}
}

// partition draws which directions between which machines are cut: one machine from all, halves, single links or directions, or a
// ring in which each sees only its neighbours.
func (n *nemesis) partition(m *machine) {
	w, kind := n.w, int(n.w.draw(0, 4))
	size := len(w.machines)
	var pairs [][2]*machine
	for i, a := range w.machines {
		for j, b := range w.machines {
			hit := false
			switch kind {
			case 0:
				hit = a == m || b == m
			case 1:
				hit = (i < size/2) != (j < size/2)
			case 2:
				hit = a == m && j == (i+1)%size
			case 3:
				hit = (i-j+size)%size != 1 && (j-i+size)%size != 1 || size == 3 && (i+j) == 1
			default:
				hit = a == m
			}
			if hit && a != b {
				pairs = append(pairs, [2]*machine{a, b})
			}
		}
	}
	w.note("FAULT partition of kind %d around %s", kind, m.name)
	for _, p := range pairs {
		n.cut(p[0], p[1], true)
	}
	n.later(w.draw(300*time.Millisecond, 12*time.Second), func() {
		for _, p := range pairs {
			if n.w.busyWith(n, p[0], "power cut") || n.w.busyWith(n, p[1], "power cut") {
				continue
			}
			n.cut(p[0], p[1], false)
		}
		w.note("MENDED partition around %s", m.name)
	})
}

func (w *World) busyWith(n *nemesis, m *machine, what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return n.busy[m] == what
}

// slowLog delays the application of log entries on one node, as a slow disk does.
func (n *nemesis) slowLog(m *machine) {
	p := m.agent
	if p == nil || !n.take(m, "its log hangs") {
		return
	}
	p.slow.shut()
	n.later(n.w.draw(200*time.Millisecond, 3*time.Second), func() { p.slow.open(); n.free(m) })
}

func (n *nemesis) slowLink(a, b *machine) {
	if a == b {
		return
	}
	d := n.w.draw(20*time.Millisecond, 400*time.Millisecond)
	n.w.note("FAULT %s from %s to %s", d, a.name, b.name)
	set := func(d time.Duration) {
		for _, from := range []string{a.host, a.pgHost} {
			for _, to := range []string{b.host, b.pgHost} {
				n.w.net.SetDelay(from, to, d)
			}
		}
	}
	set(d)
	n.later(n.w.draw(time.Second, 10*time.Second), func() { set(500 * time.Microsecond) })
}
