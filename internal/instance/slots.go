package instance

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

const (
	copyStagger = 5 * time.Second // between the restarts of a group's standbys that all lack a slot
	copyAgain   = time.Minute     // before another restart for the same
)

// slotBox is what is known between two looks at a standby's slots.
type slotBox struct {
	mu      sync.Mutex
	epoch   fsm.Epoch         // the primary's that is followed
	bounds  map[string]uint32 // see decide.SlotView; of that epoch
	lacking []string          // logical slots to be copied at the next start
	since   time.Time         // when they were first seen to lack
	tried   time.Time         // when they were last copied
}

// wantedSlots are those of the members that are, or may soon be, there.
func wantedSlots(r agent.Roster) []string {
	var want []string
	for _, n := range r.Members {
		if n.ID != r.Self && !slices.Contains(r.Absent, n.ID) {
			want = append(want, pgconf.SlotName(n.ID))
		}
	}
	return want
}

// Slots implements agent.Postgres.
func (p *Postgres) Slots(ctx context.Context, r agent.Roster) error {
	want := wantedSlots(r)
	if p.m.Observe(ctx).InRecovery {
		want = nil
	}
	_, err := p.m.EnsureSlots(ctx, want)
	return err
}

// KeepSlots implements agent.Postgres.
func (p *Postgres) KeepSlots(ctx context.Context, r agent.Roster, primary fsm.Node) (made []string, err error) {
	o := p.m.Observe(ctx)
	if !o.Reachable || o.InRecovery == (primary.ID == r.Self) {
		return nil, nil // on its way from one role to the other
	}
	v := slotView(r, o)
	if v.Primary {
		if v.Databases, err = p.m.Databases(ctx); err != nil {
			return nil, err
		}
	} else if v, err = p.compare(ctx, r, v, primary); err != nil {
		return nil, err
	}
	return p.slotSteps(ctx, decide.PlanSlots(v), pgmanager.ReadySlots{Epoch: r.Group.Epoch, Names: v.Ready})
}

func slotView(r agent.Roster, o pgmanager.Observation) decide.SlotView {
	return decide.SlotView{Primary: !o.InRecovery, Version: int(o.Version), Wanted: r.Group.Slots, Here: seen(o.Slots), Replayed: o.ReplayLSN}
}

// compare fills in what a standby must know of its primary.
func (p *Postgres) compare(ctx context.Context, r agent.Roster, v decide.SlotView, primary fsm.Node) (decide.SlotView, error) {
	up, err := p.source(primary, fsm.Epoch{})
	if err != nil {
		return v, err
	}
	src, err := p.m.SlotsOf(ctx, up, pgconf.SlotName(r.Self))
	if err != nil {
		return v, err
	}
	l, err := p.m.Local()
	if err != nil {
		return v, err
	}
	v.There, v.Feedback = seen(src.Slots), src.Feedback
	here := func(name string) bool {
		return slices.ContainsFunc(v.Here, func(s decide.SlotSeen) bool { return s.Name == name })
	}
	before := l.ReadySlots.Under(r.Group.Epoch)
	v.Ready = slices.DeleteFunc(slices.Clone(before), func(name string) bool { return !here(name) })
	if len(v.Ready) < len(before) {
		if err := p.m.SetReadySlots(pgmanager.ReadySlots{Epoch: r.Group.Epoch, Names: v.Ready}); err != nil {
			return v, err
		}
	}
	p.slots.mu.Lock()
	defer p.slots.mu.Unlock()
	if p.slots.bounds == nil || p.slots.epoch != r.Group.Epoch {
		p.slots.epoch, p.slots.bounds = r.Group.Epoch, map[string]uint32{}
	}
	for _, s := range v.There {
		if _, known := p.slots.bounds[s.Name]; !known && v.Feedback && here(s.Name) {
			p.slots.bounds[s.Name] = s.CatalogXmin
		}
	}
	v.Bounds = maps.Clone(p.slots.bounds)
	return v, nil
}

// slotSteps does what the plan says. One slot's failure does not keep the others from being looked after.
func (p *Postgres) slotSteps(ctx context.Context, steps []decide.SlotStep, ready pgmanager.ReadySlots) (made []string, err error) {
	var errs []error
	var lacking []string
	for _, s := range steps {
		var err error
		switch s.Do {
		case decide.SlotCreate:
			err = p.m.CreateSlot(ctx, s.Slot)
		case decide.SlotDrop:
			err = p.m.DropReplicationSlot(ctx, s.Slot.Name)
		case decide.SlotAdvance:
			err = p.m.AdvanceSlot(ctx, s.Slot, s.To)
		case decide.SlotReady:
			ready.Names = append(ready.Names, s.Slot.Name)
			err = p.m.SetReadySlots(ready)
		case decide.SlotMade:
			made = append(made, s.Slot.Name)
		case decide.SlotCopy:
			lacking = append(lacking, s.Slot.Name)
		case decide.SlotTell:
		}
		if err == nil && (s.Do == decide.SlotCreate || s.Do == decide.SlotDrop || s.Do == decide.SlotReady) {
			p.log.Info("replication slot", "do", string(s.Do), "slot", s.Slot.Name, "rule", s.Rule, "reason", s.Reason)
		}
		errs = append(errs, err)
	}
	p.lack(lacking)
	return made, errors.Join(errs...)
}

func (p *Postgres) lack(names []string) {
	p.slots.mu.Lock()
	defer p.slots.mu.Unlock()
	if len(names) > 0 && len(p.slots.lacking) == 0 {
		p.slots.since = time.Now()
	}
	p.slots.lacking = names
	for _, n := range names {
		delete(p.slots.bounds, n)
	}
}

// restartForSlots reports whether a restart would bring slots that are lacking. The standbys of a group take turns.
func (p *Postgres) restartForSlots(r agent.Roster) bool {
	p.slots.mu.Lock()
	defer p.slots.mu.Unlock()
	if len(p.slots.lacking) == 0 || !p.slots.tried.IsZero() && time.Since(p.slots.tried) < copyAgain {
		return false
	}
	turn := 0
	for _, n := range r.Members {
		if n.ID == r.Self {
			break
		}
		if n.ID != r.Group.Lease.Holder {
			turn++
		}
	}
	return time.Since(p.slots.since) >= time.Duration(turn)*copyStagger
}

// copySlots brings what is lacking before a start. Without it the standby is a standby all the same.
func (p *Postgres) copySlots(ctx context.Context, r agent.Roster) {
	p.slots.mu.Lock()
	names := p.slots.lacking
	p.slots.lacking = nil
	if len(names) > 0 {
		p.slots.tried = time.Now()
	}
	p.slots.mu.Unlock()
	holder := r.Group.Lease.Holder
	i := slices.IndexFunc(r.Members, func(n fsm.Node) bool { return n.ID == holder && n.ID != r.Self })
	if len(names) == 0 || i < 0 {
		return
	}
	up, err := p.source(r.Members[i], fsm.Epoch{})
	if err == nil {
		err = p.m.CopySlots(ctx, up, names)
	}
	if err != nil {
		p.log.Warn("logical slots are not copied, trying again later", "error", err)
	}
}

// DropUnready implements agent.Postgres.
func (p *Postgres) DropUnready(ctx context.Context, r agent.Roster) error {
	o := p.m.Observe(ctx)
	if len(r.Group.Slots) == 0 || !o.Reachable {
		return nil
	}
	l, err := p.m.Local()
	if err != nil {
		return err
	}
	var followed fsm.Epoch
	for _, e := range l.Lineage {
		if e.Less(r.Group.Epoch) && followed.Less(e) {
			followed = e
		}
	}
	v := slotView(r, o)
	v.Ready = l.ReadySlots.Under(followed)
	for _, s := range decide.Unready(v) {
		p.log.Warn("a logical slot is dropped: the copy here was not complete at the promotion, so that its consumer would lack changes in silence", "slot", s.Name)
		if err := p.m.DropReplicationSlot(ctx, s.Name); err != nil {
			return err
		}
	}
	return nil
}

// seen are a server's slots as decisions see them.
func seen(all []pgmanager.Slot) []decide.SlotSeen {
	out := make([]decide.SlotSeen, 0, len(all))
	for _, s := range all {
		out = append(out, decide.SlotSeen{
			Name: s.Name, Type: fsm.SlotType(s.Type), Database: s.Database, Plugin: s.Plugin, Active: s.Active, Temporary: s.Temporary, Failover: s.Failover, Synced: s.Synced,
			WALStatus: s.WALStatus, Restart: s.RestartLSN, Confirmed: s.ConfirmedLSN, CatalogXmin: s.CatalogXmin, Retained: s.Retained,
		})
	}
	return out
}

// slotParameters are what PostgreSQL needs so that logical slots get to the standbys. A commit that a logical consumer sees is then on
// every standby that could be elected without the others.
func slotParameters(c decide.Conf, major int) map[string]string {
	if !c.Logical || c.Phase == decide.Closed && c.Upstream == "" {
		return nil
	}
	out := map[string]string{}
	if c.Upstream != "" {
		out["hot_standby_feedback"] = "on"
	}
	switch {
	case major*10000 < decide.FailoverSlots:
	case c.Upstream != "":
		out["sync_replication_slots"] = "on"
	default:
		names := make([]string, 0, len(c.Sync.S))
		for _, id := range c.Sync.S {
			names = append(names, pgconf.SlotName(id))
		}
		out["synchronized_standby_slots"] = strings.Join(names, ", ")
	}
	return out
}
