package decide

import (
	"fmt"
	"strings"
	"time"

	"matriarch/fsm"
)

// sickRules take a group from a primary that is sick, where a standby is well, lives and has every acknowledged commit. Once only in a
// while: whatever ails one host may ail the next.
var sickRules = []ClusterRule{
	{
		"C136", "holder sick, a standby that is well takes over", "it takes writes no more: its lease is revoked, it is stopped at once, and the standbys decide",
		func(f GroupFacts) bool { return f.ails() && !StillWrites(f.sickness().Reason) && f.stays() == "" },
		func(f GroupFacts) (ClusterAction, string) {
			why := f.sickText()
			return RevokeLease{Epoch: f.Group.Epoch, Reason: why, Early: f.mayEarly() == "", Sick: true}, why
		},
	},
	{
		"C137", "holder sick, and still stops in good order", "it takes writes yet: a switchover, once, as a refusal would be repeated",
		func(f GroupFacts) bool {
			return f.ails() && StillWrites(f.sickness().Reason) && f.stays() == "" && !f.tried() && !f.pausing()
		},
		func(f GroupFacts) (ClusterAction, string) {
			to := bestFit(f.State, f.Group, f.wellStandbys()).ID
			return BeginOperation{fsm.Operation{
				ID: fmt.Sprintf("sick-%d-%s", f.Group.ID, f.Group.Epoch), Kind: fsm.Switchover, To: to, By: "matriarch, as the primary is sick", Sick: true,
			}}, f.sickText() + "; switching over to " + f.State.Name(to)
		},
	},
	{
		"C138", "holder sick, and stays", "",
		func(f GroupFacts) bool { return f.ails() },
		func(f GroupFacts) (ClusterAction, string) {
			return nil, fmt.Sprintf("%s; it stays primary: %s", f.sickText(), f.stayText())
		},
	},
}

// sickness is what the holder reports.
func (f GroupFacts) sickness() Sickness {
	r := f.State.Nodes[f.Group.Lease.Holder].Report
	return Sickness{r.Sick, r.SickText}
}

// ails: the holder, which lives, says that it is sick, and nothing else is under way.
func (f GroupFacts) ails() bool {
	ago, heard := f.Heard[f.Group.Lease.Holder]
	return f.Group.Held() && !f.Group.Lease.Revoked && f.Group.Op == nil && (!f.Due || f.Group.Planned == nil) && heard && ago < AliveWithin && f.sickness().Reason != ""
}

func (f GroupFacts) sickText() string {
	return fmt.Sprintf("%s is sick: %s", f.State.Name(f.Group.Lease.Holder), f.sickness().Text)
}

// stays says why the group keeps a holder that is sick, or "".
func (f GroupFacts) stays() string {
	g, cool := f.Group, f.State.Cluster.Settings.Cooldown()
	switch {
	case g.NoSick:
		return "failover_on_sick is off"
	case g.Paused:
		return "the group is paused"
	case g.Mode == fsm.Off:
		return "it replicates asynchronously, so that a standby may lack commits"
	case g.Sync.Unknown:
		return "the synchronous set is unknown"
	case f.SinceSick > 0 && f.SinceSick < cool:
		return fmt.Sprintf("the group was taken from a sick primary %s ago, and is left alone for %s", f.SinceSick.Round(time.Second), cool)
	}
	if len(f.wellStandbys()) == 0 {
		return "no standby could take over" + f.unwellText()
	}
	pairs, _ := pairsInForce(g)
	for _, p := range pairs {
		if well := f.wellWitnesses(); !meets(p, well) {
			return "the standbys that are well may lack commits: " + f.named(lacking(p, well)) + f.unwellText()
		}
	}
	return ""
}

// wellWitnesses are those that can prove what was acknowledged, and are well: also who may not become primary itself.
func (f GroupFacts) wellWitnesses() (out []fsm.NodeID) {
	for _, n := range f.Members {
		n.Tags.NoFailover, n.Tags.FailoverPriority = false, 0
		if Unfit(f.State, f.Group, n, f.Heard) == "" && !f.ailed(n.ID) {
			out = append(out, n.ID)
		}
	}
	return out
}

// stayText is stays, or what C137 waits for.
func (f GroupFacts) stayText() string {
	switch why := f.stays(); {
	case why != "":
		return why
	case f.pausing():
		return "a switchover of another group is under way"
	case f.Group.LastOp != nil && f.Group.LastOp.Sick && !f.Group.LastOp.Done:
		return "the switchover was refused: " + f.Group.LastOp.Outcome
	}
	return "a switchover was tried already"
}

// wellStandbys are those that could take over now, and were not sick lately.
func (f GroupFacts) wellStandbys() (out []fsm.Node) {
	for _, n := range f.Members {
		if Unfit(f.State, f.Group, n, f.Heard) == "" && !f.ailed(n.ID) {
			out = append(out, n)
		}
	}
	return out
}

// ailed: it was sick within the cool-down.
func (f GroupFacts) ailed(id fsm.NodeID) bool {
	ago, known := f.Ailed[id]
	return known && ago < f.State.Cluster.Settings.Cooldown()
}

func (f GroupFacts) unwellText() string {
	var parts []string
	for _, n := range f.Members {
		why := Unfit(f.State, f.Group, n, f.Heard)
		if why == "" && f.ailed(n.ID) {
			why = fmt.Sprintf("it was sick %s ago", f.Ailed[n.ID].Round(time.Second))
		}
		if why != "" && n.ID != f.Group.Lease.Holder {
			parts = append(parts, n.Name+": "+why)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// tried: this leader has begun a switchover for this sickness already.
func (f GroupFacts) tried() bool {
	return f.TriedSick > 0 && f.TriedSick < f.State.Cluster.Settings.Cooldown()
}

// pausing: some group's clients wait already.
func (f GroupFacts) pausing() bool {
	for _, g := range f.State.Groups {
		if g.Op.Pausing() {
			return true
		}
	}
	return false
}

// lastIsSick: there is no point in waiting for the last holder to come back.
func (f GroupFacts) lastIsSick() bool { return f.State.Nodes[f.Group.LastHolder].Report.Sick != "" }

// weak: a recruit that is elected only where nobody better is sure to have everything.
func (f GroupFacts) weak(r Recruit) bool { return r.Sick != "" || f.ailed(r.Node) }
