package decide

import (
	"fmt"
	"slices"
	"strings"

	"matriarch/fsm"
)

// meets reports whether every set that can acknowledge a commit under p has a member in r: |r n S| >= n - k + 1.
// A pair that needs no standby is met by nobody but the holder; one that needs more than there are acknowledges nothing.
func meets(p fsm.Pair, r []fsm.NodeID) bool {
	if p.K == 0 {
		return false
	}
	have := 0
	for _, id := range p.S {
		if slices.Contains(r, id) {
			have++
		}
	}
	return have >= len(p.S)-p.K+1
}

// Sufficient reports whether the recruited nodes r must together have every acknowledged commit of the group, and if not,
// who is missing. The set suffices iff it has the last holder with its data intact, or meets every pair in force. atEnd says that
// it has the last record of a holder that stopped in good order: then the pairs in force at that time are met, too.
func Sufficient(g fsm.Group, members, r []fsm.NodeID, atEnd bool) (bool, string) {
	if g.Sync.Unknown {
		for _, m := range members {
			if !slices.Contains(r, m) {
				return false, "the synchronous set is unknown since the control plane was rebuilt: every member of the group must answer, or an operator must name the data directory to trust (matriarch failover --group G --candidate N --trust)"
			}
		}
		return len(members) > 0, ""
	}
	if slices.Contains(r, g.LastHolder) {
		return true, ""
	}
	pairs, since := pairsInForce(g)
	if atEnd {
		pairs = since
	}
	for _, p := range pairs {
		if !meets(p, r) {
			return false, lacking(p, r)
		}
	}
	return atEnd || len(pairs) > 0, ""
}

// pairsInForce lists all that an election has to meet, and those that came after a holder's end in good order.
func pairsInForce(g fsm.Group) (all, since []fsm.Pair) {
	switch {
	case g.Ended == nil:
		return g.Sync.Pairs, g.Sync.Pairs
	case g.Ended.Epoch == g.Epoch: // nothing was granted since
		return g.Ended.Pairs, nil
	}
	return slices.Concat(g.Ended.Pairs, g.Sync.Pairs), g.Sync.Pairs
}

// atEnd reports whether a recruit has everything that the holder which stopped in good order had.
func atEnd(g fsm.Group, r Recruit) bool {
	e := g.Ended
	return e != nil && r.Timeline == e.Timeline && r.Lineage == e.Epoch && r.LSN > e.LSN
}

func lacking(p fsm.Pair, r []fsm.NodeID) string {
	if p.K == 0 {
		return "only the last primary has every acknowledged commit: no standby was synchronous"
	}
	var names []string
	for _, id := range p.S {
		if !slices.Contains(r, id) {
			names = append(names, string(id))
		}
	}
	return fmt.Sprintf("any %d of %d standbys could have acknowledged a commit; %s did not answer", p.K, len(p.S), strings.Join(names, ", "))
}
