package demo

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"matriarch/internal/admin"
	"matriarch/internal/admin/admintest"
)

func quiet(dir string) *Demo {
	return New(Config{Dir: dir, Exe: "/bin/false", Out: io.Discard, List: func(io.Writer, admin.Formation) {}})
}

func TestNodes(t *testing.T) {
	var got []string
	seen := map[string]bool{}
	for _, n := range quiet("/d").Nodes() {
		got = append(got, n.Name)
		if seen[n.IP] {
			t.Errorf("address %s twice", n.IP)
		}
		seen[n.IP] = true
	}
	if diff := cmp.Diff([]string{"coord-1", "coord-2", "coord-3", "work1-1", "work1-2", "work2-1", "work2-2"}, got); diff != "" {
		t.Error(diff)
	}
}

// sample is one node with everything running, and much that is not its own.
func sample(n Node) []process {
	return []process{
		{pid: 1, args: []string{"init"}, cwd: "/"},
		{pid: 100, parent: 1, args: []string{"/bin/matriarch", "run", "--config", n.configFile()}, cwd: "/"},
		{pid: 101, parent: 1, args: []string{"/bin/matriarch", "run", "--config", n.configFile() + ".other"}, cwd: "/"},
		{pid: 110, parent: 100, args: []string{"pg_basebackup"}, cwd: "/"},
		{pid: 200, parent: 1, args: []string{"/bin/matriarch", "sentinel", "--socket", n.socket()}, cwd: "/"},
		{pid: 300, parent: 200, args: []string{"postgres", "-D", n.dataDir()}, cwd: n.dataDir()},
		{pid: 301, parent: 300, args: []string{"postgres: checkpointer"}, cwd: n.dataDir()},
		{pid: 302, parent: 300, args: []string{"postgres: app"}, cwd: n.dataDir()},
		{pid: 303, parent: 302, args: []string{"sh"}, cwd: "/tmp"},
		{pid: 400, parent: 1, args: []string{"postgres"}, cwd: n.dataDir() + "2"},
		{pid: 500, parent: 1, args: []string{"vi", n.configFile()}, cwd: "/"},
	}
}

func TestPidsAndEverything(t *testing.T) {
	n := quiet("/d").Nodes()[0]
	all := sample(n)
	if diff := cmp.Diff(Pids{Agent: 100, Sentinel: 200, Postmaster: 300}, n.pids(all)); diff != "" {
		t.Error(diff)
	}
	pids := func(ps []process) (out []int) {
		for _, p := range ps {
			out = append(out, p.pid)
		}
		return out
	}
	if diff := cmp.Diff([]int{100, 110, 200, 300, 301, 302, 303}, pids(n.everything(all))); diff != "" {
		t.Error(diff)
	}
	if other := quiet("/d").Nodes()[1]; len(other.everything(all)) != 0 || other.pids(all) != (Pids{}) {
		t.Error("another node claims these processes")
	}
	// Orphans of a dead sentinel still count.
	orphans := []process{{pid: 301, parent: 1, cwd: n.dataDir()}, {pid: 302, parent: 1, cwd: n.dataDir()}}
	if diff := cmp.Diff([]int{301, 302}, pids(n.everything(orphans))); diff != "" {
		t.Error(diff)
	}
}

// TestKillAll kills real processes: only those that work in the data directory.
func TestKillAll(t *testing.T) {
	d := quiet(t.TempDir())
	n := d.Nodes()[0]
	for _, dir := range []string{n.dataDir(), n.dir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	start := func(dir string) (*exec.Cmd, chan error) {
		cmd := exec.Command("sleep", "600")
		cmd.Dir = dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, ended
	}
	_, inside := start(n.dataDir())
	_, outside := start(n.dir)
	if err := d.Kill(n.Name, ""); err != nil {
		t.Fatal(err)
	}
	select {
	case <-inside:
	case <-time.After(10 * time.Second):
		t.Error("the process in the data directory lives")
	}
	select {
	case <-outside:
		t.Error("a process elsewhere was killed")
	default:
	}
	if err := d.Kill(n.Name, "postmaster"); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Error(err)
	}
}

func TestLongestGap(t *testing.T) {
	at := func(ms ...int) (out []time.Time) {
		for _, m := range ms {
			out = append(out, admintest.Now.Add(time.Duration(m)*time.Millisecond))
		}
		return out
	}
	for name, c := range map[string]struct {
		times     []time.Time
		from, now int
		want      int
	}{
		"steady":                    {at(0, 10, 20, 30), 15, 35, 10},
		"outage":                    {at(0, 10, 500, 510), 15, 515, 490},
		"counts from the last ack":  {at(0, 300), 290, 305, 300},
		"an outage before is not":   {at(0, 800, 810, 820), 815, 825, 10},
		"still away":                {at(0, 10), 15, 900, 890},
		"nothing was acknowledged":  {nil, 100, 400, 300},
		"blow exactly at an answer": {at(0, 10, 200), 10, 205, 190},
	} {
		from, now := at(c.from)[0], at(c.now)[0]
		if got := longestGap(c.times, from, now); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("%s: %s, want %d ms", name, got, c.want)
		}
	}
}

// TestCount: what is lost and what is strange comes out exactly, whatever is there.
func TestCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var acked, unknown, present []int64
		var want tally
		for n := range int64(rapid.IntRange(0, 50).Draw(t, "attempts")) {
			there := rapid.Bool().Draw(t, "there")
			if there {
				present = append(present, n)
			}
			switch kind := rapid.IntRange(0, 2).Draw(t, "kind"); {
			case kind == 0 && there:
				acked, want.Present = append(acked, n), want.Present+1
			case kind == 0:
				acked, want.Lost = append(acked, n), want.Lost+1
			case kind == 1 && there:
				unknown, want.UnknownPresent = append(unknown, n), want.UnknownPresent+1
			case kind == 1:
				unknown = append(unknown, n)
			case there:
				want.Strange++
			}
		}
		want.Acknowledged, want.Unknown = len(acked), len(unknown)
		if diff := cmp.Diff(want, count(acked, unknown, present)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestMedian(t *testing.T) {
	runs := []Run{{Up: 3}, {Up: 1}, {Up: 2}}
	if got := median(runs, func(r Run) time.Duration { return r.Up }); got != 2 {
		t.Error(got)
	}
	if got := median(nil, func(r Run) time.Duration { return r.Up }); got != 0 {
		t.Error(got)
	}
}

func TestSummary(t *testing.T) {
	f := admin.NewFormation(admintest.Status(admintest.Coord1))
	if got := summary(f, 7, false); got != "5 of 7 nodes, 2 of 3 groups open, 2 of 4 standbys confirm commits" {
		t.Error(got)
	}
}

func TestProgressOffATerminal(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b, time.Now())
	for _, s := range []string{"a", "a", "b"} {
		p.show(s)
	}
	p.end()
	if strings.Count(b.String(), "\n") != 2 {
		t.Errorf("%q", b.String())
	}
}

// TestForeignDirectory is never touched.
func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := quiet(dir)
	if _, err := d.Up(t.Context(), false); err == nil || !strings.Contains(err.Error(), "not empty and not of a demo") {
		t.Errorf("up: %v", err)
	}
	if err := d.Down(t.Context(), false); err == nil {
		t.Error("down in a foreign directory")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestFailedShowLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	if err := quiet(dir).Show(context.WithoutCancel(t.Context()), true); err == nil {
		t.Fatal("a binary that only fails made a formation")
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
