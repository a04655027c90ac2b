package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// fault is one thing that goes wrong, as the seed has it.
type fault struct {
	id    int
	kind  string
	after time.Duration // since the one before began
	lasts time.Duration
	group int
	aim   string // primary of the group, leader of Raft, or the node
	node  int
	split int // a bit a node: which side it is on
}

func (f fault) String() string {
	return fmt.Sprintf("#%d after %s: %s for %s at %s (group %d, node %s, split %05b)", f.id, f.after, f.kind, f.lasts, f.aim, f.group, host(f.node), f.split)
}

// Who a fault may aim at.
const (
	atPrimary = "primary"
	atLeader  = "leader"
	atNode    = "node"
)

// kinds of faults, and how often they come.
var kinds = []struct {
	name   string
	weight int
	frozen bool // stops server and sentinel together: only a watchdog would end what a primary commits locally when it thaws
	needs  string
}{
	{"halves", 3, false, ""},
	{"ring", 1, false, ""},
	{"cut node", 3, false, ""},
	{"cut from", 2, false, ""},
	{"cut to", 2, false, ""},
	{"cut peer port", 2, false, ""},
	{"cut 5432", 2, false, ""},
	{"loss", 2, false, ""},
	{"slow link", 2, false, ""},
	{"kill postmaster", 3, false, ""},
	{"kill backend", 2, false, ""},
	{"kill agent", 3, false, ""},
	{"kill sentinel", 2, false, ""},
	{"kill host", 4, false, ""},
	{"stop agent", 2, false, ""},
	{"stop sentinel", 2, true, ""},
	{"stop postmaster", 2, false, ""},
	{"stop host", 2, true, ""},
	{"freeze host", 2, true, "cgroups"},
	{"full disk", 2, false, ""},
	{"full Raft disk", 1, false, "disks"},
	{"disk hangs", 2, false, "disks"},
	{"Raft disk hangs", 1, false, "disks"},
	{"disk dies", 1, false, "disks"},
	{"power cut", 3, false, "disks"},
	{"switchover", 3, false, ""},
	{"restart", 1, false, ""},
	{"reinit", 1, false, ""},
	{"transfer leader", 2, false, ""},
	{"remove and add", 2, false, ""},
}

// without names the kinds that a run leaves out: what the machine lacks, and what freezes unless early failover is on.
func without(early bool, lacks map[string]bool) map[string]bool {
	out := map[string]bool{}
	for _, k := range kinds {
		out[k.name] = k.frozen && !early || lacks[k.needs]
	}
	return out
}

// plan draws the faults of so much time. One in four begins while the one before it lasts.
func plan(seed uint64, total time.Duration, without map[string]bool) []fault {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // replayable on purpose
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	span := func(lo, hi int) time.Duration {
		return time.Duration(lo+r.IntN((hi-lo)/100+1)*100) * time.Millisecond
	}
	var out []fault
	var at, free time.Duration
	for id := 1; ; id++ {
		f := fault{id: id, group: []int{0, 0, 1}[r.IntN(3)], node: r.IntN(len(groupOf)), split: 1 + r.IntN(1<<len(groupOf)-2), lasts: span(500, 8000)}
		f.aim = []string{atPrimary, atPrimary, atNode, atNode, atLeader}[r.IntN(5)]
		n := r.IntN(sum)
		for _, k := range kinds {
			if n -= k.weight; n < 0 {
				f.kind = k.name
				break
			}
		}
		begin := free + span(500, 5000)
		if r.IntN(4) == 0 {
			begin = at + span(300, 2000)
		}
		if begin+f.lasts > total {
			return out
		}
		f.after, at = begin-at, begin
		free = max(free, begin+f.lasts)
		if !without[f.kind] {
			out = append(out, f)
		}
	}
}
