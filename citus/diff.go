package citus

import (
	"fmt"
	"slices"

	"matriarch/fsm"
)

// Diff returns the steps from what was observed to what is wanted, in the order in which they should run. actual holds the
// groups whose primaries answered; the rest is left for another round.
func Diff(want Wanted, actual map[fsm.GroupID]Actual) []Step {
	d := differ{want: want, actual: actual}
	for _, g := range want.groups() {
		if a, ok := actual[g]; ok && !a.InRecovery && (a.Missing || a.Extension == "" || !a.Ready) {
			d.add(CreateExtension{Group: g})
		}
	}
	d.coordinator()
	for _, g := range want.groups() {
		if g != 0 {
			d.copy(g)
		}
	}
	d.members()
	if want.Recover {
		for _, g := range want.groups() {
			d.recovery(g)
		}
	}
	return d.steps
}

// Problems names what Diff cannot put right: it needs an operator.
func Problems(want Wanted, actual map[fsm.GroupID]Actual) []string {
	var out []string
	for _, g := range want.groups() {
		a, ok := actual[g]
		if p := want.Primaries[g]; ok && stray(p, a) {
			out = append(out, fmt.Sprintf("server of group %d at %s is not the wanted primary (in recovery %v, timeline %d, wanted %d)",
				g, p.Addr, a.InRecovery, a.Timeline, p.Timeline))
			continue
		}
		if ok && a.LocalGroup != 0 && a.LocalGroup != g {
			out = append(out, fmt.Sprintf("server of group %d calls itself group %d: it was registered elsewhere before", g, a.LocalGroup))
		}
		if row, has := actual[0].rowOf(g); ok && has && g != 0 && row.HasMetadata && a.LocalGroup == 0 && a.Extension != "" {
			out = append(out, fmt.Sprintf("server of group %d is registered but holds no metadata: run citus_activate_node or restore it", g))
		}
	}
	for _, r := range actual[0].Rows {
		if _, known := want.Primaries[r.Group]; !known && !slices.Contains(want.Gone, r.Group) {
			out = append(out, fmt.Sprintf("row %d at %s belongs to group %d, which the formation does not have: remove it by citus_remove_node",
				r.NodeID, r.Addr, r.Group))
		}
	}
	return out
}

// stray reports whether a server is not the primary that was meant.
func stray(p Primary, a Actual) bool {
	return a.InRecovery || (p.Timeline != 0 && !a.Missing && a.Timeline != p.Timeline)
}

type differ struct {
	want   Wanted
	actual map[fsm.GroupID]Actual
	steps  []Step
	final  []Row // the coordinator's rows after its steps; nil while it is not known
	moved  bool  // the coordinator's rows change
}

func (d *differ) add(s Step) { d.steps = append(d.steps, s) }

// usable returns what a group's primary shows if its metadata may be worked on.
func (d *differ) usable(g fsm.GroupID) (Actual, bool) {
	a, ok := d.actual[g]
	p := d.want.Primaries[g]
	return a, ok && !p.Addr.IsZero() && !a.Missing && a.Extension != "" && a.Ready && !stray(p, a)
}

// targets gives the row of each group's primary the wanted address. An address wanted twice goes to the lower group.
func (d *differ) targets(rows []Row) map[int]Addr {
	t := map[int]Addr{}
	given := map[Addr]bool{}
	for _, g := range d.want.groups() {
		p := d.want.Primaries[g]
		r, ok := Actual{Rows: rows}.rowOf(g)
		if ok && !p.Addr.IsZero() && !given[p.Addr] {
			t[r.NodeID], given[p.Addr] = p.Addr, true
		}
	}
	return t
}

// coordinator gives the coordinator's rows their addresses.
func (d *differ) coordinator() {
	c, ok := d.usable(0)
	if !ok || c.LocalGroup != 0 {
		return
	}
	d.final = slices.Clone(c.Rows)
	if d.final == nil {
		d.final = []Row{}
	}
	for _, m := range moves(c.Rows, d.targets(c.Rows)) {
		i := slices.IndexFunc(d.final, func(r Row) bool { return r.NodeID == m.id })
		d.add(UpdateNode{NodeID: m.id, Group: d.final[i].Group, From: m.from, To: m.to})
		d.final[i].Addr = m.to
		d.moved = true
	}
}

// copy makes a worker's copy equal to the coordinator's rows, or, while the coordinator is away, to the wanted addresses.
func (d *differ) copy(g fsm.GroupID) {
	w, ok := d.usable(g)
	if !ok || w.LocalGroup != g || len(w.Rows) == 0 {
		return
	}
	if d.final == nil {
		for _, m := range moves(w.Rows, d.targets(w.Rows)) {
			d.add(UpdateRow{Node: g, NodeID: m.id, From: m.from, To: m.to})
		}
		return
	}
	own := slices.ContainsFunc(d.final, func(r Row) bool { return r.Group == g && r.primary() && r.HasMetadata })
	if !own {
		return
	}
	target := map[int]Addr{}
	var kept []Row
	for _, r := range w.Rows {
		i := slices.IndexFunc(d.final, func(f Row) bool { return sameNode(f, r) })
		if i < 0 {
			d.add(DropRow{Node: g, Row: r})
			continue
		}
		kept = append(kept, r)
		target[r.NodeID] = d.final[i].Addr
	}
	for _, m := range moves(kept, target) {
		d.add(UpdateRow{Node: g, NodeID: m.id, From: m.from, To: m.to})
	}
	for _, f := range d.final {
		if _, has := target[f.NodeID]; !has {
			d.add(CopyRow{Node: g, Row: f})
		}
	}
}

// sameNode reports whether a copy's row is the coordinator's, whatever its address.
func sameNode(a, b Row) bool {
	return a.NodeID == b.NodeID && a.Group == b.Group && a.Role == b.Role && a.Cluster == b.Cluster
}

// members adds and removes rows, for which Citus needs every metadata node reachable and in sync.
func (d *differ) members() {
	if d.final == nil || d.moved || !d.settled() {
		return
	}
	c := Actual{Rows: d.final}
	if _, ok := c.rowOf(0); !ok {
		if p := d.want.Primaries[0]; !p.Addr.IsZero() {
			d.add(SetCoordinatorHost{Addr: p.Addr})
		}
	}
	for _, g := range d.want.groups() {
		if _, has := c.rowOf(g); has || g == 0 {
			continue
		}
		if a, ok := d.usable(g); ok && (a.LocalGroup == 0 || a.LocalGroup == g) {
			d.add(AddNode{Group: g, Addr: d.want.Primaries[g].Addr})
		}
	}
	for _, r := range slices.Backward(d.final) {
		if _, still := d.want.Primaries[r.Group]; !still && slices.Contains(d.want.Gone, r.Group) {
			d.add(RemoveNode{Row: r})
		}
	}
}

// settled reports whether every metadata worker answers and has what the coordinator has.
func (d *differ) settled() bool {
	for _, r := range d.final {
		if r.Group == 0 || !r.primary() || !r.HasMetadata {
			continue
		}
		if slices.Contains(d.want.Gone, r.Group) && r.Synced {
			continue
		}
		if _, ok := d.usable(r.Group); !ok || !r.Synced {
			return false
		}
	}
	return !slices.ContainsFunc(d.steps, func(s Step) bool {
		switch s.(type) {
		case UpdateRow, CopyRow, DropRow:
			return true
		default:
			return false
		}
	})
}

// recovery is due on a node whose rows are right and all lead to primaries that were seen to be ones in this round.
func (d *differ) recovery(g fsm.GroupID) {
	a, ok := d.usable(g)
	if !ok || a.LocalGroup != g || len(a.Rows) == 0 || !proven(d.want, a.Rows, d.actual) {
		return
	}
	for _, s := range d.steps {
		if s.On() == g {
			return
		}
	}
	d.add(RecoverPrepared{Node: g})
}

// proven reports whether every primary row leads to the group's wanted primary, and that one was observed out of recovery on
// the timeline that its promotion made.
func proven(want Wanted, rows []Row, actual map[fsm.GroupID]Actual) bool {
	for _, r := range rows {
		if !r.primary() {
			continue
		}
		p, a := want.Primaries[r.Group], actual[r.Group]
		if p.Addr.IsZero() || p.Addr != r.Addr || p.Timeline == 0 || a.InRecovery || a.Timeline != p.Timeline {
			return false
		}
	}
	return true
}
