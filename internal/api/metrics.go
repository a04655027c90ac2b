package api

import (
	"matriarch/internal/admin"
	"matriarch/internal/obs"
)

// formationMetrics is the cluster for whoever watches it; nil on a node that does not lead.
func formationMetrics(st admin.Status) *obs.Formation {
	if !st.Raft.Leads || st.State == nil || st.State.Cluster.ID == "" {
		return nil
	}
	f := admin.NewFormation(st)
	out := &obs.Formation{
		Healthy: f.Healthy, Voters: len(f.Raft.Voters), SlowestTick: st.Raft.SlowestTick,
		MetadataRight: st.Metadata == nil || (st.Metadata.Synced && st.Metadata.Error == ""),
	}
	for _, g := range f.Groups {
		out.Groups = append(out.Groups, obs.GroupState{
			ID: g.ID, Primary: g.Primary != "", Open: g.Open, Degraded: g.Degraded, Waiting: g.Waiting, Paused: g.Paused, Early: g.Early == "yes",
		})
	}
	for _, m := range f.Members {
		s := obs.MemberState{Name: m.Name, Group: m.Group, Silent: st.Heard[m.ID], Never: m.Silent && st.Heard[m.ID] == 0, Lag: -1}
		if m.ReceiveLag != nil {
			s.Lag = *m.ReceiveLag
		}
		out.Members = append(out.Members, s)
	}
	return out
}
