package agent

import (
	"context"
	"slices"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

const (
	// tryEvery is the pace while nothing changes: a new session costs some milliseconds of processor time.
	tryEvery = 2 * time.Second
	// turnEvery is the pace while looks disagree with what is told.
	turnEvery = 500 * time.Millisecond
	// maxTrials is how many trials may hang at once. They are not given up, since each holds a process of PostgreSQL that would stay
	// behind, and since the first to end in good order shows that it is well.
	maxTrials = 2
)

// trial is a session that has not ended.
type trial struct {
	began     time.Time
	cancel    context.CancelFunc
	connected bool
}

// tidings are what a trial says: that its session is there, or how it ended.
type tidings struct {
	of    *trial
	ended bool
	decide.Trial
}

// examiner finds out whether PostgreSQL is sick; one goroutine owns it.
type examiner struct {
	a       *Agent
	server  int // pid of the postmaster the trials are of; 0: none
	primary bool
	remains bool     // the postmaster is gone, and processes of it are not
	open    []*trial // oldest first
	last    decide.Trial
	next    time.Time // when another may begin
	said    chan tidings

	disks  []decide.Disk
	looked chan []decide.Disk
	asked  time.Time // when a look at the disks began that has not ended; zero: none

	course decide.Course
	warned string
}

// examine runs until ctx ends. A look that hangs with its disk is left behind.
func (a *Agent) examine(ctx context.Context) {
	e := &examiner{a: a, said: make(chan tidings), looked: make(chan []decide.Disk, 1)}
	defer e.drop()
	for {
		e.begin(ctx)
		t := time.NewTimer(e.pace())
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case x := <-e.said:
			e.take(x)
		case e.disks = <-e.looked:
			began := e.asked
			e.asked = time.Time{}
			e.judge(began)
		case <-t.C:
			e.judge(time.Time{})
		}
		t.Stop()
	}
}

func (e *examiner) patience() time.Duration {
	return e.a.cfg.Control.State().Cluster.Settings.Patience()
}

func (e *examiner) pace() time.Duration {
	if e.course.Turning() || len(e.open) > 0 || !e.asked.IsZero() {
		return turnEvery
	}
	return max(time.Until(e.next), time.Millisecond)
}

// begin starts what is due: a trial, or a second one while the first hangs, and a look at the disks.
func (e *examiner) begin(ctx context.Context) {
	st := e.a.sentinel.get()
	if e.a.stopping.Load() > 0 && !st.Remains {
		st.Postmaster = 0 // as good as gone
	}
	if st.Postmaster != e.server || st.Primary != e.primary || st.Remains != e.remains {
		e.drop()
		e.server, e.primary, e.remains, e.last, e.next = st.Postmaster, st.Primary, st.Remains, decide.Trial{}, time.Time{}
	}
	now := time.Now()
	if now.Before(e.next) {
		return
	}
	e.next = now.Add(tryEvery)
	if e.course.Turning() {
		e.next = now.Add(turnEvery)
	}
	if e.asked.IsZero() {
		e.asked = now
		go func() { e.looked <- e.a.cfg.Postgres.Disks() }()
	}
	if e.server == 0 || e.remains || len(e.open) >= maxTrials {
		return
	}
	if len(e.open) > 0 {
		if second := e.open[0].began.Add(e.patience() / 2); now.Before(second) {
			e.next = second
			return
		}
	}
	tctx, cancel := context.WithCancel(ctx)
	t := &trial{began: now, cancel: cancel}
	e.open = append(e.open, t)
	primary := e.primary
	go func() {
		tell := func(x tidings) {
			select {
			case e.said <- x:
			case <-tctx.Done():
			}
		}
		tell(tidings{t, true, e.a.cfg.Postgres.Try(tctx, primary, func() { tell(tidings{of: t}) })})
	}()
}

// drop gives every trial up.
func (e *examiner) drop() {
	for _, t := range e.open {
		t.cancel()
	}
	e.open = nil
}

func (e *examiner) take(x tidings) {
	i := slices.Index(e.open, x.of)
	switch {
	case i < 0: // of another server
		return
	case !x.ended:
		x.of.connected = true
		return
	}
	x.of.cancel()
	e.open = slices.Delete(e.open, i, i+1)
	e.last = x.Trial
	if !x.Failed {
		e.drop() // what hangs besides proves nothing any more
	}
	e.judge(x.of.began)
}

// judge takes in what is known now. began is when the look that has just ended did; zero: none has.
func (e *examiner) judge(began time.Time) {
	now, patience := time.Now(), e.patience()
	s := decide.Signs{Running: e.server != 0, Primary: e.primary, Remains: e.remains, Trial: e.last, Disks: e.disks}
	if began.IsZero() {
		began = now
	}
	if n := len(e.open); n == maxTrials && now.Sub(e.open[n-1].began) >= patience/2 {
		s.Hangs, s.Trial.Connected, s.Stopped = true, e.open[n-1].connected, e.a.cfg.Postgres.Stopped()
		began = e.open[0].began
	}
	if !e.asked.IsZero() && now.Sub(e.asked) >= patience/2 {
		s.Silent, began = true, e.asked
	}
	before := e.course.Now
	e.course = e.course.Look(decide.Diagnose(s, before.Reason), began, now, patience)
	e.tell(before, e.course.Now)
	if why := decide.CannotTell(e.last); why != e.warned {
		if e.warned = why; why != "" && e.course.Now.Reason == "" && !e.course.Turning() {
			e.a.cfg.Log.Warn("whether PostgreSQL is well is not known", "reason", why)
		}
	}
}

func (e *examiner) tell(before, now decide.Sickness) {
	if before == now {
		return
	}
	e.a.health.Store(&now)
	if now.Reason != "" {
		e.a.cfg.Log.Error("the server is sick", "reason", now.Reason, "text", now.Text)
	} else {
		e.a.cfg.Log.Info("the server is well again", "was", before.Text)
	}
	nudge(e.a.wake)
	nudge(e.a.news)
}

// sickness is what is told now.
func (a *Agent) sickness() decide.Sickness {
	if h := a.health.Load(); h != nil {
		return *h
	}
	return decide.Sickness{}
}

// withHealth adds it to a report.
func (a *Agent) withHealth(r fsm.Report) fsm.Report {
	s := a.sickness()
	r.Sick, r.SickText = s.Reason, s.Text
	return r
}
