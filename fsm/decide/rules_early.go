package decide

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"matriarch/fsm"
)

// Probe is what a standby found when it looked at its primary.
type Probe struct {
	Dead bool   `json:"dead"` // the port gives no answer, and the walreceiver has heard nothing for a while
	Text string `json:"text"`
}

const (
	// ProbeAfter is how long a holder's keepalives must be missing before its standbys are asked whether it lives.
	ProbeAfter = 600 * time.Millisecond
	// EarlyAfter is how long they must be missing before its lease is revoked on evidence.
	EarlyAfter = time.Second
	// EarlyAgain is how long after one early failover the next of a group waits for the end of the lease.
	EarlyAgain = 30 * time.Second
	// ProbeFresh is how long an answer counts.
	ProbeFresh = time.Second
)

// earlyRules end the lease of a holder that is gone before its time. The standbys that were recruited confirm nothing for it any
// more, so that it can acknowledge no synchronous commit, whatever it still does until its sentinel stops it.
var earlyRules = []ClusterRule{
	{
		"C130", "holder gone, by its silence and by what its standbys see", "evidence of both kinds; then nobody renews the lease, and the standbys decide",
		func(f GroupFacts) bool { return f.mayEarly() == "" && f.missing() >= EarlyAfter && f.foundDead() },
		func(f GroupFacts) (ClusterAction, string) {
			why := fmt.Sprintf("%s has been silent for %s, and %s", f.State.Name(f.Group.Lease.Holder), round(f.missing()), f.probeText())
			return RevokeLease{Epoch: f.Group.Epoch, Reason: why, Early: true}, why
		},
	},
	{
		"C135", "look whether the holder lives", "its standbys open its port and know when they last heard of it",
		func(f GroupFacts) bool { return f.mayEarly() == "" && f.missing() >= ProbeAfter && !f.Probing },
		func(f GroupFacts) (ClusterAction, string) {
			return ProbeHolder{f.witnesses()}, fmt.Sprintf("%s has been silent for %s%s", f.State.Name(f.Group.Lease.Holder), round(f.missing()), f.andProbes())
		},
	},
}

// missing is how long the holder's keepalives have been missing, from the beginning of this term at the earliest.
func (f GroupFacts) missing() time.Duration {
	if ago, ok := f.Heard[f.Group.Lease.Holder]; ok {
		return ago
	}
	return f.Leading
}

// witnesses are the members that live, the holder excepted.
func (f GroupFacts) witnesses() []fsm.NodeID {
	var out []fsm.NodeID
	for _, n := range f.Members {
		if ago, heard := f.Heard[n.ID]; heard && ago < AliveWithin && n.ID != f.Group.Lease.Holder && n.Postgres != "" {
			out = append(out, n.ID)
		}
	}
	return out
}

// foundDead: somebody has looked, and nobody who has found it alive.
func (f GroupFacts) foundDead() bool {
	for _, p := range f.Probes {
		if !p.Dead {
			return false
		}
	}
	return len(f.Probes) > 0
}

func (f GroupFacts) probeText() string {
	var parts []string
	for _, n := range f.Members {
		if p, ok := f.Probes[n.ID]; ok {
			parts = append(parts, n.Name+": "+p.Text)
		}
	}
	return strings.Join(parts, "; ")
}

func (f GroupFacts) andProbes() string {
	if text := f.probeText(); text != "" {
		return "; " + text
	}
	return "; asking its standbys"
}

// mayEarly says why the group could not fail over before the end of the lease and without loss, or "".
func (f GroupFacts) mayEarly() string {
	g := f.Group
	switch {
	case !g.Held():
		return "it has no primary"
	case g.Lease.Revoked:
		return "the lease is revoked already"
	case g.Paused:
		return "the group is paused"
	case g.NoEarly:
		return "early_failover is off"
	case g.Mode == fsm.Off:
		return "it replicates asynchronously"
	case g.Sync.Unknown:
		return "the synchronous set is unknown"
	case f.LastEarly > 0 && f.LastEarly < EarlyAgain:
		return fmt.Sprintf("it did so %s ago", round(f.LastEarly))
	}
	alive := slices.DeleteFunc(f.witnesses(), func(id fsm.NodeID) bool { return f.State.Nodes[id].Tags.NoFailover && len(f.witnesses()) == 1 })
	pairs, _ := pairsInForce(g)
	for _, p := range pairs {
		if !meets(p, alive) {
			return "not enough of its standbys live: " + f.named(lacking(p, alive))
		}
	}
	if len(pairs) == 0 {
		return "no standby is synchronous"
	}
	return ""
}

// Early says why a group could not fail over now before the end of its lease and without loss; "" when it could.
func Early(v GroupView) string { return groupFacts(v).mayEarly() }
