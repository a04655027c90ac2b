package fsm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var ids = []NodeID{"a", "b", "c", "d", "w"}

func drawPair(t *rapid.T) Pair {
	s := rapid.SliceOfN(rapid.SampledFrom(ids), 0, 3).Draw(t, "s")
	return Pair{K: rapid.IntRange(-1, 3).Draw(t, "k"), S: s}
}

// drawCommand prefers commands that the state could accept.
func drawCommand(t *rapid.T, s *State) Command {
	n := rapid.SampledFrom(ids).Draw(t, "node")
	gid := GroupID(rapid.IntRange(0, 1).Draw(t, "group"))
	g := s.Groups[gid]
	e := rapid.SampledFrom([]Epoch{g.Epoch, g.Epoch, g.Epoch, {}, {1, 2}}).Draw(t, "epoch")
	p := drawPair(t)
	if rapid.Bool().Draw(t, "target") {
		p = g.Sync.Target()
	}
	home := GroupID(0)
	if n == "w" {
		home = 1
	}
	tl := Timeline(rapid.IntRange(0, 9).Draw(t, "tl"))
	switch rapid.IntRange(0, 27).Draw(t, "kind") {
	case 0:
		return Join{node(string(n), home), "t"}
	case 1:
		return NodePut{node(string(n), home)}
	case 2:
		return NodeRemove{n}
	case 3:
		return TokenPut{Token{ID: "t", Uses: 9}}
	case 4:
		return Claim{gid, n}
	case 5:
		return Initialised{gid, g.ClaimedBy, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "sys"), tl}
	case 6:
		return Tick{map[NodeID]Report{n: {State: "running", Receive: LSN(tl)}}}
	case 7, 8, 9:
		return GrantCmd{Group: gid, Prev: e, Holder: n, Instance: "i", TTL: time.Second, Pair: p, Adopt: tl / 8}
	case 10:
		r := Release{Group: gid, Epoch: e}
		if last, _ := g.LastGrant(); rapid.Bool().Draw(t, "in good order") {
			r.Timeline, r.LSN = last.Timeline, LSN(tl)
		}
		return r
	case 11:
		return Expire{gid, e}
	case 12:
		return Revoke{Group: gid, Epoch: e, Early: tl%2 == 0}
	case 13:
		return Promoted{gid, e, tl, tl / 2, LSN(tl)}
	case 14:
		return SyncPropose{Group: gid, Epoch: e, Pair: p}
	case 15, 16:
		return SyncConfirm{gid, e, p}
	case 17:
		return GroupSet{Group: gid, Mode: rapid.SampledFrom([]Mode{Quorum, On, Off, ""}).Draw(t, "mode")}
	case 18:
		return OperationPut{Group: gid, Operation: Operation{ID: "o", Kind: "failover", To: n, Trust: p.K == 0}}
	case 19, 20:
		op := Operation{ID: "o", Kind: rapid.SampledFrom([]string{Switchover, Restart}).Draw(t, "op"), To: n}
		if tl == 9 {
			op.Due = epochZero
		}
		return OperationPut{Group: gid, Operation: op}
	case 21, 22:
		phases := []string{"", Check, Pause, Demote, Promote, Resume}
		return OperationMove{Group: gid, ID: "o", From: rapid.SampledFrom(phases).Draw(t, "from"), To: rapid.SampledFrom(phases).Draw(t, "to"), Node: n}
	case 23:
		return OperationDrop{Group: gid, ID: "o", Cancel: rapid.Bool().Draw(t, "cancel")}
	case 24:
		return GroupSet{Group: gid, Failsafe: new(tl%3 > 0)}
	case 25, 26:
		return EligibleSet{Group: gid, Epoch: e, Nodes: p.S}
	}
	return Recovered{uint64(tl)}
}

// TestRandomCommandsKeepTheInvariant also checks that two replays of one log agree, that a snapshot in the middle changes
// nothing, and that no published state is written to.
func TestRandomCommandsKeepTheInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start, _ := Encode(boot, "", epochZero)
		log := [][]byte{start}
		s, _ := Apply(NewState(), 1, start)
		seen := map[GroupID]map[Epoch]NodeID{}
		for i := range rapid.IntRange(1, 80).Draw(t, "n") {
			data, err := Encode(drawCommand(t, s), fmt.Sprint("r", rapid.IntRange(0, 60).Draw(t, "id")), epochZero)
			if err != nil {
				t.Fatal(err)
			}
			before := dump(t, s)
			next, res := Apply(s, uint64(i+2), data)
			if dump(t, s) != before {
				t.Fatalf("entry wrote to the state before it: %s", data)
			}
			if err := Invariant(s, next); err != nil {
				t.Fatalf("%v after %s (%+v)", err, data, res)
			}
			for id, g := range next.Groups {
				if seen[id] == nil {
					seen[id] = map[Epoch]NodeID{}
				}
				if who, ok := seen[id][g.Lease.Epoch]; g.Held() && ok && who != g.Lease.Holder {
					t.Fatalf("epoch %s belonged to %s and to %s", g.Lease.Epoch, who, g.Lease.Holder)
				}
				seen[id][g.Lease.Epoch] = g.Lease.Holder
			}
			s = next
			log = append(log, data)
		}
		replayed := NewState()
		at := rapid.IntRange(0, len(log)-1).Draw(t, "snapshot")
		for i, data := range log {
			replayed, _ = Apply(replayed, uint64(i+1), data)
			if i == at {
				var b bytes.Buffer
				if err := WriteSnapshot(&b, replayed); err != nil {
					t.Fatal(err)
				}
				read, err := ReadSnapshot(&b)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(replayed, read, cmpopts.EquateEmpty()); d != "" {
					t.Fatalf("snapshot lost something:\n%s", d)
				}
				replayed = read
			}
		}
		if d := cmp.Diff(dump(t, s), dump(t, replayed)); d != "" {
			t.Fatalf("the same log gave another state:\n%s", d)
		}
	})
}

// dump renders a state as its snapshot has it. Empty and missing lists are the same.
func dump(t interface{ Fatal(...any) }, s *State) string {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	out, _ := json.Marshal(v)
	return string(bytes.ReplaceAll(bytes.ReplaceAll(out, []byte("[]"), []byte("null")), []byte("{}"), []byte("null")))
}

func TestReadSnapshotRefuses(t *testing.T) {
	for _, s := range []string{"", "{", `{"format":9,"min_reader":99,"state":{}}`, `{"format":1,"min_reader":1,"state":null}`} {
		if _, err := ReadSnapshot(bytes.NewBufferString(s)); err == nil {
			t.Errorf("%q was read", s)
		}
	}
}

// FuzzApply: no content makes Apply panic, and what it refuses changes nothing but the index.
func FuzzApply(f *testing.F) {
	for _, c := range everyCommand() {
		b, _ := Encode(c, "id", epochZero)
		f.Add(b)
	}
	f.Add([]byte(`null`))
	f.Add([]byte(`{"v":1,"type":"grant","body":null}`))
	base, _ := play(f, NewState(), quorate...)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range []*State{NewState(), base} {
			before := dump(t, s)
			next, res := Apply(s, s.Index+1, data)
			if dump(t, s) != before {
				t.Fatal("the old state changed")
			}
			if res.Fatal {
				continue
			}
			if err := Invariant(s, next); err != nil {
				t.Fatal(err)
			}
			again, res2 := Apply(s, s.Index+1, data)
			if dump(t, next) != dump(t, again) || res != res2 {
				t.Fatal("two runs differ")
			}
		}
	})
}

func TestEpochAndLSNText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Epoch{rapid.Uint64().Draw(t, "inc"), rapid.Uint64().Draw(t, "n")}
		if got, err := ParseEpoch(e.String()); err != nil || got != e {
			t.Fatalf("%s: %v %v", e, got, err)
		}
		l := LSN(rapid.Uint64().Draw(t, "lsn"))
		if got, err := ParseLSN(l.String()); err != nil || got != l {
			t.Fatalf("%s: %v %v", l, got, err)
		}
	})
	for _, s := range []string{"", "1", "1.", ".1", "1.x", "1.2.3", "-1.2"} {
		if e, err := ParseEpoch(s); err == nil {
			t.Errorf("epoch %q read as %v", s, e)
		}
	}
	for _, s := range []string{"1", "/", "x/0", "0/123456789", "-1/0"} {
		if l, err := ParseLSN(s); err == nil {
			t.Errorf("LSN %q read as %v", s, l)
		}
	}
}
