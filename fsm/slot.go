package fsm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Slot is a replication slot that a group's primary always has, whoever that is.
type Slot struct {
	Name     string   `json:"name"`
	Type     SlotType `json:"type"`
	Database string   `json:"database,omitempty"` // of a logical one
	Plugin   string   `json:"plugin,omitempty"`   // of a logical one
	Made     bool     `json:"made,omitempty"`     // it has been there: a logical one is never made again without being asked for, since its consumer would miss changes in silence
	Dropped  bool     `json:"dropped,omitempty"`  // not wanted any more: dropped wherever it is found unused
}

// SlotType is PostgreSQL's slot_type.
type SlotType string

// The types of slots.
const (
	Physical SlotType = "physical"
	Logical  SlotType = "logical"
)

// MaxSlots bounds a group's permanent slots, those not wanted any more included.
const MaxSlots = 32

// SlotPut makes a slot permanent in a group.
type SlotPut struct {
	Group GroupID `json:"group"`
	Slot  Slot    `json:"slot"`
	Anew  bool    `json:"anew,omitempty"` // one that exists is to be made again where it is lost: its consumer begins anew
}

// SlotDrop ends that: the slot is dropped everywhere.
type SlotDrop struct {
	Group GroupID `json:"group"`
	Name  string  `json:"name"`
}

// SlotMade records that a primary has made the slot.
type SlotMade struct {
	Group GroupID `json:"group"`
	Name  string  `json:"name"`
}

// Kind implements Command.
func (SlotPut) Kind() string { return "slot_put" }

// Kind implements Command.
func (SlotDrop) Kind() string { return "slot_drop" }

// Kind implements Command.
func (SlotMade) Kind() string { return "slot_made" }

func (SlotPut) since() int  { return 2 }
func (SlotDrop) since() int { return 2 }
func (SlotMade) since() int { return 2 }

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// reservedSlots are the beginnings of names that somebody else looks after.
var reservedSlots = map[string]string{
	"m_": "the members' own", "citus_": "Citus'", "pg_conflict_detection": "PostgreSQL's own",
}

// Check reports what is wrong with a slot that an operator asks for.
func (s Slot) Check() error {
	if !slotName.MatchString(s.Name) {
		return fmt.Errorf("slot %q: a name is 1 to 63 of a-z, 0-9 and underscore", s.Name)
	}
	for prefix, whose := range reservedSlots {
		if strings.HasPrefix(s.Name, prefix) {
			return fmt.Errorf("slot %s: names that begin with %s are %s", s.Name, prefix, whose)
		}
	}
	switch {
	case s.Type != Physical && s.Type != Logical:
		return fmt.Errorf("slot %s: type %q must be physical or logical", s.Name, s.Type)
	case s.Type == Physical && (s.Database != "" || s.Plugin != ""):
		return fmt.Errorf("slot %s: a physical slot has neither database nor plugin", s.Name)
	case s.Type == Logical && (s.Database == "" || s.Plugin == ""):
		return fmt.Errorf("slot %s: a logical slot needs a database and a plugin, for instance pgoutput", s.Name)
	}
	return nil
}

// same reports whether two slots are of one kind.
func (s Slot) same(o Slot) bool {
	return s.Name == o.Name && s.Type == o.Type && s.Database == o.Database && s.Plugin == o.Plugin
}

// String says what the slot is.
func (s Slot) String() string {
	if s.Type == Physical {
		return s.Name + " (physical)"
	}
	return fmt.Sprintf("%s (logical, database %s, plugin %s)", s.Name, s.Database, s.Plugin)
}

// HasLogicalSlots reports whether the group has permanent logical slots.
func (g Group) HasLogicalSlots() bool {
	return slices.ContainsFunc(g.Slots, func(s Slot) bool { return s.Type == Logical && !s.Dropped })
}

func (e entry) slotPut(c SlotPut) Result {
	g, ok := e.Groups[c.Group]
	if !ok {
		return refuse("group %d is not known", c.Group)
	}
	if err := c.Slot.Check(); err != nil {
		return refuse("%v", err)
	}
	c.Slot.Made, c.Slot.Dropped = false, false
	slots := slices.Clone(g.Slots)
	i := slices.IndexFunc(slots, func(s Slot) bool { return s.Name == c.Slot.Name })
	switch {
	case i >= 0 && !slots[i].Dropped && !slots[i].same(c.Slot):
		return refuse("slot %s is a permanent one already: drop it first", slots[i])
	case i >= 0 && !slots[i].Dropped && !c.Anew:
		return refuse("slot %s is permanent already", slots[i])
	case i < 0 && c.Anew:
		return refuse("slot %s is not a permanent one of group %d", c.Slot.Name, c.Group)
	case i >= 0:
		slots[i] = c.Slot
	default:
		if slots = forgetDropped(slots); len(slots) >= MaxSlots {
			return refuse("group %d has %d permanent slots already: drop one first", c.Group, MaxSlots)
		}
		slots = append(slots, c.Slot)
	}
	g.Slots = slots
	e.Groups[c.Group] = g
	text := "slot " + c.Slot.String() + " is permanent"
	if c.Anew {
		text = "slot " + c.Slot.String() + " may be made anew"
	}
	e.note(c.Group, History{Kind: "slot", Epoch: g.Epoch, Text: text})
	return done
}

// forgetDropped makes room: the oldest that is not wanted any more is forgotten.
func forgetDropped(slots []Slot) []Slot {
	if len(slots) < MaxSlots {
		return slots
	}
	if i := slices.IndexFunc(slots, func(s Slot) bool { return s.Dropped }); i >= 0 {
		return slices.Delete(slots, i, i+1)
	}
	return slots
}

func (e entry) slotDrop(c SlotDrop) Result {
	return e.slotChange(c.Group, c.Name, func(s *Slot) bool {
		s.Dropped = true
		e.note(c.Group, History{Kind: "slot", Epoch: e.Groups[c.Group].Epoch, Text: "slot " + s.String() + " is not wanted any more"})
		return true
	})
}

func (e entry) slotMade(c SlotMade) Result {
	return e.slotChange(c.Group, c.Name, func(s *Slot) bool {
		before := s.Made
		s.Made = true
		return !before
	})
}

func (e entry) slotChange(id GroupID, name string, change func(*Slot) bool) Result {
	g, ok := e.Groups[id]
	if !ok {
		return refuse("group %d is not known", id)
	}
	i := slices.IndexFunc(g.Slots, func(s Slot) bool { return s.Name == name && !s.Dropped })
	if i < 0 {
		return refuse("slot %s is not a permanent one of group %d", name, id)
	}
	slots := slices.Clone(g.Slots)
	if change(&slots[i]) {
		g.Slots = slots
		e.Groups[id] = g
	}
	return done
}

// DefaultSlotsTTL is member_slots_ttl where nobody has set it.
const DefaultSlotsTTL = 30 * time.Minute

// SlotsTTL is how long a member may not be heard of before it loses its replication slot; 0: for ever. A negative setting stands for that, as
// zero is what settings of older versions have.
func (s Settings) SlotsTTL() time.Duration {
	if s.MemberSlotsTTL == 0 {
		return DefaultSlotsTTL
	}
	return max(s.MemberSlotsTTL, 0)
}
