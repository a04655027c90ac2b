package decide

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"matriarch/fsm"
)

// Recruit is a node's answer to recruitment: it follows nobody any more, and this is where it stands.
type Recruit struct {
	Node     fsm.NodeID   `json:"node"`
	Instance string       `json:"instance"`
	Promise  fsm.Epoch    `json:"promise"`
	Timeline fsm.Timeline `json:"timeline"`
	Lineage  fsm.Epoch    `json:"lineage"` // the epoch that made this timeline, as the node's own record has it
	LSN      fsm.LSN      `json:"lsn"`
	Primary  bool         `json:"primary,omitempty"` // an adopted server that is writable already
	Unfit    string       `json:"unfit,omitempty"`   // why it must not become primary just now; its promise counts all the same
	Sick     string       `json:"sick,omitempty"`    // what ails it: it comes after everybody who is well
}

// lineageTrue reports whether the node's last timeline was made by the Grant recorded for that number. Two promotions can both
// make timeline 2: such a node may neither be followed, followed on, rewound nor elected.
func lineageTrue(g fsm.Group, tl fsm.Timeline, lineage fsm.Epoch) bool {
	gr, ok := g.GrantOf(tl)
	return ok && gr.Epoch == lineage
}

// Candidates returns the recruits that may become primary, best first: the newest timeline by the epoch that made it (the
// numbers of dead branches may be higher), greatest LSN, then who has not just failed to promote, then priority, zone,
// membership in the synchronous set, and name.
func Candidates(s *fsm.State, g fsm.Group, recruits []Recruit) []Recruit {
	var out []Recruit
	for _, r := range recruits {
		n, ok := s.Nodes[r.Node]
		if !ok || r.Unfit != "" || !g.MayHold(r.Node) || n.Tags.NoFailover || n.Tags.FailoverPriority < 0 {
			continue
		}
		if !g.Sync.Unknown && !lineageTrue(g, r.Timeline, r.Lineage) || outdated(s, g, r) {
			continue
		}
		out = append(out, r)
	}
	target := g.Sync.Target()
	slices.SortFunc(out, func(a, b Recruit) int {
		na, nb := s.Nodes[a.Node], s.Nodes[b.Node]
		return cmp.Or(
			compareEpoch(b.Lineage, a.Lineage),
			cmp.Compare(b.LSN, a.LSN),
			compareBool(a.Node != failed(g), b.Node != failed(g)),
			cmp.Compare(nb.Tags.FailoverPriority, na.Tags.FailoverPriority),
			compareZone(s, g, na, nb),
			compareBool(target.Has(a.Node), target.Has(b.Node)),
			cmp.Compare(na.Name, nb.Name),
		)
	})
	return out
}

// outdated: by the setting check_timeline, who has not reached the newest timeline that was written to may not become primary.
func outdated(s *fsm.State, g fsm.Group, r Recruit) bool {
	if !s.Cluster.Settings.CheckTimeline || g.Sync.Unknown {
		return false
	}
	for _, gr := range slices.Backward(g.Grants) {
		if gr.Timeline != 0 {
			return r.Lineage.Less(gr.Epoch)
		}
	}
	return false
}

// compareZone prefers a node of the last holder's zone, or of another, as the settings say.
func compareZone(s *fsm.State, g fsm.Group, a, b fsm.Node) int {
	last, known := s.Nodes[g.LastHolder]
	switch {
	case !known:
	case s.Cluster.Settings.FailoverZone == ZoneSame:
		return compareBool(a.Zone == last.Zone, b.Zone == last.Zone)
	case s.Cluster.Settings.FailoverZone == ZoneOther:
		return compareBool(a.Zone != last.Zone, b.Zone != last.Zone)
	}
	return 0
}

// The values of failover_zone_preference; without one zones do not matter.
const (
	ZoneSame  = "same"
	ZoneOther = "other"
)

func compareEpoch(a, b fsm.Epoch) int {
	return cmp.Or(cmp.Compare(a.Inc, b.Inc), cmp.Compare(a.N, b.N))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// followers are the recruits that can follow the winner without a rewind, and may confirm commits.
func (f GroupFacts) followers(w Recruit) []fsm.NodeID {
	var out []fsm.NodeID
	for _, r := range f.Recruits {
		if r.Node != w.Node && r.Lineage == w.Lineage && r.Timeline == w.Timeline && r.LSN <= w.LSN && !f.State.Nodes[r.Node].Tags.NoSync {
			out = append(out, r.Node)
		}
	}
	return out
}

func (f GroupFacts) refusalText() string {
	var parts []string
	for _, n := range f.Members {
		why := f.Refusals[n.ID]
		for _, r := range f.Recruits {
			switch {
			case r.Node != n.ID:
			case r.Unfit == "" && outdated(f.State, f.Group, r):
				why = fmt.Sprintf("has not reached the newest timeline, which the setting check_timeline asks for: it is on timeline %d", r.Timeline)
			default:
				why = r.Unfit
				if !f.Group.MayHold(r.Node) {
					why = "joined without the last primary's knowledge, which may stay up by failsafe"
				}
			}
		}
		if why != "" {
			parts = append(parts, n.Name+": "+why)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}
