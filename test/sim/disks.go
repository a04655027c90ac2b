package sim

import (
	"context"
	"slices"
	"time"
)

// hang is a disk that takes what is written to it and does not answer.
type hang struct {
	whole bool // PostgreSQL's files too, not only its log
	over  chan struct{}
}

// flight is what a process was writing when the disk hung: it may get there whatever becomes of the process.
type flight struct{ land func() }

// hang stops the disk of PostgreSQL's log, or of all its files. Sessions and walsenders go on with what is flushed. The mutex is held.
func (m *machine) hang(whole bool) { m.hung = &hang{whole: whole, over: make(chan struct{})} }

// diskBack ends a hang. Of what processes were writing that are dead by now, some may be on the disk; none of them tells anybody. The
// mutex is held.
func (m *machine) diskBack() {
	if m.hung == nil {
		return
	}
	close(m.hung.over)
	m.hung = nil
	p := m.server.proc
	if p == nil {
		return
	}
	p.asleep = false
	p.cond.Broadcast()
	if !p.dead {
		return
	}
	landed := m.w.rng.IntN(len(p.flights) + 1)
	for _, f := range p.flights[:landed] {
		f.land()
	}
	p.w.noteLocked("%s: the last process of PostgreSQL is gone, %d of %d writes under way are on the disk", m.name, landed, len(p.flights))
	p.vanish()
}

// answers reports whether files can be written, those of the log excepted.
func (m *machine) answers() bool { return m.hung == nil || !m.hung.whole }

// flushes reports whether the disk of the log answers: what is in the model's log has been flushed.
func (p *proc) flushes() bool { return p.m.hung == nil }

// flushed waits until the log can be flushed. The process that waits cannot be interrupted; ctx ends only the caller's patience. The mutex
// is held.
func (p *proc) flushed(ctx context.Context) error {
	return p.await(ctx, func() bool {
		p.asleep = p.asleep || !p.flushes()
		return p.flushes()
	})
}

// write does what changes the log once the disk answers. The mutex is held.
func (p *proc) write(ctx context.Context, land func()) error {
	f := &flight{land}
	p.flights = append(p.flights, f)
	if err := p.flushed(ctx); err != nil {
		return err
	}
	p.flights = slices.DeleteFunc(p.flights, func(o *flight) bool { return o == f })
	p.cond.Broadcast()
	land()
	return nil
}

// hungLog keeps one node's Raft log from being written.
func (n *nemesis) hungLog(m *machine) {
	p := m.agent
	if p == nil || !n.take(m, "the disk of its Raft log hangs") {
		return
	}
	p.disk.shut()
	n.later(n.w.draw(200*time.Millisecond, 6*time.Second), func() { p.disk.open(); n.free(m) })
}

// hungDisk keeps PostgreSQL's log from being flushed: for a moment, or until the server counts as sick. Then the disk comes back, or the
// machine is switched off.
func (n *nemesis) hungDisk(m *machine) {
	what, whole := "the disk of PostgreSQL's log hangs", n.w.chance(0.3)
	if whole {
		what = "the disk of PostgreSQL hangs"
	}
	if !n.take(m, what) {
		return
	}
	n.stick(m, whole)
	long := n.w.draw(200*time.Millisecond, 9*time.Second)
	if n.w.chance(0.6) {
		long = n.w.draw(6*time.Second, 20*time.Second)
	}
	if n.w.chance(0.3) {
		wait := n.awhile()
		n.later(long, func() { n.w.note("FAULT %s: switched off", m.name); n.off(m, wait) })
		return
	}
	n.later(long, func() { n.mend(m); n.free(m) })
}

func (n *nemesis) stick(m *machine, whole bool) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	m.hang(whole)
}

func (n *nemesis) mend(m *machine) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	m.diskBack()
}
