package pgmanager

import (
	"syscall"
	"testing"

	"matriarch/fsm"
)

// TestEnded: a primary that stopped in order says where; who has that record has everything. Any other end says nothing.
func TestEnded(t *testing.T) {
	p := primary(t)
	s := clone(t, p, epoch(1))
	p.sql("CREATE TABLE public.t AS SELECT 1 AS a")
	p.must(p.FreshSegment(p.ctx()))
	p.end(syscall.SIGINT)
	tl, last, ok, err := p.Ended(p.ctx())
	p.must(err)
	if !ok || tl != 2 || last == 0 {
		t.Fatalf("timeline %d, last record at %s, in order %v", tl, last, ok)
	}
	o := s.eventually("has the end", func(o Observation) bool { return o.Receiver == nil && o.Settled && o.ReplayLSN > last })
	if got := value[int](s, "SELECT a FROM public.t"); got != 1 || o.ReplayLSN > last+1024 {
		t.Errorf("%d; the standby stands at %s", got, o.ReplayLSN)
	}

	s.end(syscall.SIGINT)
	if tl, last, ok, err := s.Ended(s.ctx()); err != nil || ok {
		t.Errorf("a standby claims to have ended as a primary: %d %s %v", tl, last, err)
	}
	p.start()
	p.promote()
	p.end(syscall.SIGQUIT)
	if tl, last, ok, err := p.Ended(p.ctx()); err != nil || ok {
		t.Errorf("a killed primary claims to have ended in order: %d %s %v", tl, last, err)
	}
}

// TestFreshSegment: what a new follower has to fetch again becomes little, and an idle server does not waste segments.
func TestFreshSegment(t *testing.T) {
	p := primary(t)
	p.sql("CREATE TABLE public.t AS SELECT repeat('x', 100) FROM generate_series(1, 10000)")
	const segment = 16 << 20
	at := func() fsm.LSN { return p.answer().CurrentLSN }
	if at()%segment < 65536 {
		t.Fatalf("the segment is hardly used: %s", at())
	}
	p.must(p.FreshSegment(p.ctx()))
	first := at()
	if first%segment > 65536 {
		t.Errorf("still at %s", first)
	}
	p.must(p.FreshSegment(p.ctx()))
	if next := at(); next/segment != first/segment {
		t.Errorf("went from %s to %s without need", first, next)
	}
}

// TestSpareSession: sessions are used again, but never one of an earlier run of the server.
func TestSpareSession(t *testing.T) {
	p := primary(t)
	p.must(p.Checkpoint(p.ctx()))
	first := p.spare.conn
	p.must(p.Checkpoint(p.ctx()))
	if first == nil || p.spare.conn != first {
		t.Error("the session was not used again")
	}
	p.end(syscall.SIGQUIT)
	p.start()
	p.promote()
	p.must(p.Checkpoint(p.ctx()))
	if p.spare.conn == first || p.spare.conn == nil {
		t.Error("a session of the earlier run is kept")
	}
	p.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'matriarch' AND pid <> pg_backend_pid()")
	p.must(p.Checkpoint(p.ctx()))
}
