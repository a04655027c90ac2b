// Package admintest holds a formation for the tests of everything that shows one. It is imported by tests only.
package admintest

import (
	"time"

	"matriarch/fsm"
	"matriarch/internal/admin"
	"matriarch/internal/agent"
	"matriarch/internal/conductor"
)

// Now is when the sample was taken.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Epoch is that of every lease in the sample.
var Epoch = fsm.Epoch{Inc: 1, N: 2}

// Nodes of the sample, with names that say their part. The id is "id-" and the name.
const (
	Coord1 = fsm.NodeID("id-coord-1") // primary of group 0, Raft leader
	Coord2 = fsm.NodeID("id-coord-2") // quorum standby
	Coord3 = fsm.NodeID("id-coord-3") // asynchronous standby: nosync
	Work1  = fsm.NodeID("id-work1-1") // quorum standby of group 1
	Work2  = fsm.NodeID("id-work1-2") // primary of group 1
)

// State is a healthy formation of two groups.
func State() *fsm.State {
	s := fsm.NewState()
	s.Index = 42
	s.Cluster = fsm.Cluster{ID: "0aaaaaaa-0000-4000-8000-000000000001", Incarnation: 1, Gate: 1, Settings: fsm.DefaultSettings()}
	for i, n := range []struct {
		id    fsm.NodeID
		group fsm.GroupID
		tags  fsm.Tags
		role  string
		lsn   fsm.LSN
	}{
		{Coord1, 0, fsm.Tags{}, "primary", 0x3000060},
		{Coord2, 0, fsm.Tags{FailoverPriority: 5}, "standby", 0x3000060},
		{Coord3, 0, fsm.Tags{NoSync: true, NoLoadBalance: true, User: map[string]string{"disk": "hdd"}}, "standby", 0x2000060},
		{Work1, 1, fsm.Tags{}, "standby", 0x5000000},
		{Work2, 1, fsm.Tags{}, "primary", 0x5000000},
	} {
		host := "10.0.0." + string(rune('1'+i))
		r := fsm.Report{
			At: Now, State: "streaming", Role: n.role, Timeline: 2, Receive: n.lsn, Replay: n.lsn, Epoch: Epoch, PGVersion: 150020, Rule: "R400",
		}
		if n.role == "primary" {
			r.State, r.Receive = "running", 0
		}
		s.Nodes[n.id] = fsm.Node{
			ID: n.id, Name: string(n.id[3:]), Group: n.group, Peer: host + ":7400", Postgres: host + ":5432", API: host + ":8008", Tags: n.tags,
			Version: "0.1.0", Protocol: 1, Joined: uint64(i + 1), Report: r,
		}
	}
	s.Groups[0] = group(0, Coord1, Coord2)
	s.Groups[1] = group(1, Work2, Work1)
	for g, holder := range map[fsm.GroupID]string{0: "coord-1", 1: "work1-2"} {
		s.History[g] = []fsm.History{
			{Index: 10, At: Now.Add(-time.Hour), Kind: "granted", Node: s.Groups[g].Lease.Holder, Epoch: Epoch, LSN: 0x2000000, Text: holder + " may become primary: best of 2 recruited"},
			{Index: 11, At: Now.Add(-time.Hour), Kind: "promoted", Node: s.Groups[g].Lease.Holder, Epoch: Epoch, Timeline: 2, LSN: 0x2000000, Text: holder + " left timeline 1 at 0/2000000 for timeline 2"},
		}
	}
	s.Tokens["a1b2c3d4"] = fsm.Token{ID: "a1b2c3d4", Hash: "hash-of-a-secret", Expires: Now.Add(24 * time.Hour), Uses: 3, Made: Now}
	return s
}

func group(id fsm.GroupID, holder, standby fsm.NodeID) fsm.Group {
	return fsm.Group{
		ID: id, Mode: fsm.Quorum, ClaimedBy: holder, SystemID: "7300000000000000001", Epoch: Epoch, LastHolder: holder,
		Lease: fsm.Lease{Holder: holder, Instance: "i-" + string(holder), Epoch: Epoch, TTL: 5 * time.Second},
		Sync:  fsm.Sync{Pairs: []fsm.Pair{fsm.NewPair(1, standby)}, Confirmed: Epoch},
		Grants: []fsm.Grant{
			{Holder: holder, Timeline: 1},
			{Epoch: Epoch, Holder: holder, Timeline: 2, Parent: 1, Fork: 0x2000000},
		},
	}
}

// Status is what the node answers. Coord1 leads and so knows plans, metadata and who is silent.
func Status(id fsm.NodeID) admin.Status {
	s := State()
	n := s.Nodes[id]
	st := admin.Status{
		Node: id, Name: n.Name, Version: "0.1.0", At: Now, State: s,
		Raft: admin.Raft{
			Leader: Coord1, State: "follower", Term: 3, Applied: 42, Commit: 42, LastContact: 120 * time.Millisecond,
			Suffrage: map[fsm.NodeID]string{Coord1: "voter", Coord2: "voter", Coord3: "nonvoter", Work1: "nonvoter", Work2: "voter"},
		},
		Self: self(n),
	}
	if id == Coord1 {
		st.Raft.Leads, st.Raft.State, st.Raft.LastContact, st.Raft.SlowestTick = true, "leader", 0, 12*time.Millisecond
		st.Heard = map[fsm.NodeID]time.Duration{}
		for _, x := range s.NodeIDs() {
			st.Heard[x] = 200 * time.Millisecond
		}
		st.Plans = map[fsm.GroupID]conductor.Decision{
			0: {At: Now, Rule: "C220", Name: "held", Reason: "coord-1 holds epoch 1.2, last heard 0.2s ago"},
			1: {At: Now, Rule: "C220", Name: "held", Reason: "work1-2 holds epoch 1.2, last heard 0.2s ago"},
		}
		st.Metadata = &conductor.MetadataReport{At: Now.Add(-time.Second), Synced: true}
	}
	return st
}

func self(n fsm.Node) *admin.Self {
	s := &admin.Self{
		Age: 100 * time.Millisecond, Rule: "R400", Name: "follows", Reason: "streams from the primary, 0 bytes behind", Since: Now.Add(-time.Hour), Instance: "i-" + string(n.ID),
		Sentinel: "ok", Report: n.Report, Postmaster: 300,
		Past:      []agent.Decision{{At: Now.Add(-time.Hour), Rule: "R400", Name: "follows", Reason: "streams from the primary, 0 bytes behind"}},
		Processes: admin.Processes{Agent: 100, Sentinel: 200, PostmasterStarted: Now.Add(-2 * time.Hour)},
		Postgres:  admin.Postgres{Reachable: true, InRecovery: true, Streaming: true, Phase: "open"},
	}
	if n.Report.Role == "primary" {
		s.Rule, s.Name, s.Reason = "R300", "primary", "writable under epoch 1.2, 4.2s of the lease left"
		s.Epoch, s.Writable, s.LeaseLeft = Epoch, true, 4200*time.Millisecond
		s.Postgres = admin.Postgres{Reachable: true, Phase: "open", Senders: []admin.Sender{{Node: "id-coord-2", Streaming: true}}}
	}
	return s
}
