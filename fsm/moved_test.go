package fsm

import (
	"reflect"
	"testing"
	"time"
)

// Ticks move nothing unless a report says something new; every other command that is carried out does.
func TestMoved(t *testing.T) {
	s := NewState()
	for _, c := range freed {
		next, res := play(t, s, c)
		if !res.OK || !Moved(s, next) {
			t.Errorf("%s: %+v, moved %v", c.Kind(), res, Moved(s, next))
		}
		s = next
	}
	report := Report{State: "streaming", Role: "standby", Timeline: 2, Receive: 100, Replay: 90, Rule: "R310"}
	s, _ = play(t, s, Tick{Reports: map[NodeID]Report{"b": report}})
	with := func(f func(*Report)) Tick {
		r := report
		f(&r)
		return Tick{Reports: map[NodeID]Report{"b": r}}
	}
	tests := []struct {
		name string
		cmd  Command
		want bool
	}{
		{"empty tick", Tick{}, false},
		{"positions", with(func(r *Report) { r.Receive, r.Replay = 200, 190 }), false},
		{"another rule", with(func(r *Report) { r.Rule = "R320" }), true},
		{"another state", with(func(r *Report) { r.State = "running" }), true},
		{"refused", Expire{0, ep(1)}, false},
		{"token", TokenPut{Token{ID: "t2", Uses: 1}}, true},
		{"token's end", TokenPut{Token{ID: "t", Expires: epochZero.Add(time.Hour)}}, true},
		{"settings", SettingsPut{Settings: func() Settings { c := s.Cluster.Settings; c.Databases = []string{"x"}; return c }()}, true},
		{"refused gate", GateSet{Gate: 2}, false},
		{"version", NodePut{Node: func() Node { n := s.Nodes["b"]; n.Protocol = Protocol; return n }()}, true},
		{"tags", NodePut{Node: func() Node { n := s.Nodes["b"]; n.Tags.User = map[string]string{"a": "b"}; return n }()}, true},
		{"removed", NodeRemove{Node: "w"}, true},
	}
	for _, tt := range tests {
		next, res := play(t, s, tt.cmd)
		if got := Moved(s, next); got != tt.want {
			t.Errorf("%s: moved %v, want %v (%+v)", tt.name, got, tt.want, res)
		}
	}
}

// A part that is added to the state must be compared as well.
func TestMovedKnowsAllParts(t *testing.T) {
	known := map[string]bool{"Index": true, "Requests": true, "Cluster": true, "Nodes": true, "Removed": true, "Groups": true, "Tokens": true, "History": true}
	for f := range reflect.TypeFor[State]().Fields() {
		if !known[f.Name] {
			t.Errorf("Moved does not compare State.%s", f.Name)
		}
	}
}
