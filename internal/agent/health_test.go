package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"matriarch/fsm"
	"matriarch/fsm/decide"
)

// told is what the last keepalive said, and the time of the first that said so in a row.
func (b *bed) told() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.beats) == 0 {
		return ""
	}
	return b.beats[len(b.beats)-1].Report.Sick
}

// until waits for what keepalives say and returns how long that took.
func (b *bed) until(reason string) time.Duration {
	b.t.Helper()
	began := time.Now()
	for b.told() != reason {
		if time.Since(began) > time.Minute {
			b.t.Fatalf("keepalives say %q, want %q", b.told(), reason)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}

func between(t *testing.T, what string, d, least, most time.Duration) {
	t.Helper()
	if d < least || d > most {
		t.Errorf("%s took %s, want %s to %s", what, d, least, most)
	}
}

// stuck is a try that hangs until it is let go.
func stuck(open *atomic.Int32, most *atomic.Int32, connects bool, let chan struct{}) func(context.Context, bool, func()) decide.Trial {
	return func(ctx context.Context, _ bool, connected func()) decide.Trial {
		if n := open.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer open.Add(-1)
		if connects {
			connected()
		}
		select {
		case <-let:
			return decide.Trial{Connected: true}
		case <-ctx.Done():
			return decide.Trial{Failed: true, Text: ctx.Err().Error()}
		}
	}
}

// TestSicknessIsTold: after the patience, not before; and so is the cure. No more than two sessions hang.
func TestSicknessIsTold(t *testing.T) {
	for name, tc := range map[string]struct {
		self     fsm.NodeID
		prepare  func(*bed)
		connects bool
		reason   string
	}{
		"no session":              {"a", primaryBed, false, decide.SickNoSessions},
		"no write":                {"a", primaryBed, true, decide.SickLogHangs},
		"no session on a standby": {"b", standbyBed, false, decide.SickNoSessions},
	} {
		t.Run(name, func(t *testing.T) {
			inBed(t, tc.self, tc.prepare, func(b *bed) {
				time.Sleep(3 * time.Second)
				let := make(chan struct{})
				var open, most atomic.Int32
				b.set(func() { b.try = stuck(&open, &most, tc.connects, let) })
				between(t, "telling", b.until(tc.reason), 5*time.Second, 9*time.Second)
				time.Sleep(time.Minute)
				if b.told() != tc.reason || most.Load() != 2 {
					t.Errorf("after a minute: %q, with up to %d sessions", b.told(), most.Load())
				}
				if s := b.agent.sickness(); s.Text == "" || b.agent.Snapshot().Report.SickText != s.Text {
					t.Errorf("it tells %+v, its report is %+v", s, b.agent.Snapshot().Report)
				}
				close(let)
				between(t, "telling the cure", b.until(""), 5*time.Second, 8*time.Second)
			})
		})
	}
}

// TestNoSickness: moments, refusals with a reason, and what a stop refuses.
func TestNoSickness(t *testing.T) {
	fails := func(code string) func(context.Context, bool, func()) decide.Trial {
		return func(context.Context, bool, func()) decide.Trial {
			return decide.Trial{Failed: true, Code: code, Text: code}
		}
	}
	watch := func(b *bed, d time.Duration) {
		for range int(d / (100 * time.Millisecond)) {
			time.Sleep(100 * time.Millisecond)
			if r := b.told(); r != "" {
				b.t.Fatalf("keepalives say %q", r)
			}
		}
	}
	t.Run("moments", func(t *testing.T) {
		inBed(t, "a", primaryBed, func(b *bed) {
			for range 10 {
				b.set(func() { b.try = fails("53200") })
				watch(b, 4*time.Second)
				b.set(func() { b.try = nil })
				watch(b, 3*time.Second)
			}
		})
	})
	t.Run("too many clients", func(t *testing.T) {
		inBed(t, "a", primaryBed, func(b *bed) {
			b.set(func() { b.try = fails("53300") })
			watch(b, 30*time.Second)
		})
	})
	t.Run("a stop that takes its time", func(t *testing.T) {
		inBed(t, "a", func(b *bed) {
			primaryBed(b)
			b.hooks["stop"] = hang
		}, func(b *bed) {
			time.Sleep(time.Second)
			b.set(func() {
				b.try = fails("57P03")
				b.group(func(g *fsm.Group) {
					g.Op = &fsm.Operation{ID: "o", Kind: fsm.Switchover, To: "b", Phase: fsm.Demote, Epoch: ep(1)}
				})
			})
			watch(b, 9*time.Second)
			if b.count("stop") == 0 {
				t.Error("nothing was stopped")
			}
		})
	})
	t.Run("well at rest, and cheap", func(t *testing.T) {
		inBed(t, "a", primaryBed, func(b *bed) {
			watch(b, time.Minute)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.tries < 25 || b.tries > 35 {
				t.Errorf("%d tries in a minute", b.tries)
			}
		})
	})
}

// TestSicknessIsToldByALoopThatHangs: a disk that hangs takes the node's loop with it, but not its keepalives.
func TestSicknessIsToldByALoopThatHangs(t *testing.T) {
	inBed(t, "a", primaryBed, func(b *bed) {
		time.Sleep(2 * time.Second)
		block := make(chan struct{})
		b.set(func() { b.block = block })
		time.Sleep(time.Second)
		b.set(func() { b.disks = []decide.Disk{{Path: "/d", Errno: "EIO", Inodes: -1}} })
		b.until(decide.SickIO)
		if b.agent.Snapshot().Report.Sick != "" {
			t.Error("the loop goes on: nothing was tested")
		}
		close(block)
		b.set(func() { b.block = nil })
	})
}
