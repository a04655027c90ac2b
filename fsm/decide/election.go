package decide

import (
	"cmp"
	"fmt"
	"slices"

	"matriarch/fsm"
)

func (f GroupFacts) opCandidate() fsm.NodeID {
	if f.Group.Op == nil {
		return ""
	}
	return f.Group.Op.To
}

// chosen is the winner: the candidate an operator named (or names to be trusted), else the best; but only one that is sure
// to have every acknowledged commit, unless the operator gave up the rest. The best may not be: a node that may not become
// primary can have more. Who is or was lately sick comes after the others, who has just failed to promote comes last.
func (f GroupFacts) chosen() *Recruit {
	to := f.opCandidate()
	if f.Group.Op != nil && f.Group.Op.Trust {
		return f.recruitOf(to)
	}
	if f.spent() {
		for _, r := range f.Ranked {
			if r.Node == f.Group.LastHolder && f.safe(r) && !f.weak(r) {
				return &r
			}
		}
	}
	var weak, last *Recruit
	for _, r := range f.Ranked {
		switch {
		case to != "" && r.Node != to || !f.safe(r):
		case f.Group.Mode != fsm.Off && r.Node == failed(f.Group):
			last = &r
		case f.weak(r) && f.Group.Mode != fsm.Off:
			weak = cmp.Or(weak, &r)
		default:
			return &r
		}
	}
	last = cmp.Or(weak, last)
	if last == nil && f.acceptsLoss() && f.Asking >= AliveWithin {
		return f.recruitOf(to)
	}
	return last
}

// failed is the node that had the last Grant and did not record a promotion under it, if there is one.
func failed(g fsm.Group) fsm.NodeID {
	if last, ok := g.LastGrant(); ok && last.Timeline == 0 && !g.Held() {
		return last.Holder
	}
	return ""
}

// acceptsLoss: an operator prefers the candidate, which has answered and is of this group's history, to all that it lacks.
func (f GroupFacts) acceptsLoss() bool {
	op := f.Group.Op
	return op != nil && op.AcceptLoss && slices.Contains(nodesOf(f.True), op.To)
}

// merit says why the winner is the winner.
func (f GroupFacts) merit(w Recruit) string {
	op := f.Group.Op
	switch {
	case op == nil || op.To != w.Node || !op.AcceptLoss || f.sufficed() && f.safe(w):
		return "best"
	case f.Reference > w.LSN:
		return fmt.Sprintf("named by %s, who accepts the loss of what it lacks (%d bytes of what %s had reported), one", op.By, f.Reference-w.LSN, f.State.Name(f.Group.LastHolder))
	}
	return fmt.Sprintf("named by %s, who accepts the loss of what it lacks, one", op.By)
}

// sufficed reports whether the recruits suffice by themselves.
func (f GroupFacts) sufficed() bool {
	ok, _ := Sufficient(f.Group, f.memberIDs(), nodesOf(f.True), slices.ContainsFunc(f.True, func(r Recruit) bool { return atEnd(f.Group, r) }))
	return ok
}

func (f GroupFacts) recruitOf(id fsm.NodeID) *Recruit {
	for _, r := range f.Recruits {
		if r.Node == id && f.Group.MayHold(id) {
			return &r
		}
	}
	return nil
}

// syncable lists the members other than the winner that may confirm commits.
func (f GroupFacts) syncable(winner fsm.NodeID) (out []fsm.NodeID) {
	for _, n := range f.Members {
		if n.ID != winner && !n.Tags.NoSync && n.Postgres != "" {
			out = append(out, n.ID)
		}
	}
	return out
}

// spent reports whether the group has had its one unplanned change of the time being, and its holder, which did promote, lives to
// come back.
func (f GroupFacts) spent() bool {
	ago, heard := f.Heard[f.Group.LastHolder]
	return f.Group.Op == nil && failed(f.Group) == "" && f.Changed > 0 && f.Changed < ChangeBudget && heard && ago < AliveWithin
}

func (f GroupFacts) recruited(id fsm.NodeID) bool { return slices.Contains(nodesOf(f.Recruits), id) }

// safe reports whether the recruits that c is not behind suffice by themselves: then c has every acknowledged commit, though
// others may have more that never was.
func (f GroupFacts) safe(c Recruit) bool {
	var behind []fsm.NodeID
	for _, r := range f.True {
		if r.Node == c.Node || r.Lineage.Less(c.Lineage) || (r.Lineage == c.Lineage && r.LSN <= c.LSN) {
			behind = append(behind, r.Node)
		}
	}
	ok, _ := Sufficient(f.Group, f.memberIDs(), behind, atEnd(f.Group, c))
	return ok || f.Group.Mode == fsm.Off
}
