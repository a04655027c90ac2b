package instance

import (
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
	"matriarch/internal/agent"
	"matriarch/pgmanager"
	"matriarch/pgmanager/pgconf"
)

const self, other, third fsm.NodeID = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002", "cccccccc-0000-4000-8000-000000000003"

func epoch(n uint64) fsm.Epoch { return fsm.Epoch{Inc: 1, N: n} }

func roster() agent.Roster {
	return agent.Roster{
		Self: self, Group: fsm.Group{Epoch: epoch(2), Grants: []fsm.Grant{{}, {Epoch: epoch(1)}, {Epoch: epoch(2)}}},
		Members: []fsm.Node{{ID: self, Postgres: "10.0.0.1:5432"}, {ID: other, Postgres: "10.0.0.2:5432"}, {ID: third, Postgres: "10.0.0.3:5432"}},
	}
}

func sender(id fsm.NodeID, e fsm.Epoch) pgmanager.Sender {
	return pgmanager.Sender{AppName: pgconf.AppName(id, e), SlotName: pgconf.SlotName(id), State: "streaming", FlushLSN: 90}
}

// One name, one vote: only a member that streams under its name of this epoch through its own slot counts.
func TestSenders(t *testing.T) {
	wrongSlot := sender(third, epoch(2))
	wrongSlot.SlotName = pgconf.SlotName(other)
	catching := sender(third, epoch(2))
	catching.State = "catchup"
	for name, tc := range map[string]struct {
		of   []pgmanager.Sender
		want []bool // other, third
	}{
		"both":          {[]pgmanager.Sender{sender(other, epoch(2)), sender(third, epoch(2))}, []bool{true, true}},
		"older epoch":   {[]pgmanager.Sender{sender(other, epoch(1)), sender(third, epoch(2))}, []bool{false, true}},
		"foreign slot":  {[]pgmanager.Sender{sender(other, epoch(2)), wrongSlot}, []bool{true, false}},
		"catching up":   {[]pgmanager.Sender{catching}, []bool{false, false}},
		"nobody at all": {nil, []bool{false, false}},
	} {
		got := senders(roster(), pgmanager.Observation{Senders: tc.of, CurrentLSN: 100})
		if len(got) != 2 || got[0].Streaming != tc.want[0] || got[1].Streaming != tc.want[1] {
			t.Errorf("%s: %+v, want %v", name, got, tc.want)
		}
		if got[1].Streaming && got[1].Lag != 10 {
			t.Errorf("%s: lag %d, want 10", name, got[1].Lag)
		}
	}
}

func TestReadConninfo(t *testing.T) {
	ci := func(host string, e fsm.Epoch) string {
		return pgconf.Conninfo{"host": host, "port": "5432", "application_name": pgconf.AppName(self, e)}.String()
	}
	for name, tc := range map[string]struct {
		in   string
		want decide.Conf
	}{
		"nobody":          {"", decide.Conf{}},
		"a member":        {ci("10.0.0.2", epoch(2)), decide.Conf{Upstream: other, Epoch: epoch(2)}},
		"of an old epoch": {ci("10.0.0.2", epoch(1)), decide.Conf{Upstream: other, Epoch: epoch(1)}},
		"a stranger":      {ci("10.9.9.9", epoch(2)), decide.Conf{Upstream: "10.9.9.9:5432"}},
	} {
		if got := readConninfo(roster(), tc.in); !got.Equal(tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// A walsender counts as reloaded only after two newer replies; one that began later has read the new list.
func TestReloaded(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	old, replies := map[int]time.Time{1: at(0), 2: at(0)}, map[int]int{}
	for i, step := range []struct {
		now  []pgmanager.Sender
		want bool
	}{
		{[]pgmanager.Sender{{PID: 1, ReplyTime: at(0)}, {PID: 2, ReplyTime: at(0)}}, false},
		{[]pgmanager.Sender{{PID: 1, ReplyTime: at(1)}, {PID: 2, ReplyTime: at(1)}}, false},
		{[]pgmanager.Sender{{PID: 1, ReplyTime: at(2)}, {PID: 2, ReplyTime: at(1)}}, false},
		{[]pgmanager.Sender{{PID: 1, ReplyTime: at(2)}, {PID: 3, ReplyTime: at(1)}}, true}, // 2 is gone, 3 is new
		{[]pgmanager.Sender{{PID: 1, ReplyTime: at(2)}, {PID: 2, ReplyTime: at(3)}}, true},
	} {
		if got := reloaded(step.now, old, replies); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

func TestSlotsWrong(t *testing.T) {
	slot := func(id fsm.NodeID, active bool, status string) pgmanager.Slot {
		return pgmanager.Slot{Name: pgconf.SlotName(id), Type: "physical", Active: active, WALStatus: status}
	}
	want := wantedSlots(roster())
	for name, tc := range map[string]struct {
		want  []string
		slots []pgmanager.Slot
		wrong bool
	}{
		"all there":              {want, []pgmanager.Slot{slot(other, true, "reserved"), slot(third, false, "reserved")}, false},
		"one missing":            {want, []pgmanager.Slot{slot(other, true, "reserved")}, true},
		"one lost":               {want, []pgmanager.Slot{slot(other, true, "reserved"), slot(third, false, "lost")}, true},
		"a stranger at rest":     {want, []pgmanager.Slot{slot(other, true, ""), slot(third, true, ""), slot(self, false, "")}, true},
		"a stranger in use":      {want, []pgmanager.Slot{slot(other, true, ""), slot(third, true, ""), slot(self, true, "")}, false},
		"the user's own":         {want, []pgmanager.Slot{slot(other, true, ""), slot(third, true, ""), {Name: "cdc", Type: "logical"}}, false},
		"standby, none":          {nil, nil, false},
		"standby, left from was": {nil, []pgmanager.Slot{slot(other, false, "reserved")}, true},
	} {
		if got := slotsWrong(tc.want, pgmanager.Observation{Slots: tc.slots}); got != tc.wrong {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSyncNames(t *testing.T) {
	e := fsm.Epoch{Inc: 1, N: 2}
	for name, tc := range map[string]struct {
		conf decide.Conf
		want string
	}{
		"standby":               {decide.Conf{Epoch: e, Upstream: "a"}, `ANY 1 ("m_nobody")`},
		"alone":                 {decide.Conf{Epoch: e}, ""},
		"any":                   {decide.Conf{Epoch: e, Sync: fsm.NewPair(2, "b", "c")}, `ANY 2 ("m_b_e1_2", "m_c_e1_2")`},
		"by priority":           {decide.Conf{Epoch: e, Sync: fsm.NewPair(1, "b", "c"), Order: []fsm.NodeID{"c", "b"}}, `FIRST 1 ("m_c_e1_2", "m_b_e1_2")`},
		"more than there are":   {decide.Conf{Epoch: e, Sync: fsm.NewPair(2, "b")}, `ANY 2 ("m_b_e1_2")`},
		"one, and nobody there": {decide.Conf{Epoch: e, Sync: fsm.NewPair(1)}, `ANY 1 ("m_nobody")`},
	} {
		if got := syncNames(tc.conf); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
