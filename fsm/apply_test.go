package fsm

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var epochZero = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func node(id string, g GroupID) Node {
	return Node{ID: NodeID(id), Name: "n-" + id, Group: g, Peer: id + ":7400", Postgres: id + ":5432"}
}

// play applies commands one after the other and fails when one that is not last is refused.
func play(t testing.TB, s *State, cmds ...Command) (*State, Result) {
	t.Helper()
	var res Result
	for i, c := range cmds {
		data, err := Encode(c, fmt.Sprintf("r%d-%d", s.Index, i), epochZero)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && !res.OK {
			t.Fatalf("setup command %d (%s) was refused: %s", i-1, cmds[i-1].Kind(), res.Reason)
		}
		next, r := Apply(s, s.Index+1, data)
		if err := Invariant(s, next); err != nil {
			t.Fatalf("after %s %+v: %v", c.Kind(), c, err)
		}
		s, res = next, r
	}
	return s, res
}

func ep(n uint64) Epoch { return Epoch{Inc: 1, N: n} }

var (
	boot    = Bootstrap{ClusterID: "c", Incarnation: 1, Settings: DefaultSettings(), Node: node("a", 0), Token: &Token{ID: "t", Uses: 3}}
	members = []Command{boot, Join{node("b", 0), "t"}, Join{node("c", 0), "t"}, Join{node("w", 1), "t"}}
	initial = append(slices.Clip(members), Claim{0, "a"}, Initialised{0, "a", "sys", 1})
	granted = append(slices.Clip(initial), grantTo("a", 0))
	opened  = append(slices.Clip(granted), Promoted{0, ep(1), 2, 1, 100}, SyncConfirm{0, ep(1), Pair{}})
	quorate = append(slices.Clip(opened),
		SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}, SyncConfirm{0, ep(1), NewPair(1, "b")},
		SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b", "c")}, SyncConfirm{0, ep(1), NewPair(1, "b", "c")})
	opened1 = append(slices.Clip(members), TokenPut{Token{ID: "t2", Uses: 1}}, Claim{1, "w"}, Initialised{1, "w", "sys1", 1},
		GrantCmd{Group: 1, Holder: "w", Instance: "i-w", TTL: 5 * time.Second, Pair: NewPair(0)}, Promoted{1, ep(1), 2, 1, 100}, SyncConfirm{1, ep(1), Pair{}})
	freed = append(slices.Clip(quorate), Expire{0, ep(1)})
)

// trusted has failsafe on; in untaken c was not taken in before the lease ended.
var (
	trusted = append(slices.Clip(opened), GroupSet{Group: 0, Failsafe: new(true)})
	untaken = append(slices.Clip(trusted), EligibleSet{0, ep(1), []NodeID{"a", "b"}}, Expire{0, ep(1)})
)

func grantTo(id NodeID, prev uint64, s ...NodeID) GrantCmd {
	p := NewPair(0)
	if len(s) > 0 {
		p = NewPair(1, s...)
	}
	e := Epoch{}
	if prev > 0 {
		e = ep(prev)
	}
	return GrantCmd{Group: 0, Prev: e, Holder: id, Instance: "i-" + string(id), TTL: 5 * time.Second, Pair: p}
}

func seq(base []Command, more ...Command) []Command { return append(slices.Clip(base), more...) }

// knowing says of nodes that their binaries know every version of today.
func knowing(ids ...NodeID) []Command {
	var out []Command
	for _, id := range ids {
		out = append(out, NodePut{with(node(string(id), map[NodeID]GroupID{"w": 1}[id]), func(n *Node) { n.Protocol = Protocol })})
	}
	return out
}

func with(n Node, f func(*Node)) Node { f(&n); return n }

//go:fix inline

func opTo(id NodeID, trust bool) OperationPut {
	return OperationPut{Group: 0, Operation: Operation{ID: "op", Kind: "failover", To: id, Trust: trust, By: "me"}}
}

func weak() Settings {
	s := DefaultSettings()
	s.TTL = time.Second
	return s
}

// TestApplyRefusals: every refusal names its reason and changes nothing.
func TestApplyRefusals(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup []Command
		cmd   Command
		why   string
	}{
		{"bootstrap twice", members, boot, "bootstrapped already"},
		{"join by an unknown token", members, Join{node("x", 0), "nope"}, "not known"},
		{"join by a used-up token", members, Join{node("x", 0), "t"}, "used up"},
		{"join under a taken name", []Command{boot}, Join{with(node("x", 0), func(n *Node) { n.Name = "n-a" }), "t"}, "name n-a is taken"},
		{"join at a taken address", []Command{boot}, Join{with(node("x", 0), func(n *Node) { n.Peer = "a:7400" }), "t"}, "is taken by node n-a"},
		{"join at a taken PostgreSQL address", []Command{boot}, Join{with(node("x", 0), func(n *Node) { n.Postgres = "a:5432" }), "t"}, "is taken by node n-a"},
		{"join a negative group", []Command{boot}, Join{node("x", -1), "t"}, "numbered from 0"},
		{"join another group", members, Join{node("b", 1), "t"}, "belongs to group 0"},
		{"join after removal", append(members[:3:3], NodeRemove{"c"}), Join{node("c", 0), "t"}, "removed from this cluster for good"},
		{"put of a stranger", members, NodePut{node("x", 0)}, "not a member"},
		{"put into another group", members, NodePut{node("b", 1)}, "cannot move to group 1"},
		{"a gate that a node does not know", seq(members, knowing("a", "b", "w")...), GateSet{2}, "upgrade matriarch on n-c"},
		{"join with an older binary", seq(seq(members[:2], knowing("a", "b")...), GateSet{2}), Join{node("c", 0), "t"}, "install what the other nodes run"},
		{"back to an older binary", seq(seq(members, knowing("a", "b", "c", "w")...), GateSet{2}), NodePut{node("b", 0)}, "install what the other nodes run"},
		{"remove a stranger", members, NodeRemove{"x"}, "not a member"},
		{"remove the holder", granted, NodeRemove{"a"}, "holds the lease"},
		{"remove the only node of a group", opened1, NodeRemove{"w"}, "citus remove-group 1"},
		{"remove the only node of the coordinator", append(slices.Clip(opened), NodeRemove{"b"}, NodeRemove{"c"}), NodeRemove{"a"}, "only node of the coordinator's group"},
		{"remove the only node of a group taken back", append(slices.Clip(opened1), GroupSet{Group: 1, Retired: new(true)}, GroupSet{Group: 1, Retired: new(false)}), NodeRemove{"w"}, "only node of group 1"},
		{"remove the holder of a retired group of two", append(slices.Clip(opened1), Join{node("w2", 1), "t2"}, GroupSet{Group: 1, Retired: new(true)}), NodeRemove{"w"}, "holds the lease"},
		{"retire the coordinator", opened, GroupSet{Group: 0, Retired: new(true)}, "it cannot be retired"},
		{"remove a synchronous standby", quorate, NodeRemove{"b"}, "synchronous set"},
		{"remove the last primary", freed, NodeRemove{"a"}, "may be the only copy"},
		{"drop a strange token", members, TokenDrop{"x"}, "not known"},
		{"settings with a short ttl", members, SettingsPut{weak()}, "at least 4s"},
		{"recover into the same incarnation", members, Recovered{1}, "not newer"},
		{"claim for a stranger", members, Claim{0, "x"}, "not a member"},
		{"claim for another group's node", members, Claim{0, "w"}, "not a member"},
		{"claim an unknown group", members, Claim{9, "a"}, "not a member"},
		{"claim an initialised group", initial, Claim{0, "b"}, "initialised already"},
		{"initialise an unknown group", members, Initialised{9, "a", "s", 1}, "not known"},
		{"initialise without the claim", members, Initialised{0, "b", "s", 1}, "may be initialised by"},
		{"initialise another database", initial, Initialised{0, "b", "other", 1}, "belongs to another database cluster"},
		{"grant to a stranger", initial, grantTo("x", 0), "not a member"},
		{"grant to another group's node", initial, grantTo("w", 0), "not a member"},
		{"grant before initialisation", members, grantTo("a", 0), "not initialised"},
		{"grant of a held lease", granted, grantTo("b", 1), "n-a holds epoch 1.1"},
		{"grant to a newcomer nobody would ask for its word", untaken, grantTo("c", 1), "joined without the last primary's knowledge"},
		{"grant to a newcomer after another's Grant", append(slices.Clip(untaken), grantTo("b", 1), Release{Group: 0, Epoch: ep(2)}), grantTo("c", 2), "only n-a, n-b may take over"},
		{"grant to a newcomer after failsafe was switched off", append(slices.Clip(untaken), GroupSet{Group: 0, Failsafe: new(false)}), grantTo("c", 1), "may stay up by failsafe"},
		{"grant to a newcomer after a recovery", append(slices.Clip(untaken), Recovered{2}), grantTo("c", 1), "may stay up by failsafe"},
		{"take in without failsafe", opened, EligibleSet{0, ep(1), []NodeID{"a"}}, "failsafe is off"},
		{"take in before the first commit", append(slices.Clip(granted), GroupSet{Group: 0, Failsafe: new(true)}), EligibleSet{0, ep(1), []NodeID{"a"}}, "first synchronous commit"},
		{"take in under an old epoch", untaken, EligibleSet{0, ep(1), []NodeID{"a", "c"}}, "does not hold the lease"},
		{"take in without the primary", trusted, EligibleSet{0, ep(1), []NodeID{"b"}}, "primary itself"},
		{"take in a stranger", trusted, EligibleSet{0, ep(1), []NodeID{"a", "w"}}, "n-w is not a member"},
		{"grant on an old epoch", freed, grantTo("b", 0), "the epoch is 1.1"},
		{"grant without instance", initial, GrantCmd{Group: 0, Holder: "a", TTL: time.Second}, "instance or ttl missing"},
		{"grant without ttl", initial, GrantCmd{Group: 0, Holder: "a", Instance: "i"}, "instance or ttl missing"},
		{"grant with the holder in its set", initial, grantTo("a", 0, "a", "b"), "cannot be in the synchronous set"},
		{"grant with a stranger in the set", initial, grantTo("a", 0, "x"), "cannot be in the synchronous set"},
		{"grant with another group's node in the set", initial, grantTo("a", 0, "w"), "cannot be in the synchronous set"},
		{"grant that nobody confirms", initial, GrantCmd{Group: 0, Holder: "a", Instance: "i", TTL: time.Second, Pair: Pair{0, []NodeID{"b"}}}, "not a set that can confirm"},
		{"grant with too many to confirm", initial, GrantCmd{Group: 0, Holder: "a", Instance: "i", TTL: time.Second, Pair: Pair{2, []NodeID{"b"}}}, "not a set that can confirm"},
		{"grant counting one twice", initial, GrantCmd{Group: 0, Holder: "a", Instance: "i", TTL: time.Second, Pair: Pair{2, []NodeID{"b", "b"}}}, "not a set that can confirm"},
		{"grant with a negative count", initial, GrantCmd{Group: 0, Holder: "a", Instance: "i", TTL: time.Second, Pair: Pair{-1, nil}}, "not a set that can confirm"},
		{"synchronous grant of an asynchronous group", append(slices.Clip(initial), GroupSet{Group: 0, Mode: Off}), grantTo("a", 0, "b"), "asynchronously"},
		{"release of a free lease", freed, Release{Group: 0, Epoch: ep(1)}, "does not hold the lease"},
		{"release of another epoch", granted, Release{Group: 0, Epoch: ep(2)}, "does not hold the lease"},
		{"release in an unknown group", granted, Release{Group: 9, Epoch: ep(1)}, "does not hold the lease"},
		{"expire of another epoch", granted, Expire{0, ep(2)}, "does not hold the lease"},
		{"revoke of another epoch", granted, Revoke{Group: 0, Epoch: ep(2)}, "does not hold the lease"},
		{"promotion of another epoch", granted, Promoted{0, ep(2), 2, 1, 1}, "not the newest grant"},
		{"promotion of the zero epoch", initial, Promoted{0, Epoch{}, 2, 1, 1}, "not the newest grant"},
		{"promotion in an unknown group", granted, Promoted{9, ep(1), 2, 1, 1}, "not the newest grant"},
		{"second timeline of one epoch", opened, Promoted{0, ep(1), 3, 2, 1}, "made timeline 2, not 3"},
		{"promotion without timeline", granted, Promoted{0, ep(1), 0, 1, 1}, "no timeline given"},
		{"sync change by another epoch", opened, SyncPropose{Group: 0, Epoch: ep(2), Pair: NewPair(1, "b")}, "does not hold the lease"},
		{"sync change without a lease", freed, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}, "does not hold the lease"},
		{"sync change under a revoked lease", append(slices.Clip(opened), Revoke{Group: 0, Epoch: ep(1)}), SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}, "is revoked"},
		{"sync change by two members", opened, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b", "c")}, "one member at a time"},
		{"sync change to the holder", opened, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "a")}, "cannot be in the synchronous set"},
		{"confirm another pair", append(slices.Clip(opened), SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}), SyncConfirm{0, ep(1), Pair{}}, "is another one"},
		{"confirm before the promotion is recorded", granted, SyncConfirm{0, ep(1), Pair{}}, "has not recorded its promotion"},
		{"confirm under a revoked lease", append(slices.Clip(opened), Revoke{Group: 0, Epoch: ep(1)}), SyncConfirm{0, ep(1), Pair{}}, "is revoked"},
		{"confirm by another epoch", opened, SyncConfirm{0, ep(2), Pair{}}, "does not hold the lease"},
		{"policy of an unknown group", members, GroupSet{Group: 9, Mode: Off}, "not known"},
		{"unknown mode", members, GroupSet{Group: 0, Mode: "some"}, "use quorum, on or off"},
		{"no standby to confirm", members, GroupSet{Group: 0, SyncCount: new(0)}, "1 to 64"},
		{"more than anybody has", members, GroupSet{Group: 0, SyncCount: new(65)}, "1 to 64"},
		{"negative lag", members, GroupSet{Group: 0, SyncLag: new(int64(-1))}, "bytes, or 0"},
		{"more than there are", opened, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(2, "b")}, "not a set that can confirm"},
		{"strict and fewer", append(slices.Clip(opened), GroupSet{Group: 0, Strict: new(true), SyncCount: new(2)}), SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}, "is strict: 2 standbys confirm"},
		{"strict and a holder with fewer", append(slices.Clip(freed), GroupSet{Group: 0, Strict: new(true), SyncCount: new(2)}), GrantCmd{Group: 0, Prev: ep(1), Holder: "b", Instance: "i", TTL: time.Second, Pair: NewPair(1, "a")}, "is strict"},
		{"confirm what nobody can", append(slices.Clip(opened), GroupSet{Group: 0, Strict: new(true), SyncCount: new(2)}, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(2, "b")}), SyncConfirm{0, ep(1), NewPair(2, "b")}, "nothing can be confirmed by 2 of 1"},
		{"loss without a name", opened, OperationPut{Group: 0, Operation: Operation{ID: "op", Kind: Failover, AcceptLoss: true}}, "a node that is named"},
		{"loss in a switchover", opened, OperationPut{Group: 0, Operation: Operation{ID: "op", Kind: Switchover, To: "b", AcceptLoss: true}}, "a node that is named"},
		{"operation on an unknown group", members, OperationPut{Group: 9}, "not known"},
		{"operation to a stranger", opened, opTo("x", false), "not a member"},
		{"operation to another group's node", opened, opTo("w", false), "not a member"},
		{"operation to the primary", opened, opTo("a", false), "is the primary of group 0 already"},
		{"trust without need", freed, opTo("b", true), "only after the control plane was rebuilt"},
		{"second operation", append(slices.Clip(opened), opTo("b", false)), OperationPut{Group: 0, Operation: Operation{ID: "other", Kind: Failover, To: "c"}}, "is under way"},
		{"drop of no operation", opened, OperationDrop{Group: 0, ID: "op"}, "no such operation"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, res := play(t, NewState(), tc.setup...)
			if !res.OK {
				t.Fatalf("setup refused: %s", res.Reason)
			}
			data, _ := Encode(tc.cmd, "", epochZero)
			after, res := Apply(before, before.Index+1, data)
			if res.OK || !strings.Contains(res.Reason, tc.why) {
				t.Fatalf("got %+v, want a refusal with %q", res, tc.why)
			}
			want := *before
			want.Index++
			if d := cmp.Diff(&want, after); d != "" {
				t.Errorf("a refused command changed the state:\n%s", d)
			}
		})
	}
}

// TestApplyEffects: what each accepted command leaves behind.
func TestApplyEffects(t *testing.T) {
	g0 := func(s *State) Group { return s.Groups[0] }
	for _, tc := range []struct {
		name string
		cmds []Command
		get  func(*State) any
		want any
	}{
		{"bootstrap makes node, group and token", []Command{boot}, func(s *State) any { return []any{s.NodeIDs(), s.GroupIDs(), s.Tokens["t"].Uses, s.Cluster.Gate} }, []any{[]NodeID{"a"}, []GroupID{0}, 3, 1}},
		{"a join costs a use", members, func(s *State) any { return s.Tokens["t"].Uses }, 0},
		{"a repeated join costs none", seq(members[:2], Join{node("b", 0), "t"}), func(s *State) any { return s.Tokens["t"].Uses }, 2},
		{"a known node may join by a used-up token", seq(members, Join{node("b", 0), "t"}), func(s *State) any { return s.Tokens["t"].Uses }, 0},
		{"groups come with their nodes", members, func(s *State) any { return []any{s.GroupIDs(), s.Groups[1].Mode} }, []any{[]GroupID{0, 1}, Quorum}},
		{
			"a put keeps report and seniority", seq(members, Tick{map[NodeID]Report{"b": {State: "running"}}}, NodePut{with(node("b", 0), func(n *Node) { n.Zone = "z" })}),
			func(s *State) any { return []any{s.Nodes["b"].Zone, s.Nodes["b"].Joined, s.Nodes["b"].Report.State} },
			[]any{"z", uint64(2), "running"},
		},
		{"a report gets the leader's time", seq(members, Tick{map[NodeID]Report{"b": {}, "x": {}}}), func(s *State) any { return []any{s.Nodes["b"].Report.At, len(s.Nodes)} }, []any{epochZero, 4}},
		{"a removed node is remembered", seq(members, NodeRemove{"c"}), func(s *State) any { return []any{s.Removed, s.NodeIDs()} }, []any{map[NodeID]string{"c": "n-c"}, []NodeID{"a", "b", "w"}}},
		{"a claim falls with its node", seq(members, Claim{0, "c"}, NodeRemove{"c"}), func(s *State) any { return g0(s).ClaimedBy }, NodeID("")},
		{"a group goes with its last node", seq(members, NodeRemove{"w"}), func(s *State) any { return s.GroupIDs() }, []GroupID{0}},
		{"tokens", seq(members, TokenPut{Token{ID: "u"}}, TokenDrop{"t"}), func(s *State) any { return s.Tokens }, map[string]Token{"u": {ID: "u"}}},
		{"a gate begins with the first node's version", members, func(s *State) any { return s.Cluster.Gate }, 1},
		{"the gate rises when all know it", seq(seq(members, knowing("a", "b", "c", "w")...), GateSet{2}, GateSet{1}), func(s *State) any { return s.Cluster.Gate }, 2},
		{
			"initialised", initial, func(s *State) any { return []any{g0(s).SystemID, g0(s).LastHolder, g0(s).Sync.Pairs, g0(s).Grants} },
			[]any{"sys", NodeID("a"), []Pair{{}}, []Grant{{Holder: "a", Timeline: 1}}},
		},
		{"initialised again", seq(initial, Initialised{0, "b", "sys", 9}), func(s *State) any { return g0(s).LastHolder }, NodeID("a")},
		{
			"grant", granted, func(s *State) any { return []any{g0(s).Epoch, g0(s).Lease, g0(s).Opened()} },
			[]any{ep(1), Lease{Holder: "a", Instance: "i-a", Epoch: ep(1), TTL: 5 * time.Second}, false},
		},
		{"opened by the first confirmation", opened, func(s *State) any { return []any{g0(s).Opened(), g0(s).Sync.Joint()} }, []any{true, false}},
		{
			"a change of sync is joint until confirmed", seq(opened, SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b")}), func(s *State) any { return []any{g0(s).Sync.Pairs, g0(s).Opened()} },
			[]any{[]Pair{{}, NewPair(1, "b")}, true},
		},
		{"the same pair again is no change", seq(quorate, SyncPropose{Group: 0, Epoch: ep(1), Pair: Pair{1, []NodeID{"c", "b"}}}), func(s *State) any { return g0(s).Sync.Pairs }, []Pair{NewPair(1, "b", "c")}},
		{
			"a Grant keeps the pair in force", seq(freed, grantTo("b", 1, "c")), func(s *State) any { return []any{g0(s).Sync.Pairs, g0(s).LastHolder, g0(s).Opened()} },
			[]any{[]Pair{NewPair(1, "b", "c"), NewPair(1, "c")}, NodeID("b"), false},
		},
		{
			"two Grants in a row keep all pairs", seq(freed, grantTo("b", 1, "c"), Expire{0, ep(2)}, grantTo("c", 2)), func(s *State) any { return g0(s).Sync.Pairs },
			[]Pair{NewPair(1, "b", "c"), NewPair(1, "c"), {}},
		},
		{
			"confirmation ends the joint phase", seq(freed, grantTo("b", 1, "c"), Promoted{0, ep(2), 3, 2, 200}, SyncConfirm{0, ep(2), NewPair(1, "c")}), func(s *State) any { return []any{g0(s).Sync.Pairs, g0(s).Opened()} },
			[]any{[]Pair{NewPair(1, "c")}, true},
		},
		{
			"an adopted server brings its timeline", seq(initial, func() Command { c := grantTo("a", 0); c.Adopt = 4; return c }()), func(s *State) any { g, _ := g0(s).LastGrant(); return g },
			Grant{Epoch: ep(1), Holder: "a", Timeline: 4, Parent: 4},
		},
		{
			"a late record of a promotion", seq(granted, Expire{0, ep(1)}, Promoted{0, ep(1), 2, 1, 100}), func(s *State) any { g, _ := g0(s).LastGrant(); return g },
			Grant{Epoch: ep(1), Holder: "a", Timeline: 2, Parent: 1, Fork: 100},
		},
		{"members are taken in, none leaves", seq(trusted, EligibleSet{0, ep(1), []NodeID{"b", "a"}}, EligibleSet{0, ep(1), []NodeID{"c", "a"}}), func(s *State) any { return g0(s).Eligible }, []NodeID{"a", "b", "c"}},
		{"but by removal", seq(trusted, EligibleSet{0, ep(1), []NodeID{"a", "b", "c"}}, NodeRemove{"b"}), func(s *State) any { return g0(s).Eligible }, []NodeID{"a", "c"}},
		{
			"a promotion without failsafe ends the list", seq(untaken, GroupSet{Group: 0, Failsafe: new(false)}, grantTo("b", 1), Promoted{0, ep(2), 3, 2, 200}, SyncConfirm{0, ep(2), Pair{}}),
			func(s *State) any { return g0(s).Eligible == nil }, true,
		},
		{
			"with failsafe it goes on", seq(untaken, grantTo("b", 1), Promoted{0, ep(2), 3, 2, 200}, SyncConfirm{0, ep(2), Pair{}}),
			func(s *State) any { return g0(s).Eligible },
			[]NodeID{"a", "b"},
		},
		{"recorded twice", seq(opened, Promoted{0, ep(1), 2, 1, 100}), func(s *State) any { return len(g0(s).Grants) }, 2},
		{"revoked", seq(opened, Revoke{Group: 0, Epoch: ep(1)}, Revoke{Group: 0, Epoch: ep(1)}), func(s *State) any { return []any{g0(s).Held(), g0(s).Lease.Revoked, len(s.History[0])} }, []any{true, true, 5}},
		{"released", seq(opened, Release{Group: 0, Epoch: ep(1)}), func(s *State) any { return []any{g0(s).Lease, g0(s).Epoch, g0(s).LastHolder} }, []any{Lease{}, ep(1), NodeID("a")}},
		{"recovered", seq(quorate, opTo("b", false), Recovered{2}), func(s *State) any { return []any{g0(s).Sync.Unknown, g0(s).Op, s.Cluster.Incarnation} }, []any{true, (*Operation)(nil), uint64(2)}},
		{"the epoch after recovery is above all before", seq(freed, Recovered{2}, grantTo("b", 1)), func(s *State) any { return []any{g0(s).Epoch, g0(s).Sync.Unknown} }, []any{Epoch{2, 2}, true}},
		{
			"the first confirmation makes sync known", seq(freed, Recovered{2}, grantTo("b", 1), Promoted{0, Epoch{2, 2}, 3, 2, 1}, SyncConfirm{0, Epoch{2, 2}, Pair{}}), func(s *State) any { return g0(s).Sync },
			Sync{Pairs: []Pair{{}}, Confirmed: Epoch{2, 2}},
		},
		{"replication is noted", seq(members, GroupSet{Group: 0, Mode: On, Strict: new(true), SyncCount: new(2), SyncLag: new(int64(9))}), func(s *State) any { return s.History[0][len(s.History[0])-1].Text }, "replication is on, synchronous_node_count 2, strict, maximum_lag_on_syncnode 9; it was quorum, synchronous_node_count 1"},
		{"and only when it changes", seq(members, GroupSet{Group: 0, Mode: Quorum, SyncCount: new(1)}), func(s *State) any { return len(s.History[0]) }, 0},
		{"who paused it is noted", seq(members, GroupSet{Group: 0, Paused: new(true), By: "ann@pg1"}, GroupSet{Group: 0, Paused: new(true), By: "bob@pg2"}, GroupSet{Group: 0, Paused: new(false), By: "eve@pg3"}), func(s *State) any {
			return []string{s.History[0][0].Text, s.History[0][len(s.History[0])-1].Text}
		}, []string{"paused: no automatic change of primary, asked for by ann@pg1", "no longer paused, asked for by eve@pg3"}},
		{"twice is once", seq(members, GroupSet{Group: 0, Paused: new(true), By: "ann@pg1"}, GroupSet{Group: 0, Paused: new(true), By: "bob@pg2"}), func(s *State) any { return len(s.History[0]) }, 1},
		{"logs from before have no name", seq(members, GroupSet{Group: 0, Paused: new(true)}), func(s *State) any { return len(s.History[0]) }, 0},
		{"who changed replication", seq(members, GroupSet{Group: 0, Mode: Off, By: "ann@pg1"}), func(s *State) any { return s.History[0][0].Text }, "replication is off; it was quorum, synchronous_node_count 1, asked for by ann@pg1"},
		{"policy", seq(members, GroupSet{Group: 0, Mode: Off, Paused: new(true)}, GroupSet{Group: 0, Paused: new(false)}), func(s *State) any { return []any{g0(s).Mode, g0(s).Paused} }, []any{Off, false}},
		{"the last node of a retired group", seq(opened1, GroupSet{Group: 1, Retired: new(true)}, NodeRemove{"w"}), func(s *State) any { return []any{s.Removed["w"], s.GroupIDs()} }, []any{"n-w", []GroupID{0}}},
		{
			"retired and taken back", seq(opened1, GroupSet{Group: 1, Retired: new(true)}, GroupSet{Group: 1, Retired: new(true)}, GroupSet{Group: 1, Retired: new(false)}),
			func(s *State) any { return []any{s.Groups[1].Retired, len(s.History[1]), s.History[1][4].Kind} },
			[]any{false, 6, "retired"},
		},
		{"an operation", seq(opened, opTo("b", false)), func(s *State) any { return g0(s).Op.To }, NodeID("b")},
		{"an operation ends with the Grant", seq(freed, opTo("b", false), grantTo("b", 1)), func(s *State) any { return g0(s).Op }, (*Operation)(nil)},
		{"an operation given up", seq(opened, opTo("b", false), OperationDrop{Group: 0, ID: "op"}), func(s *State) any { return g0(s).Op }, (*Operation)(nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, res := play(t, NewState(), tc.cmds...)
			if !res.OK {
				t.Fatalf("refused: %s", res.Reason)
			}
			if got := tc.get(s); !reflect.DeepEqual(got, tc.want) {
				t.Error(cmp.Diff(tc.want, got))
			}
		})
	}
}

func TestRequestsAreRememberedOnce(t *testing.T) {
	s, _ := play(t, NewState(), initial...)
	data, _ := Encode(grantTo("a", 0), "once", epochZero)
	s1, r1 := Apply(s, 50, data)
	s2, r2 := Apply(s1, 51, data)
	if r1 != r2 || !r2.OK || r2.Epoch != ep(1) {
		t.Fatalf("first %+v, again %+v", r1, r2)
	}
	if s2.Groups[0].Epoch != ep(1) || s2.Index != 51 || len(s2.Requests) != len(s1.Requests) {
		t.Fatal("a repeated request was carried out again")
	}
	refused, _ := Encode(grantTo("b", 7), "refused", epochZero)
	s3, r3 := Apply(s2, 52, refused)
	s3, _ = play(t, s3, Release{Group: 0, Epoch: ep(1)})
	if _, r4 := Apply(s3, 60, refused); r3 != r4 || r4.OK {
		t.Fatalf("a refusal was not remembered: %+v then %+v", r3, r4)
	}
	for i := range maxRequests {
		d, _ := Encode(GateSet{1}, fmt.Sprintf("x%d", i), epochZero)
		s3, _ = Apply(s3, s3.Index+1, d)
	}
	if len(s3.Requests) != maxRequests || s3.Requests[0].ID != "x0" {
		t.Fatalf("remembers %d, oldest %s", len(s3.Requests), s3.Requests[0].ID)
	}
	before := len(s3.Requests)
	d, _ := Encode(Tick{}, "", epochZero)
	if s4, _ := Apply(s3, s3.Index+1, d); len(s4.Requests) != before {
		t.Fatal("a tick entered the memory of requests")
	}
}

func TestUnknownCommands(t *testing.T) {
	s, _ := play(t, NewState(), members...)
	for _, tc := range []struct {
		data      string
		fatal, ok bool
	}{
		{`{"v":9,"type":"from_the_future","body":{}}`, true, false},
		{`{"v":9,"type":"from_the_future","ignore":true,"body":{}}`, false, true},
		{`not json`, false, false},
		{`{"v":1,"type":"claim","body":{"group":"x"}}`, false, false},
		{`{"v":1,"type":"claim"}`, false, false},
	} {
		next, res := Apply(s, 99, []byte(tc.data))
		if res.Fatal != tc.fatal || res.OK != tc.ok {
			t.Errorf("%s: %+v", tc.data, res)
		}
		if tc.fatal && next != s {
			t.Errorf("%s: the state moved past a command nobody knows here", tc.data)
		}
		if !tc.fatal && next.Index != 99 {
			t.Errorf("%s: index %d", tc.data, next.Index)
		}
	}
}

// TestHistoryAndGrantsAreRings: neither grows for ever.
func TestHistoryAndGrantsAreRings(t *testing.T) {
	s, _ := play(t, NewState(), initial...)
	for i := range uint64(maxGrants + 5) {
		g := grantTo("a", i)
		s, _ = play(t, s, g, Release{Group: 0, Epoch: ep(i + 1)})
	}
	g := s.Groups[0]
	if len(g.Grants) != maxGrants || len(s.History[0]) != maxHistory || g.Grants[maxGrants-1].Epoch != ep(maxGrants+5) {
		t.Fatalf("%d grants, %d lines of history", len(g.Grants), len(s.History[0]))
	}
}

// TestGrantsThatMadeNothingGoFirst: as long as they do, 500 promotions that fail in a row leave it known whose data is true.
func TestGrantsThatMadeNothingGoFirst(t *testing.T) {
	for _, tc := range []struct {
		gate int
		kept bool
	}{{1, false}, {Protocol, true}} {
		s, _ := play(t, NewState(), initial...)
		s.Cluster.Gate = tc.gate
		s, _ = play(t, s, grantTo("a", 0), Promoted{0, ep(1), 2, 1, 100}, Release{Group: 0, Epoch: ep(1)})
		for i := range uint64(maxGrants + 5) {
			s, _ = play(t, s, grantTo("a", i+1), Release{Group: 0, Epoch: ep(i + 2)})
		}
		g := s.Groups[0]
		made, known := g.GrantOf(2)
		if known != tc.kept || tc.kept && len(g.Descent(made)) != 2 || len(g.Grants) != maxGrants || g.Grants[maxGrants-1].Epoch != ep(maxGrants+6) {
			t.Errorf("gate %d: timeline 2 is known: %t; %d grants", tc.gate, known, len(g.Grants))
		}
	}
}

// TestSickness: the state remembers when a node was last sick and when a group was last taken from one; the history says why, once.
func TestSickness(t *testing.T) {
	s := NewState()
	for _, c := range freed {
		s, _ = play(t, s, c)
	}
	at := func(sick, text string) Tick {
		return Tick{Reports: map[NodeID]Report{"b": {State: "streaming", Sick: sick, SickText: text}}}
	}
	kinds := func() (out []string) {
		for _, h := range s.History[0] {
			if h.Kind == "sick" || h.Kind == "well" {
				out = append(out, h.Kind)
			}
		}
		return out
	}
	for _, tick := range []Tick{at("", ""), at("disk_full", "full"), at("disk_full", "full"), at("", ""), at("", "")} {
		s, _ = play(t, s, tick)
	}
	if got := strings.Join(kinds(), " "); got != "sick well" {
		t.Errorf("history %q", got)
	}
	if r := s.Nodes["b"].Report; !r.SickAt.Equal(epochZero) || r.Sick != "" {
		t.Errorf("report %+v", r)
	}
	if !s.Groups[0].SickMoved.IsZero() {
		t.Error("the group was never taken from anybody")
	}
	s, res := play(t, s, GroupSet{Group: 0, Sick: new(false)})
	if !res.OK || !s.Groups[0].NoSick {
		t.Errorf("%+v", res)
	}
}
