package lease

import (
	"testing"
	"time"

	"matriarch/fsm"
)

func at(s float64) Stamp {
	d := time.Duration(s * float64(time.Second))
	return Stamp{d, d}
}

func held(holder fsm.NodeID, n uint64, ttl time.Duration) *fsm.State {
	s := fsm.NewState()
	s.Groups[0] = fsm.Group{Epoch: fsm.Epoch{Inc: 1, N: n}, Lease: fsm.Lease{Holder: holder, Instance: "i", Epoch: fsm.Epoch{Inc: 1, N: n}, TTL: ttl}}
	return s
}

func ep(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

func TestHolder(t *testing.T) {
	v := Valid(5 * time.Second)
	if v >= 4500*time.Millisecond || v <= 4400*time.Millisecond {
		t.Fatalf("valid for %s of 5s", v)
	}
	h := NewHolder("i")
	if h.Left(ep(0), at(0)) > 0 || h.Left(ep(1), at(0)) > 0 {
		t.Fatal("a new holder holds something")
	}
	if !h.Answered(at(10), "i", ep(1), 5*time.Second) || h.Left(ep(1), at(10)) != v {
		t.Fatal("an answer counts from its sending")
	}
	if h.Answered(at(9), "i", ep(1), 5*time.Second) || h.Left(ep(1), at(10)) != v {
		t.Fatal("a late answer of an earlier keepalive moved the deadline back")
	}
	if h.Answered(at(50), "other", ep(1), 5*time.Second) {
		t.Fatal("took the answer for another sentinel")
	}
	if h.Left(ep(2), at(10)) > 0 || h.Left(ep(0), at(10)) > 0 {
		t.Fatal("another epoch is held")
	}
	if !h.Answered(at(10), "i", ep(2), 4*time.Second) || h.Left(ep(1), at(10)) > 0 {
		t.Fatal("a new epoch did not replace the old one")
	}
	if h.Answered(at(60), "i", ep(1), 5*time.Second) {
		t.Fatal("an answer for an old epoch counted")
	}
	now := at(12)
	now.Boot += 3 * time.Second // was suspended
	if got, want := h.Left(ep(2), now), Valid(4*time.Second)-5*time.Second; got != want {
		t.Fatalf("left %s, want %s: the earlier clock counts", got, want)
	}
	r := NewHolder("i")
	r.Restore(ep(3), at(20))
	if r.Left(ep(3), at(19)) != time.Second || r.Left(ep(3), at(21)) > 0 {
		t.Fatal("what the sentinel remembered was not taken over")
	}
}

func TestWords(t *testing.T) {
	v := Valid(5 * time.Second)
	h := NewHolder("i")
	if h.Extend(at(10), at(10), ep(1), 5*time.Second) {
		t.Fatal("words made a lease")
	}
	h.Answered(at(10), "i", ep(1), 5*time.Second)
	if !h.Leased(ep(1)) || h.Leased(ep(2)) {
		t.Fatal("an answered keepalive is a lease, of its own epoch")
	}
	if h.Extend(at(12), at(12.5), ep(2), 5*time.Second) || h.Extend(at(14), at(15), ep(1), 5*time.Second) {
		t.Fatal("prolonged another epoch, or one that was over")
	}
	if !h.Extend(at(12), at(12.5), ep(1), 5*time.Second) || h.Left(ep(1), at(12)) != v || h.Leased(ep(1)) {
		t.Fatal("words count from when they were asked for")
	}
	h.Answered(at(11), "i", ep(1), 5*time.Second)
	if h.Leased(ep(1)) || h.Left(ep(1), at(12)) != v {
		t.Fatal("an answer that reaches less far than the words ended them")
	}
	h.Answered(at(13), "i", ep(1), 5*time.Second)
	if !h.Leased(ep(1)) || h.Left(ep(1), at(13)) != v {
		t.Fatal("an answer that reaches further did not")
	}
	h.Restore(ep(1), at(20))
	h.Answered(at(13), "i", ep(1), 5*time.Second)
	if h.Leased(ep(1)) {
		t.Fatal("what was remembered may rest on words")
	}

	var w Word
	if w.Left(at(1)) > 0 {
		t.Fatal("bound by nothing")
	}
	w.Give(at(10), 5*time.Second)
	w.Give(at(8), 5*time.Second)
	late := at(15.1)
	late.Raw = at(14).Raw
	if w.Left(at(14)) != time.Second || w.Left(late) != time.Second || w.Left(at(15)) > 0 {
		t.Fatal("a word ends on the later clock, and never earlier than given")
	}
}

func TestLessor(t *testing.T) {
	s := held("a", 1, 5*time.Second)
	l := NewLessor(at(100), s)
	if n := len(l.Expired(at(105))); n != 0 {
		t.Fatal("a new leader expires before a full ttl")
	}
	if got := l.Expired(at(105.1)); len(got) != 1 || got[0].Epoch != ep(1) {
		t.Fatalf("expired %v", got)
	}
	slow := at(105.1)
	slow.Raw = at(103).Raw
	if len(l.Expired(slow)) != 0 {
		t.Fatal("the later of the two clocks must count")
	}
	l.Enter(at(104), s.Groups[0], ep(1), "i")
	if len(l.Expired(at(108.9))) != 0 || len(l.Expired(at(109.1))) != 1 {
		t.Fatal("the deadline is not receipt + ttl")
	}
	l.Enter(at(101), s.Groups[0], ep(1), "i")
	if len(l.Expired(at(108.9))) != 0 {
		t.Fatal("an older keepalive moved the deadline back")
	}
	for name, f := range map[string]func(*fsm.Group) (fsm.Epoch, string){
		"another epoch":    func(*fsm.Group) (fsm.Epoch, string) { return ep(2), "i" },
		"another instance": func(*fsm.Group) (fsm.Epoch, string) { return ep(1), "j" },
		"a revoked lease":  func(g *fsm.Group) (fsm.Epoch, string) { g.Lease.Revoked = true; return ep(1), "i" },
	} {
		g := s.Groups[0]
		e, i := f(&g)
		l.Enter(at(108), g, e, i)
		if len(l.Expired(at(109.1))) != 1 {
			t.Errorf("%s moved the deadline", name)
		}
	}
	// The TTL belongs to the Grant: a longer lease granted later changes nothing for this one, and begins with its own.
	next := held("b", 2, 10*time.Second)
	l.Applied(at(110), next)
	if len(l.Expired(at(119.9))) != 0 || len(l.Expired(at(120.1))) != 1 {
		t.Fatal("a Grant's first deadline is its apply + ttl")
	}
	if w, ok := l.Next(at(119)); !ok || w < time.Second || w > 1100*time.Millisecond {
		t.Fatalf("next look in %s", w)
	}
	if m := l.Missing(0, at(113)); m != 3*time.Second {
		t.Fatalf("missing for %s", m)
	}
	l.Applied(at(121), fsm.NewState())
	if _, ok := l.Next(at(130)); ok || len(l.Expired(at(999))) != 0 || l.Missing(0, at(130)) != 0 {
		t.Fatal("a free lease has a deadline")
	}
}

func TestAnswer(t *testing.T) {
	s := held("a", 1, time.Second)
	for _, tc := range []struct {
		node     fsm.NodeID
		instance string
		e        fsm.Epoch
		want     bool
	}{{"a", "i", ep(1), true}, {"b", "i", ep(1), false}, {"a", "j", ep(1), false}, {"a", "i", ep(2), false}, {"a", "i", fsm.Epoch{}, false}} {
		if _, got := Answer(s, 0, tc.node, tc.instance, tc.e); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	g := s.Groups[0]
	g.Lease.Revoked = true
	s.Groups[0] = g
	if _, got := Answer(s, 0, "a", "i", ep(1)); got {
		t.Error("a revoked lease is renewed")
	}
	if _, got := Answer(s, 7, "a", "i", ep(1)); got {
		t.Error("an unknown group's lease is renewed")
	}
}
