package decide

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

var (
	cdc     = fsm.Slot{Name: "cdc", Type: fsm.Logical, Database: "app", Plugin: "pgoutput"}
	archive = fsm.Slot{Name: "archive", Type: fsm.Physical}
)

func made(s fsm.Slot) fsm.Slot    { s.Made = true; return s }
func dropped(s fsm.Slot) fsm.Slot { s.Dropped = true; return s }

func slot(w fsm.Slot, at fsm.LSN, edit ...func(*SlotSeen)) SlotSeen {
	s := SlotSeen{Name: w.Name, Type: w.Type, Database: w.Database, Plugin: w.Plugin, WALStatus: "reserved", Restart: at, CatalogXmin: 10}
	if w.Type == fsm.Logical {
		s.Confirmed = at
	}
	for _, f := range edit {
		f(&s)
	}
	return s
}

func lost(s *SlotSeen)     { s.WALStatus = "lost" }
func active(s *SlotSeen)   { s.Active = true }
func failover(s *SlotSeen) { s.Failover = true }
func synced(s *SlotSeen)   { s.Failover, s.Synced = true, true }

func seenSlots(s ...SlotSeen) []SlotSeen { return s }
func wants(s ...fsm.Slot) []fsm.Slot     { return s }

func TestPlanSlots(t *testing.T) {
	const pg15, pg17 = 150004, 170002
	for _, tc := range []struct {
		name string
		view SlotView
		want string
	}{
		{"nothing wanted", SlotView{Primary: true, Here: seenSlots(slot(fsm.Slot{Name: "theirs", Type: fsm.Physical}, 1), slot(fsm.Slot{Name: "citus_shard_move_slot_1", Type: fsm.Logical}, 1))}, ""},
		{"primary, physical", SlotView{Primary: true, Wanted: wants(archive)}, "S220 create archive"},
		{"primary, physical, again", SlotView{Primary: true, Wanted: wants(made(archive))}, "S220 create archive"},
		{"primary, logical", SlotView{Primary: true, Wanted: wants(cdc), Databases: []string{"app"}}, "S220 create cdc"},
		{"primary, logical, no database yet", SlotView{Primary: true, Wanted: wants(cdc), Databases: []string{"postgres"}}, "S210 tell cdc"},
		{"primary, logical, never behind its consumer's back", SlotView{Primary: true, Wanted: wants(made(cdc)), Databases: []string{"app"}}, "S200 tell cdc"},
		{"primary, just made", SlotView{Primary: true, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5))}, "S250 made cdc"},
		{"primary, at rest", SlotView{Primary: true, Wanted: wants(made(cdc)), Here: seenSlots(slot(cdc, 5))}, ""},
		{"primary, physical lost", SlotView{Primary: true, Wanted: wants(made(archive)), Here: seenSlots(slot(archive, 5, lost))}, "S240 drop archive"},
		{"primary, logical lost", SlotView{Primary: true, Wanted: wants(made(cdc)), Here: seenSlots(slot(cdc, 5, lost))}, "S230 tell cdc"},
		{"primary, logical lost and reset", SlotView{Primary: true, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, lost))}, "S240 drop cdc"},
		{"primary, other plugin", SlotView{Primary: true, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, func(s *SlotSeen) { s.Plugin = "test_decoding" }))}, "S120 tell cdc"},
		{"primary, not wanted any more", SlotView{Primary: true, Wanted: wants(dropped(cdc)), Here: seenSlots(slot(cdc, 5))}, "S100 drop cdc"},
		{"primary, not wanted but in use", SlotView{Primary: true, Wanted: wants(dropped(cdc)), Here: seenSlots(slot(cdc, 5, active))}, ""},
		{"primary 17, no failover slot", SlotView{Primary: true, Version: pg17, Wanted: wants(made(cdc)), Here: seenSlots(slot(cdc, 5))}, "S260 tell cdc"},
		{"primary 17", SlotView{Primary: true, Version: pg17, Wanted: wants(made(cdc)), Here: seenSlots(slot(cdc, 5, failover))}, ""},

		{"standby, primary lacks it", SlotView{Wanted: wants(cdc, archive)}, ""},
		{"standby, lost there", SlotView{Wanted: wants(cdc), There: seenSlots(slot(cdc, 5, lost))}, ""},
		{"standby, physical", SlotView{Wanted: wants(archive), There: seenSlots(slot(archive, 5))}, "S340 create archive"},
		{"standby, physical behind", SlotView{Wanted: wants(archive), Here: seenSlots(slot(archive, 5)), There: seenSlots(slot(archive, 9)), Replayed: 7}, "S370 advance archive to 0/7"},
		{"standby, physical ahead", SlotView{Wanted: wants(archive), Here: seenSlots(slot(archive, 10)), There: seenSlots(slot(archive, 9)), Replayed: 12}, ""},
		{"standby 15, logical", SlotView{Version: pg15, Wanted: wants(cdc), There: seenSlots(slot(cdc, 5))}, "S350 copy cdc"},
		{"standby 15, logical behind", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5)), There: seenSlots(slot(cdc, 9)), Replayed: 20}, "S370 advance cdc to 0/9"},
		{"standby 15, logical lost", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, lost)), There: seenSlots(slot(cdc, 9))}, "S330 drop cdc"},
		{"standby 15, rows not kept yet", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 9)), There: seenSlots(slot(cdc, 9)), Replayed: 20, Bounds: map[string]uint32{"cdc": 10}}, ""},
		{"standby 15, rows may be gone", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 9)), There: seenSlots(slot(cdc, 9)), Replayed: 20, Bounds: map[string]uint32{"cdc": 11}, Feedback: true}, ""},
		{"standby 15, whole", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 9)), There: seenSlots(slot(cdc, 9)), Replayed: 20, Bounds: map[string]uint32{"cdc": 10}, Feedback: true}, "S360 ready cdc to 0/9"},
		{"standby 15, whole, around the end of the numbers", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 9)), There: seenSlots(slot(cdc, 9)), Replayed: 20, Bounds: map[string]uint32{"cdc": 1<<32 - 5}, Feedback: true}, "S360 ready cdc to 0/9"},
		{"standby 15, known to be whole", SlotView{Version: pg15, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 9)), There: seenSlots(slot(cdc, 9)), Replayed: 20, Bounds: map[string]uint32{"cdc": 10}, Feedback: true, Ready: []string{"cdc"}}, ""},
		{"standby 17, copied", SlotView{Version: pg17, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, synced)), There: seenSlots(slot(cdc, 9, failover)), Replayed: 20}, ""},
		{"standby 17, its own from before", SlotView{Version: pg17, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, failover)), There: seenSlots(slot(cdc, 9, failover)), Replayed: 20}, "S310 drop cdc to 0/9"},
		{"standby 17, its own is the only one", SlotView{Version: pg17, Wanted: wants(cdc), Here: seenSlots(slot(cdc, 5, failover))}, ""},
		{"standby 17, not wanted any more", SlotView{Version: pg17, Wanted: wants(dropped(cdc)), Here: seenSlots(slot(cdc, 5, synced))}, ""},
		{"standby 17, somebody's failover slot from before", SlotView{Version: pg17, Here: seenSlots(slot(cdc, 5, failover)), There: seenSlots(slot(cdc, 9, failover))}, "S400 drop cdc"},
		{"standby, somebody's slot", SlotView{Version: pg17, Here: seenSlots(slot(cdc, 5)), There: seenSlots(slot(cdc, 9))}, ""},
	} {
		var got []string
		for _, s := range PlanSlots(tc.view) {
			text := fmt.Sprintf("%s %s %s", s.Rule, s.Do, s.Slot.Name)
			if s.To != 0 {
				text += " to " + s.To.String()
			}
			got = append(got, text)
			if s.Reason == "" {
				t.Errorf("%s: no reason", tc.name)
			}
		}
		if text := strings.Join(got, ", "); text != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, text, tc.want)
		}
	}
}

func TestUnready(t *testing.T) {
	v := SlotView{Primary: true, Version: 150000, Wanted: wants(made(cdc), made(archive)), Here: seenSlots(slot(cdc, 5), slot(archive, 5), slot(fsm.Slot{Name: "theirs", Type: fsm.Logical}, 5))}
	if got := Unready(v); len(got) != 1 || got[0].Name != "cdc" {
		t.Errorf("%v", got)
	}
	v.Ready = []string{"cdc"}
	if got := Unready(v); len(got) != 0 {
		t.Errorf("%v", got)
	}
	v.Ready, v.Version = nil, 170000
	if got := Unready(v); len(got) != 0 {
		t.Errorf("PostgreSQL 17 sees to that itself: %v", got)
	}
}

func TestSlotTroubles(t *testing.T) {
	v := SlotView{Primary: true, Wanted: wants(made(cdc), made(archive)), Here: seenSlots(
		slot(archive, 1, func(s *SlotSeen) { s.WALStatus = "unreserved" }), slot(fsm.Slot{Name: "m_a", Type: fsm.Physical}, 1),
		slot(fsm.Slot{Name: "citus_shard_move_slot_1", Type: fsm.Logical}, 1), slot(fsm.Slot{Name: "used", Type: fsm.Physical}, 1, active),
		slot(fsm.Slot{Name: "left", Type: fsm.Physical}, 1), slot(fsm.Slot{Name: "gone", Type: fsm.Physical}, 1, lost),
	)}
	want := "slot cdc: it did not get here before the failover"
	got := SlotTroubles(v, "m_")
	for _, w := range []string{want, "slot archive: the log that it needs is about to be removed", "slot left, which is none", "slot gone, which is none of Matriarch's, has lost"} {
		if !strings.Contains(got, w) {
			t.Errorf("%q lacks %q", got, w)
		}
	}
	if strings.Contains(got, "citus") || strings.Contains(got, "m_a") || strings.Contains(got, "used") {
		t.Error(got)
	}
}

// TestPlanSlotsIsSafe: no plan touches a slot in use or one that nobody spoke of, moves one beyond the primary's or what is replayed,
// or makes a logical slot again that has been there.
func TestPlanSlotsIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lsn := rapid.Map(rapid.Uint64Range(1, 20), func(n uint64) fsm.LSN { return fsm.LSN(n) })
		pool := []fsm.Slot{cdc, archive, {Name: "theirs", Type: fsm.Physical}, {Name: "citus_shard_move_slot_1", Type: fsm.Logical, Database: "app", Plugin: "pgoutput"}}
		version := rapid.SampledFrom([]int{150000, 170000}).Draw(t, "version")
		some := func(label string) (out []SlotSeen) {
			for _, s := range pool {
				if rapid.Bool().Draw(t, label+s.Name) {
					x := slot(s, lsn.Draw(t, "at"))
					x.Active, x.Failover = rapid.Bool().Draw(t, "active"), s.Type == fsm.Logical && version >= FailoverSlots && rapid.Bool().Draw(t, "failover")
					x.Synced = x.Failover && rapid.Bool().Draw(t, "synced")
					x.WALStatus = rapid.SampledFrom([]string{"reserved", "lost", "unreserved"}).Draw(t, "wal")
					x.CatalogXmin = rapid.Uint32().Draw(t, "xmin")
					out = append(out, x)
				}
			}
			return out
		}
		v := SlotView{
			Primary: rapid.Bool().Draw(t, "primary"), Version: version,
			Here: some("here"), Replayed: lsn.Draw(t, "replayed"), Feedback: rapid.Bool().Draw(t, "feedback"),
		}
		if !v.Primary {
			v.There = some("there")
		}
		for _, w := range pool[:2] {
			if rapid.Bool().Draw(t, "wanted"+w.Name) {
				w.Made, w.Dropped = rapid.Bool().Draw(t, "made"), rapid.Bool().Draw(t, "dropped")
				v.Wanted = append(v.Wanted, w)
			}
		}
		for _, s := range PlanSlots(v) {
			here, there := slotNamed(v.Here, s.Slot.Name), slotNamed(v.There, s.Slot.Name)
			wanted := slices.ContainsFunc(v.Wanted, func(w fsm.Slot) bool { return w.Name == s.Slot.Name })
			switch s.Do {
			case SlotDrop:
				if here.Active || here.Synced && !v.Primary || !wanted && (v.Primary || !here.Failover || there == nil) {
					t.Fatalf("%+v of %+v", s, here)
				}
			case SlotAdvance:
				if v.Primary || here.Active || s.To > there.at() || s.To > v.Replayed || s.To <= here.at() {
					t.Fatalf("%+v of %+v", s, here)
				}
			case SlotCreate:
				if here != nil || s.Slot.Dropped || s.Slot.Type == fsm.Logical && (s.Slot.Made || !v.Primary) {
					t.Fatalf("%+v", s)
				}
			case SlotCopy, SlotReady:
				if v.Primary || v.Version >= FailoverSlots || s.Slot.Type != fsm.Logical {
					t.Fatalf("%+v", s)
				}
			}
		}
	})
}
