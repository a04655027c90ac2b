package fsm

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata anew; only for commands that no release has written")

// everyCommand has one of each, with every field set: what a log of this version can hold.
func everyCommand() []Command {
	full := Node{
		ID: "b", Name: "beta", Group: 0, Peer: "b:7400", Postgres: "b:5432", API: "b:8008", Zone: "z1", Version: "1.0", Protocol: 1, Joined: 3,
		Tags: Tags{NoFailover: true, NoSync: true, NoLoadBalance: true, CloneFrom: true, NeverVoter: true, FailoverPriority: 5, User: map[string]string{"k": "v"}},
	}
	report := Report{
		State: "streaming", Role: "standby", Timeline: 2, Receive: 16, Replay: 15, Epoch: ep(1), PGVersion: 150004, Rule: "R340", Fence: "weak",
		Pending: true, SetAside: 1,
	}
	return []Command{
		boot,
		Join{full, "t"},
		NodePut{full},
		TokenPut{Token{ID: "u", Hash: "h", Expires: epochZero, Uses: 1, Made: epochZero}},
		TokenDrop{"u"},
		SettingsPut{DefaultSettings()},
		Claim{0, "a"},
		Initialised{0, "a", "7301", 1},
		Tick{map[NodeID]Report{"b": report}},
		GrantCmd{Group: 0, Holder: "a", Instance: "i", TTL: 5 * time.Second, Pair: NewPair(0), LSN: 7, Reason: "why", Adopt: 1},
		Promoted{0, ep(1), 1, 1, 100},
		SyncConfirm{0, ep(1), Pair{}},
		SyncPropose{Group: 0, Epoch: ep(1), Pair: NewPair(1, "b"), Reason: "why"},
		SyncConfirm{0, ep(1), NewPair(1, "b")},
		GroupSet{Group: 0, Mode: Quorum, Paused: new(false), Early: new(true)},
		OperationPut{Group: 0, Operation: Operation{ID: "o", Kind: "failover", To: "b", Phase: "p", By: "me", At: epochZero}},
		OperationDrop{Group: 0, ID: "o", Reason: "why"},
		OperationPut{Group: 0, Operation: Operation{
			ID: "s", Kind: "switchover", From: "a", To: "b", Force: true, Epoch: ep(1), By: "me", At: epochZero, Due: epochZero,
			Steps: []Step{{"check", 1}}, PausedMS: 1, Done: true, Outcome: "done",
		}},
		OperationMove{Group: 0, ID: "s", To: "check"},
		OperationMove{Group: 0, ID: "s", From: "check", To: "pause", Node: "b", Steps: []Step{{"check", 2}}, PausedMS: 1, Text: "why"},
		OperationDrop{Group: 0, ID: "s", Reason: "why", Cancel: true},
		Revoke{Group: 0, Epoch: ep(1), Reason: "why", Early: true},
		Expire{0, ep(1)},
		Release{Group: 0, Epoch: ep(1), Reason: "why"},
		Release{Group: 0, Epoch: ep(1), Reason: "why", Timeline: 1, LSN: 90},
		GateSet{1},
		Recovered{2},
		NodeRemove{"b"},
		GroupSet{Group: 0, Retired: new(true)},
		OperationPut{Group: 0, Operation: Operation{ID: "m", Kind: "switchover", To: "b", By: "me", At: epochZero, WaitMoves: time.Minute}},
		GroupSet{Group: 0, Mode: On, Strict: new(true), SyncCount: new(2), SyncLag: new(int64(9))},
		OperationPut{Group: 0, Operation: Operation{ID: "l", Kind: "failover", To: "b", AcceptLoss: true, By: "me", At: epochZero}},
		GroupSet{Group: 0, Failsafe: new(true)},
		EligibleSet{Group: 0, Epoch: ep(1), Nodes: []NodeID{"a"}},
		SlotPut{Group: 0, Slot: Slot{Name: "cdc", Type: Logical, Database: "app", Plugin: "pgoutput"}},
		SlotMade{0, "cdc"},
		SlotPut{Group: 0, Slot: Slot{Name: "cdc", Type: Logical, Database: "app", Plugin: "pgoutput"}, Anew: true},
		SlotPut{Group: 0, Slot: Slot{Name: "archive", Type: Physical}},
		SlotDrop{0, "archive"},
		Tick{map[NodeID]Report{"a": {State: "running", Role: "primary", Epoch: ep(1), Sick: "wal_hangs", SickText: "why"}}},
		GroupSet{Group: 0, Sick: new(false)},
		OperationPut{Group: 0, Operation: Operation{ID: "h", Kind: "switchover", To: "b", Sick: true, By: "matriarch", At: epochZero}},
		Revoke{Group: 0, Epoch: ep(1), Reason: "why", Sick: true},
		GrantCmd{Group: 0, Prev: ep(1), Holder: "a", Instance: "i", TTL: 5 * time.Second, Pair: NewPair(0), LSN: 110, Reason: "why", From: ep(1)},
	}
}

// TestOldLogsReplay: a log written by this version is in testdata for ever. A failure means that logs and snapshots of running
// clusters would be read differently: add a field or a command instead.
func TestOldLogsReplay(t *testing.T) {
	logFile, snapFile := filepath.Join("testdata", "log-v1.jsonl"), filepath.Join("testdata", "snapshot-v1.json")
	if *update {
		var log bytes.Buffer
		s := NewState()
		for i, c := range everyCommand() {
			id := "id-" + c.Kind()
			if i%2 == 0 {
				id = ""
			}
			b, err := Encode(c, id, epochZero)
			if err != nil {
				t.Fatal(err)
			}
			log.Write(append(b, '\n'))
			s, _ = Apply(s, uint64(i+1), b)
		}
		var snap bytes.Buffer
		if err := WriteSnapshot(&snap, s); err != nil {
			t.Fatal(err)
		}
		must(t, os.WriteFile(logFile, log.Bytes(), 0o644))
		must(t, os.WriteFile(snapFile, snap.Bytes(), 0o644))
	}
	log, err := os.ReadFile(logFile)
	must(t, err)
	want, err := os.ReadFile(snapFile)
	must(t, err)
	s := NewState()
	kinds := map[string]bool{}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	for i, line := range lines {
		var env Envelope
		must(t, json.Unmarshal([]byte(line), &env))
		kinds[env.Type] = true
		var res Result
		if s, res = Apply(s, uint64(i+1), []byte(line)); res.Fatal || strings.Contains(res.Reason, "decode") {
			t.Errorf("entry %d: %s", i+1, res.Reason)
		}
		cmd, err := decoders[env.Type](env.Body)
		must(t, err)
		again, err := Encode(cmd, env.ID, env.At)
		must(t, err)
		if string(again) != line {
			t.Errorf("the encoding of %s changed:\nwas %s\nis  %s", env.Type, line, again)
		}
	}
	for kind := range decoders {
		if !kinds[kind] {
			t.Errorf("no %s in %s", kind, logFile)
		}
	}
	var got bytes.Buffer
	must(t, WriteSnapshot(&got, s))
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("the log gives another state:\n%s", d)
	}
	read, err := ReadSnapshot(bytes.NewReader(want))
	must(t, err)
	if dump(t, read) != dump(t, s) {
		t.Error("the old snapshot is read differently")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
