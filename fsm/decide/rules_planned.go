package decide

import (
	"fmt"
	"strings"
	"time"

	"matriarch/fsm"
)

// Work is how far the leader is with the present phase of planned work.
type Work struct {
	Phase   string        // what follows belongs to it
	For     time.Duration // since this leader saw it begin
	Busy    bool          // its action is under way
	Ready   bool          // its action is done
	Refused string        // its action came to nothing, and why
	Fit     fsm.NodeID    // of check: the candidate
	Paused  time.Duration // how long clients have waited, or did; 0: not at all
	Ended   []string      // transactions that were ended because they stood in the way
}

const (
	// checkLimit leaves time for two checkpoints of busy servers.
	checkLimit = 2 * time.Minute
	// demoteLimit is longer than the holder takes to stop, ending walsenders and backends on the way.
	demoteLimit = 15 * time.Second
	// MaxLate is how long after its time planned work may still begin.
	MaxLate = 10 * time.Minute
	// PlannedRecruit is how long a planned election asks nobody but its candidate.
	PlannedRecruit = time.Second
)

// plannedRules lead a switchover or a restart through its phases. Check and pause roll back; then there is only forward.
var plannedRules = []ClusterRule{
	{
		"C145", "too late for what was planned", "nobody expects it any more",
		func(f GroupFacts) bool { return f.Due && f.Group.Planned != nil && f.Late > MaxLate },
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("its time was %s ago, and no leader was there to begin it", f.Late.Round(time.Second))
			return DropOperation{f.Group.Planned.ID, why}, why
		},
	},
	{
		"C150", "begin what was planned", "",
		func(f GroupFacts) bool { return f.Due && f.Group.Planned != nil && f.Group.Op == nil },
		func(f GroupFacts) (ClusterAction, string) {
			p := f.Group.Planned
			return MoveOperation{ID: p.ID, To: fsm.Check}, fmt.Sprintf("the time of the %s planned by %s has come", p.Kind, p.By)
		},
	},
	{
		"C160", "planned work refused", "nothing has changed yet: clients go on with the primary they have",
		func(f GroupFacts) bool { return f.rollsBack() && (f.Work.Refused != "" || f.Work.For > f.checkLimit()) },
		func(f GroupFacts) (ClusterAction, string) {
			why := orElse(f.Work.Refused, fmt.Sprintf("phase %s took longer than %s", f.Group.Op.Phase, f.checkLimit()))
			return DropOperation{f.Group.Op.ID, why}, why
		},
	},
	{
		"C165", "check or pause", "who takes over, whether it may, and that clients wait instead of failing",
		func(f GroupFacts) bool { return f.rollsBack() && !f.Work.Ready },
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s: phase %s for %s", f.opText(), f.Group.Op.Phase, round(f.Work.For))
			if f.Work.Busy {
				return nil, why
			}
			return StartWork{f.Group.Op.Phase}, why
		},
	},
	{
		"C170", "next phase", "",
		func(f GroupFacts) bool { return f.rollsBack() },
		func(f GroupFacts) (ClusterAction, string) {
			op := f.Group.Op
			next := map[string]string{fsm.Check: fsm.Pause, fsm.Pause: fsm.Demote}[op.Phase]
			return MoveOperation{ID: op.ID, From: op.Phase, To: next, Node: f.Work.Fit}, fmt.Sprintf("%s: %s done after %s", f.opText(), op.Phase, round(f.Work.For))
		},
	},
	{
		"C180", "the holder does not stop", "from here on there is only forward: a failover",
		func(f GroupFacts) bool {
			return f.Group.Held() && f.Group.Op.Demoting(f.Group.Epoch) && f.Work.For > demoteLimit
		},
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s was asked to stop for a %s and has not for %s", f.State.Name(f.Group.Lease.Holder), f.Group.Op.Kind, round(f.Work.For))
			return RevokeLease{Epoch: f.Group.Epoch, Reason: why}, why
		},
	},
	{
		"C190", "change of primary under way", "",
		func(f GroupFacts) bool {
			return f.Group.Held() && f.Group.Op.Pausing() && f.Group.Op.Phase != fsm.Resume
		},
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("%s: phase %s for %s", f.opText(), f.Group.Op.Phase, round(f.Work.For))
		},
	},
	{
		"C195", "let clients go on", "rows of pg_dist_node first, then everybody who waits",
		func(f GroupFacts) bool {
			return f.Group.Op.Pausing() && f.Group.Op.Phase == fsm.Resume && !f.Work.Ready && f.Work.Refused == ""
		},
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s: phase resume for %s", f.opText(), round(f.Work.For))
			if f.Work.Busy {
				return nil, why
			}
			return StartWork{fsm.Resume}, why
		},
	},
	{
		"C198", "planned work done", "",
		func(f GroupFacts) bool { return f.Group.Op.Pausing() && f.Group.Op.Phase == fsm.Resume },
		func(f GroupFacts) (ClusterAction, string) {
			text := f.outcome()
			return MoveOperation{ID: f.Group.Op.ID, From: fsm.Resume, Text: text}, text
		},
	},
}

func (f GroupFacts) rollsBack() bool { return f.Group.Op.Pausing() && !f.Group.Op.Forward() }

// checkLimit leaves time to wait for shards on the move, where that was asked for.
func (f GroupFacts) checkLimit() time.Duration {
	if f.Group.Op.Phase == fsm.Check {
		return checkLimit + f.Group.Op.WaitMoves
	}
	return checkLimit
}

func (f GroupFacts) opText() string {
	op := f.Group.Op
	if op.Kind == fsm.Restart {
		return "restart of " + f.State.Name(op.From)
	}
	return fmt.Sprintf("switchover %s -> %s", f.State.Name(op.From), orElse(f.State.Name(op.To), "the best standby"))
}

func (f GroupFacts) outcome() string {
	op := f.Group.Op
	text := fmt.Sprintf("switched over group %d: %s -> %s", f.Group.ID, f.State.Name(op.From), f.State.Name(op.To))
	if op.Kind == fsm.Restart {
		text = fmt.Sprintf("restarted %s, primary of group %d", f.State.Name(op.From), f.Group.ID)
	}
	if f.Work.Paused > 0 {
		text += fmt.Sprintf(", writes paused %d ms", f.Work.Paused.Milliseconds())
	}
	if len(f.Work.Ended) > 0 {
		text += "; ended what stood in the way: " + strings.Join(f.Work.Ended, ", ")
	}
	if f.Work.Refused != "" {
		text += "; not all rows of pg_dist_node could be written in the pause, which is made up for: " + f.Work.Refused
	}
	return text
}

// plannedPair is the synchronous pair of a planned holder: the members of the set before, and the former holder, which stopped
// in good order where the new one stands and begins again meanwhile.
func (f GroupFacts) plannedPair(winner fsm.NodeID) fsm.Pair {
	var out []fsm.NodeID
	for _, n := range f.Members {
		was := n.ID == f.Group.Op.From || (f.Group.Ended != nil && len(f.Group.Ended.Pairs) > 0 && f.Group.Ended.Pairs[len(f.Group.Ended.Pairs)-1].Has(n.ID))
		if was && n.ID != winner && !n.Tags.NoSync {
			out = append(out, n.ID)
		}
	}
	return PairFor(f.Group, out, f.syncable(winner))
}
