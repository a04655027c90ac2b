package decide

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

const deadAfter = time.Minute

// electors reads "a0 b0* c1! ...": name, group; * has a vote, L leads (and has one), ! is dead, ? is silent for 5 s,
// - is not caught up, t is tagged never_voter, and /z is the zone.
func electors(spec string) []Elector {
	var out []Elector
	for f := range strings.FieldsSeq(spec) {
		f, zone, _ := strings.Cut(f, "/")
		e := Elector{ID: fsm.NodeID(f[:1]), Name: f[:1], Group: fsm.GroupID(f[1] - '0'), Zone: zone, CaughtUp: true}
		for _, c := range f[2:] {
			switch c {
			case '*':
				e.Voter = true
			case 'L':
				e.Voter, e.Leader = true, true
			case '!':
				e.Heard = 2 * deadAfter
			case '?':
				e.Heard = 5 * time.Second
			case '-':
				e.CaughtUp = false
			case 't':
				e.NeverVoter = true
			}
		}
		out = append(out, e)
	}
	return out
}

func TestVoters(t *testing.T) {
	tests := []struct {
		name, peers, want string
	}{
		{"one node", "a0L", ""},
		{"two nodes have one voter", "a0L b0", ""},
		{"three nodes want three: first addition", "a0L b0 c0", "+b"},
		{"three nodes want three: second addition", "a0L b0* c0", "+c"},
		{"two voters stand less than one", "a0L b0 c0!", ""},
		{"four nodes have three voters", "a0L b0* c0* d0", ""},
		{"five nodes have five voters", "a0L b0* c0* d0 e0", "+d"},
		{"not to four", "a0L b0* c0* d0 e0-", ""},
		{"other groups first", "a0L b0 c0 d1 f2", "+d"},
		{"other zones first", "a0L/x b0/x c0/y", "+c"},
		{"dead voter: replacement is added first", "a0L b0* c0*! d0", "+d"},
		{"dead voter: demoted after", "a0L b0* c0*! d0*", "-c"},
		{"dead voter without replacement stays", "a0L b0* c0*!", ""},
		{"dead voter: replacement not caught up", "a0L b0* c0*! d0-", ""},
		{"silent is not dead", "a0L b0* c0*? d0", ""},
		{"addition could not be committed", "a0L b0*? c0*! d0", ""},
		{"rest would have no healthy majority", "a0L b0*? c0*! d0*?", ""},
		{"tagged voter is replaced", "a0L b0*t c0* d0 e0", "+d"},
		{"tagged node is no candidate", "a0L b0t c0t d0t", ""},
		{"voter too many after nodes left: not the leader", "a0L b0*", "-b"},
		{"group with a majority is broken up", "a0L b0* c1* d2 e2", "+d"},
		{"group with a majority of five", "a0L b0* c0* d1* e1* f2", "+f"},
		{"then one of that group goes", "a0L b0* c0* d1* e1* f2*", "-b"},
		{"two groups: majority allowed", "a0L b0* c0* d1*", "-b"},
		{"sitting voters stay, a new group comes in", "a0L b1* c2* d0 e1 f2 g3", "+g"},
		{"sitting five stay though zones could be more even", "a0L/x b0*/x c1*/y d1*/y e2*/z f2/w", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Voters(electors(tt.peers), deadAfter)
			got := map[VoterOp]string{KeepVoters: "", AddVoter: "+", DemoteVoter: "-"}[c.Op] + string(c.Node)
			if got != tt.want {
				t.Errorf("Voters(%s) = %s (%s), want %q", tt.peers, got, c.Reason, tt.want)
			}
		})
	}
}

// The decisions, carried out one by one, come to rest; on the way no change is made that the voters could not commit.
func TestVotersConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		peers := make([]Elector, n)
		for i := range peers {
			peers[i] = Elector{
				ID: fsm.NodeID(fmt.Sprintf("n%02d", i)), Group: fsm.GroupID(rapid.IntRange(0, 4).Draw(t, "group")),
				Zone: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "zone"), NeverVoter: rapid.IntRange(0, 9).Draw(t, "tag") == 0,
				CaughtUp: rapid.IntRange(0, 9).Draw(t, "caught up") > 0, Voter: rapid.Bool().Draw(t, "voter"),
				Heard: rapid.SampledFrom([]time.Duration{0, 0, 0, 5 * time.Second, 2 * deadAfter}).Draw(t, "heard"),
			}
		}
		peers[0].Leader, peers[0].Voter = true, true
		for step := 0; ; step++ {
			if step > 3*n+5 {
				t.Fatalf("no rest after %d changes", step)
			}
			c := Voters(peers, deadAfter)
			if c.Op == KeepVoters {
				break
			}
			i := slices.IndexFunc(peers, func(p Elector) bool { return p.ID == c.Node })
			p := &peers[i]
			if p.Voter == (c.Op == AddVoter) {
				t.Fatalf("change without effect: %+v", c)
			}
			if c.Op == AddVoter && (p.NeverVoter || !p.CaughtUp || !p.healthy()) {
				t.Fatalf("vote for an unfit node: %+v", *p)
			}
			p.Voter = c.Op == AddVoter
			var voters []Elector
			for _, p := range peers {
				if p.Voter {
					voters = append(voters, p)
				}
			}
			if !healthyMajority(voters) {
				t.Fatalf("%+v leaves voters without a healthy majority", c)
			}
		}
	})
}

// In a healthy cluster of three groups or more the outcome is odd, and no group has a majority if the nodes allow it.
func TestVotersHealthyOutcome(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		peers := make([]Elector, n)
		groups := map[fsm.GroupID]int{}
		for i := range peers {
			peers[i] = Elector{ID: fsm.NodeID(fmt.Sprintf("n%02d", i)), Group: fsm.GroupID(rapid.IntRange(0, 4).Draw(t, "group")), CaughtUp: true}
			groups[peers[i].Group]++
		}
		peers[0].Leader, peers[0].Voter = true, true
		for range 40 {
			c := Voters(peers, deadAfter)
			for i := range peers {
				if peers[i].ID == c.Node {
					peers[i].Voter = c.Op == AddVoter
				}
			}
		}
		got := map[fsm.GroupID]int{}
		total := 0
		for _, p := range peers {
			if p.Voter {
				got[p.Group]++
				total++
			}
		}
		want := 1
		if n >= 3 {
			want = 3
		}
		if n >= 5 {
			want = 5
		}
		if total != want {
			t.Fatalf("%d voters of %d nodes, want %d", total, n, want)
		}
		others := 0 // nodes that could sit beside the largest group
		for g, size := range groups {
			if got[g] > want/2 && len(groups) >= 3 {
				for og, k := range groups {
					if og != g {
						others += k
					}
				}
				if others > want/2 {
					t.Fatalf("group %d of %d nodes has %d of %d votes, %d others stood by", g, size, got[g], want, others)
				}
			}
		}
	})
}
