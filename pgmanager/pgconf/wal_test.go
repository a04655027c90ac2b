package pgconf

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"matriarch/fsm"
)

const history3 = "1\t0/3000060\tno recovery target specified\n\n2\t0/5000100\tbefore x\n"

func TestHistory(t *testing.T) {
	h, err := ParseHistory(3, []byte("# comment\n"+history3))
	if err != nil {
		t.Fatal(err)
	}
	want := History{Timeline: 3, Entries: []HistoryEntry{{1, 0x3000060, "no recovery target specified"}, {2, 0x5000100, "before x"}}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Fatal(diff)
	}
	for _, tc := range []struct {
		lsn fsm.LSN
		at  fsm.Timeline
	}{{1, 1}, {0x3000060, 1}, {0x3000061, 2}, {0x5000100, 2}, {0x5000101, 3}} {
		if got := h.At(tc.lsn); got != tc.at {
			t.Errorf("at %s: timeline %d, want %d", tc.lsn, got, tc.at)
		}
	}
	for _, tc := range []struct {
		tl   fsm.Timeline
		lsn  fsm.LSN
		want bool
	}{{3, 1 << 40, false}, {2, 0x5000100, false}, {2, 0x5000101, true}, {1, 0x3000060, false}, {1, 0x3000061, true}, {4, 1, true}} {
		if got := Diverged(h, tc.tl, tc.lsn); got != tc.want {
			t.Errorf("(%d, %s) diverged: %v", tc.tl, tc.lsn, got)
		}
	}
	for _, bad := range []string{"x\t0/1\n", "1 0/1\n", "1\t0/0\n", "0\t0/1\n", "2\t0/2\tx\n1\t0/3\n", "1\t0/2\n2\t0/1\n", "3\t0/1\n", "1\n", "1\tzz"} {
		if h, err := ParseHistory(3, []byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, h)
		}
	}
}

func TestFork(t *testing.T) {
	line := func(tl fsm.Timeline, entries ...HistoryEntry) History { return History{Timeline: tl, Entries: entries} }
	one := HistoryEntry{Timeline: 1, End: 100}
	for _, tc := range []struct {
		name string
		a, b History
		tl   fsm.Timeline
		lsn  fsm.LSN
	}{
		{"same", line(2, one), line(2, one), 2, 1<<64 - 1},
		{"parent", line(1), line(2, one), 1, 100},
		{"siblings", line(2, HistoryEntry{Timeline: 1, End: 90}), line(3, one), 1, 90},
		{"cousins", line(3, one, HistoryEntry{Timeline: 2, End: 200}), line(4, one, HistoryEntry{Timeline: 2, End: 150}), 2, 150},
		{"strangers", line(5, HistoryEntry{Timeline: 4, End: 9}), line(2, one), 0, 0},
	} {
		for _, swap := range []bool{false, true} {
			a, b := tc.a, tc.b
			if swap {
				a, b = b, a
			}
			if tl, lsn := Fork(a, b); tl != tc.tl || lsn != tc.lsn {
				t.Errorf("%s: %d at %s", tc.name, tl, lsn)
			}
		}
	}
}

// Nothing on a server's own line has diverged from it, and one byte behind a fork always has.
func TestDivergedAgreesWithAt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 5).Draw(t, "forks")
		var text strings.Builder
		end := uint64(0)
		for i := range n {
			end += rapid.Uint64Range(1, 1<<30).Draw(t, "length")
			fmt.Fprintf(&text, "%d\t%s\tx\n", i+1, fsm.LSN(end))
		}
		h, err := ParseHistory(fsm.Timeline(n+1), []byte(text.String()))
		if err != nil {
			t.Fatal(err)
		}
		lsn := fsm.LSN(rapid.Uint64Range(1, 1<<33).Draw(t, "lsn"))
		if Diverged(h, h.At(lsn), lsn) {
			t.Fatalf("(%d, %s) diverged from its own line", h.At(lsn), lsn)
		}
		for _, e := range h.Entries {
			if !Diverged(h, e.Timeline, e.End+1) || Diverged(h, e.Timeline, e.End) {
				t.Fatalf("wrong at the end of timeline %d", e.Timeline)
			}
		}
	})
}

func TestSegmentNames(t *testing.T) {
	for _, tc := range []struct {
		tl   fsm.Timeline
		lsn  fsm.LSN
		size uint64
		want string
	}{
		{1, 0x3000060, 16 << 20, "000000010000000000000003"},
		{0x1A, 0x1_FF000000, 16 << 20, "0000001A00000001000000FF"},
		{2, 0x2_40000000, 1 << 30, "000000020000000200000001"},
		{1, 0xFFFFF, 1 << 20, "000000010000000000000000"},
	} {
		if got := SegmentName(tc.tl, tc.lsn, tc.size); got != tc.want {
			t.Errorf("%s", got)
		}
	}
	for _, bad := range []string{"00000001000000000000010", "0000000100000000000001FF", "00000002.history", "000000010000000000000003.partial", "00000001000000000000000g", "+00000010000000000000003"} {
		if tl, lsn, ok := ParseSegmentName(bad, 16<<20); ok {
			t.Errorf("%q: %d %s", bad, tl, lsn)
		}
	}
	if _, _, ok := ParseSegmentName("000000010000000000000003", 3); ok {
		t.Error("segment size 3")
	}
	rapid.Check(t, func(t *rapid.T) {
		size := uint64(1) << rapid.IntRange(20, 30).Draw(t, "size")
		tl := fsm.Timeline(rapid.Uint32().Draw(t, "tl"))
		lsn := fsm.LSN(rapid.Uint64().Draw(t, "lsn"))
		gotTL, start, ok := ParseSegmentName(SegmentName(tl, lsn, size), size)
		if !ok || gotTL != tl || uint64(start) != uint64(lsn)/size*size {
			t.Fatalf("%d %s %v", gotTL, start, ok)
		}
		head := make([]byte, 16)
		binary.NativeEndian.PutUint64(head[8:], uint64(start))
		if !SegmentUsed(head, start) || SegmentUsed(head, start+fsm.LSN(size)) || SegmentUsed(head[:9], start) {
			t.Fatal("page address")
		}
	})
}

func TestParsePidFile(t *testing.T) {
	full := "4711\n/data\n1763843000\n5432\n/run/pg\n127.0.0.1\n 131085 7\nready   \n"
	want := PidFile{PID: 4711, DataDir: "/data", Started: time.Unix(1763843000, 0).UTC(), Port: 5432, SocketDir: "/run/pg", ListenAddr: "127.0.0.1", Status: "ready"}
	if got, err := ParsePidFile([]byte(full)); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := ParsePidFile([]byte("-12\n/data\n")); err != nil || got.PID != 12 || got.DataDir != "/data" || !got.Started.IsZero() {
		t.Errorf("short: %+v %v", got, err)
	}
	for _, bad := range []string{"", "x\n", "0\n", "1\n/d\nsoon\n", "1\n/d\n5\nport\n"} {
		if got, err := ParsePidFile([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

const controlSample = `pg_control version number:            1300
Database system identifier:           7575757575757575757
Database cluster state:               shut down in recovery
Latest checkpoint location:           0/5000028
Latest checkpoint's REDO location:    0/5000000
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   1
Minimum recovery ending location:     0/50000D8
Min recovery ending loc's timeline:   3
wal_level setting:                    logical
wal_log_hints setting:                on
max_connections setting:              200
max_worker_processes setting:         24
max_wal_senders setting:              10
max_prepared_xacts setting:           400
max_locks_per_xact setting:           64
Bytes per WAL segment:                16777216
Data page checksum version:           1
`

func TestParseControlData(t *testing.T) {
	got, err := ParseControlData([]byte(controlSample))
	want := ControlData{
		SystemID: "7575757575757575757", State: "shut down in recovery", Checkpoint: 0x5000028, Redo: 0x5000000, Timeline: 2, PrevTimeline: 1,
		MinRecoveryEnd: 0x50000D8, MinRecoveryTimeline: 3, SegmentSize: 16 << 20, WALLevel: "logical", WALLogHints: true, Checksums: true,
		MaxConnections: 200, MaxWorkerProcesses: 24, MaxWALSenders: 10, MaxPreparedXacts: 400, MaxLocksPerXact: 64,
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if !got.Clean() || got.LastTimeline() != 3 || (ControlData{State: "in production"}).Clean() {
		t.Error("state")
	}
	for line := range strings.Lines(controlSample) {
		if strings.HasPrefix(line, "pg_control version") {
			continue
		}
		if _, err := ParseControlData([]byte(strings.Replace(controlSample, line, "", 1))); err == nil {
			t.Errorf("accepted without %q", line)
		}
	}
	if _, err := ParseControlData([]byte(strings.Replace(controlSample, "7575", "\n7575", 1))); err == nil {
		t.Error("accepted without a system identifier")
	}
	if _, err := ParseControlData([]byte(strings.Replace(controlSample, "16777216", "17", 1))); err == nil {
		t.Error("accepted segment size 17")
	}
}

func TestHistoryName(t *testing.T) {
	if tl, ok := ParseHistoryName(HistoryName(0x1A)); !ok || tl != 0x1A {
		t.Error(tl, ok)
	}
	for _, bad := range []string{"00000000.history", "0000001a.history", "1.history", "00000001", "00000001.history.tmp"} {
		if _, ok := ParseHistoryName(bad); ok {
			t.Errorf("%q", bad)
		}
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(3), []byte(history3))
	f.Fuzz(func(t *testing.T, tl uint32, b []byte) {
		h, err := ParseHistory(fsm.Timeline(tl), b)
		if err != nil {
			return
		}
		if got := h.At(1 << 63); len(h.Entries) == 0 && got != h.Timeline {
			t.Fatal(got)
		}
		if got, _ := Fork(h, h); got != h.Timeline {
			t.Fatalf("forked from itself on %d", got)
		}
	})
}

func FuzzParseControlData(f *testing.F) {
	f.Add([]byte(controlSample))
	f.Add([]byte(strings.ReplaceAll(controlSample, "\n", "\r\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseControlData(b)
		if err != nil {
			return
		}
		if !ValidSegmentSize(c.SegmentSize) || c.SystemID == "" {
			t.Fatalf("read as %+v", c)
		}
		// A line too many, as newer versions bring, changes nothing.
		if more, err := ParseControlData(append([]byte("Something new:  1\n"), b...)); err != nil || !cmp.Equal(c, more) {
			t.Fatalf("with a line more: %+v, then %+v, %v", c, more, err)
		}
	})
}

func FuzzParseFormats(f *testing.F) {
	f.Add([]byte("4711\n/data\n1763843000\n5432\n"), "000000010000000000000003", "15.18")
	f.Add([]byte("-4711\n/data\n1763843000\n5432\n"), "00000002.history", "18beta1")
	f.Fuzz(func(t *testing.T, b []byte, name, version string) {
		if p, err := ParsePidFile(b); err == nil && p.PID <= 0 {
			t.Fatalf("pid %d", p.PID)
		}
		if tl, start, ok := ParseSegmentName(name, 1<<24); ok && SegmentName(tl, start, 1<<24) != name {
			t.Fatal(name)
		}
		if v, err := ParseVersion(version); err == nil && v < 0 {
			t.Fatal(v)
		}
	})
}
