package pgmanager

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Clones keep what they replace; only what came from a primary, every byte of it, is ever deleted.
func TestSetAsideLimit(t *testing.T) {
	p := primary(t)
	s := newNode(t, func(c *Config) { c.SetAsideLimit = 2 })
	clone := func(prefix bool) error { return s.Clone(s.ctx(), p.upstream(s, epoch(1)), prefix, nil) }
	asides := func() []Aside {
		t.Helper()
		all, err := s.SetAside()
		s.must(err)
		return all
	}
	s.must(clone(false))
	if n := len(asides()); n != 0 {
		t.Fatalf("%d set aside by the first clone", n)
	}
	s.must(clone(true))  // [prefix]
	s.must(clone(false)) // [prefix, unique]
	first := asides()
	if len(first) != 2 || !first[0].Note.Prefix || first[1].Note.Prefix || first[0].Note.For == "" {
		t.Fatalf("set aside: %+v", first)
	}
	s.must(clone(false)) // the prefix goes: [unique, unique]
	now := asides()
	if len(now) != 2 || now[0].Path != first[1].Path || now[1].Note.Prefix {
		t.Fatalf("set aside: %+v", now)
	}
	before, err := s.Local()
	s.must(err)
	if err := clone(true); !errors.Is(err, ErrAsideFull) || !strings.Contains(err.Error(), "2 allowed") {
		t.Fatalf("a third clone: %v", err)
	}
	if err := s.CloneRoom(s.ctx(), p.upstream(s, epoch(1))); !errors.Is(err, ErrAsideFull) {
		t.Fatalf("asked before: %v", err)
	}
	after, err := s.Local()
	s.must(err)
	if after.Unfinished != nil || before.SystemID != after.SystemID || len(asides()) != 2 || !s.HasData() {
		t.Fatalf("the refusal touched something: %+v", after)
	}
}

func TestCloneNeedsRoom(t *testing.T) {
	s := newNode(t)
	s.must(s.CloneFits(1 << 20))
	if err := s.CloneFits(math.MaxInt64 / 2); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("%v", err)
	}
}

// TestLogSetAsideNeedsRoom: without it the copies of one rewind after the other would take the disk that promises and Raft's log need.
func TestLogSetAsideNeedsRoom(t *testing.T) {
	s := newNode(t)
	_, err := s.InitDB(s.ctx())
	s.must(err)
	logs, err := filepath.Glob(filepath.Join(s.cfg.DataDir, "pg_wal", "0000*"))
	if err != nil || len(logs) == 0 {
		t.Fatal("no log", err)
	}
	s.must(os.Truncate(logs[0], 1<<42)) // a hole, but a copy would fill it: a file in the way keeps a broken version from trying
	base := filepath.Join(s.cfg.RunDir, "set-aside")
	s.must(errors.Join(s.makeRunDirs(), os.WriteFile(base, nil, 0o600)))
	if err := s.saveLog(s.ctx(), 0); !errors.Is(err, ErrNoRoom) {
		t.Errorf("%v", err)
	}
	s.must(errors.Join(os.Remove(base), os.Truncate(logs[0], 16<<20)))
	s.must(s.saveLog(s.ctx(), 0))
}

func TestRunHook(t *testing.T) {
	s := newNode(t)
	dir := filepath.Dir(s.cfg.DataDir)
	script := func(name, body string) []string {
		path := filepath.Join(dir, name)
		s.must(os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755)) //nolint:gosec // a program
		return []string{path, "one argument"}
	}
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	s.must(s.RunHook(s.ctx(), "h", script("good", `test "$1" = "one argument" && test "$MATRIARCH_EPOCH" = 1.2 && test -z "$SECRET_OF_THE_AGENT" && test $(id -u) != 0`), []string{"MATRIARCH_EPOCH=1.2"}))
	if err := s.RunHook(s.ctx(), "h", script("bad", "echo the reason >&2; exit 3"), nil); err == nil || !strings.Contains(err.Error(), "exit status 3: the reason") {
		t.Errorf("failing hook: %v", err)
	}
	if err := s.RunHook(s.ctx(), "h", []string{"/nowhere"}, nil); err == nil {
		t.Error("a missing program was run")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.RunHook(ctx, "h", script("slow", "sleep 600 & sleep 600"), nil); err == nil || !strings.Contains(err.Error(), "took longer") || time.Since(began) > 10*time.Second {
		t.Errorf("hanging hook, after %s: %v", time.Since(began), err)
	}
}
