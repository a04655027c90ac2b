package sim

import (
	"slices"
	"time"

	"matriarch/fsm"
)

// Recipes are sequences that random faults hit too seldom: each is the schedule of a way in which careless versions lose writes.

// lease is the newest lease of a group that any running node knows.
func (w *World) lease(id fsm.GroupID) (fsm.Epoch, *machine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var g fsm.Group
	for _, m := range w.machines {
		if m.agent == nil {
			continue
		}
		if s := m.agent.node.State(); g.Epoch.Less(s.Groups[id].Epoch) {
			g = s.Groups[id]
		}
	}
	return g.Epoch, w.byID(g.LastHolder)
}

// cast gives the primary of a group and its standbys in random order.
func (n *nemesis) cast(id fsm.GroupID) (p *machine, standbys []*machine) {
	_, p = n.w.lease(id)
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, m := range n.w.machines {
		if m.group == id && m != p {
			standbys = append(standbys, m)
		}
	}
	n.w.rng.Shuffle(len(standbys), func(i, j int) { standbys[i], standbys[j] = standbys[j], standbys[i] })
	return p, standbys
}

// nextHolder waits for the next Grant.
func (n *nemesis) nextHolder(id fsm.GroupID, after fsm.Epoch, within time.Duration) *machine {
	for end := time.Now().Add(within); time.Now().Before(end) && pause(n.ctx, 5*time.Millisecond) == nil; {
		if e, m := n.w.lease(id); after.Less(e) {
			return m
		}
	}
	return nil
}

// laggard slows the stream to one standby, which stays connected.
func (n *nemesis) laggard(p, s *machine) {
	n.w.note("FAULT the stream from %s to %s lags", p.name, s.name)
	n.w.net.SetDelay(p.pgHost, s.pgHost, n.w.draw(700*time.Millisecond, 2500*time.Millisecond))
	n.later(n.w.draw(4*time.Second, 20*time.Second), func() { n.w.net.SetDelay(p.pgHost, s.pgHost, 500*time.Microsecond) })
}

// twice takes the primary, and then the next holder just after its Grant, perhaps with a standby behind both.
func (n *nemesis) twice(id fsm.GroupID) {
	p, standbys := n.cast(id)
	if p == nil || slices.Contains(standbys, nil) {
		return
	}
	if n.w.chance(0.5) {
		n.laggard(p, standbys[0])
		_ = pause(n.ctx, n.w.draw(500*time.Millisecond, 2*time.Second))
	}
	before, _ := n.w.lease(id)
	if n.w.chance(0.5) {
		n.w.mu.Lock()
		if r := p.server.proc; r != nil {
			r.kill("killed")
		}
		n.w.mu.Unlock()
	} else {
		n.powerCut(p, n.w.draw(6*time.Second, 20*time.Second))
	}
	for range 1 + int(n.w.draw(0, 1)) {
		next := n.nextHolder(id, before, 9*time.Second)
		if next == nil {
			return
		}
		before, _ = n.w.lease(id)
		_ = pause(n.ctx, n.w.draw(0, 600*time.Millisecond))
		n.powerCut(next, n.w.draw(6*time.Second, 18*time.Second))
	}
}

// sicken keeps the primary's disk from answering until another holds the lease, and longer, and perhaps takes part in that amiss.
func (n *nemesis) sicken(id fsm.GroupID) {
	p, standbys := n.cast(id)
	if p == nil || len(standbys) == 0 {
		return
	}
	before, _ := n.w.lease(id)
	if n.w.chance(0.4) {
		n.laggard(p, standbys[0])
	}
	if !n.take(p, "the disk of PostgreSQL's log hangs") {
		return
	}
	n.stick(p, n.w.chance(0.3))
	next := n.nextHolder(id, before, 20*time.Second)
	if next != nil && n.w.chance(0.5) {
		_ = pause(n.ctx, n.w.draw(0, 600*time.Millisecond))
		n.hurt(next)
	}
	_ = pause(n.ctx, n.w.draw(0, 6*time.Second))
	if n.w.chance(0.3) {
		n.off(p, n.awhile())
		return
	}
	n.mend(p)
	n.free(p)
}

// shrink takes the standby that confirms, waits for the set to shrink to the one that lags, and takes the primary.
func (n *nemesis) shrink(id fsm.GroupID) {
	p, standbys := n.cast(id)
	if p == nil || len(standbys) < 2 {
		return
	}
	behind := standbys[0]
	for lag := 2 * time.Second; lag <= 6*time.Second; lag += 2 * time.Second { // step by step, or the standby would give up
		n.w.net.SetDelay(p.pgHost, behind.pgHost, lag)
		_ = pause(n.ctx, 2200*time.Millisecond)
	}
	n.later(n.w.draw(6*time.Second, 20*time.Second), func() { n.w.net.SetDelay(p.pgHost, behind.pgHost, 500*time.Microsecond) })
	n.w.note("FAULT the stream from %s to %s lags by seconds", p.name, behind.name)
	if n.w.chance(0.5) { // the primary notices at once
		n.killPostgres(standbys[1])
		_ = pause(n.ctx, 10*time.Millisecond)
	}
	n.powerCut(standbys[1], n.w.draw(8*time.Second, 20*time.Second))
	_ = pause(n.ctx, n.w.draw(2*time.Second, 4*time.Second))
	n.powerCut(p, n.w.draw(8*time.Second, 20*time.Second))
}

// lateThaw stops the primary's machine with its clocks until another has been granted the lease, and lets it go on about then. Nothing
// can keep such a machine from writing; what it acknowledges must not be lost all the same.
func (n *nemesis) lateThaw(id fsm.GroupID) {
	p, _ := n.cast(id)
	if p == nil || !n.take(p, "everything stops, the clocks too") {
		return
	}
	before, _ := n.w.lease(id)
	at := time.Now()
	n.stopMachine(p)
	n.nextHolder(id, before, 12*time.Second)
	_ = pause(n.ctx, n.w.draw(0, 700*time.Millisecond))
	p.lost.Add(int64(time.Since(at)))
	n.goOn(p)
	n.free(p)
}

// onPhase tells when any node's state first shows a phase of the group's planned work.
func (n *nemesis) onPhase(id fsm.GroupID, phase string) <-chan struct{} {
	hit := make(chan struct{})
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.watching = append(n.w.watching, func(next *fsm.State) bool {
		op := next.Groups[id].Op
		if !op.Pausing() || op.Phase != phase {
			return false
		}
		n.w.noteLocked("group %d: phase %s", id, phase)
		close(hit)
		return true
	})
	return hit
}

// handover asks for planned work, takes part in it amiss, and perhaps the next holder, too.
func (n *nemesis) handover(id fsm.GroupID) {
	p, standbys := n.cast(id)
	if p == nil || len(standbys) == 0 {
		return
	}
	phases := []string{fsm.Pause, fsm.Demote, fsm.Demote, fsm.Promote, fsm.Promote, fsm.Resume}
	before, _ := n.w.lease(id)
	hit := n.onPhase(id, phases[n.w.draw(0, 5)])
	if n.w.chance(0.4) {
		n.laggard(p, standbys[0])
	}
	for again := 0; again < 5; again++ {
		n.plan(id)
		select {
		case <-hit:
			again = 5
		case <-time.After(2 * time.Second):
		case <-n.ctx.Done():
			return
		}
	}
	_ = pause(n.ctx, n.w.draw(0, 300*time.Millisecond))
	for _, m := range append([]*machine{p}, standbys...) {
		if n.w.chance(0.4) {
			n.hurt(m)
		}
	}
	if n.w.chance(0.5) {
		if next := n.nextHolder(id, before, 9*time.Second); next != nil {
			_ = pause(n.ctx, n.w.draw(0, 600*time.Millisecond))
			n.hurt(next)
		}
	}
}

func (n *nemesis) awhile() time.Duration { return n.w.draw(500*time.Millisecond, 9*time.Second) }

func (n *nemesis) hurt(m *machine) {
	switch n.w.draw(0, 7) {
	case 0, 1:
		n.powerCut(m, n.awhile())
	case 2:
		n.crashAgent(m)
	case 3:
		n.killSentinel(m)
	case 4:
		n.killPostgres(m)
	case 5:
		n.freezeMachine(m)
	case 6:
		n.freezeAgent(m)
	default:
		n.cutOff(m)
	}
}

func (n *nemesis) cutOff(m *machine) {
	if !n.take(m, "cut off") {
		return
	}
	n.isolate(m, true)
	n.later(n.awhile(), func() { n.isolate(m, false); n.free(m) })
}
