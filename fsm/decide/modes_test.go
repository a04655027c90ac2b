package decide

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

// lab is a group of up to six nodes whose PostgreSQL servers are lists of commits. The state and the decisions are the real ones.
type lab struct {
	t       *rapid.T
	s       *fsm.State
	ids     []fsm.NodeID
	logs    map[fsm.NodeID][]int // commits on disk, in order
	lineage map[fsm.NodeID]fsm.Epoch
	streams map[fsm.NodeID]bool
	missing map[fsm.NodeID]time.Duration
	lag     map[fsm.NodeID]int64
	acked   []int
	next    int
	conf    Conf       // as PostgreSQL is set
	acting  []fsm.Pair // some backend or walsender may still go by each of these
}

func newLab(t *rapid.T) *lab {
	l := &lab{
		t: t, s: fsm.NewState(), logs: map[fsm.NodeID][]int{}, lineage: map[fsm.NodeID]fsm.Epoch{}, streams: map[fsm.NodeID]bool{},
		missing: map[fsm.NodeID]time.Duration{}, lag: map[fsm.NodeID]int64{},
	}
	l.s.Cluster = fsm.Cluster{ID: "x", Incarnation: 1, Gate: fsm.Protocol, Settings: fsm.DefaultSettings()}
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		id := fsm.NodeID(rune('a' + i))
		l.ids = append(l.ids, id)
		l.s.Nodes[id] = fsm.Node{ID: id, Name: "n-" + string(id), Peer: string(id) + ":1", Postgres: string(id) + ":2", Joined: uint64(i + 1), Tags: fsm.Tags{SyncPriority: i % 3}}
	}
	l.s.Groups[0] = fsm.Group{
		Mode: fsm.Quorum, ClaimedBy: "a", SystemID: "sys", LastHolder: "a", Sync: fsm.Sync{Pairs: []fsm.Pair{{}}}, Grants: []fsm.Grant{{Holder: "a", Timeline: 1}},
	}
	l.grant("a", fsm.Pair{})
	return l
}

func (l *lab) group() fsm.Group      { return l.s.Groups[0] }
func (l *lab) holder() fsm.NodeID    { return l.group().Lease.Holder }
func (l *lab) bool(name string) bool { return rapid.Bool().Draw(l.t, name) }

func (l *lab) apply(c fsm.Command) fsm.Result {
	b, err := fsm.Encode(c, "", time.Unix(0, 0))
	if err != nil {
		l.t.Fatal(err)
	}
	next, res := fsm.Apply(l.s, l.s.Index+1, b)
	if err := fsm.Invariant(l.s, next); err != nil {
		l.t.Fatalf("%v after %s", err, b)
	}
	l.s = next
	return res
}

// grant gives the free lease away and promotes at once.
func (l *lab) grant(to fsm.NodeID, p fsm.Pair) {
	g := l.group()
	if res := l.apply(fsm.GrantCmd{Prev: g.Epoch, Holder: to, Instance: "i", TTL: time.Second, Pair: p}); !res.OK {
		l.t.Fatal(res.Reason)
	}
	l.conf, l.acting = Conf{}, nil
	l.configure(Conf{Sync: l.group().Sync.Target(), Epoch: l.group().Epoch})
	l.acting = l.acting[len(l.acting)-1:] // nobody was connected before
	l.lineage[to] = l.group().Epoch
	l.streams = map[fsm.NodeID]bool{}
	if res := l.apply(fsm.Promoted{Epoch: l.group().Epoch, Timeline: fsm.Timeline(10 + l.group().Epoch.N), Parent: 1, Fork: 1}); !res.OK {
		l.t.Fatal(res.Reason)
	}
}

func (l *lab) configure(c Conf) {
	l.conf = c
	l.acting = append(l.acting, c.Sync)
}

// copyTo lets a standby catch up with the primary; what it had besides is taken back.
func (l *lab) copyTo(id fsm.NodeID) {
	l.logs[id], l.lineage[id] = slices.Clone(l.logs[l.holder()]), l.lineage[l.holder()]
}

// commit writes on the primary and reaches some standbys that stream. It is acknowledged when any setting still acting says so.
func (l *lab) commit() {
	h := l.holder()
	l.next++
	l.logs[h] = append(l.logs[h], l.next)
	reached := []fsm.NodeID{}
	for _, id := range l.ids {
		if l.streams[id] && l.bool("reaches") {
			l.copyTo(id)
			reached = append(reached, id)
		}
	}
	// A walsender reads the settings when it comes to it. It releases commits by its own k, and counts whoever votes by his own list.
	votes := func(id fsm.NodeID) bool {
		return slices.ContainsFunc(l.acting, func(p fsm.Pair) bool { return p.Has(id) })
	}
	for _, p := range l.acting {
		n, own := 0, p.K == 0
		for _, id := range l.ids {
			own = own || l.streams[id] && p.Has(id) // any reply of a standby will do
		}
		for _, id := range reached {
			if votes(id) {
				n++
			}
		}
		if n >= p.K && own && l.group().Opened() {
			l.acked = append(l.acked, l.logs[h]...)
			slices.Sort(l.acked)
			l.acked = slices.Compact(l.acked)
			if g := l.group(); g.Holds() && p.Equal(g.Sync.Target()) && n < g.Confirmers() && !g.Sync.Joint() && p.K >= g.Confirmers() {
				l.t.Fatalf("strict group acknowledged with %d", n)
			}
			return
		}
	}
}

func (l *lab) view() View {
	v := primary(func(v *View) {
		v.Self, v.State, v.Instance, v.Conf = l.holder(), l.s, "i", l.conf
		v.Sentinel.Epoch, v.Equipped, v.PG.Senders = l.group().Epoch, l.group().Epoch, nil
		for _, id := range l.ids {
			if id != l.holder() {
				v.PG.Senders = append(v.PG.Senders, Sender{Node: id, Streaming: l.streams[id], Missing: l.missing[id], Lag: l.lag[id]})
			}
		}
	})
	v.Local.Lineage = map[fsm.Timeline]fsm.Epoch{v.PG.Timeline: l.group().Epoch}
	return v
}

// step does what the primary decides; the agent may end after each part of it.
func (l *lab) step() {
	switch a := Node(l.view()).Action.(type) {
	case ProposeSync:
		if res := l.apply(fsm.SyncPropose{Epoch: a.Epoch, Pair: a.Pair, Reason: a.Reason}); !res.OK {
			l.t.Fatalf("refused: %s; %+v in %+v", res.Reason, a.Pair, l.group())
		}
	case Configure:
		l.configure(a.Conf)
	case Confirm:
		l.configure(a.Conf)
		if l.bool("ends before the barrier") {
			return
		}
		n := 0
		for _, id := range a.Pair.S {
			if l.streams[id] {
				l.copyTo(id)
				n++
			}
		}
		if n < a.Pair.K {
			return
		}
		l.acting = []fsm.Pair{a.Conf.Sync}
		if l.bool("ends before the entry") {
			return
		}
		if l.bool("another change in between") {
			l.policy()
		}
		l.apply(fsm.SyncConfirm{Epoch: a.Epoch, Pair: a.Pair})
	}
}

func (l *lab) policy() {
	c := fsm.GroupSet{}
	switch rapid.IntRange(0, 3).Draw(l.t, "what") {
	case 0:
		c.Mode = rapid.SampledFrom([]fsm.Mode{fsm.Quorum, fsm.On, fsm.Off}).Draw(l.t, "mode")
	case 1:
		c.Strict = new(l.bool("strict"))
	case 2:
		c.SyncCount = new(rapid.IntRange(1, len(l.ids)).Draw(l.t, "k"))
	case 3:
		c.SyncLag = new(rapid.Int64Range(0, 200).Draw(l.t, "lag"))
	}
	l.apply(c)
}

func (l *lab) world() {
	id := rapid.SampledFrom(l.ids).Draw(l.t, "node")
	if id == l.holder() {
		return
	}
	switch rapid.IntRange(0, 3).Draw(l.t, "what happens") {
	case 0:
		l.streams[id], l.missing[id] = false, time.Duration(rapid.IntRange(0, 3).Draw(l.t, "missing"))*time.Second
	case 1:
		l.streams[id], l.missing[id] = true, 0
		l.copyTo(id)
	case 2:
		n := l.s.Nodes[id]
		n.Tags.NoSync = !n.Tags.NoSync
		l.apply(fsm.NodePut{Node: n})
	case 3:
		l.lag[id] = rapid.Int64Range(0, 400).Draw(l.t, "behind")
	}
}

// best is whom a set would elect: the newest timeline, then the longest log.
func (l *lab) best(r []fsm.NodeID) fsm.NodeID {
	return slices.MaxFunc(r, func(a, b fsm.NodeID) int {
		if c := compareEpoch(l.lineage[a], l.lineage[b]); c != 0 {
			return c
		}
		return len(l.logs[a]) - len(l.logs[b])
	})
}

// check: whatever set could elect now has every acknowledged commit.
func (l *lab) check() {
	for _, r := range subsets(len(l.ids)) {
		if ok, _ := Sufficient(l.group(), l.ids, r, false); !ok || len(r) == 0 {
			continue
		}
		w := l.best(r)
		for _, c := range l.acked {
			if !slices.Contains(l.logs[w], c) {
				l.t.Fatalf("%v suffices and elects %s, which lacks the acknowledged commit %d: %v; pairs %+v, acting %+v", r, w, c, l.logs, l.group().Sync, l.acting)
			}
		}
	}
}

// failover ends the lease and elects by some set that suffices.
func (l *lab) failover() {
	var r []fsm.NodeID
	for _, id := range l.ids {
		if l.bool("recruited") {
			r = append(r, id)
		}
	}
	if ok, _ := Sufficient(l.group(), l.ids, r, false); !ok || len(r) == 0 {
		return
	}
	w := l.best(r)
	var followers, all []fsm.NodeID
	for _, id := range l.ids {
		if id == w || l.s.Nodes[id].Tags.NoSync {
			continue
		}
		all = append(all, id)
		if slices.Contains(r, id) && l.lineage[id] == l.lineage[w] {
			followers = append(followers, id)
		}
	}
	l.apply(fsm.Expire{Epoch: l.group().Epoch})
	l.grant(w, PairFor(l.group(), followers, all))
}

// TestModesKeepEveryAcknowledgedCommit: over all modes, strict or not, any k, standbys that come and go, settings that change in
// the middle of a change, and an agent that may end between any two steps.
func TestModesKeepEveryAcknowledgedCommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(t)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch k := rapid.IntRange(0, 15).Draw(t, "step"); {
			case k < 6:
				l.step()
			case k < 10:
				l.commit()
			case k < 13:
				l.world()
			case k < 15:
				l.policy()
			default:
				l.failover()
			}
			l.check()
		}
	})
}

// TestModesSettle: once nothing changes any more the primary comes to rest with the pair that the settings ask for.
func TestModesSettle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(t)
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			if l.bool("policy") {
				l.policy()
			} else {
				l.world()
			}
			l.step()
		}
		want := 0
		for _, id := range l.ids {
			l.lag[id], l.missing[id] = 0, 0
			if id == l.holder() {
				continue
			}
			l.streams[id] = true
			if !l.s.Nodes[id].Tags.NoSync {
				want++
			}
		}
		g := l.group()
		for range 60 {
			l.settle()
		}
		p := l.group().Sync.Target()
		stale := slices.ContainsFunc(l.acting, func(a fsm.Pair) bool { return !a.Equal(p) })
		switch {
		case g.Mode == fsm.Off:
			want = 0
		case g.Holds() && want < g.Confirmers():
			if p.K != g.Confirmers() {
				t.Fatalf("strict: %+v", p)
			}
			return
		}
		if len(p.S) != want || p.K != min(g.Confirmers(), want) || l.group().Sync.Joint() || !l.group().Opened() || stale {
			t.Fatalf("settled at %+v with %d standbys, k %d, mode %s, strict %v; acting %+v, rule %+v", l.group().Sync, want, g.Confirmers(), g.Mode, g.Strict, l.acting, Node(l.view()))
		}
	})
}

// settle is a step that nothing interrupts.
func (l *lab) settle() {
	switch a := Node(l.view()).Action.(type) {
	case Confirm:
		l.configure(a.Conf)
		n := 0
		for _, id := range a.Pair.S {
			if l.streams[id] {
				n++
			}
		}
		if n >= a.Pair.K {
			l.acting = []fsm.Pair{a.Conf.Sync}
			l.apply(fsm.SyncConfirm{Epoch: a.Epoch, Pair: a.Pair})
		}
	case ProposeSync:
		if res := l.apply(fsm.SyncPropose{Epoch: a.Epoch, Pair: a.Pair}); !res.OK {
			l.t.Fatal(res.Reason)
		}
	case Configure:
		l.configure(a.Conf)
		l.acting = l.acting[len(l.acting)-1:]
	}
}
