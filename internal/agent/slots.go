package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// SlotSeen is a replication slot as this node's server has it.
type SlotSeen = decide.SlotSeen

// presenceBox guards which members the leader hears of: keepalives write it, the loop reads it.
type presenceBox struct {
	mu    sync.Mutex
	since time.Time                // nobody counts as absent before
	seen  map[fsm.NodeID]time.Time // when the leader last heard of them
}

// slotPace is how often permanent slots are looked after: what a consumer has confirmed since then may come again after a failover.
const slotPace = 2 * time.Second

// keepSlots looks after the group's permanent slots, beside the loop: no decision waits for it. It costs nothing where there are none.
func (a *Agent) keepSlots(ctx context.Context) {
	t := time.NewTicker(slotPace)
	defer t.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := a.lookAtSlots(ctx)
		switch {
		case err == nil:
			said = ""
		case err.Error() != said && ctx.Err() == nil:
			said = err.Error()
			a.cfg.Log.Warn("replication slots need work", "error", err)
		}
	}
}

func (a *Agent) lookAtSlots(ctx context.Context) error {
	snap, s := a.view.Load(), a.cfg.Control.State()
	if snap == nil || snap.View.Job != "" || !snap.View.PG.Reachable {
		return nil
	}
	g := s.Groups[s.Nodes[a.cfg.Self].Group]
	primary, open := s.Primary(g.ID)
	stray := slices.ContainsFunc(snap.Slots, func(x SlotSeen) bool { return x.Failover && !x.Synced })
	if !open || len(g.Slots) == 0 && (!stray || primary.ID == a.cfg.Self) {
		return nil
	}
	r := a.roster(s)
	settled := snap.View.PG.Streaming && snap.View.Conf.Epoch == r.Group.Epoch
	if primary.ID == a.cfg.Self {
		settled = snap.View.Sentinel.Primary && snap.View.Sentinel.Epoch == r.Group.Epoch
	}
	if !settled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	made, err := a.cfg.Postgres.KeepSlots(ctx, r, primary)
	for _, name := range made {
		if serr := a.submit(ctx, fsm.SlotMade{Group: r.Group.ID, Name: name}); serr != nil && err == nil {
			err = serr
		}
	}
	return err
}

// present notes which members the leader hears of.
func (a *Agent) present(g []fsm.NodeID) {
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	now := time.Now()
	if len(g) == 0 { // a leader that does not say
		a.presence.since, a.presence.seen = now, nil
		return
	}
	if a.presence.seen == nil {
		a.presence.seen = map[fsm.NodeID]time.Time{}
	}
	for _, id := range g {
		a.presence.seen[id] = now
	}
}

// absent lists the members that no leader has heard of for longer than their slots are kept, as far as this agent knows.
func (a *Agent) absent(s *fsm.State, members []fsm.Node) (out []fsm.NodeID) {
	ttl := s.Cluster.Settings.SlotsTTL()
	a.presence.mu.Lock()
	defer a.presence.mu.Unlock()
	if ttl <= 0 || a.presence.since.IsZero() {
		return nil
	}
	for _, n := range members {
		last := a.presence.since
		if at, ok := a.presence.seen[n.ID]; ok && at.After(last) {
			last = at
		}
		if time.Since(last) >= ttl {
			out = append(out, n.ID)
		}
	}
	return out
}
