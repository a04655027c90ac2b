package fsm

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// links are settings that go a step of postgresql_tls.
func links(l LinkSecurity) SettingsPut {
	s := DefaultSettings()
	s.PostgresTLS = l
	return SettingsPut{s}
}

// TestNewFieldsAreMarked: what holds a field that older binaries do not know says so, to them and to who proposes it.
func TestNewFieldsAreMarked(t *testing.T) {
	for _, tc := range []struct {
		links LinkSecurity
		want  int
	}{{"", 1}, {LinksOff, 1}, {LinksBoth, 2}, {LinksOn, 2}} {
		b, err := Encode(links(tc.links), "", epochZero)
		must(t, err)
		var env Envelope
		must(t, json.Unmarshal(b, &env))
		s := NewState()
		s.Cluster.Settings = links(tc.links).Settings
		var snap bytes.Buffer
		must(t, WriteSnapshot(&snap, s))
		var f snapshotFile
		must(t, json.Unmarshal(snap.Bytes(), &f))
		if env.V != tc.want || f.MinReader != tc.want {
			t.Errorf("%q: entry of version %d, snapshot for %d, want %d", tc.links, env.V, f.MinReader, tc.want)
		}
	}
	s := NewState()
	s.Nodes["a"] = Node{ID: "a", Name: "alpha", Version: "0.1.0", Protocol: 1}
	if res := s.Gated(links(LinksOn)); res.OK || !strings.Contains(res.Reason, "alpha runs matriarch 0.1.0") {
		t.Errorf("with an old node: %+v", res)
	}
	if res := s.Gated(links(LinksOff)); !res.OK {
		t.Errorf("what everybody knows: %+v", res)
	}
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
