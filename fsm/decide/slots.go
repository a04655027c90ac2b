package decide

import (
	"fmt"
	"slices"
	"strings"

	"matriarch/fsm"
)

// SlotSeen is a replication slot as one server has it.
type SlotSeen struct {
	Name        string       `json:"name"`
	Type        fsm.SlotType `json:"type"`
	Database    string       `json:"database,omitempty"`
	Plugin      string       `json:"plugin,omitempty"`
	Active      bool         `json:"active"`
	Temporary   bool         `json:"temporary,omitempty"`
	Failover    bool         `json:"failover,omitempty"` // from PostgreSQL 17: standbys copy it
	Synced      bool         `json:"synced,omitempty"`   // from PostgreSQL 17: such a copy
	WALStatus   string       `json:"wal_status,omitempty"`
	Restart     fsm.LSN      `json:"restart"`             // the log is kept from here on
	Confirmed   fsm.LSN      `json:"confirmed,omitempty"` // of a logical one
	CatalogXmin uint32       `json:"catalog_xmin,omitempty"`
	Retained    int64        `json:"retained"` // bytes of log that it keeps
}

// Lost reports whether the log that the slot needs is gone.
func (s SlotSeen) Lost() bool { return s.WALStatus == "lost" }

// SlotView holds everything that the plan for a server's permanent slots depends on.
type SlotView struct {
	Primary   bool
	Version   int               // as server_version_num
	Wanted    []fsm.Slot        // of the group, those not wanted any more included
	Here      []SlotSeen        // on this server
	There     []SlotSeen        // on the primary, of a standby
	Databases []string          // on the primary; nil: not known
	Replayed  fsm.LSN           // of a standby
	Feedback  bool              // the primary keeps catalog rows for this standby
	Bounds    map[string]uint32 // where the primary's slot kept rows from when it was first seen to do that
	Ready     []string          // copies known to be whole
}

// SlotDo is what is done about one slot.
type SlotDo string

// What is done about slots.
const (
	SlotCreate  SlotDo = "create"
	SlotDrop    SlotDo = "drop"
	SlotAdvance SlotDo = "advance" // a standby's, to To
	SlotCopy    SlotDo = "copy"    // the primary's, which takes a restart
	SlotMade    SlotDo = "made"    // record that it is there
	SlotReady   SlotDo = "ready"   // the copy is whole
	SlotTell    SlotDo = "tell"    // nothing but to say so
)

// SlotStep is one step of the plan.
type SlotStep struct {
	Do     SlotDo
	Rule   string
	Slot   fsm.Slot
	To     fsm.LSN
	Reason string
}

// FailoverSlots is the first version whose standbys copy logical slots by themselves.
const FailoverSlots = 170000

// slotCase is one wanted slot and what is there of it.
type slotCase struct {
	SlotView
	Slot  fsm.Slot
	Here  *SlotSeen
	There *SlotSeen
}

// slotRule is one row of the table.
type slotRule struct {
	ID   string
	When func(c slotCase) bool
	Do   SlotDo
	Why  string
}

// slotRules is ordered: what must go, the primary, the standby.
var slotRules = []slotRule{
	{"S100", func(c slotCase) bool { return c.Slot.Dropped && c.Here != nil && !c.Here.Active && !c.Here.Synced }, SlotDrop, "it is not wanted any more"},
	{"S110", func(c slotCase) bool { return c.Slot.Dropped }, "", ""},
	{"S120", func(c slotCase) bool { return c.Here != nil && !c.Here.is(c.Slot) }, SlotTell, "another slot has this name here: drop it, or give this one another name"},

	{"S200", func(c slotCase) bool { return c.Primary && c.Here == nil && c.logical() && c.Slot.Made }, SlotTell, "it did not get here before the failover, or was dropped by hand: its consumer may lack changes; have the consumer begin anew, then 'matriarch slots reset'"},
	{"S210", func(c slotCase) bool { return c.Primary && c.Here == nil && c.logical() && !c.hasDatabase() }, SlotTell, "its database does not exist"},
	{"S220", func(c slotCase) bool { return c.Primary && c.Here == nil }, SlotCreate, "a permanent slot is missing"},
	{"S230", func(c slotCase) bool { return c.Primary && c.Here.Lost() && c.logical() && c.Slot.Made }, SlotTell, "the log that it needs is gone (max_slot_wal_keep_size): its consumer lacks changes; have the consumer begin anew, then 'matriarch slots reset'"},
	{"S240", func(c slotCase) bool { return c.Primary && c.Here.Lost() && !c.Here.Active }, SlotDrop, "the log that it needs is gone: it is made anew"},
	{"S250", func(c slotCase) bool { return c.Primary && !c.Slot.Made }, SlotMade, "it is there"},
	{"S260", func(c slotCase) bool { return c.Primary && c.synced() && !c.Here.Failover }, SlotTell, "it was not made as a failover slot and will not survive a failover: drop it, so that it is made as one"},
	{"S290", func(c slotCase) bool { return c.Primary }, "", ""},

	{"S300", func(c slotCase) bool { return c.There == nil || c.There.Lost() || !c.There.is(c.Slot) }, "", ""},
	{"S310", func(c slotCase) bool { return c.synced() && c.Here != nil && !c.Here.Synced && !c.Here.Active }, SlotDrop, "it stands here since this was the primary, and keeps the new primary's from being copied"},
	{"S320", func(c slotCase) bool { return c.synced() }, "", ""},
	{"S330", func(c slotCase) bool { return c.Here != nil && c.Here.Lost() && !c.Here.Active }, SlotDrop, "the log that it needs is gone here: another copy follows"},
	{"S340", func(c slotCase) bool { return c.Here == nil && !c.logical() }, SlotCreate, "the primary has it"},
	{"S350", func(c slotCase) bool { return c.Here == nil }, SlotCopy, "the primary has it"},
	{"S360", func(c slotCase) bool { return c.whole() }, SlotReady, "its catalog rows are kept"},
	{"S370", func(c slotCase) bool { return !c.Here.Active && c.target() > c.Here.at() }, SlotAdvance, "the primary's has moved"},
}

// PlanSlots says what to do about a server's permanent slots, by the first rule that holds for each.
func PlanSlots(v SlotView) []SlotStep {
	var out []SlotStep
	for _, w := range v.Wanted {
		c := slotCase{SlotView: v, Slot: w, Here: slotNamed(v.Here, w.Name), There: slotNamed(v.There, w.Name)}
		for _, r := range slotRules {
			if !r.When(c) {
				continue
			}
			if r.Do != "" {
				out = append(out, SlotStep{Do: r.Do, Rule: r.ID, Slot: w, To: c.target(), Reason: r.Why})
			}
			break
		}
	}
	return append(out, v.strays()...)
}

// strays are somebody's failover slots that a former primary still has as its own: as long as they are there, no slot is copied.
func (v SlotView) strays() (out []SlotStep) {
	for _, s := range v.Here {
		named := slices.ContainsFunc(v.Wanted, func(w fsm.Slot) bool { return w.Name == s.Name })
		if !v.Primary && s.Failover && !s.Synced && !s.Active && !named && slotNamed(v.There, s.Name) != nil {
			out = append(out, SlotStep{Do: SlotDrop, Rule: "S400", Slot: fsm.Slot{Name: s.Name, Type: s.Type}, Reason: "a failover slot of the primary that this once was, which keeps the new primary's from being copied"})
		}
	}
	return out
}

func slotNamed(all []SlotSeen, name string) *SlotSeen {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

func (c slotCase) logical() bool { return c.Slot.Type == fsm.Logical }

// synced: PostgreSQL itself copies it to the standbys.
func (c slotCase) synced() bool { return c.logical() && c.Version >= FailoverSlots }

func (c slotCase) hasDatabase() bool {
	return c.Databases == nil || slices.Contains(c.Databases, c.Slot.Database)
}

// is reports whether the slot is what is wanted.
func (s SlotSeen) is(w fsm.Slot) bool {
	return s.Type == w.Type && !s.Temporary && s.Database == w.Database && s.Plugin == w.Plugin
}

// at is where the slot stands.
func (s SlotSeen) at() fsm.LSN {
	if s.Type == fsm.Logical {
		return s.Confirmed
	}
	return s.Restart
}

// target is where a standby's slot may be moved: not beyond the primary's, nor beyond what is replayed.
func (c slotCase) target() fsm.LSN {
	if c.Primary || c.There == nil {
		return 0
	}
	return min(c.There.at(), c.Replayed)
}

// whole reports whether a copy has just become usable after a promotion: the primary keeps the catalog rows that this standby needs,
// and kept those behind the copy until it did.
func (c slotCase) whole() bool {
	bound, known := c.Bounds[c.Slot.Name]
	return c.logical() && c.Feedback && known && int32(c.Here.CatalogXmin-bound) >= 0 && !slices.Contains(c.Ready, c.Slot.Name) //nolint:gosec // transaction ids are compared so
}

// Unready lists the copies that a server which becomes primary must not keep: what they need may be gone.
func Unready(v SlotView) (out []fsm.Slot) {
	for _, w := range v.Wanted {
		if s := slotNamed(v.Here, w.Name); s != nil && w.Type == fsm.Logical && !w.Dropped && v.Version < FailoverSlots && !slices.Contains(v.Ready, w.Name) {
			out = append(out, w)
		}
	}
	return out
}

// SlotTroubles says in words what is wrong with a primary's slots. own is the beginning of the names of the members' slots.
func SlotTroubles(v SlotView, own string) string {
	var out []string
	for _, s := range PlanSlots(v) {
		if s.Do == SlotTell {
			out = append(out, fmt.Sprintf("slot %s: %s", s.Slot.Name, s.Reason))
		}
	}
	for _, s := range v.Here {
		switch {
		case s.Temporary || citusSlot(s.Name):
		case s.WALStatus == "unreserved":
			out = append(out, fmt.Sprintf("slot %s: the log that it needs is about to be removed (max_slot_wal_keep_size)", s.Name))
		case strings.HasPrefix(s.Name, own):
		case slices.ContainsFunc(v.Wanted, func(w fsm.Slot) bool { return w.Name == s.Name }):
		case s.Lost():
			out = append(out, fmt.Sprintf("slot %s, which is none of Matriarch's, has lost the log that it needs", s.Name))
		case !s.Active && !s.Synced:
			out = append(out, fmt.Sprintf("slot %s, which is none of Matriarch's, is not in use and keeps log", s.Name))
		}
	}
	return strings.Join(out, "; ")
}

// citusSlot: Citus makes slots while it moves shards, and drops them.
func citusSlot(name string) bool {
	return strings.HasPrefix(name, "citus_shard_move_") || strings.HasPrefix(name, "citus_shard_split_")
}
