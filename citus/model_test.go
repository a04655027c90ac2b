package citus

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"matriarch/fsm"
)

// model is pg_dist_node on every primary, with the refusals of Citus.
type model struct {
	t     *rapid.T
	nodes map[fsm.GroupID]*Actual
	next  int
}

func (m *model) row(g fsm.GroupID, id int) *Row {
	n := m.nodes[g]
	for i := range n.Rows {
		if n.Rows[i].NodeID == id {
			return &n.Rows[i]
		}
	}
	m.t.Fatalf("group %d has no row %d", g, id)
	return nil
}

// check is what the server checks after every statement.
func (m *model) check(g fsm.GroupID, s Step) {
	at, primaries, ids := map[Addr]bool{}, map[fsm.GroupID]bool{}, map[int]bool{}
	for _, r := range m.nodes[g].Rows {
		if at[r.Addr] || ids[r.NodeID] || r.primary() && primaries[r.Group] {
			m.t.Fatalf("after %v: duplicate in %+v", s, m.nodes[g].Rows)
		}
		at[r.Addr], ids[r.NodeID] = true, true
		primaries[r.Group] = primaries[r.Group] || r.primary()
	}
}

func (m *model) insync() {
	for _, r := range m.nodes[0].Rows {
		if r.Group != 0 && r.HasMetadata && !r.Synced {
			m.t.Fatalf("%v is a metadata node, but is out of sync", r.Addr)
		}
	}
}

// carry is what Citus' daemon does: copy the coordinator's rows.
func (m *model) carry() {
	for i, r := range m.nodes[0].Rows {
		if w := m.nodes[r.Group]; r.Group != 0 && r.HasMetadata && w != nil {
			m.nodes[0].Rows[i].Synced = true
		}
	}
	for g, w := range m.nodes {
		if g != 0 && w.LocalGroup == g {
			w.Rows = slices.Clone(m.nodes[0].Rows)
		}
	}
}

func (m *model) run(s Step) {
	switch s := s.(type) {
	case UpdateNode:
		r := m.row(0, s.NodeID)
		if r.Addr != s.From {
			m.t.Fatalf("%v: row is at %v", s, r.Addr)
		}
		r.Addr = s.To
		for i := range m.nodes[0].Rows {
			if x := &m.nodes[0].Rows[i]; x.Group != 0 && x.HasMetadata {
				x.Synced = false
			}
		}
	case UpdateRow:
		r := m.row(s.Node, s.NodeID)
		if r.Addr != s.From {
			m.t.Fatalf("%v: row is at %v", s, r.Addr)
		}
		r.Addr = s.To
	case CopyRow:
		m.nodes[s.Node].Rows = append(m.nodes[s.Node].Rows, s.Row)
	case DropRow:
		n := m.nodes[s.Node]
		n.Rows = slices.DeleteFunc(n.Rows, func(r Row) bool { return r == s.Row })
	case SetCoordinatorHost:
		m.insync()
		m.add(0, s.Addr)
	case AddNode:
		m.insync()
		m.nodes[s.Group].LocalGroup = s.Group
		m.add(s.Group, s.Addr)
	case RemoveNode:
		m.insync()
		m.nodes[0].Rows = slices.DeleteFunc(m.nodes[0].Rows, func(r Row) bool { return r.NodeID == s.Row.NodeID })
		m.carry()
	case CreateExtension:
		*m.nodes[s.Group] = Actual{Extension: "13.2-1", Ready: true, Timeline: 1}
	case RecoverPrepared:
		for _, r := range m.nodes[s.Node].Rows {
			if m.nodes[r.Group] == nil || m.nodes[r.Group].InRecovery {
				m.t.Fatalf("recovery on group %d though group %d is no primary", s.Node, r.Group)
			}
		}
	}
	m.check(s.On(), s)
}

func (m *model) add(g fsm.GroupID, a Addr) {
	m.next++
	r := row(m.next, g, "")
	r.Addr = a
	m.nodes[0].Rows = append(m.nodes[0].Rows, r)
	m.carry()
}

// spoil edits one node's rows the way a person or a crash might.
func (m *model) spoil() {
	t := m.t
	g := rapid.SampledFrom(slices.Sorted(maps.Keys(m.nodes))).Draw(t, "node")
	n := m.nodes[g]
	if len(n.Rows) == 0 {
		return
	}
	i := rapid.IntRange(0, len(n.Rows)-1).Draw(t, "row")
	j := rapid.IntRange(0, len(n.Rows)-1).Draw(t, "other row")
	switch kind := rapid.IntRange(0, 3).Draw(t, "kind"); {
	case kind == 0:
		n.Rows[i].Addr = addr(fmt.Sprintf("hand%d", n.Rows[i].NodeID))
	case kind == 1:
		n.Rows[i].Addr, n.Rows[j].Addr = n.Rows[j].Addr, n.Rows[i].Addr
	case kind == 2 && g != 0:
		n.Rows = slices.Delete(n.Rows, i, i+1)
	case kind == 3 && g == 0 && n.Rows[i].Group != 0 && n.Rows[i].HasMetadata:
		n.Rows[i].Synced = false
	}
}

// TestConvergence: from any state that people, crashes and late daemons leave, rounds in which some nodes are silent and
// others answer lead to the wanted rows everywhere; ids stay, no statement is refused, and then there is nothing left to do.
func TestConvergence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, nodes: map[fsm.GroupID]*Actual{}}
		w := Wanted{Database: "app", Primaries: map[fsm.GroupID]Primary{}}
		groups := rapid.IntRange(1, 5).Draw(t, "groups")
		for i := range groups {
			g := fsm.GroupID(i)
			w.Primaries[g] = Primary{Addr: addr(fmt.Sprintf("g%d-0", g)), Timeline: 1}
			m.nodes[g] = &Actual{Missing: true, Timeline: 1}
		}
		known := map[fsm.GroupID]int{}
		for range rapid.IntRange(0, 12).Draw(t, "rounds") {
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				g := fsm.GroupID(rapid.IntRange(0, groups-1).Draw(t, "moved group"))
				w.Primaries[g] = Primary{Addr: addr(fmt.Sprintf("g%d-%d", g, rapid.IntRange(0, 2).Draw(t, "member"))), Timeline: 1}
			case 1:
				m.spoil()
			case 2:
				m.carry()
			}
			m.round(w, func(fsm.GroupID) bool { return rapid.IntRange(0, 3).Draw(t, "answers") > 0 })
			m.remember(known)
		}
		all := func(fsm.GroupID) bool { return true }
		for range 4 {
			m.round(w, all)
			m.remember(known)
			m.carry()
		}
		w.Recover = false
		if steps := Diff(w, m.observed(all)); len(steps) > 0 {
			t.Fatalf("still to do: %v", steps)
		}
		for g := range m.nodes {
			for of, p := range w.Primaries {
				r, ok := m.nodes[g].rowOf(of)
				if !ok || r.Addr != p.Addr || r.NodeID != known[of] {
					t.Fatalf("copy of group %d: row of group %d is %+v, wanted %+v with id %d", g, of, r, p, known[of])
				}
			}
		}
	})
}

func (m *model) observed(answers func(fsm.GroupID) bool) map[fsm.GroupID]Actual {
	out := map[fsm.GroupID]Actual{}
	for g, n := range m.nodes {
		if answers(g) {
			a := *n
			a.Rows = slices.Clone(n.Rows)
			out[g] = a
		}
	}
	return out
}

func (m *model) round(w Wanted, answers func(fsm.GroupID) bool) {
	w.Recover = true
	actual := m.observed(answers)
	steps := Diff(w, actual)
	if again := Diff(w, actual); !cmp.Equal(steps, again) {
		m.t.Fatalf("two answers to one question: %v, %v", steps, again)
	}
	for _, s := range steps {
		m.run(s)
	}
}

// remember insists that a group's row keeps the nodeid it got.
func (m *model) remember(known map[fsm.GroupID]int) {
	for _, r := range m.nodes[0].Rows {
		if id, ok := known[r.Group]; ok && id != r.NodeID {
			m.t.Fatalf("group %d had row %d, now %d", r.Group, id, r.NodeID)
		}
		known[r.Group] = r.NodeID
	}
}
