package admin

import (
	"slices"
	"strings"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

// SlotKind says whose a group's slot is: member, permanent, citus or other.
func SlotKind(g fsm.Group, name string) string {
	switch {
	case strings.HasPrefix(name, pgconf.SlotPrefix):
		return "member"
	case slices.ContainsFunc(g.Slots, func(s fsm.Slot) bool { return s.Name == name && !s.Dropped }):
		return "permanent"
	case strings.HasPrefix(name, "citus_"):
		return "citus"
	}
	return "other"
}
