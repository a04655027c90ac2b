package pgmanager

import (
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

func TestPlaceNeverClaimsATimelineBeforeItsFork(t *testing.T) {
	dir := t.TempDir()
	m := &Manager{cfg: Config{DataDir: dir}}
	if err := os.MkdirAll(filepath.Join(dir, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	history := filepath.Join(dir, "pg_wal", pgconf.HistoryName(3))
	if err := os.WriteFile(history, []byte("1\t0/2000000\tx\n2\t0/3000100\tx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		r := row{checkpoint: fsm.Timeline(rapid.IntRange(1, 3).Draw(t, "checkpoint")), minRecovery: 3, segmentSize: 16 << 20}
		o := Observation{
			InRecovery: true,
			ReceiveLSN: fsm.LSN(rapid.Uint64Range(0, 0x5000000).Draw(t, "receive")),
			ReplayLSN:  fsm.LSN(rapid.Uint64Range(1, 0x5000000).Draw(t, "replay")),
		}
		if rapid.Bool().Draw(t, "receiver") {
			o.Receiver = &Receiver{Timeline: 3}
		}
		if err := m.place(&o, r); err != nil {
			t.Fatal(err)
		}
		want := fsm.Timeline(3)
		if o.Position <= 0x2000000 {
			want = 1
		} else if o.Position <= 0x3000100 {
			want = 2
		}
		if o.Position < o.ReplayLSN || o.Position < o.ReceiveLSN || o.Timeline != want {
			t.Fatalf("%+v, want timeline %d", o, want)
		}
	})
}

func TestTitleIs(t *testing.T) {
	for _, tc := range []struct {
		title string
		want  bool
	}{
		{"postgres: n1: walreceiver streaming 0/3000060", true},
		{"postgres: n1: walreceiver", true},
		{"postgres: walreceiver ", true},
		{"postgres: a: b: walreceiver streaming 0/1", true},
		{"postgres: n1: walsender repl 127.0.0.1(1) streaming 0/1", false},
		{"postgres: n1: startup waiting for 000000010000000000000003", false},
		{"/usr/lib/postgresql/15/bin/postgres -D /x walreceiver", false},
		{"vim walreceiver", false},
		{"postgres: n1: walreceivers db", false},
	} {
		if got := titleIs(tc.title, "walreceiver"); got != tc.want {
			t.Errorf("%q: %v", tc.title, got)
		}
	}
}

func TestVerifier(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pw := rapid.StringMatching(`[ -~]{1,40}`).Draw(t, "password")
		v, err := verifier(pw, rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "salt"), 64)
		if err != nil || !verifierFits(v, pw) || verifierFits(v, pw+"x") {
			t.Fatalf("%q: %s %v", pw, v, err)
		}
	})
	for _, s := range []string{"", "md5abc", "SCRAM-SHA-256$x:y$z", "SCRAM-SHA-256$4096:!!$a:b"} {
		if verifierFits(s, "p") {
			t.Errorf("%q fits", s)
		}
	}
}

func TestProgress(t *testing.T) {
	for _, tc := range []struct {
		line        string
		done, total int64
		ok          bool
	}{
		{"      0/23104 kB (0%), 0/1 tablespace", 0, 23104 << 10, true},
		{"  23113/23104 kB (100%), 1/1 tablespace", 23113 << 10, 23104 << 10, true},
		{"waiting for checkpoint", 0, 0, false},
		{"99999999999999999999/1 kB (1%)", 0, 0, false},
	} {
		d, tot, ok := parseProgress(tc.line)
		if ok != tc.ok || (ok && (d != tc.done || tot != tc.total)) {
			t.Errorf("%q: %d %d %v", tc.line, d, tot, ok)
		}
	}
}
