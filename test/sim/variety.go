package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"matriarch/fsm"
)

// vary draws how a group replicates. Half of the groups are as a cluster makes them: quorum, one standby confirms. The mutex is held.
func (w *World) vary(id fsm.GroupID) fsm.GroupSet {
	early := w.early
	c := fsm.GroupSet{Group: id, Mode: fsm.Quorum, Early: &early, Strict: new(false), SyncCount: new(1), SyncLag: new(int64(0))}
	if w.rng.IntN(2) == 0 {
		return c
	}
	switch w.rng.IntN(8) {
	case 0:
		c.Mode = fsm.Off
	case 1, 2, 3:
		c.Mode = fsm.On
	}
	able := 0 // standbys that may confirm, whoever is primary
	for _, m := range w.machines {
		if m.group == id && !m.tags.NoSync {
			able++
		}
	}
	*c.SyncCount = 1 + w.rng.IntN(max(able-1, 1))
	*c.Strict = w.rng.IntN(3) == 0 && able > 1 // where nobody can confirm it would wait for ever
	if w.rng.IntN(3) == 0 {
		*c.SyncLag = int64(lsnStep * (10 + w.rng.IntN(60)))
	}
	return c
}

// tag draws a machine's tags; the first of a group has none, so that somebody may be primary and somebody confirm. The mutex is held.
func (w *World) tag(group fsm.GroupID) fsm.Tags {
	t := fsm.Tags{FailoverPriority: w.rng.IntN(3)}
	if !slices.ContainsFunc(w.machines, func(m *machine) bool { return m.group == group }) || w.plain {
		return t
	}
	t.SyncPriority = w.rng.IntN(3)
	others := slices.ContainsFunc(w.machines, func(m *machine) bool { return m.group == group && (m.tags.NoSync || m.tags.NoFailover) })
	switch dice := w.rng.IntN(16); {
	case others:
	case dice == 0:
		t.NoFailover = true
	case dice == 1:
		t.NoSync = true
	}
	return t
}

// set proposes a group's settings through a node.
func (w *World) set(ctx context.Context, via *machine, c fsm.GroupSet) error {
	p := via.agent
	if p == nil {
		return fmt.Errorf("set group %d: %s has no agent", c.Group, via.name)
	}
	sctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := control{p}.Submit(sctx, c)
	if err == nil && !res.OK {
		err = fmt.Errorf("refused: %s", res.Reason)
	}
	if err != nil {
		return fmt.Errorf("set group %d: %w", c.Group, err)
	}
	w.note("group %d: mode %s, strict %t, %d confirm, lag %d", c.Group, c.Mode, *c.Strict, *c.SyncCount, *c.SyncLag)
	return nil
}

// resettle changes a group's settings while things break, as an operator does who does not know.
func (n *nemesis) resettle(id fsm.GroupID) {
	n.w.mu.Lock()
	c := n.w.vary(id)
	n.w.mu.Unlock()
	via := n.any()
	n.pending.Go(func() {
		if err := n.w.set(n.ctx, via, c); err != nil {
			n.w.note("not set: %v", err)
		}
	})
}

// lossy marks groups that have been asynchronous: what they acknowledged may be lost. The mutex is held.
func (w *World) lossy(s *fsm.State) {
	for id, g := range s.Groups {
		if t := w.group(id); g.Mode == fsm.Off && !t.lossy {
			t.lossy = true
			w.noteLocked("group %d may lose what it acknowledged from now on", id)
		}
	}
}
