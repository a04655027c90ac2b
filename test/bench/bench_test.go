package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"
)

var zero = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }

func op(from, to int, code string) sample { return sample{at(from), at(to), code} }

func TestLongestGap(t *testing.T) {
	tests := []struct {
		name    string
		samples []sample
		want    int
	}{
		{"begins before the event", []sample{op(-30, -20, ""), op(-10, 480, ""), op(490, 900, "")}, 500},
		{"errors are no success", []sample{op(-5, -1, ""), op(10, 20, "08006"), op(30, 40, "08006"), op(50, 300, ""), op(310, 1000, "")}, 700},
		{"one before the event does not count", []sample{op(-900, -800, ""), op(-400, -10, ""), op(0, 10, ""), op(10, 1000, "")}, 990},
		{"none after the event lasts to the end", []sample{op(-20, -10, "")}, 1010},
		{"none at all", nil, 1000},
		{"the tail counts", []sample{op(-5, -1, ""), op(0, 100, ""), op(100, 150, "")}, 850},
		{"what begins after the window does not", []sample{op(-5, -1, ""), op(0, 500, ""), op(500, 1000, ""), op(1000, 5000, "")}, 501},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := longestGap(tt.samples, at(0), at(1000)); got != time.Duration(tt.want)*time.Millisecond {
				t.Errorf("gap is %s, want %d ms", got, tt.want)
			}
		})
	}
}

func TestGapAtFindsTheLongestGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var samples []sample
		now := -200
		for range rapid.IntRange(0, 30).Draw(t, "count") {
			to := now + rapid.IntRange(1, 300).Draw(t, "took")
			samples = append(samples, op(now, to, rapid.SampledFrom([]string{"", "", "08006"}).Draw(t, "code")))
			now = to
		}
		event, end := at(0), at(max(now, 1))
		from, gap := gapAt(samples, event, end)
		if want := longestGap(samples, event, end); gap != want {
			t.Fatalf("gap %s, want %s", gap, want)
		}
		for _, s := range samples {
			if s.code == "" && s.to.After(from) && s.to.Before(from.Add(gap)) {
				t.Fatalf("a success at %s lies inside the gap of %s from %s", s.to.Sub(zero), gap, from.Sub(zero))
			}
		}
	})
}

func TestResult(t *testing.T) {
	c := &client{kind: kind{name: "insert", rows: 2}, acked: []int64{1, 3}, samples: []sample{
		op(-2500, -2400, "57P01"), op(-2300, -1990, ""), op(-1900, -1700, ""), op(-1700, -1500, ""), op(-1500, -50, ""), op(-20, 400, ""), op(400, 410, "57P01"), op(410, 1000, ""),
	}}
	want := clientResult{Client: "insert", GapMS: 600, SlowestMS: 590, CalmMS: 1450, Done: 6, Errors: map[string]int{"57P01": 1}, Acked: 4}
	if diff := cmp.Diff(want, c.result(at(0), at(1000))); diff != "" {
		t.Error(diff)
	}
}

func TestMissing(t *testing.T) {
	c := &client{kind: kind{rows: 2}, acked: []int64{10, 20, 30}, unknown: []int64{40, 50, 60}}
	there := map[int64]bool{10: true, 11: true, 20: true, 50: true, 51: true, 61: true}
	if lost, torn := c.missing(there); lost != 3 || torn != 1 {
		t.Errorf("lost %d, torn %d, want 3 and 1", lost, torn)
	}
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{7}, spread{7, 7, 7, 1}},
		{[]float64{9, 1}, spread{5, 1, 9, 2}},
		{[]float64{3, 9, 1}, spread{3, 1, 9, 3}},
		{[]float64{4, 1, 100, 2}, spread{3, 1, 100, 4}},
	} {
		if diff := cmp.Diff(tt.want, spreadOf(tt.values)); diff != "" {
			t.Errorf("%v: %s", tt.values, diff)
		}
	}
}

func TestCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("insert: %w", &pgconn.PgError{Code: "57P01"}), "57P01"},
		{errors.Join(syscall.ECONNREFUSED, &pgconn.PgError{Code: "57P03"}), "57P03"},
		{errors.Join(syscall.ECONNREFUSED, pgconn.ErrReadOnlyConnection), "no primary"},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), "refused"},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "connection lost"},
		{context.DeadlineExceeded, "timeout"},
		{errors.New("strange"), "other: strange"},
	} {
		if got := code(tt.err); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestPauseLine(t *testing.T) {
	line := `{"time":"2026-01-02T03:04:05.5Z","level":"info","msg":"pause over","lock":"12.5ms","rows":"3ms","write":"1.25ms","held":"1.2s"}`
	want := []step{{"lock", 12.5}, {"rows", 3}, {"write", 1.25}, {"held", 1200}}
	if diff := cmp.Diff(want, pauseLine([]byte(line), zero)); diff != "" {
		t.Error(diff)
	}
	for name, got := range map[string][]step{
		"an earlier pause": pauseLine([]byte(line), zero.Add(time.Second)),
		"another line":     pauseLine([]byte(`{"time":"2026-01-02T03:04:06Z","msg":"decided"}`), zero),
		"no time":          pauseLine([]byte(`{"msg":"pause over","lock":"1ms"}`), zero),
	} {
		if got != nil {
			t.Errorf("%s gives %v", name, got)
		}
	}
}

func TestChoose(t *testing.T) {
	got, err := choose("agent-kill, worker-switchover")
	if err != nil || len(got) != 2 || got[0].Name != "agent-kill" || got[1].Name != "worker-switchover" {
		t.Errorf("chose %v, %v", got, err)
	}
	if _, err := choose("worker-switchover,nothing"); err == nil || !strings.Contains(err.Error(), "there are worker-switchover,") {
		t.Errorf("an unknown name gives %v", err)
	}
	if all, err := choose(""); err != nil || len(all) != len(scenarios()) {
		t.Errorf("none named gives %d, %v", len(all), err)
	}
}

// fakeRun has every client wait for that long at the event.
func fakeRun(system string, gap int, failed string) run {
	sc := scenarios()[0]
	r := run{System: system, Scenario: sc.Name, At: zero, shown: 3 * time.Second, TookMS: 900, Failed: failed, Switched: switched{Steps: []step{{"check", float64(gap)}}, PausedMS: float64(gap)}}
	for _, k := range kinds() {
		c := client{kind: k, samples: []sample{op(-100, -90, ""), op(-20, -10, ""), op(-10, gap-10, ""), op(gap, gap+1, "08006"), op(gap+1, gap+9, ""), op(gap+9, 2999, "")}}
		r.samples = append(r.samples, c.samples)
		r.Clients = append(r.Clients, c.result(r.At, r.At.Add(r.shown)))
	}
	return r
}

func TestSummaryLeavesFailedRunsOut(t *testing.T) {
	res := &results{Systems: map[string]string{"matriarch": "", "patroni": ""}}
	for _, gap := range []int{2100, 2500, 2200} {
		res.Each = append(res.Each, fakeRun("matriarch", gap, ""))
	}
	res.Each = append(res.Each, fakeRun("matriarch", 2950, "it broke"), fakeRun("patroni", 2900, ""))
	scs := scenarios()[:1]
	res.summarise(scs)
	own, peer := res.Summary[0], res.Summary[1]
	if own.System != "matriarch" || own.Runs != 3 || own.Failed != 1 {
		t.Errorf("%s has %d runs, %d failed", own.System, own.Runs, own.Failed)
	}
	if diff := cmp.Diff(spread{2200, 2100, 2500, 3}, own.Clients[0].GapMS); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(spread{2200, 2100, 2500, 3}, own.PausedMS); diff != "" {
		t.Error(diff)
	}
	if own.Clients[0].Errors["08006"] != 3 || own.Clients[0].Ratio != 0 {
		t.Errorf("errors %v, ratio %v", own.Clients[0].Errors, own.Clients[0].Ratio)
	}
	if got, want := peer.Clients[0].Ratio, 2900.0/2200; got != want {
		t.Errorf("ratio %v, want %v", got, want)
	}
	text := res.table(scs)
	for _, want := range []string{"WORKER SWITCHOVER", "3 runs and 1 that FAILED", "3 x 08006", "check 2200 (2500)", "1.3"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestPictureIsWellFormed(t *testing.T) {
	sc := scenarios()[0]
	res := &results{Systems: map[string]string{"matriarch": "", "patroni": ""}, Each: []run{fakeRun("matriarch", 300, ""), fakeRun("patroni", 2500, "")}}
	dir := t.TempDir()
	if err := drawScenario(dir, sc, res); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, sc.Name+".svg"))
	if err != nil {
		t.Fatal(err)
	}
	paths := 0
	for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
			paths++
		}
	}
	// Per system two lines of the event, and per lane two of the grid, the successes and the errors.
	if want := 2 * (2 + len(kinds())*(len(gridLines())+2)); paths != want {
		t.Errorf("%d paths, want %d", paths, want)
	}
	for _, k := range kinds() {
		if !strings.Contains(string(b), k.name) {
			t.Errorf("no lane for %q", k.name)
		}
	}
}

func TestPatroniConfiguration(t *testing.T) {
	o := options{dir: t.TempDir(), pgBin: "/opt/pg/bin"}
	p := &patroni{
		dir: o.dir, pgBin: o.pgBin, uid: os.Getuid(), gid: os.Getgid(), etcdEndpoint: []string{"127.0.78.1:2379"},
		nodes: []patroniNode{{"work1-2", 1, "127.0.78.22", filepath.Join(o.dir, "work1-2")}},
	}
	if err := p.prepare(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p.nodes[0].config())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: work1-2\n", "  group: 1\n", "  bin_dir: /opt/pg/bin\n  pgpass:", "  hosts:\n  - 127.0.78.1:2379\ncitus:", "synchronous_mode: true"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in\n%s", want, b)
		}
	}
}
