package api

import (
	"matriarch/internal/admin"
	"matriarch/internal/obs"
)

// slotMetrics are the slots of the node's own server.
func slotMetrics(st admin.Status) []obs.Slot {
	if st.Self == nil {
		return nil
	}
	out := make([]obs.Slot, 0, len(st.Self.Slots))
	for _, s := range st.Self.Slots {
		out = append(out, obs.Slot{Name: s.Name, Type: string(s.Type), Active: s.Active, Lost: s.Lost(), Retained: s.Retained})
	}
	return out
}
