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
	w     Wanted
	nodes map[fsm.GroupID]*Actual
	next  int
	lost  map[fsm.GroupID]bool // a person deleted a row of the group on the coordinator
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
		if r.Group != 0 && r.primary() && r.Active && r.HasMetadata && !r.Synced {
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
			for i := range w.Rows {
				w.Rows[i].Synced = w.Rows[i].primary()
			}
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
	case AddSecondary:
		m.insync()
		m.add(s.Group, s.Addr)
		r := &m.nodes[0].Rows[len(m.nodes[0].Rows)-1]
		r.Role, r.Cluster, r.HasMetadata, r.Synced = "secondary", s.NodeCluster, s.Group == 0, false
		m.carry()
	case ActivateNode:
		r := m.row(0, s.Row.NodeID)
		m.insync()
		r.Active, r.HasMetadata, r.Synced = true, true, true
		m.carry()
	case FixRow:
		*m.row(0, s.Row.NodeID) = s.Row
	case SetPool:
		m.nodes[s.Node].Pool[s.NodeID] = s.Info
	case DropPool:
		delete(m.nodes[s.Node].Pool, s.NodeID)
	case RemoveNode:
		m.insync()
		if slices.ContainsFunc(m.w.Secondaries[s.Row.Group], func(x Secondary) bool { return x.Addr == s.Row.Addr && x.Standing != Away }) {
			m.t.Fatalf("%v: a standby to read from", s)
		}
		m.nodes[0].Rows = slices.DeleteFunc(m.nodes[0].Rows, func(r Row) bool { return r.NodeID == s.Row.NodeID })
		m.carry()
	case CreateExtension:
		*m.nodes[s.Group] = Actual{Extension: "13.2-1", Ready: true, Timeline: 1, Pool: map[int]string{}}
	case RecoverPrepared:
		for _, r := range m.nodes[s.Node].Rows {
			if !r.primary() {
				continue
			}
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
	switch kind := rapid.IntRange(0, 7).Draw(t, "kind"); {
	case kind == 4:
		n.Rows[i].Active = false
	case kind == 5:
		n.Rows[i].Role = "secondary"
	case kind == 6:
		n.Pool[n.Rows[i].NodeID] = "host=x"
		delete(n.Pool, n.Rows[j].NodeID)
	case kind == 7 && g == 0:
		m.lost[n.Rows[i].Group] = true
		n.Rows = slices.Delete(n.Rows, i, i+1)
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
		m := &model{t: t, nodes: map[fsm.GroupID]*Actual{}, lost: map[fsm.GroupID]bool{}}
		w := Wanted{Database: "app", Primaries: map[fsm.GroupID]Primary{}, Secondaries: map[fsm.GroupID][]Secondary{}}
		groups := rapid.IntRange(1, 5).Draw(t, "groups")
		for i := range groups {
			g := fsm.GroupID(i)
			w.Primaries[g] = Primary{Addr: addr(fmt.Sprintf("g%d-0", g)), Timeline: 1}
			m.nodes[g] = &Actual{Missing: true, Timeline: 1}
		}
		known := map[fsm.GroupID]int{}
		for range rapid.IntRange(0, 12).Draw(t, "rounds") {
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0:
				g := fsm.GroupID(rapid.IntRange(0, groups-1).Draw(t, "moved group"))
				w.Primaries[g] = Primary{Addr: addr(fmt.Sprintf("g%d-%d", g, rapid.IntRange(0, 3).Draw(t, "member"))), Timeline: 1}
				w.Secondaries[g] = m.standbys(g, w.Primaries[g])
			case 3:
				g := fsm.GroupID(rapid.IntRange(0, groups-1).Draw(t, "group with other standbys"))
				w.Secondaries[g] = m.standbys(g, w.Primaries[g])
			case 4:
				w.PoolPort = rapid.SampledFrom([]int{0, 6432, 6433}).Draw(t, "pool port")
			case 1:
				m.spoil()
			case 2:
				m.carry()
			}
			m.round(w, func(fsm.GroupID) bool { return rapid.IntRange(0, 3).Draw(t, "answers") > 0 })
			m.remember(known)
		}
		all := func(fsm.GroupID) bool { return true }
		for range 6 {
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
			m.checkStandbys(g)
		}
	})
}

// standbys draws what becomes of the members of a group that are not its primary.
func (m *model) standbys(g fsm.GroupID, p Primary) []Secondary {
	var out []Secondary
	for i := range 4 {
		if a := addr(fmt.Sprintf("g%d-%d", g, i)); a != p.Addr {
			s := Secondary{Addr: a, Standing: Standing(rapid.IntRange(0, 2).Draw(m.t, "standing"))}
			s.NodeCluster = rapid.SampledFrom([]string{"default", "reader"}).Draw(m.t, "cluster")
			out = append(out, s)
		}
	}
	return out
}

// checkStandbys insists on a row for every standby that serves, on no row for one that is away, and on the pool entries.
func (m *model) checkStandbys(g fsm.GroupID) {
	n := m.nodes[g]
	want := 0
	for of, list := range m.w.Secondaries {
		for _, s := range list {
			r, ok := n.rowAt(s.Addr)
			if s.Standing == Serving && !ok || s.Standing == Away && ok || ok && (!r.secondary() || r.Group != of || r.Cluster != s.NodeCluster || !r.Active) {
				m.t.Fatalf("copy of group %d: standby %+v of group %d has row %+v (%v)", g, s, of, r, ok)
			}
			if ok {
				want++
			}
		}
	}
	if len(n.Rows) != want+len(m.w.Primaries) {
		m.t.Fatalf("copy of group %d has rows of nobody: %+v", g, n.Rows)
	}
	for id, info := range n.Pool {
		if _, ok := m.nodes[0].row(id); info != "host=x" && (!ok || info != poolText(m.w.PoolPort)) {
			m.t.Fatalf("group %d: pool entry %d is %s", g, id, info)
		}
	}
	for _, r := range n.Rows {
		if m.w.PoolPort != 0 && n.Pool[r.NodeID] != poolText(m.w.PoolPort) {
			m.t.Fatalf("group %d: no pool entry of row %d: %v", g, r.NodeID, n.Pool)
		}
	}
}

func (a Actual) row(id int) (Row, bool) {
	i := slices.IndexFunc(a.Rows, func(r Row) bool { return r.NodeID == id })
	return Row{}, i >= 0
}

func (m *model) observed(answers func(fsm.GroupID) bool) map[fsm.GroupID]Actual {
	out := map[fsm.GroupID]Actual{}
	for _, g := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[g]
		if answers(g) {
			a := *n
			a.Rows, a.Pool = slices.Clone(n.Rows), maps.Clone(n.Pool)
			out[g] = a
		}
	}
	return out
}

func (m *model) round(w Wanted, answers func(fsm.GroupID) bool) {
	w.Recover = true
	m.w = w
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
		if !r.primary() || m.lost[r.Group] {
			known[r.Group] = max(known[r.Group], 0)
			if r.primary() {
				known[r.Group] = r.NodeID
			}
			continue
		}
		if id, ok := known[r.Group]; ok && id != 0 && id != r.NodeID {
			m.t.Fatalf("group %d had row %d, now %d", r.Group, id, r.NodeID)
		}
		known[r.Group] = r.NodeID
	}
}
