package citus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// move gives one row another address.
type move struct {
	id       int
	from, to Addr
}

// mover orders changes of address so that no two rows ever share one.
type mover struct {
	rows   map[int]Row
	at     map[int]Addr // present addresses
	target map[int]Addr // where rows have to go
	out    []move
}

// moves returns the changes that bring each row to its target, in an order in which every one is permitted. Rows without a
// target stay, unless they sit on somebody's target: one of the same group takes the address that becomes free, any other is
// parked under a name that leads nowhere. Targets must differ from each other.
func moves(rows []Row, target map[int]Addr) []move {
	m := mover{rows: map[int]Row{}, at: map[int]Addr{}, target: maps.Clone(target)}
	for _, r := range rows {
		m.rows[r.NodeID], m.at[r.NodeID] = r, r.Addr
	}
	m.makeRoom()
	for pending := m.pending(); len(pending) > 0; pending = m.pending() {
		free := slices.IndexFunc(pending, func(id int) bool { _, taken := m.occupant(m.target[id]); return !taken })
		if free >= 0 {
			m.step(pending[free], m.target[pending[free]])
			continue
		}
		// Only circles are left: one row steps aside, a standby's rather than a primary's, whose every step locks all shards.
		aside := slices.IndexFunc(pending, func(id int) bool { return !m.rows[id].primary() && m.canStepAside(id) })
		if aside < 0 {
			aside = slices.IndexFunc(pending, m.canStepAside)
		}
		m.step(pending[aside], m.nowhere(moving, pending[aside]))
	}
	return m.out
}

func (m *mover) canStepAside(id int) bool { return !strings.HasPrefix(m.at[id].Host, moving) }

// makeRoom sees to the rows that sit on a target without having one.
func (m *mover) makeRoom() {
	for _, id := range slices.Sorted(maps.Keys(m.target)) {
		o, taken := m.occupant(m.target[id])
		if _, moves := m.target[o]; !taken || o == id || moves {
			continue
		}
		left := m.at[id]
		if m.rows[o].Group == m.rows[id].Group && !m.wanted(left) {
			m.target[o] = left
			continue
		}
		m.step(o, m.nowhere(parked, o))
	}
}

func (m *mover) wanted(a Addr) bool {
	for _, t := range m.target {
		if t == a {
			return true
		}
	}
	return false
}

func (m *mover) pending() []int {
	var ids []int
	for _, id := range slices.Sorted(maps.Keys(m.target)) {
		if m.at[id] != m.target[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

func (m *mover) occupant(a Addr) (int, bool) {
	for id, at := range m.at {
		if at == a {
			return id, true
		}
	}
	return 0, false
}

// Names that lead nowhere.
const (
	moving = "matriarch-moving-" // on its way
	parked = "matriarch-parked-" // until somebody wants it
)

// nowhere is an address that no row has.
func (m *mover) nowhere(kind string, id int) Addr {
	a := Addr{Host: fmt.Sprint(kind, id), Port: m.rows[id].Addr.Port}
	for _, taken := m.occupant(a); taken; _, taken = m.occupant(a) {
		a.Host += "x"
	}
	return a
}

func (m *mover) step(id int, to Addr) {
	m.out = append(m.out, move{id: id, from: m.at[id], to: to})
	m.at[id] = to
}
