package fence

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	e1 = Epoch{Inc: 1, N: 1}
	e2 = Epoch{Inc: 1, N: 2}
	e3 = Epoch{Inc: 2, N: 1}
)

func at(s float64) Stamp {
	return Stamp{Raw: time.Duration(s * float64(time.Second)), Boot: time.Duration(s*float64(time.Second)) + time.Hour}
}

func lease(e Epoch, s float64) Deadline { return NewDeadline("me", e, at(s)) }

func TestDeadlineIsTheEarlierClock(t *testing.T) {
	d := lease(e1, 10)
	for _, c := range []struct {
		name string
		now  Stamp
		left time.Duration
	}{
		{"both before", at(9), time.Second},
		{"RAW ahead", Stamp{Raw: at(10).Raw, Boot: at(1).Boot}, 0},
		{"BOOTTIME ahead", Stamp{Raw: at(1).Raw, Boot: at(11).Boot}, -time.Second},
		{"both after", at(12), -2 * time.Second},
	} {
		if got := d.Left(c.now); got != c.left || d.Passed(c.now) != (c.left <= 0) {
			t.Errorf("%s: left %v, passed %v; want left %v", c.name, got, d.Passed(c.now), c.left)
		}
	}
}

func TestClockRises(t *testing.T) {
	a := Clock()
	b := Clock()
	if a.Raw <= 0 || a.Boot <= 0 || b.Raw < a.Raw || b.Boot < a.Boot {
		t.Errorf("%v then %v", a, b)
	}
}

func TestAccept(t *testing.T) {
	known := lease(e2, 10)
	for _, c := range []struct {
		name string
		d    Deadline
		code Code
	}{
		{"later, same epoch", lease(e2, 11), ""},
		{"repeated", known, ""},
		{"earlier, same epoch", lease(e2, 9), ErrStale},
		{"RAW later, BOOTTIME earlier", Deadline{Instance: "me", Epoch: e2, Raw: known.Raw + 1, Boot: known.Boot - 1}, ErrStale},
		{"RAW earlier, BOOTTIME later", Deadline{Instance: "me", Epoch: e2, Raw: known.Raw - 1, Boot: known.Boot + 1}, ErrStale},
		{"lower epoch, later", lease(e1, 99), ErrStale},
		{"higher epoch, earlier", lease(Epoch{Inc: 1, N: 3}, 5), ""},
		{"higher incarnation, lower counter", lease(e3, 5), ""},
		{"no epoch", lease(Epoch{}, 50), ErrInvalid},
		{"another instance", NewDeadline("other", e3, at(50)), ErrInstance},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := guard{instance: "me"}
			must(t, g.accept(known, at(0)))
			err := g.accept(c.d, at(0))
			if c.code == "" {
				must(t, err)
				if g.latest != c.d {
					t.Errorf("latest is %v", g.latest)
				}
				return
			}
			wantCode(t, err, c.code)
			if g.latest != known {
				t.Errorf("a refused deadline changed the known one to %v", g.latest)
			}
		})
	}
}

func TestBind(t *testing.T) {
	for _, c := range []struct {
		name  string
		known Deadline
		setup func(*guard)
		epoch Epoch
		now   float64
		code  Code
	}{
		{name: "valid", known: lease(e1, 10), epoch: e1, now: 1},
		{name: "no deadline", epoch: e1, code: ErrDeadline},
		{name: "no epoch", known: lease(e1, 10), code: ErrInvalid},
		{name: "lower epoch", known: lease(e2, 10), epoch: e1, code: ErrDeadline},
		{name: "higher epoch", known: lease(e1, 10), epoch: e2, code: ErrDeadline},
		{name: "passed", known: lease(e1, 10), epoch: e1, now: 10, code: ErrDeadline},
		{name: "in the soft stop", known: lease(e1, 10), epoch: e1, now: 9, code: ErrDeadline},
		{name: "promoted by another hand", known: lease(e1, 10), epoch: e1, setup: func(g *guard) { g.primary = true }, code: ErrEpoch},
		{name: "epoch used before", known: lease(e1, 10), epoch: e1, setup: func(g *guard) { _, _ = g.bind(e1, at(0)); g.release() }, code: ErrEpoch},
		{
			name: "runs under another epoch", known: lease(e1, 10), epoch: e2,
			setup: func(g *guard) { _, _ = g.bind(e1, at(0)); _ = g.accept(lease(e2, 20), at(0)) }, code: ErrEpoch,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := guard{instance: "me"}
			if !c.known.Epoch.IsZero() {
				must(t, g.accept(c.known, at(0)))
			}
			if c.setup != nil {
				c.setup(&g)
			}
			again, err := g.bind(c.epoch, at(c.now))
			if c.code != "" {
				wantCode(t, err, c.code)
				return
			}
			must(t, err)
			if again {
				t.Error("the first promotion counts as a repetition")
			}
			if again, err = g.bind(c.epoch, at(c.now)); err != nil || !again {
				t.Errorf("repeated: %v, %v", again, err)
			}
		})
	}
}

func TestEnd(t *testing.T) {
	bound := func(g *guard) { _ = g.accept(lease(e1, 10), at(0)); _, _ = g.bind(e1, at(0)) }
	for _, c := range []struct {
		name  string
		setup func(*guard)
		end   Stamp
		armed bool
	}{
		{"plain standby", func(*guard) {}, Stamp{}, false},
		{"standby with a lease", func(g *guard) { _ = g.accept(lease(e1, 10), at(0)) }, Stamp{}, false},
		{"promotion ordered", bound, at(10), true},
		{"renewed", func(g *guard) { bound(g); _ = g.accept(lease(e1, 12), at(0)) }, at(12), true},
		{"later epoch does not extend", func(g *guard) { bound(g); _ = g.accept(lease(e2, 99), at(0)) }, at(10), true},
		{"hand-made primary", func(g *guard) { g.primary = true }, at(5), true},
		{"hand-made primary with a lease", func(g *guard) { _ = g.accept(lease(e1, 10), at(0)); g.primary = true }, at(5), true},
		{"adopted standby", func(g *guard) { _ = g.adopt(false, 0, at(0)) }, Stamp{}, false},
		{"adopted primary in its grace", func(g *guard) { _ = g.adopt(true, 6*time.Second, at(0)) }, at(6).Add(SoftStop), true},
		{"adopted primary with its first deadline", func(g *guard) {
			_ = g.adopt(true, 6*time.Second, at(0))
			_ = g.accept(lease(e1, 10), at(5))
		}, at(10), true},
		{"adopted primary, deadline after the grace", func(g *guard) {
			_ = g.adopt(true, 6*time.Second, at(0))
			_ = g.accept(lease(e1, 10), at(6))
		}, at(6).Add(SoftStop), true},
		{"adopted primary under the known deadline", func(g *guard) {
			_ = g.accept(lease(e1, 10), at(0))
			_ = g.adopt(true, 0, at(0))
		}, at(10), true},
		{"gone", func(g *guard) { bound(g); g.primary = true; g.release() }, Stamp{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := guard{instance: "me"}
			c.setup(&g)
			if end, armed := g.end(at(5)); end != c.end || armed != c.armed {
				t.Errorf("got %v %v, want %v %v", end, armed, c.end, c.armed)
			}
		})
	}
}

func TestAdoptPrimaryNeedsDeadlineOrGrace(t *testing.T) {
	g := guard{instance: "me"}
	wantCode(t, g.adopt(true, 0, at(0)), ErrDeadline)
	if _, armed := g.end(at(0)); armed {
		t.Error("a refused adoption left something to fence")
	}
}

// TestGuardProperties plays random histories against what the lease promises.
func TestGuardProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := guard{instance: "me"}
		now := at(0)
		accepted := map[Epoch]Deadline{} // the last of each epoch that counted
		used := map[Epoch]bool{}
		epoch := rapid.Custom(func(t *rapid.T) Epoch {
			return Epoch{Inc: rapid.Uint64Range(1, 2).Draw(t, "inc"), N: rapid.Uint64Range(1, 3).Draw(t, "n")}
		})
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before := g
			switch rapid.SampledFrom([]string{"accept", "accept", "bind", "role", "release", "pass"}).Draw(t, "step") {
			case "accept":
				d := NewDeadline(rapid.SampledFrom([]string{"me", "me", "me", "other"}).Draw(t, "instance"), epoch.Draw(t, "epoch"),
					now.Add(time.Duration(rapid.IntRange(-2, 8).Draw(t, "seconds"))*time.Second))
				d.Boot += time.Duration(rapid.IntRange(-1, 1).Draw(t, "skew")) * time.Second
				if g.accept(d, now) == nil {
					accepted[d.Epoch] = d
					if d.Instance != "me" || d.Epoch.Less(before.latest.Epoch) {
						t.Fatalf("accepted %v after %v", d, before.latest)
					}
				} else if g != before {
					t.Fatalf("a refused deadline changed %+v to %+v", before, g)
				}
			case "bind":
				e := epoch.Draw(t, "epoch")
				again, err := g.bind(e, now)
				if err == nil && !again {
					if used[e] || accepted[e] != before.latest || accepted[e].Left(now) <= SoftStop || before.primary {
						t.Fatalf("promoted under %v at %v: used %v, known %v, primary %v", e, now, used[e], before.latest, before.primary)
					}
					used[e] = true
				}
			case "role":
				g.primary = true
			case "release":
				g.release()
			case "pass":
				now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "seconds")) * time.Second)
			}
			end, armed := g.end(now)
			bound := g.bound.Epoch
			switch {
			case !bound.IsZero() && (!armed || end != accepted[bound].Stamp()):
				t.Fatalf("bound to %v until %v, but its last deadline is %v", bound, end, accepted[bound])
			case bound.IsZero() && g.primary && (!armed || end.Until(now) > 0):
				t.Fatalf("a primary of no epoch may run until %v, now is %v", end, now)
			case bound.IsZero() && !g.primary && armed:
				t.Fatal("a plain standby has a deadline")
			}
		}
	})
}
