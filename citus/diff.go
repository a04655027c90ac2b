package citus

import (
	"fmt"
	"maps"
	"regexp"
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
	for _, g := range want.groups() {
		d.pool(g)
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
		if _, known := want.Primaries[r.Group]; !known && !want.gone(r.Group) {
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
	want     Wanted
	actual   map[fsm.GroupID]Actual
	steps    []Step
	final    []Row // the coordinator's rows after its steps; nil while it is not known
	moved    bool  // the coordinator's rows change
	inactive []Row // rows of worker primaries that Citus passes over
}

func (d *differ) add(s Step) { d.steps = append(d.steps, s) }

// usable returns what a group's primary shows if its metadata may be worked on.
func (d *differ) usable(g fsm.GroupID) (Actual, bool) {
	a, ok := d.actual[g]
	p := d.want.Primaries[g]
	return a, ok && !p.Addr.IsZero() && !a.Missing && a.Extension != "" && a.Ready && !stray(p, a)
}

// primaryTargets gives the row of each group's primary the wanted address. An address wanted twice goes to the lower group.
func (d *differ) primaryTargets(rows []Row) map[int]Addr {
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

// copy makes a worker's copy equal to the coordinator's rows, or, while the coordinator is away, to the wanted addresses.
func (d *differ) copy(g fsm.GroupID) {
	w, ok := d.usable(g)
	if !ok || w.LocalGroup != g || len(w.Rows) == 0 {
		return
	}
	if d.final == nil {
		for _, m := range moves(w.Rows, d.primaryTargets(w.Rows)) {
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
		i := slices.IndexFunc(d.final, func(f Row) bool { return d.same(f, r) })
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
		if _, has := target[f.NodeID]; !has && !f.Clone {
			d.add(CopyRow{Node: g, Row: f})
		}
	}
}

// same reports whether a copy's row is the coordinator's, whatever its address. Which nodes take shards is the operator's, and
// whether an inactive one is active will be told everywhere when Citus activates it.
func (d *differ) same(f, r Row) bool {
	r.Addr, r.Synced, r.TakesShards = f.Addr, f.Synced, f.TakesShards
	if d.passedOver(f) {
		r.Active, r.HasMetadata = f.Active, f.HasMetadata
	}
	return f == r || f.Clone && f.NodeID == r.NodeID
}

func (d *differ) passedOver(r Row) bool {
	return slices.ContainsFunc(d.inactive, func(i Row) bool { return i.NodeID == r.NodeID })
}

// pool gives every row of a node its entry in pg_dist_poolinfo, which nobody carries from node to node. An entry names the
// port only, so it stays right when the row gets another address.
func (d *differ) pool(g fsm.GroupID) {
	a, ok := d.usable(g)
	if !ok || a.LocalGroup != g || len(a.Rows) == 0 {
		return
	}
	rows := a.Rows
	if d.final != nil {
		rows = d.final
	}
	wanted := map[int]string{}
	if d.want.PoolPort != 0 {
		for _, r := range rows {
			wanted[r.NodeID] = poolText(d.want.PoolPort)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.Pool)) {
		if _, keep := wanted[id]; !keep && ourPool(a.Pool[id]) {
			d.add(DropPool{Node: g, NodeID: id})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if a.Pool[id] != wanted[id] {
			d.add(SetPool{Node: g, NodeID: id, Info: wanted[id]})
		}
	}
}

// poolText quotes the port, as nobody else would: the rows to take away later are known by it.
func poolText(port int) string { return fmt.Sprintf("port='%d'", port) }

var ourText = regexp.MustCompile(`^port='\d+'$`)

func ourPool(info string) bool { return ourText.MatchString(info) }

// members adds and removes rows, for which Citus needs every metadata node reachable and in sync. What comes is added before
// what has to go is removed: a group keeps somebody to read from.
func (d *differ) members() {
	if d.final == nil || d.moved || !d.settled() {
		return
	}
	c := Actual{Rows: d.final}
	if _, ok := c.rowOf(0); !ok && d.free(d.want.Primaries[0].Addr) {
		d.add(SetCoordinatorHost{Addr: d.want.Primaries[0].Addr})
	}
	for _, r := range d.inactive {
		if _, ok := d.usable(r.Group); ok {
			d.add(ActivateNode{Row: r})
		}
	}
	for _, g := range d.want.groups() {
		if _, has := c.rowOf(g); has || g == 0 || d.want.gone(g) {
			continue
		}
		if a, ok := d.usable(g); ok && (a.LocalGroup == 0 || a.LocalGroup == g) && d.free(d.want.Primaries[g].Addr) {
			d.add(AddNode{Group: g, Addr: d.want.Primaries[g].Addr})
		}
	}
	d.newSecondaries()
	for _, r := range slices.Backward(d.final) {
		if !r.primary() && (d.want.gone(r.Group) || d.surplus(r)) {
			d.add(RemoveNode{Row: r})
		}
	}
	for _, r := range slices.Backward(d.final) {
		if r.primary() && d.want.gone(r.Group) {
			d.add(RemoveNode{Row: r})
		}
	}
}

// free reports whether there is an address that no row has.
func (d *differ) free(a Addr) bool {
	_, taken := Actual{Rows: d.final}.rowAt(a)
	return !taken && !a.IsZero()
}

// settled reports whether every metadata worker answers and has what the coordinator has.
func (d *differ) settled() bool {
	for _, r := range d.final {
		if r.Group == 0 || !r.primary() || !r.HasMetadata || d.passedOver(r) {
			continue
		}
		if d.want.gone(r.Group) && r.Synced {
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
		switch s.(type) {
		case CreateExtension, UpdateNode, UpdateRow, FixRow, CopyRow, DropRow:
			if s.On() == g {
				return
			}
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
