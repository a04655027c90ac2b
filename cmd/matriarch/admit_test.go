package main

import (
	"strings"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/transport"
)

func TestWhoMayJoin(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	defer func(v string) { version = v }(version)
	version = "1.4.0"
	s := fsm.NewState()
	s.Cluster.Settings = fsm.DefaultSettings()
	s.Tokens["good"] = fsm.Token{ID: "good", Hash: transport.HashSecret("s"), Expires: now.Add(time.Hour), Uses: 1}
	s.Tokens["used"] = fsm.Token{ID: "used", Hash: transport.HashSecret("s"), Expires: now.Add(time.Hour)}
	s.Tokens["old"] = fsm.Token{ID: "old", Hash: transport.HashSecret("s"), Expires: now.Add(-time.Second), Uses: 1}
	s.Groups[1] = fsm.Group{ID: 1, SystemID: "111"}
	s.Nodes["member"] = fsm.Node{ID: "member", Name: "work1-1", Group: 1, Report: fsm.Report{PGVersion: 150020}}
	good := transport.JoinRequest{TokenID: "good", Secret: "s", NodeID: "new", Group: 1, Version: "1.0.2", PGVersion: 15, Now: now}
	var before joins
	before.remember(transport.JoinRequest{NodeID: "repeats", CSR: []byte("a")})
	for name, tc := range map[string]struct {
		change func(*transport.JoinRequest)
		want   string // part of the refusal; empty: admitted
	}{
		"a good host":              {func(*transport.JoinRequest) {}, ""},
		"a development version":    {func(r *transport.JoinRequest) { r.Version = "dev" }, ""},
		"the first of a new group": {func(r *transport.JoinRequest) { r.Group, r.PGVersion = 2, 17 }, ""},
		"unknown token":            {func(r *transport.JoinRequest) { r.TokenID = "none" }, "not known"},
		"wrong secret":             {func(r *transport.JoinRequest) { r.Secret = "x" }, "not known"},
		"expired token":            {func(r *transport.JoinRequest) { r.TokenID = "old" }, "expired"},
		"used-up token":            {func(r *transport.JoinRequest) { r.TokenID = "used" }, "used up"},
		"replayed for a member":    {func(r *transport.JoinRequest) { r.TokenID, r.NodeID = "used", "member" }, "used up"},
		"and with another key":     {func(r *transport.JoinRequest) { r.TokenID, r.NodeID, r.CSR = "used", "repeats", []byte("b") }, "used up"},
		"a host asks once more":    {func(r *transport.JoinRequest) { r.TokenID, r.NodeID, r.CSR = "used", "repeats", []byte("a") }, ""},
		"clock behind":             {func(r *transport.JoinRequest) { r.Now = now.Add(-31 * time.Second) }, "clock"},
		"clock ahead":              {func(r *transport.JoinRequest) { r.Now = now.Add(31 * time.Second) }, "clock"},
		"clock just right":         {func(r *transport.JoinRequest) { r.Now = now.Add(30 * time.Second) }, ""},
		"another major version":    {func(r *transport.JoinRequest) { r.Version = "2.0.0" }, "version of the same major"},
		"another PostgreSQL":       {func(r *transport.JoinRequest) { r.PGVersion = 16 }, "PostgreSQL 16"},
		"another database cluster": {func(r *transport.JoinRequest) { r.SystemID = "222" }, "another database cluster"},
		"data for an empty group":  {func(r *transport.JoinRequest) { r.Group, r.SystemID = 2, "222" }, "--adopt"},
	} {
		r := good
		tc.change(&r)
		err := checkToken(s, r, now, before.again(r))
		if err == nil {
			err = checkNewcomer(s, r, now)
		}
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestTagsSurviveAJoin(t *testing.T) {
	want := fsm.Tags{NoSync: true, CloneFrom: true, FailoverPriority: 7, User: map[string]string{"rack": "b3"}}
	got := tagsFromWire(tagsToWire(want))
	if !sameNode(fsm.Node{Tags: got}, fsm.Node{Tags: want}) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
