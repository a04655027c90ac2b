package decide

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"matriarch/fsm"
)

// MaxPlannedLag is how many bytes a candidate may lack before clients are made to wait for it.
const MaxPlannedLag = 16 << 20

// Unfit says why a member cannot take over by plan, or "".
func Unfit(s *fsm.State, g fsm.Group, n fsm.Node, heard map[fsm.NodeID]time.Duration) string {
	ago, known := heard[n.ID]
	switch {
	case n.ID == g.Lease.Holder:
		return "it is the primary already"
	case n.Postgres == "":
		return "it has no PostgreSQL"
	case n.Tags.NoFailover || n.Tags.FailoverPriority < 0:
		return "it is tagged nofailover"
	case !g.MayHold(n.ID):
		return "the primary has not taken it in among those that may take over yet"
	case n.Report.Unfit != "":
		return n.Report.Unfit
	case n.Report.Sick != "":
		return "it is sick: " + n.Report.SickText
	case !known:
		return "its agent is silent"
	case ago >= AliveWithin:
		return fmt.Sprintf("its agent has been silent for %s", round(ago))
	case n.Report.State != "streaming" || n.Report.Epoch != g.Epoch:
		return fmt.Sprintf("it does not stream from %s: %s", s.Name(g.Lease.Holder), orElse(n.Report.State, "nothing known"))
	case g.Mode != fsm.Off && !g.Sync.Target().Has(n.ID):
		return "it is not in the synchronous set, so it may lack commits"
	}
	return ""
}

// Fit chooses the candidate of a switchover: the one asked for, or the best of those fit, synchronous ones first, then by priority,
// zone, position and name. The error says what is against each.
func Fit(s *fsm.State, g fsm.Group, to fsm.NodeID, heard map[fsm.NodeID]time.Duration) (fsm.NodeID, error) {
	var fit []fsm.Node
	var against []string
	for _, n := range s.Members(g.ID) {
		if n.ID == g.Lease.Holder && to != n.ID || to != "" && n.ID != to {
			continue
		}
		if why := Unfit(s, g, n, heard); why != "" {
			against = append(against, n.Name+": "+why)
			continue
		}
		fit = append(fit, n)
	}
	if len(fit) == 0 {
		if len(against) == 0 {
			against = []string{fmt.Sprintf("group %d has no standby", g.ID)}
		}
		return "", errors.New(strings.Join(against, "; "))
	}
	return bestFit(s, g, fit).ID, nil
}

// bestFit chooses among nodes that are fit.
func bestFit(s *fsm.State, g fsm.Group, fit []fsm.Node) fsm.Node {
	target := g.Sync.Target()
	return slices.MinFunc(fit, func(a, b fsm.Node) int {
		return cmp.Or(
			compareBool(target.Has(a.ID), target.Has(b.ID)), cmp.Compare(b.Tags.FailoverPriority, a.Tags.FailoverPriority),
			compareZone(s, g, a, b),
			cmp.Compare(b.Report.Receive, a.Report.Receive), cmp.Compare(a.Name, b.Name),
		)
	})
}
