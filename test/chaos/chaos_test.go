package main

import (
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/go-cmp/cmp"

	"matriarch/internal/testkit"
)

func TestSeedFixesThePlan(t *testing.T) {
	opt := cmp.AllowUnexported(fault{})
	if diff := cmp.Diff(plan(7, 10*time.Minute, nil), plan(7, 10*time.Minute, nil), opt); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(plan(7, 10*time.Minute, nil), plan(8, 10*time.Minute, nil), opt) {
		t.Error("two seeds, one plan")
	}
	seen, frozen := map[string]bool{}, without(false, nil)
	for _, f := range plan(1, 2*time.Hour, frozen) {
		seen[f.kind] = true
		if frozen[f.kind] {
			t.Errorf("%s was left out", f)
		}
	}
	for _, k := range kinds {
		if !seen[k.name] && !frozen[k.name] {
			t.Errorf("%s never comes", k.name)
		}
	}
}

func TestLostNumbers(t *testing.T) {
	set := func(ns ...int64) map[int64]bool {
		out := map[int64]bool{}
		for _, n := range ns {
			out[n] = true
		}
		return out
	}
	lost, strange := lostNumbers(set(1, 2, 3, 4), set(1, 3), set(1, 2, 9))
	if diff := cmp.Diff([][]int64{{3}, {9}}, [][]int64{lost, strange}); diff != "" {
		t.Error(diff)
	}
}

func TestTwoPrimaries(t *testing.T) {
	at := func(node int, timeline uint64, from, to int) ack {
		return ack{node: node, timeline: timeline, from: time.Duration(from), to: time.Duration(to)}
	}
	for name, tt := range map[string]struct {
		acks []ack
		want int
	}{
		"one after the other":          {[]ack{at(0, 1, 0, 5), at(1, 2, 6, 8), at(0, 3, 9, 12)}, 0},
		"a late answer proves nothing": {[]ack{at(1, 2, 6, 8), at(0, 1, 0, 20)}, 0},
		"the old one goes on":          {[]ack{at(0, 1, 0, 5), at(1, 2, 6, 8), at(0, 1, 9, 12)}, 1},
		"two servers on one timeline":  {[]ack{at(0, 2, 0, 5), at(1, 2, 6, 8)}, 1},
		"both at once, each several":   {[]ack{at(0, 1, 0, 2), at(1, 2, 1, 3), at(0, 1, 3, 4), at(0, 1, 4, 6), at(1, 2, 5, 7)}, 1},
	} {
		if got := twoPrimaries(tt.acks); len(got) != tt.want {
			t.Errorf("%s: %v, want %d", name, got, tt.want)
		}
	}
}

func TestLinearizable(t *testing.T) {
	op := func(kind string, old, v int64, a regAnswer, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: regOp{1, kind, old, v}, Output: a, Call: from, Return: to}
	}
	done := regAnswer{known: true}
	saw := func(v int64) regAnswer { return regAnswer{known: true, v: v} }
	for name, tt := range map[string]struct {
		ops  []porcupine.Operation
		want porcupine.CheckResult
	}{
		"read what was written":         {[]porcupine.Operation{op("write", 0, 5, done, 0, 1), op("read", 0, 0, saw(5), 2, 3)}, porcupine.Ok},
		"stale read":                    {[]porcupine.Operation{op("write", 0, 5, done, 0, 1), op("read", 0, 0, saw(0), 2, 3)}, porcupine.Illegal},
		"open write shows late":         {[]porcupine.Operation{op("write", 0, 5, regAnswer{}, 0, 1), op("read", 0, 0, saw(0), 2, 3), op("read", 0, 0, saw(5), 4, 5)}, porcupine.Ok},
		"open write shows and vanishes": {[]porcupine.Operation{op("write", 0, 5, regAnswer{}, 0, 1), op("read", 0, 0, saw(5), 2, 3), op("read", 0, 0, saw(0), 4, 5)}, porcupine.Illegal},
		"swap from the beginning":       {[]porcupine.Operation{op("cas", 0, 5, regAnswer{known: true, set: true}, 0, 1), op("read", 0, 0, saw(5), 2, 3)}, porcupine.Ok},
		"two swaps from one value":      {[]porcupine.Operation{op("cas", 0, 5, regAnswer{known: true, set: true}, 0, 1), op("cas", 0, 6, regAnswer{known: true, set: true}, 2, 3)}, porcupine.Illegal},
	} {
		if got, _ := linearizable(tt.ops, time.Minute); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestPart(t *testing.T) {
	all := []process{{1, 0, "matriarch", "/bin/matriarch run --config x "}, {2, 1, "matriarch", "/bin/matriarch sentinel --socket y "}, {3, 2, "postgres", "postgres -D z "}, {4, 3, "postgres", "walwriter"}, {5, 3, "postgres", "app"}}
	for what, want := range map[string]int{"agent": 1, "sentinel": 2, "postmaster": 3, "backend": 5} {
		if got := part(all, what, 3); len(got) != 1 || got[0].pid != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := part(all, "host", 0); len(got) != len(all) {
		t.Errorf("a host is %v", got)
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(insideVar) != "" { // this is the program inside of the sandbox of TestIncidents
		main()
		return
	}
	os.Exit(testkit.Main(m))
}

// TestIncidents plays the shortest of the scenarios; `make chaos SCENARIO=all` plays all.
func TestIncidents(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real formation")
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root; CI has it")
	}
	exe := testkit.Program(t)
	for _, name := range []string{"short-stall", "killed-while-stopping"} {
		t.Run(name, func(t *testing.T) {
			out := t.ArtifactDir()
			if err := mainErr([]string{"-scenario", name, "-matriarch", exe, "-out", out}); err != nil {
				t.Errorf("%v: its trace and logs are in %s", err, out)
			}
		})
	}
}

func TestScenarios(t *testing.T) {
	known := (&nemesis{f: &formation{}}).strikes()
	maps.Copy(known, (&nemesis{}).staged())
	for _, s := range scenarios {
		played, err := scenarioNamed(s.name)
		if err != nil {
			t.Fatal(err)
		}
		var begin time.Duration
		for _, f := range played.faults {
			begin += f.after
			if known[f.kind] == nil && cutRules(f, f.node) == nil {
				t.Errorf("%s: nobody knows how to do %q", s.name, f.kind)
			}
			if without(s.early, nil)[f.kind] {
				t.Errorf("%s: %q only goes with early failover", s.name, f.kind)
			}
			if !slices.ContainsFunc(s.faults, func(o fault) bool { return o.kind == f.kind && o.after == begin && o.node == f.node }) {
				t.Errorf("%s: %s does not begin at %s", s.name, f, begin)
			}
		}
	}
}

func TestJudge(t *testing.T) {
	s := scenario{gap: 5 * time.Second, stays: true}
	for name, tt := range map[string]struct {
		last       int
		gap, stall time.Duration
		bad        int
		open       bool
	}{
		"nothing happened":                 {h1, time.Second, time.Second, 0, false},
		"another is primary":               {h2, time.Second, excuse - 1, 1, false},
		"another is, on a machine stalled": {h2, time.Second, excuse, 0, true},
		"no writes":                        {h1, 6 * time.Second, time.Second - 1, 1, false},
		"no writes, as long as it stalled": {h1, 6 * time.Second, time.Second, 0, false},
	} {
		l := &load{numbers: newNumbers()}
		l.numbers.gap, l.sampler.acks = tt.gap, []ack{{node: h1}, {node: tt.last}}
		v := verdict{loads: []*load{l}, stall: tt.stall}
		if open := s.judge(&v) != nil; len(v.violations) != tt.bad || open != tt.open {
			t.Errorf("%s: %q, left open: %t", name, v.violations, open)
		}
	}
}

func TestFigures(t *testing.T) {
	zero := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ms := func(n int) time.Time { return zero.Add(time.Duration(n) * time.Millisecond) }
	l := &load{group: 1, numbers: newNumbers()}
	for _, n := range []int{0, 100, 200, 1900, 2000, 2100, 9000} { // one node after the other answers
		l.sampler.acks = append(l.sampler.acks, ack{at: ms(n)})
	}
	slices.Reverse(l.sampler.acks)
	l.numbers.gaps = []gap{{ms(150), 3 * time.Second}, {ms(5000), time.Second}}
	v := verdict{loads: []*load{{group: 0, numbers: newNumbers()}, l}, struck: []struck{{fault{kind: "cut node", lasts: time.Second, group: 1}, ms(300), h4}}}
	want := "cut node for 1s, 1 times: no node acknowledged writes for 1700 ms (1700 to 1700), 0 is less than 200ms; a client that waits 3s for an answer had none for 3000 ms (3000 to 3000)\n"
	if diff := cmp.Diff(want, v.figures()); diff != "" {
		t.Error(diff)
	}
}
