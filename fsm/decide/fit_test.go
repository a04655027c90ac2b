package decide

import (
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
)

func TestFit(t *testing.T) {
	scene := func(edit func(map[fsm.NodeID]*fsm.Node, *fsm.Group, map[fsm.NodeID]time.Duration)) (*fsm.State, fsm.Group, map[fsm.NodeID]time.Duration) {
		s := world()
		g := s.Groups[0]
		heard := map[fsm.NodeID]time.Duration{"a": 0, "b": 0, "c": 0}
		nodes := map[fsm.NodeID]*fsm.Node{}
		for id, n := range s.Nodes {
			n.Postgres, n.Report = string(id)+":5432", fsm.Report{State: "streaming", Epoch: g.Epoch, Receive: 100}
			nodes[id] = &n
		}
		edit(nodes, &g, heard)
		for id, n := range nodes {
			s.Nodes[id] = *n
		}
		s.Groups[0] = g
		return s, g, heard
	}
	type nodes = map[fsm.NodeID]*fsm.Node
	type ago = map[fsm.NodeID]time.Duration
	for _, tc := range []struct {
		name string
		to   fsm.NodeID
		edit func(nodes, *fsm.Group, ago)
		want fsm.NodeID
		why  string
	}{
		{"the first by name", "", func(nodes, *fsm.Group, ago) {}, "b", ""},
		{"the one asked for", "c", func(nodes, *fsm.Group, ago) {}, "c", ""},
		{"by priority", "", func(n nodes, _ *fsm.Group, _ ago) { n["c"].Tags.FailoverPriority = 9 }, "c", ""},
		{"by position", "", func(n nodes, _ *fsm.Group, _ ago) { n["c"].Report.Receive = 200 }, "c", ""},
		{"only a synchronous one", "", func(_ nodes, g *fsm.Group, _ ago) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "c")} }, "c", ""},
		{"asynchronous groups have no set", "b", func(_ nodes, g *fsm.Group, _ ago) { g.Mode, g.Sync.Pairs = fsm.Off, []fsm.Pair{{}} }, "b", ""},
		{"the primary", "a", func(nodes, *fsm.Group, ago) {}, "", "the primary already"},
		{"tagged", "b", func(n nodes, _ *fsm.Group, _ ago) { n["b"].Tags.NoFailover = true }, "", "nofailover"},
		{"silent", "b", func(_ nodes, _ *fsm.Group, h ago) { h["b"] = time.Minute }, "", "silent for 1m"},
		{"never heard of", "b", func(_ nodes, _ *fsm.Group, h ago) { delete(h, "b") }, "", "silent"},
		{"not streaming", "b", func(n nodes, _ *fsm.Group, _ ago) { n["b"].Report.State = "starting" }, "", "does not stream from n-a: starting"},
		{"streaming from an older primary", "b", func(n nodes, _ *fsm.Group, _ ago) { n["b"].Report.Epoch = ep(0) }, "", "does not stream"},
		{"not synchronous", "b", func(_ nodes, g *fsm.Group, _ ago) { g.Sync.Pairs = []fsm.Pair{fsm.NewPair(1, "c")} }, "", "not in the synchronous set"},
		{"nobody", "", func(n nodes, _ *fsm.Group, _ ago) { n["b"].Tags.NoFailover, n["c"].Report.State = true, "stopped" }, "", "n-b: it is tagged nofailover; n-c: it does not stream"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, g, heard := scene(tc.edit)
			got, err := Fit(s, g, tc.to, heard)
			if got != tc.want || (err != nil) != (tc.why != "") || err != nil && !strings.Contains(err.Error(), tc.why) {
				t.Errorf("%q, %v; want %q, %q", got, err, tc.want, tc.why)
			}
		})
	}
}
