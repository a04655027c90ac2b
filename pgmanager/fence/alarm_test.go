package fence

import (
	"testing"
	"time"
)

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	must(t, err)
	defer a.close()
	rings := func(within time.Duration) bool {
		select {
		case <-a.rings():
			return true
		case <-time.After(within):
			return false
		}
	}
	began := Clock().Boot
	must(t, a.set(began+time.Hour))
	must(t, a.set(began+50*time.Millisecond)) // moved to an earlier instant
	if !rings(within) || Clock().Boot-began < 50*time.Millisecond {
		t.Errorf("the alarm rang %s after it was set to 50 ms, or never", Clock().Boot-began)
	}
	must(t, a.set(began)) // long past
	if !rings(within) {
		t.Error("an alarm in the past does not ring")
	}
	must(t, a.set(began))
	must(t, a.set(began+time.Hour))
	if rings(50 * time.Millisecond) {
		t.Error("the alarm rang without a reason")
	}
	var none *alarm
	if none.rings() != nil {
		t.Error("no alarm rings")
	}
	none.close()
}

// What is due decides the next look: the soft stop, the end once fenced, an ordered stop before it. Near the end looks are close.
func TestNextLook(t *testing.T) {
	now := Stamp{Raw: time.Hour, Boot: 2 * time.Hour}
	lease := Deadline{Instance: "i", Epoch: Epoch{Inc: 1, N: 1}, Raw: now.Raw + 5*time.Second, Boot: now.Boot + 5*time.Second}
	soon := now.Add(time.Second)
	tests := []struct {
		name string
		s    sentinel
		bell bool
		want time.Duration
	}{
		{"half the way to the soft stop", sentinel{phase: running}, true, 2 * time.Second},
		{"no alarm", sentinel{phase: running}, false, checkEvery},
		{"half the way to the end", sentinel{phase: stopping, fenced: true}, true, 2500 * time.Millisecond},
		{"an ordered stop comes first", sentinel{phase: stopping, fenced: true, killAt: &soon}, true, 500 * time.Millisecond},
	}
	for _, tt := range tests {
		s := &tt.s
		s.guard.bound, s.guard.primary = lease, true
		if tt.bell {
			s.alarm = &alarm{}
		}
		if got, ok := s.next(now); !ok || got != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.name, got, ok, tt.want)
		}
	}
	s := &sentinel{phase: running, alarm: &alarm{}}
	s.guard.bound, s.guard.primary = lease, true
	for _, left := range []time.Duration{1500 * time.Millisecond, 150 * time.Millisecond, 40 * time.Millisecond, 0} {
		got, _ := s.next(now.Add(4*time.Second - left))
		if want := min(left, max(left/2, checkEvery)); got != want {
			t.Errorf("%s before the soft stop: look in %s, want %s", left, got, want)
		}
	}
}
