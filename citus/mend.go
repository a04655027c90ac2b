package citus

import (
	"maps"
	"slices"

	"matriarch/fsm"
)

// coordinator puts the coordinator's own rows right: what they say of each node first, then the addresses.
func (d *differ) coordinator() {
	c, ok := d.usable(0)
	if !ok || c.LocalGroup != 0 {
		return
	}
	d.final = append([]Row{}, c.Rows...)
	d.restore()
	d.mend()
	for _, m := range moves(d.final, d.targets()) {
		i := d.index(m.id)
		d.add(UpdateNode{NodeID: m.id, Group: d.final[i].Group, From: m.from, To: m.to})
		d.final[i].Addr = m.to
		d.moved = true
	}
}

func (d *differ) index(id int) int {
	return slices.IndexFunc(d.final, func(r Row) bool { return r.NodeID == id })
}

// restore puts back the row of a group's primary that another worker still has. A new one would have another nodeid. A server
// says nothing of its own group: one that was taken out on purpose keeps its copy.
func (d *differ) restore() {
	if len(d.final) == 0 {
		return
	}
	for _, g := range d.want.groups() {
		if _, has := keeper(d.final, g); has || d.want.gone(g) {
			continue
		}
		for _, of := range d.want.groups() {
			own, member := (Actual{Rows: d.final}).rowOf(of)
			w, ok := d.usable(of)
			r, has := w.rowOf(g)
			if of == 0 || of == g || !ok || !member || !own.HasMetadata || w.LocalGroup != of || !has {
				continue
			}
			if d.putBack(r) {
				break
			}
		}
	}
}

// putBack leaves a worker inactive: changes of the metadata have passed it over, and activating it brings them all.
func (d *differ) putBack(r Row) bool {
	r.Active, r.Synced = r.Group == 0, r.Group == 0
	if i := d.index(r.NodeID); i >= 0 {
		was := d.final[i]
		if _, known := d.want.Primaries[was.Group]; known {
			return false
		}
		r.Addr, r.Rack, r.TakesShards = was.Addr, was.Rack, was.TakesShards
		d.final[i], d.moved = r, true
		d.add(FixRow{Was: was, Row: r})
		return true
	}
	if !d.free(r.Addr) {
		return false
	}
	d.final, d.moved = append(d.final, r), true
	d.add(CopyRow{Node: 0, Row: r})
	return true
}

// mend gives rows of known groups the role and the state they must have. A worker's primary that Citus passes over needs more
// than its row: it may have missed metadata.
func (d *differ) mend() {
	was := slices.Clone(d.final)
	for i := range d.final {
		r := &d.final[i]
		if _, known := d.want.Primaries[r.Group]; !known || r.Clone || d.want.gone(r.Group) {
			continue
		}
		first, _ := keeper(was, r.Group)
		switch {
		case r.NodeID != first.NodeID:
			r.Role, r.Active = roleSecondary, true
		case r.Group == 0:
			r.Role, r.Cluster, r.Active, r.HasMetadata = rolePrimary, defaultCluster, true, true
		default:
			r.Role, r.Cluster = rolePrimary, defaultCluster
		}
	}
	for id, s := range d.seats() {
		d.final[d.index(id)].Cluster = s.NodeCluster
	}
	for _, demoted := range []bool{true, false} { // a group never has two primaries
		for i, r := range d.final {
			if r != was[i] && demoted == !r.primary() {
				d.add(FixRow{Was: was[i], Row: r})
				d.moved = true
			}
		}
	}
	for _, r := range d.final {
		if r.primary() && r.Group != 0 && (!r.Active || !r.HasMetadata) && !d.want.gone(r.Group) {
			d.inactive = append(d.inactive, r)
		}
	}
}

// keeper finds the row that is, or before somebody changed its role was, that of a group's primary: a worker's secondaries have
// no metadata, and secondaries are registered later.
func keeper(rows []Row, g fsm.GroupID) (Row, bool) {
	var best Row
	rank := 0
	for _, r := range rows {
		if r.Group != g || r.Clone {
			continue
		}
		n := 1
		if g != 0 && r.HasMetadata {
			n += 4
		}
		if r.primary() {
			n += 3
		}
		if n > rank || n == rank && r.NodeID < best.NodeID {
			best, rank = r, n
		}
	}
	return best, rank > 0
}

// seats gives the secondary rows their standbys. In a group without a primary everything stays.
func (d *differ) seats() map[int]Secondary {
	out := map[int]Secondary{}
	for _, g := range d.want.groups() {
		if d.want.Primaries[g].Addr.IsZero() || d.want.gone(g) {
			continue
		}
		var rows []Row
		for _, r := range d.final {
			if r.Group == g && r.secondary() {
				rows = append(rows, r)
			}
		}
		maps.Copy(out, seats(rows, d.want.Secondaries[g]))
	}
	return out
}

// targets says where the coordinator's rows have to go.
func (d *differ) targets() map[int]Addr {
	t := d.primaryTargets(d.final)
	taken := map[Addr]bool{}
	for _, a := range t {
		taken[a] = true
	}
	seats := d.seats()
	for _, r := range d.final {
		if s, ok := seats[r.NodeID]; ok && !taken[s.Addr] {
			t[r.NodeID], taken[s.Addr] = s.Addr, true
		}
	}
	return t
}

// surplus reports whether a secondary row has no standby. In a group without a primary none has.
func (d *differ) surplus(r Row) bool {
	p, known := d.want.Primaries[r.Group]
	_, seated := d.seats()[r.NodeID]
	return known && !p.Addr.IsZero() && r.secondary() && !seated
}

// newSecondaries registers the standbys that have no row, in groups that are registered themselves.
func (d *differ) newSecondaries() {
	for _, g := range d.want.groups() {
		first, ok := Actual{Rows: d.final}.rowOf(g)
		if p := d.want.Primaries[g]; !ok || p.Addr.IsZero() || first.Addr != p.Addr || d.want.gone(g) {
			continue
		}
		for _, s := range d.want.Secondaries[g] {
			if s.Standing == Serving && d.free(s.Addr) {
				d.add(AddSecondary{Group: g, Addr: s.Addr, NodeCluster: s.NodeCluster})
			}
		}
	}
}
