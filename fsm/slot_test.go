package fsm

import (
	"strings"
	"testing"
)

func TestSlotCommands(t *testing.T) {
	logical := Slot{Name: "cdc", Type: Logical, Database: "app", Plugin: "pgoutput"}
	put := func(s Slot) SlotPut { return SlotPut{Group: 0, Slot: s} }
	for _, tc := range []struct {
		name   string
		first  []Command
		cmd    Command
		refuse string
	}{
		{"logical", nil, put(logical), ""},
		{"physical", nil, put(Slot{Name: "archive", Type: Physical}), ""},
		{"twice", []Command{put(logical)}, put(logical), "permanent already"},
		{"another of that name", []Command{put(logical)}, put(Slot{Name: "cdc", Type: Physical}), "drop it first"},
		{"after it was dropped", []Command{put(logical), SlotDrop{0, "cdc"}}, put(Slot{Name: "cdc", Type: Physical}), ""},
		{"anew", []Command{put(logical)}, SlotPut{Group: 0, Slot: logical, Anew: true}, ""},
		{"anew, unknown", nil, SlotPut{Group: 0, Slot: logical, Anew: true}, "not a permanent one"},
		{"a member's", nil, put(Slot{Name: "m_a", Type: Physical}), "members' own"},
		{"Citus'", nil, put(Slot{Name: "citus_shard_move_slot_1", Type: Physical}), "Citus'"},
		{"bad name", nil, put(Slot{Name: "A-b", Type: Physical}), "a-z"},
		{"no plugin", nil, put(Slot{Name: "a", Type: Logical, Database: "app"}), "needs a database and a plugin"},
		{"physical with database", nil, put(Slot{Name: "a", Type: Physical, Database: "app"}), "neither"},
		{"no type", nil, put(Slot{Name: "a"}), "physical or logical"},
		{"unknown group", nil, SlotPut{Group: 7, Slot: logical}, "group 7"},
		{"drop unknown", nil, SlotDrop{0, "cdc"}, "not a permanent one"},
		{"made unknown", nil, SlotMade{0, "cdc"}, "not a permanent one"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := play(t, NewState(), append([]Command{boot}, tc.first...)...)
			_, res := play(t, s, tc.cmd)
			if res.OK != (tc.refuse == "") || !strings.Contains(res.Reason, tc.refuse) {
				t.Errorf("%+v, want %q", res, tc.refuse)
			}
		})
	}
}

func TestSlotsAreRemembered(t *testing.T) {
	logical := Slot{Name: "cdc", Type: Logical, Database: "app", Plugin: "pgoutput"}
	s, _ := play(t, NewState(), boot, SlotPut{Group: 0, Slot: logical}, SlotMade{0, "cdc"})
	if got := s.Groups[0].Slots; len(got) != 1 || !got[0].Made || !s.Groups[0].HasLogicalSlots() {
		t.Fatalf("%+v", got)
	}
	before := s
	s, _ = play(t, s, SlotPut{Group: 0, Slot: logical, Anew: true})
	if s.Groups[0].Slots[0].Made || !before.Groups[0].Slots[0].Made {
		t.Errorf("%+v, and the state before %+v", s.Groups[0].Slots, before.Groups[0].Slots)
	}
	s, _ = play(t, s, SlotDrop{0, "cdc"})
	if got := s.Groups[0]; !got.Slots[0].Dropped || got.HasLogicalSlots() {
		t.Errorf("%+v", got.Slots)
	}
	for range 2 * MaxSlots { // names of dropped ones are forgotten, the oldest first
		name := "s" + strings.Repeat("x", len(s.Groups[0].Slots)) + string(rune('a'+s.Index%26))
		s, _ = play(t, s, SlotPut{Group: 0, Slot: Slot{Name: name, Type: Physical}}, SlotDrop{0, name})
	}
	if n := len(s.Groups[0].Slots); n > MaxSlots {
		t.Errorf("%d slots are remembered", n)
	}
}
