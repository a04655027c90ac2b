package pgmanager

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

func TestInitDB(t *testing.T) {
	n := newNode(t)
	rest := n.cfg.DataDir + ".initdb"
	n.must(os.MkdirAll(filepath.Join(rest, "base"), 0o700))
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if _, err := n.InitDB(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("interrupted: %v", err)
	}
	if _, err := os.Stat(n.cfg.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an interrupted run left a data directory: %v", err)
	}
	if _, err := n.StartCommand(n.ctx()); err == nil {
		t.Fatal("an interrupted run can be started")
	}
	id, err := n.InitDB(n.ctx())
	n.must(err)
	again, err := n.InitDB(n.ctx())
	if err != nil || again != id || id == "" {
		t.Fatalf("first %s, again %s: %v", id, again, err)
	}
	c, err := n.ControlData(n.ctx())
	n.must(err)
	if c.SystemID != id || !c.Checksums || !c.Clean() || c.Timeline != 1 {
		t.Fatalf("control data: %+v", c)
	}
	if secrets, _ := filepath.Glob(filepath.Join(n.cfg.passDir(), "*")); len(secrets) != 0 {
		t.Fatalf("password files left: %v", secrets)
	}
	conf, err := os.ReadFile(filepath.Join(n.cfg.DataDir, "postgresql.conf"))
	n.must(err)
	if _, changed := pgconf.EnsureInclude(conf, n.cfg.managedFile()); changed || !exists(filepath.Join(n.cfg.DataDir, "standby.signal")) {
		t.Fatal("the new data directory could start without our settings or writable")
	}
	n.must(os.Remove(n.localFile()))
	if _, err := n.InitDB(n.ctx()); !errors.Is(err, ErrNotOurs) {
		t.Fatalf("over a foreign cluster: %v", err)
	}
}

func TestCloneSetsTheOldDirectoryAside(t *testing.T) {
	p := primary(t)
	s := newNode(t)
	_, err := s.InitDB(s.ctx())
	s.must(err)
	s.must(s.SetLineage(map[fsm.Timeline]fsm.Epoch{7: epoch(9)}))
	s.must(os.WriteFile(filepath.Join(s.cfg.DataDir, "precious"), []byte("x"), 0o600))

	other := p.upstream(s, epoch(1))
	other.SystemID = "42"
	if err := s.Clone(s.ctx(), other, false, nil); !errors.Is(err, ErrOtherSystem) {
		t.Fatalf("from another cluster: %v", err)
	}
	if l, err := s.Local(); err != nil || l.Unfinished != nil {
		t.Fatalf("a refused clone left its mark: %+v %v", l, err)
	}

	// Cancelled in the middle: the mark stays, nothing may be started, the old data is still there.
	p.sql("CREATE TABLE public.big AS SELECT repeat('x', 1000) FROM generate_series(1, 60000)")
	ctx, cancel := context.WithCancel(t.Context())
	err = s.Clone(ctx, p.upstream(s, epoch(1)), true, func(_, _ int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled clone: %v", err)
	}
	l, err := s.Local()
	s.must(err)
	if l.Unfinished == nil || l.Unfinished.Kind != "clone" {
		t.Fatalf("no mark: %+v", l)
	}
	if _, err := s.StartCommand(s.ctx()); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("start of an unfinished clone: %v", err)
	}
	if err := s.Rewind(s.ctx(), p.upstream(s, epoch(1)), 1, nil); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("rewind of an unfinished clone: %v", err)
	}

	s.must(s.Clone(s.ctx(), p.upstream(s, epoch(1)), false, nil))
	aside, _ := filepath.Glob(s.cfg.DataDir + ".set-aside-*")
	if len(aside) != 1 || !exists(filepath.Join(aside[0], "precious")) {
		t.Fatalf("set aside: %v", aside)
	}
	l, err = s.Local()
	s.must(err)
	if l.Unfinished != nil || !cmp.Equal(l.Lineage, map[fsm.Timeline]fsm.Epoch{2: epoch(1)}) {
		t.Fatalf("record: %+v", l)
	}
	// The clone brought the source's include along.
	conf, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "postgresql.conf"))
	s.must(err)
	if bytes.Contains(conf, []byte(p.cfg.RunDir)) || !bytes.Contains(conf, []byte(s.cfg.managedFile())) {
		t.Fatal("the clone reads the source's managed file")
	}
	s.follow(p, epoch(1))
	if err := s.Clone(s.ctx(), p.upstream(s, epoch(1)), false, nil); !errors.Is(err, ErrRunning) {
		t.Fatalf("over a running server: %v", err)
	}
}

// TestRewind: the old primary dies with writes that nobody else has, the standby is promoted, the old one comes back.
func TestRewind(t *testing.T) {
	for _, tc := range []struct {
		name string
		sig  syscall.Signal
	}{{"after a crash", syscall.SIGKILL}, {"after a clean stop", syscall.SIGINT}} {
		t.Run(tc.name, func(t *testing.T) { rewindAfter(t, tc.sig) })
	}
}

func rewindAfter(t *testing.T, sig syscall.Signal) {
	a := primary(t)
	b := clone(t, a, epoch(1))
	a.sql("CREATE TABLE public.w (who text)")
	at := a.answer().Position
	b.eventually("caught up", func(o Observation) bool { return o.ReplayLSN >= at })
	b.must(b.Promise(epoch(2)))
	b.must(b.DropCredentialsBelow(epoch(2)))
	b.must(b.ClearUpstream(b.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	a.sql("INSERT INTO public.w SELECT 'only on a' FROM generate_series(1, 10000)")
	a.end(sig)
	b.promote()
	b.must(b.SetLineage(map[fsm.Timeline]fsm.Epoch{3: epoch(2)}))
	b.sql("INSERT INTO public.w VALUES ('only on b')")
	_, _, fork := b.promotionPoint()
	h, err := b.History(3)
	b.must(err)
	c, err := a.ControlData(a.ctx())
	a.must(err)
	if sig == syscall.SIGINT && !pgconf.Diverged(h, 2, c.Checkpoint) {
		t.Fatalf("history %+v, old primary at %s", h, c.Checkpoint)
	}

	a.must(a.ensureSignal(a.cfg.DataDir)) // as left behind by a start that failed
	if err := a.Rewind(a.ctx(), b.upstream(a, epoch(2)), fork, nil); err != nil {
		t.Fatal(err)
	}
	l, err := a.Local()
	a.must(err)
	if l.Unfinished != nil || !cmp.Equal(l.Lineage, map[fsm.Timeline]fsm.Epoch{2: epoch(1), 3: epoch(2)}) {
		t.Fatalf("record: %+v", l)
	}
	if !asideHolds(t, a, "only on a") {
		t.Fatal("the log that the rewind took back was not kept")
	}
	a.follow(b, epoch(2))
	o := a.eventually("reaches the new timeline", func(o Observation) bool { return o.Timeline == 3 && o.Settled })
	if o.Position < fork {
		t.Fatalf("%+v", o)
	}
	if got := value[string](a, "SELECT string_agg(DISTINCT who, ',') FROM public.w"); got != "only on b" {
		t.Fatalf("after the rewind: %q", got)
	}
}

func asideHolds(t *testing.T, n *node, text string) bool {
	files, _ := filepath.Glob(filepath.Join(n.cfg.RunDir, "set-aside", "*", "*"))
	return slices.ContainsFunc(files, func(f string) bool {
		b, err := os.ReadFile(f)
		return err == nil && len(filepath.Base(f)) == 24 && bytes.Contains(b, []byte(text))
	})
}

// TestRewindKeepsLog: the rewound server replays from the beginning of a checkpoint that took long. Neither the crash recovery before the
// rewind nor what the new primary has recycled may take that log from it.
func TestRewindKeepsLog(t *testing.T) {
	a := primary(t)
	a.sql("ALTER SYSTEM SET wal_keep_size = 0")
	a.sql("ALTER SYSTEM SET checkpoint_timeout = '1h'")
	a.sql("ALTER SYSTEM SET checkpoint_completion_target = 0.9") // so it sleeps after every page, until this is changed
	b := clone(t, a, epoch(1))
	a.sql("SELECT pg_reload_conf()")
	a.sql("CREATE TABLE public.w (who text)")
	a.sql("INSERT INTO public.w SELECT 'on both' FROM generate_series(1, 60000)") // more than 300 pages
	begin := "SELECT pg_backup_start('slowly', false)"
	if value[int](a, "SELECT current_setting('server_version_num')::int") < 150000 {
		begin = "SELECT pg_start_backup('slowly', false, false)"
	}
	slowly := make(chan error, 1)
	go func() {
		slowly <- func() error {
			c, err := a.local(a.ctx())
			if err != nil {
				return err
			}
			defer closeConn(c)
			_, err = c.Exec(a.ctx(), begin)
			return err
		}()
	}()
	a.eventually("its checkpoint waits", func(Observation) bool {
		return value[bool](a, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'CheckpointWriteDelay')")
	})
	for range 4 {
		a.sql("INSERT INTO public.w VALUES ('on both')")
		a.sql("SELECT pg_switch_wal()")
	}
	a.sql("ALTER SYSTEM SET checkpoint_completion_target = 0")
	a.sql("SELECT pg_reload_conf()")
	a.must(<-slowly)
	c, err := a.ControlData(a.ctx())
	a.must(err)
	first := pgconf.SegmentName(2, c.Redo, c.SegmentSize)
	if first == pgconf.SegmentName(2, c.Checkpoint, c.SegmentSize) {
		t.Fatal("the checkpoint was too quick")
	}
	at := a.answer().Position
	b.eventually("caught up", func(o Observation) bool { return o.ReplayLSN >= at })
	b.must(b.ClearUpstream(b.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	a.sql("SELECT pg_switch_wal()")
	a.sql("INSERT INTO public.w VALUES ('only on a')")
	a.eventually("the standby is gone", func(o Observation) bool { return len(o.Senders) == 0 })
	a.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
	a.end(syscall.SIGKILL)
	b.promote()
	b.sql("CHECKPOINT")
	if _, err := os.Stat(filepath.Join(b.cfg.DataDir, "pg_wal", first)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the new primary still has %s: %v", first, err)
	}
	_, _, fork := b.promotionPoint()
	if err := a.Rewind(a.ctx(), b.upstream(a, epoch(2)), fork, nil); err != nil {
		t.Fatal(err)
	}
	a.follow(b, epoch(2))
	a.eventually("reaches the new timeline", func(o Observation) bool { return o.Timeline == 3 && o.Settled })
	if got := value[string](a, "SELECT string_agg(DISTINCT who, ',') FROM public.w"); got != "on both" {
		t.Fatalf("after the rewind: %q", got)
	}
}

// TestRewindFetchesLog: what the server has removed since the fork comes from the archive.
func TestRewindFetchesLog(t *testing.T) {
	archive, err := os.MkdirTemp("/tmp", "mpgarchive")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(archive) })
	if err := os.Chmod(archive, 0o755); err != nil { //nolint:gosec // postgres reads it
		t.Fatal(err)
	}
	a := primary(t)
	b := clone(t, a, epoch(1))
	a.sql("CHECKPOINT")
	a.sql("SELECT pg_switch_wal()")
	a.sql("CREATE TABLE public.w (who text)")
	at := a.answer().Position
	b.eventually("caught up", func(o Observation) bool { return o.ReplayLSN >= at })
	b.must(b.ClearUpstream(b.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	a.sql("INSERT INTO public.w VALUES ('only on a')")
	a.end(syscall.SIGINT)
	b.promote()
	_, _, fork := b.promotionPoint()
	wal := filepath.Join(a.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(wal)
	a.must(err)
	moved := 0
	for _, e := range entries {
		_, start, ok := pgconf.ParseSegmentName(e.Name(), 16<<20)
		if !ok || start+16<<20 > fork {
			continue
		}
		text, err := os.ReadFile(filepath.Join(wal, e.Name()))
		a.must(err)
		a.must(os.WriteFile(filepath.Join(archive, e.Name()), text, 0o644)) //nolint:gosec // postgres reads it
		a.must(os.Remove(filepath.Join(wal, e.Name())))
		moved++
	}
	if moved == 0 {
		t.Fatal("no log before the fork")
	}
	a.cfg.Parameters = map[string]string{"restore_command": "cp " + archive + "/%f %p"}
	_, err = a.Apply(Conf{})
	a.must(err)
	if err := a.Rewind(a.ctx(), b.upstream(a, epoch(2)), fork, nil); err != nil {
		t.Fatal(err)
	}
}

func TestFailedRewindLeavesTheMark(t *testing.T) {
	a := primary(t)
	b := clone(t, a, epoch(1))
	b.must(b.ClearUpstream(b.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	b.promote()
	a.end(syscall.SIGINT)
	_, _, fork := b.promotionPoint()
	n := a.tools
	a.tools.Dir = toolsWith(t, n, "pg_rewind", "#!/bin/sh\nrm -f \"${1#--target-pgdata=}/standby.signal\"\necho broke in the middle >&2\nexit 1\n")
	err := a.Rewind(a.ctx(), b.upstream(a, epoch(2)), fork, nil)
	contains(t, err, "pg_rewind", "broke in the middle")
	a.tools = n
	l, err := a.Local()
	a.must(err)
	if l.Unfinished == nil || !strings.Contains(l.Unfinished.Why, "broke in the middle") {
		t.Errorf("the record does not say why: %+v", l.Unfinished)
	}
	if _, err := a.StartCommand(a.ctx()); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("start of a half rewound directory: %v", err)
	}
	a.must(a.Clone(a.ctx(), b.upstream(a, epoch(2)), false, nil))
	a.follow(b, epoch(2))
}

// toolsWith makes a bin folder in which one program is replaced by a script.
func toolsWith(t *testing.T, from Tools, name, script string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "mpgbin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // postgres has to traverse it
		t.Fatal(err)
	}
	for _, n := range needed {
		if n != name {
			if err := os.Symlink(from.Path(n), filepath.Join(dir, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return dir
}

func TestStartCommandRefusals(t *testing.T) {
	n := newNode(t)
	_, err := n.InitDB(n.ctx())
	n.must(err)
	s, err := n.StartCommand(n.ctx())
	n.must(err)
	for _, want := range []string{"hba_file=" + n.cfg.hbaFile(), "restart_after_crash=off", "cluster_name=" + n.cfg.Name} {
		if !slices.Contains(s.Argv, want) {
			t.Errorf("command lacks %q: %q", want, s.Argv)
		}
	}
	for _, a := range append(slices.Clone(s.Argv), s.Env...) {
		if strings.Contains(a, n.cfg.SuperuserPassword) || strings.HasPrefix(a, "PG") || strings.Contains(a, "primary_conninfo") {
			t.Errorf("command has %q", a)
		}
	}
	if fi, err := os.Stat(n.cfg.RunDir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("run folder: %v %v", fi.Mode(), err)
	}

	n.must(os.Chmod(n.cfg.DataDir, 0o755)) //nolint:gosec // the mistake under test
	_, err = n.StartCommand(n.ctx())
	contains(t, err, "0755", "chmod 0700")
	n.must(os.Chmod(n.cfg.DataDir, 0o700)) //nolint:gosec // a folder

	version := filepath.Join(n.cfg.DataDir, "PG_VERSION")
	good, err := os.ReadFile(version)
	n.must(err)
	n.must(os.WriteFile(version, []byte("13\n"), 0o600))
	_, err = n.StartCommand(n.ctx())
	contains(t, err, "PostgreSQL 13", "--pg-bin")
	n.must(os.WriteFile(version, good, 0o600))

	n.must(os.Remove(filepath.Join(n.cfg.DataDir, "standby.signal")))
	_, err = n.StartCommand(n.ctx())
	n.must(err)
	if !exists(filepath.Join(n.cfg.DataDir, "standby.signal")) {
		t.Fatal("would start writable")
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	n.must(os.Chown(n.cfg.DataDir, 4242, 4242))
	_, err = n.StartCommand(n.ctx())
	contains(t, err, "uid 4242", "chown -R")
}

func TestRaisedLimits(t *testing.T) {
	n := primary(t)
	n.end(syscall.SIGINT)
	n.cfg.Parameters = map[string]string{"max_connections": "25"}
	_, err := n.Apply(Conf{})
	n.must(err)
	s, err := n.StartCommand(n.ctx())
	n.must(err)
	if !slices.Contains(s.Argv, "max_connections=40") || slices.ContainsFunc(s.Argv, func(a string) bool { return strings.HasPrefix(a, "max_wal_senders") }) {
		t.Fatalf("command: %q", s.Argv)
	}
	n.start() // with 25 the standby would refuse its own log
}
