package instance

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/pgmanager/pgconf"
)

func TestSlotParameters(t *testing.T) {
	pair := fsm.NewPair(1, other, third)
	for _, tc := range []struct {
		name  string
		conf  decide.Conf
		major int
		want  map[string]string
	}{
		{"no logical slots", decide.Conf{Phase: decide.Open, Sync: pair}, 17, nil},
		{"primary 15", decide.Conf{Phase: decide.Open, Sync: pair, Logical: true}, 15, map[string]string{}},
		{"primary 17", decide.Conf{Phase: decide.Open, Sync: pair, Logical: true}, 17, map[string]string{"synchronized_standby_slots": pgconf.SlotName(other) + ", " + pgconf.SlotName(third)}},
		{"primary 17, nobody confirms", decide.Conf{Phase: decide.Open, Logical: true}, 17, map[string]string{"synchronized_standby_slots": ""}},
		{"about to be promoted: the slots are not there yet", decide.Conf{Phase: decide.Closed, Sync: pair, Logical: true}, 17, nil},
		{"standby 15", decide.Conf{Phase: decide.Open, Upstream: other, Logical: true}, 15, map[string]string{"hot_standby_feedback": "on"}},
		{"standby 17", decide.Conf{Phase: decide.Closed, Upstream: other, Logical: true}, 17, map[string]string{"hot_standby_feedback": "on", "sync_replication_slots": "on"}},
	} {
		if diff := cmp.Diff(tc.want, slotParameters(tc.conf, tc.major)); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func TestAbsentMembersHaveNoSlot(t *testing.T) {
	r := roster()
	if got := wantedSlots(r); !slices.Equal(got, []string{pgconf.SlotName(other), pgconf.SlotName(third)}) {
		t.Errorf("%v", got)
	}
	r.Absent = []fsm.NodeID{third}
	if got := wantedSlots(r); !slices.Equal(got, []string{pgconf.SlotName(other)}) {
		t.Errorf("%v", got)
	}
}

// TestStandbysTakeTurns: they are not restarted for slots at one moment, nor again and again.
func TestStandbysTakeTurns(t *testing.T) {
	r := roster()
	r.Group.Lease.Holder = other
	p := &Postgres{}
	if p.restartForSlots(r) {
		t.Error("nothing is lacking")
	}
	p.lack([]string{"cdc"})
	if !p.restartForSlots(r) {
		t.Error("the first standby waits")
	}
	r.Self = third
	if p.restartForSlots(r) {
		t.Error("the second does not wait")
	}
	p.slots.since = time.Now().Add(-copyStagger)
	if !p.restartForSlots(r) {
		t.Error("the second waits for ever")
	}
	p.slots.tried = time.Now()
	if p.restartForSlots(r) {
		t.Error("again at once")
	}
}
