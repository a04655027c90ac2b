package fsm

import "testing"

// links are settings that go a step of postgresql_tls.
func links(l LinkSecurity) SettingsPut {
	s := DefaultSettings()
	s.PostgresTLS = l
	return SettingsPut{s}
}

func TestLinksGoStepByStep(t *testing.T) {
	for _, tc := range []struct {
		from, to LinkSecurity
		ok       bool
	}{
		{"", LinksOn, false},
		{LinksOff, LinksOn, false},
		{LinksOn, LinksOff, false},
		{LinksOn, "", false},
		{"", LinksBoth, true},
		{LinksBoth, LinksOn, true},
		{LinksOn, LinksBoth, true},
		{LinksBoth, "", true},
		{LinksOn, LinksOn, true},
		{LinksBoth, "sometimes", false},
	} {
		s := NewState()
		s.Cluster.Settings = links(tc.from).Settings
		b, err := Encode(links(tc.to), "", epochZero)
		must(t, err)
		if _, res := Apply(s, 1, b); res.OK != tc.ok {
			t.Errorf("from %q to %q: %+v", tc.from, tc.to, res)
		}
	}
}
