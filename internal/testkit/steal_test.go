package testkit

import (
	"testing"
	"time"
)

func TestSlowed(t *testing.T) {
	begin := time.Now()
	at := func(s int, busy, stole float64) cpu {
		return cpu{begin.Add(time.Duration(s) * time.Second), busy, stole}
	}
	all := []cpu{at(0, 0, 0), at(10, 500, 0), at(20, 600, 300), at(30, 700, 300)}
	for _, c := range []struct {
		name  string
		all   []cpu
		since int
		want  float64
	}{
		{"nothing known", nil, 0, 1},
		{"nothing stolen", all[:2], 0, 1},
		{"all the time", all, 0, 10.0 / 7},
		{"three of four ticks in the middle", all[:3], 10, 4},
		{"from between two looks", all[:3], 15, 4},
		{"nothing since", all, 20, 1},
		{"nearly everything", []cpu{at(0, 0, 0), at(1, 1, 99)}, 0, 20},
	} {
		if got := slowed(c.all, begin.Add(time.Duration(c.since)*time.Second)); got != c.want {
			t.Errorf("%s: %g, want %g", c.name, got, c.want)
		}
	}
}

func TestLookAtCPU(t *testing.T) {
	if c, err := lookAtCPU(); err != nil || c.busy <= 0 || c.stole < 0 {
		t.Errorf("%+v %v", c, err)
	}
}
