package pgmanager

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"matriarch/fsm"
	"matriarch/pgmanager/pgconf"
)

func TestPromotionPoint(t *testing.T) {
	n := newNode(t)
	id, err := n.InitDB(n.ctx())
	n.must(err)
	n.start()
	o := n.eventually("settles", func(o Observation) bool { return o.Settled })
	if !o.InRecovery || o.Timeline != 1 || o.SystemID != id || o.Position == 0 || o.Position != o.ReplayLSN || o.Receiver != nil {
		t.Fatalf("fresh standby: %+v", o)
	}
	if _, _, _, err := n.PromotionPoint(n.ctx()); err == nil {
		t.Fatal("a standby has a promotion point")
	}
	n.promote()
	tl, parent, fork := n.promotionPoint()
	if tl != 2 || parent != 1 || fork < o.Position {
		t.Fatalf("promotion made %d from %d at %s; the standby stood at %s", tl, parent, fork, o.Position)
	}
	p := n.answer()
	if p.InRecovery || p.Timeline != 2 || p.Position < fork || p.Version.Major() != n.tools.Version.Major() || p.PostmasterStart.IsZero() {
		t.Fatalf("primary: %+v", p)
	}
}

func TestCloneFollowsThroughItsSlot(t *testing.T) {
	p := primary(t)
	s := newNode(t)
	slot := pgconf.SlotName(s.id)
	if made, err := p.EnsureSlots(p.ctx(), []string{slot}); err != nil || !cmp.Equal(made, []string{slot}) {
		t.Fatalf("made %v: %v", made, err)
	}
	var last int64
	s.must(s.Clone(s.ctx(), p.upstream(s, epoch(1)), false, func(done, total int64) { last = max(last, done); _ = total }))
	if last < 10<<20 {
		t.Errorf("progress ended at %d bytes", last)
	}
	l, err := s.Local()
	s.must(err)
	if l.Unfinished != nil || !cmp.Equal(l.Lineage, map[fsm.Timeline]fsm.Epoch{2: epoch(1)}) || l.SystemID == "" {
		t.Fatalf("record after the clone: %+v", l)
	}
	s.follow(p, epoch(1))
	p.sql("CREATE TABLE public.t AS SELECT 1 AS a")
	at := p.answer().Position
	o := s.eventually("caught up", func(o Observation) bool { return o.ReplayLSN >= at })
	if o.Timeline != 2 || o.Receiver.SlotName != slot || o.Receiver.SenderPort != p.cfg.Port || o.Receiver.LastMsgAge <= 0 {
		t.Fatalf("standby: %+v %+v", o, o.Receiver)
	}
	po := p.eventually("sees the standby", func(o Observation) bool {
		return len(o.Senders) == 1 && o.Senders[0].FlushLSN >= at && !o.Senders[0].ReplyTime.IsZero()
	})
	snd := po.Senders[0]
	if snd.AppName != pgconf.AppName(s.id, epoch(1)) || snd.SlotName != slot || snd.State != "streaming" || snd.PID == 0 || snd.BackendStart.IsZero() {
		t.Fatalf("sender: %+v", snd)
	}
	if i := slices.IndexFunc(po.Slots, func(x Slot) bool { return x.Name == slot }); i < 0 || po.Slots[i].ActivePID != snd.PID || po.Slots[i].RestartLSN == 0 {
		t.Fatalf("slots: %+v", po.Slots)
	}
	if got := value[int](s, "SELECT a FROM public.t"); got != 1 {
		t.Fatalf("cloned table holds %d", got)
	}
}

func TestClearUpstreamEndsConfirmationsWhileReplayIsPaused(t *testing.T) {
	p := primary(t)
	s := clone(t, p, epoch(1))
	p.apply(Conf{Phase: pgconf.Members, Nodes: everyone, SyncNames: pgconf.SyncNames(1, []string{pgconf.AppName(s.id, epoch(1))})})
	p.must(p.Checkpoint(p.ctx())) // until the checkpointer has the names no commit waits
	p.sql("CREATE TABLE public.t (a int)")
	if _, err := p.FirstCommit(p.ctx(), epoch(1)); err != nil {
		t.Fatalf("with the standby streaming: %v", err)
	}
	s.sql("SELECT pg_wal_replay_pause()")
	s.eventually("pauses", func(o Observation) bool { return o.ReplayPaused && !o.Settled })

	s.must(s.Promise(epoch(2)))
	s.must(s.DropCredentialsBelow(epoch(2)))
	s.must(s.ClearUpstream(s.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))
	o := s.eventually("has no upstream", func(o Observation) bool { return o.Reachable && o.Conninfo == "" && o.SlotName == "" })
	if o.Receiver != nil {
		t.Fatalf("still follows: %+v", o)
	}
	before := o.Position
	if err := p.unconfirmed(epoch(1)); !errors.Is(err, ErrNotConfirmed) {
		t.Fatalf("the standby went on confirming: %v", err)
	}
	s.sql("SELECT pg_wal_replay_resume()")
	o = s.eventually("settles", func(o Observation) bool { return o.Settled })
	if o.Position != before || o.ReplayLSN > before || o.Receiver != nil {
		t.Fatalf("stood at %s, now %+v", before, o)
	}
	if _, err := s.WriteCredential(epoch(1), pgconf.Passwords); !errors.Is(err, ErrPromised) {
		t.Fatalf("credential of a promised-away epoch: %v", err)
	}
	waiting := func() int {
		return value[int](p, "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'matriarch first commit'")
	}
	for deadline := time.Now().Add(10 * time.Second); waiting() != 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d abandoned commits still wait on the server", waiting())
		}
	}
}

func TestDroppedCredentialKeepsTheReceiverOut(t *testing.T) {
	p := primary(t)
	s := clone(t, p, epoch(1))
	s.must(s.DropCredentialsBelow(epoch(2)))
	p.keepsOut(s) // primary_conninfo still names the old credential
	s.follow(p, epoch(2))
}

func TestAutoConfCannotBeatUs(t *testing.T) {
	p := primary(t)
	p.sql("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")
	p.sql("ALTER SYSTEM SET work_mem = '5MB'")
	p.apply(Conf{Phase: pgconf.Members, Nodes: everyone, SyncNames: pgconf.SyncNames(1, []string{"a"})})
	p.eventually("has our names", func(o Observation) bool { return o.SyncNames == `ANY 1 ("a")` })
	b, err := os.ReadFile(filepath.Join(p.cfg.DataDir, "postgresql.auto.conf"))
	p.must(err)
	if got := pgconf.ParseFile(b); !cmp.Equal(got, []pgconf.Setting{{Name: "work_mem", Value: "5MB"}}) {
		t.Fatalf("auto.conf: %+v", got)
	}

	// A line behind our include wins until the next start moves the include to the end; until then it is reported.
	conf := filepath.Join(p.cfg.DataDir, "postgresql.conf")
	good, err := os.ReadFile(conf)
	p.must(err)
	p.must(os.WriteFile(conf, append(slices.Clone(good), "synchronous_standby_names = 'ghost'\n"...), 0o600))
	contains(t, p.Reload(p.ctx()), "synchronous_standby_names", "ghost", conf)
	p.must(p.ensureInclude(p.cfg.DataDir))
	p.must(p.Reload(p.ctx()))

	p.must(os.WriteFile(conf, append([]byte("maintenance_work_mem = 'much'\n"), good...), 0o600))
	err = p.Reload(p.ctx())
	contains(t, err, "postgresql.conf line 1", "maintenance_work_mem")
	if !errors.Is(err, ErrRefusedSettings) {
		t.Fatalf("values were taken, yet: %v", err)
	}
	p.must(p.ClearUpstream(p.ctx(), Conf{Phase: pgconf.Members, Nodes: everyone}))

	p.must(os.WriteFile(conf, append([]byte("work_mem = = 1\n"), good...), 0o600))
	err = p.Reload(p.ctx())
	contains(t, err, "postgresql.conf line 1", "nothing was changed")
}

func TestHBAPhases(t *testing.T) {
	p := primary(t)
	p.sql("CREATE ROLE app LOGIN PASSWORD 'app'")
	for _, tc := range []struct {
		phase       pgconf.Phase
		boss, other string
	}{
		{pgconf.Open, "", ""},
		{pgconf.Closed, "28000", "28000"},
		{pgconf.Members, "", "28000"},
		{pgconf.Open, "", ""},
	} {
		p.apply(Conf{Phase: tc.phase, Nodes: everyone})
		boss, app := p.login("boss", p.cfg.SuperuserPassword, "postgres"), p.login("app", "app", "postgres")
		if boss != tc.boss || app != tc.other {
			t.Errorf("phase %s: superuser %q want %q, client %q want %q", tc.phase, boss, tc.boss, app, tc.other)
		}
		p.answer() // the manager is never locked out
	}
	if got := p.login("boss", "wrong", "postgres"); got != "28P01" {
		t.Errorf("wrong password: %q", got)
	}
}

// TestFirstCommitOnAChangedSystem: after an update of the C library PostgreSQL greets every session with a warning.
func TestFirstCommitOnAChangedSystem(t *testing.T) {
	p := primary(t)
	if p.tools.Version.Major() < 15 {
		t.Skip("this version does not record a database's collation version")
	}
	p.sql("UPDATE pg_database SET datcollversion = 'of an old system'")
	if _, err := p.FirstCommit(p.ctx(), epoch(1)); err != nil {
		t.Fatal(err)
	}
}

func TestFirstCommitWaitsForTheStandby(t *testing.T) {
	p := primary(t)
	alone, err := p.FirstCommit(p.ctx(), epoch(1))
	p.must(err)
	s := clone(t, p, epoch(1))
	s.end(3) // SIGQUIT
	p.apply(Conf{Phase: pgconf.Members, Nodes: everyone, SyncNames: pgconf.SyncNames(1, []string{pgconf.AppName(s.id, epoch(1))})})
	p.must(p.Checkpoint(p.ctx())) // until the checkpointer has the names no commit waits
	if err := p.unconfirmed(epoch(1)); !errors.Is(err, ErrNotConfirmed) {
		t.Fatalf("without a standby: %v", err)
	}
	type result struct {
		lsn fsm.LSN
		err error
	}
	done := make(chan result, 1)
	go func() {
		lsn, err := p.FirstCommit(p.ctx(), epoch(1))
		done <- result{lsn, err}
	}()
	s.follow(p, epoch(1))
	r := <-done
	if r.err != nil || r.lsn <= alone {
		t.Fatalf("with the standby back: %+v", r)
	}
	s.eventually("has what it confirmed", func(o Observation) bool { return o.Position >= r.lsn })

	// An operator who cancels the waiting backend makes it commit with a warning: no confirmation either.
	s.end(3)
	go func() {
		_, err := p.FirstCommit(p.ctx(), epoch(1))
		done <- result{err: err}
	}()
	for {
		p.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		select {
		case r := <-done:
			if !errors.Is(r.err, ErrNotConfirmed) {
				t.Fatalf("cancelled wait: %v", r.err)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestStandbyIsNoUpstream(t *testing.T) {
	p := primary(t)
	through, s := clone(t, p, epoch(1)), clone(t, p, epoch(1))
	through.apply(Conf{Phase: pgconf.Members, Nodes: everyone})
	if _, err := through.EnsureSlots(through.ctx(), []string{pgconf.SlotName(s.id)}); err != nil {
		t.Fatal(err)
	}
	up := through.upstream(s, epoch(1))
	s.apply(Conf{Phase: pgconf.Members, Nodes: everyone, Upstream: &up})
	log := func() string {
		text, _ := os.ReadFile(s.cfg.LogFile)
		return string(text)
	}
	s.eventually("is refused", func(Observation) bool { return strings.Contains(log(), "hot standby mode") })
	if o := s.answer(); o.Receiver != nil && o.Receiver.Status == "streaming" {
		t.Fatalf("streams from a standby: %+v", o.Receiver)
	}
	s.follow(p, epoch(1))
}
