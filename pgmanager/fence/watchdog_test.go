package fence

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fileDevice is a watchdog that is a plain file: a dot for every pat, V for the end.
type fileDevice struct{ f *os.File }

func plainFile(path string) (device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	return fileDevice{f}, nil
}

func (d fileDevice) write(s string) error {
	_, err := d.f.WriteString(s)
	return err
}
func (d fileDevice) pat() error                                        { return d.write(".") }
func (d fileDevice) setTimeout(t time.Duration) (time.Duration, error) { return t, d.write("T") }
func (d fileDevice) disarm() error                                     { return errors.Join(d.write("V"), d.f.Close()) }
func (d fileDevice) abandon()                                          { _ = d.f.Close() }

// fake is a watchdog that resets its machine when it must.
type fake struct {
	takes            time.Duration // what it answers to setTimeout
	nowayout, broken bool
	pats             []Stamp
	open             bool
	now              *Stamp
}

func (f *fake) pat() error {
	if f.broken {
		return unix.EIO
	}
	f.pats = append(f.pats, *f.now)
	return nil
}
func (f *fake) setTimeout(time.Duration) (time.Duration, error) { return f.takes, nil }
func (f *fake) disarm() error {
	if f.nowayout {
		return unix.EBUSY
	}
	f.open = false
	return nil
}
func (f *fake) abandon() { f.open = false }

func newDog(mode WatchdogMode, f *fake) *watchdog {
	return &watchdog{
		WatchdogRequest: WatchdogRequest{Mode: mode, Device: "/nowhere/watchdog"}, log: slog.New(slog.DiscardHandler),
		open: func(string) (device, error) {
			if f == nil {
				return nil, unix.ENOENT
			}
			f.open = true
			return f, nil
		},
	}
}

func TestArm(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    WatchdogMode
		dev     *fake
		end     float64
		armed   bool
		refused bool
	}{
		{"off", WatchdogOff, &fake{takes: 2 * time.Second}, 5, false, false},
		{"never told", "", &fake{takes: 2 * time.Second}, 5, false, false},
		{"automatic", WatchdogAutomatic, &fake{takes: 2 * time.Second}, 5, true, false},
		{"required", WatchdogRequired, &fake{takes: 2 * time.Second}, 5, true, false},
		{"automatic, no device", WatchdogAutomatic, nil, 5, false, false},
		{"required, no device", WatchdogRequired, nil, 5, false, true},
		{"required, timeout longer than the lease", WatchdogRequired, &fake{takes: 10 * time.Second}, 5, false, true},
		{"automatic, timeout longer than the lease", WatchdogAutomatic, &fake{takes: 10 * time.Second}, 5, false, false},
		{"longer timeout, longer lease", WatchdogRequired, &fake{takes: 10 * time.Second}, 15, true, false},
		{"required, no timeout", WatchdogRequired, &fake{}, 5, false, true},
		{"required, broken", WatchdogRequired, &fake{takes: 2 * time.Second, broken: true}, 5, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := at(0)
			if c.dev != nil {
				c.dev.now = &now
			}
			w := newDog(c.mode, c.dev)
			err := w.arm(now, at(c.end))
			if c.refused {
				wantCode(t, err, ErrWatchdog)
			} else {
				must(t, err)
			}
			if w.armed() != c.armed || (c.dev != nil && c.dev.open != c.armed) {
				t.Errorf("armed %v, want %v, device %+v", w.armed(), c.armed, c.dev)
			}
			if st := w.status(now); st != nil && (st.State == WatchdogArmed) != c.armed {
				t.Errorf("status %+v", st)
			}
			if c.armed && len(c.dev.pats) != 1 {
				t.Errorf("%d pats on arming", len(c.dev.pats))
			}
		})
	}
}

// A machine is never reset after the end of its lease, nor while the lease is renewed; and when it is not renewed, an orderly fence has
// until shortly before the reset.
func TestWatchdogRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		takes := time.Duration(rapid.IntRange(1, 3).Draw(t, "timeout")) * time.Second
		now := at(0)
		f := &fake{takes: takes, now: &now}
		w := newDog(WatchdogRequired, f)
		end := now.Add(takes + time.Duration(rapid.IntRange(500, 5000).Draw(t, "lease_ms"))*time.Millisecond)
		if err := w.arm(now, end); err != nil {
			t.Fatal(err)
		}
		renewals := rapid.IntRange(0, 20).Draw(t, "renewals")
		for step := 0; ; step++ {
			d, ok := w.next(now, end)
			if !ok {
				break
			}
			now = now.Add(max(d, time.Millisecond) + time.Duration(rapid.IntRange(0, 30).Draw(t, "late_ms"))*time.Millisecond)
			if reset := f.pats[len(f.pats)-1].Add(takes); reset.Until(now) <= 0 {
				t.Fatalf("reset at %v while the lease held until %v", reset, end)
			}
			if step < renewals {
				end = now.Add(takes + time.Duration(rapid.IntRange(500, 5000).Draw(t, "renewed_ms"))*time.Millisecond)
			}
			w.tend(now, end)
			if reset := f.pats[len(f.pats)-1].Add(takes); end.Until(reset) < 0 {
				t.Fatalf("patted at %v: reset at %v, after the end %v", now, reset, end)
			}
		}
		if reset := f.pats[len(f.pats)-1].Add(takes); end.Add(-killLead).Until(reset) > 0 {
			t.Fatalf("reset at %v, before everything is killed at %v", reset, end.Add(-killLead))
		}
	})
}

// A driver that does not let go is patted for ever, and the next server uses it again.
func TestNoWayOut(t *testing.T) {
	now := at(0)
	f := &fake{takes: 2 * time.Second, nowayout: true, now: &now}
	w := newDog(WatchdogRequired, f)
	must(t, w.arm(now, at(5)))
	w.disarm(now)
	if w.armed() || w.status(now).Problem == "" {
		t.Errorf("armed %v, %+v", w.armed(), w.status(now))
	}
	for range 20 {
		d, ok := w.next(now, Stamp{})
		if !ok {
			t.Fatal("not tended any more")
		}
		now = now.Add(max(d, time.Millisecond))
		if f.pats[len(f.pats)-1].Add(f.takes).Until(now) <= 0 {
			t.Fatal("reset although the server ended in order")
		}
		w.tend(now, Stamp{})
	}
	must(t, w.arm(now, now.Add(5*time.Second)))
	if !w.armed() {
		t.Error("not armed again")
	}
}

func TestRenounce(t *testing.T) {
	g := guard{instance: "me"}
	must(t, g.accept(lease(e1, 10), at(0)))
	must(t, g.renounce(e1))
	_, err := g.bind(e1, at(0))
	wantCode(t, err, ErrEpoch)
	must(t, g.accept(lease(e2, 10), at(0)))
	_, err = g.bind(e2, at(0))
	must(t, err)
	wantCode(t, g.renounce(e2), ErrEpoch)
	must(t, g.renounce(e1))
}

func (r *rig) watchdog(mode WatchdogMode, file string) {
	r.t.Helper()
	_, err := r.c.Watchdog(r.t.Context(), WatchdogRequest{Mode: mode, Device: file})
	must(r.t, err)
}

func (r *rig) patted(file string) string {
	r.t.Helper()
	b, err := os.ReadFile(file)
	must(r.t, err)
	return string(b)
}

func TestWatchdogOfAPrimary(t *testing.T) {
	r := newRig(t)
	r.initData()
	file := filepath.Join(r.base, "watchdog")
	r.watchdog(WatchdogRequired, file)
	r.start()
	if st := r.status().Watchdog; st == nil || st.State != WatchdogFailed {
		t.Fatalf("status without a device: %+v", st)
	}
	r.lease(e1, time.Minute)
	_, err := r.c.Promote(t.Context(), e1)
	wantCode(t, err, ErrWatchdog)
	if st := r.status(); st.Role != RoleStandby || !st.Epoch.IsZero() {
		t.Fatalf("after the refusal: %+v", st)
	}
	must(t, os.WriteFile(file, nil, 0o600))
	_, err = r.c.Promote(t.Context(), e1)
	wantCode(t, err, ErrEpoch) // used up

	dl := r.lease(e2, time.Minute)
	_, err = r.c.Promote(t.Context(), e2)
	must(t, err)
	r.event(RoleChange)
	if st := r.status().Watchdog; st == nil || st.State != WatchdogArmed || st.TimeoutMS != watchdogTimeout.Milliseconds() {
		t.Fatalf("status of a primary: %+v", st)
	}
	r.await("it is patted", func() bool { return strings.Count(r.patted(file), ".") > 3 })
	if got := r.patted(file); got[:2] != "T." || strings.Contains(got, "V") {
		t.Fatalf("the device got %q while the server ran", got)
	}
	_ = dl
	_, err = r.c.Stop(t.Context(), StopRequest{Mode: Fast})
	must(t, err)
	if got := r.patted(file); !strings.HasSuffix(got, "V") {
		t.Fatalf("the device got %q although the server ended", got)
	}
	if st := r.status().Watchdog; st.State != WatchdogIdle {
		t.Errorf("status in the end: %+v", st)
	}
}

// A promotion that is under way is not let go of because it was ordered again and refused.
func TestWatchdogRefusesARepeatedOrder(t *testing.T) {
	r := newRig(t)
	r.initData()
	file := filepath.Join(r.base, "watchdog")
	r.watchdog(WatchdogAutomatic, file)
	st := r.start()
	r.lease(e1, time.Minute)
	must(t, unix.Kill(st.Postmaster, unix.SIGSTOP))
	_, err := r.c.Promote(t.Context(), e1)
	must(t, err)
	r.watchdog(WatchdogRequired, file)
	_, err = r.c.Promote(t.Context(), e1)
	wantCode(t, err, ErrWatchdog)
	if e := r.status().Epoch; e != e1 {
		t.Errorf("bound to %s, and it may become writable", e)
	}
	wantCode(t, r.c.Renounce(t.Context(), e1), ErrEpoch)
	must(t, unix.Kill(st.Postmaster, unix.SIGCONT))
	r.event(RoleChange)
}

// A frozen sentinel does not pat, and one whose lease runs out stops patting, kills, and lets the machine live.
func TestWatchdogAtTheEndOfTheLease(t *testing.T) {
	r := newRig(t)
	r.initData()
	file := filepath.Join(r.base, "watchdog")
	must(t, os.WriteFile(file, nil, 0o600))
	r.watchdog(WatchdogAutomatic, file)
	_, dl := r.promoted(e1, 6*time.Second)
	if late := lateness(dl, r.event(Exited).Status.LastExit); late > 0 {
		t.Errorf("ended %v after the deadline", late)
	}
	if got := r.patted(file); !strings.HasSuffix(got, "V") {
		t.Errorf("the device got %q", got)
	}
	r.wantNone()
}
