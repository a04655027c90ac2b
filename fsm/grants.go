package fsm

import "slices"

// Grant records one lease and the timeline its promotion made.
type Grant struct {
	Epoch    Epoch    `json:"epoch"`
	Holder   NodeID   `json:"holder"`
	Timeline Timeline `json:"timeline"`                // 0 until the promotion is recorded
	Parent   Timeline `json:"parent"`                  // the timeline it left
	Fork     LSN      `json:"fork"`                    // where it left it
	From     Epoch    `json:"from,omitzero" since:"2"` // the epoch that made the timeline it stood on when it was elected; zero: the newest of that number
}

// LastGrant returns the newest grant.
func (g Group) LastGrant() (Grant, bool) {
	if len(g.Grants) == 0 {
		return Grant{}, false
	}
	return g.Grants[len(g.Grants)-1], true
}

// GrantOf returns the newest grant recorded for a timeline.
func (g Group) GrantOf(tl Timeline) (Grant, bool) {
	for _, gr := range slices.Backward(g.Grants) {
		if gr.Timeline == tl {
			return gr, true
		}
	}
	return Grant{}, false
}

// Descent is a grant's timeline and those before it, newest first, as far back as they are known.
func (g Group) Descent(gr Grant) []Grant {
	way := []Grant{gr}
	i := len(g.Grants) - 1 // parents are older
	for gr.Parent != 0 && gr.Parent != gr.Timeline {
		for i >= 0 && !g.Grants[i].begot(gr) {
			i--
		}
		if i < 0 {
			break
		}
		gr = g.Grants[i]
		way = append(way, gr)
	}
	return way
}

// Lineage tells which epoch made each timeline on the way to the newest one, as far back as it is known.
func (g Group) Lineage() map[Timeline]Epoch {
	made := map[Timeline]Epoch{}
	if last, ok := g.LastGrant(); ok && last.Timeline != 0 {
		for _, gr := range g.Descent(last) {
			made[gr.Timeline] = gr.Epoch
		}
	}
	return made
}

// begot reports whether gr's timeline left this one, where gr's record does not say otherwise the last of its number.
func (gr Grant) begot(child Grant) bool {
	return gr.Timeline == child.Parent && gr.Epoch.Less(child.Epoch) && (child.From.IsZero() || child.From == gr.Epoch)
}

// roomForGrant drops the oldest grant of too many; first those that nobody was promoted under, since the others tell whose data is true.
func (e entry) roomForGrant(all []Grant) []Grant {
	all = slices.Clone(all)
	if len(all) < maxGrants {
		return all
	}
	i := slices.IndexFunc(all, func(gr Grant) bool { return gr.Timeline == 0 })
	if i < 0 || e.Cluster.Gate < 2 { // older binaries drop the first one
		i = 0
	}
	return slices.Delete(all, i, i+1)
}
