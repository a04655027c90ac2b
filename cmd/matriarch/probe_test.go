package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestWitness: a primary is called dead only by who had the time to find out.
func TestWitness(t *testing.T) {
	refused := func(context.Context) error { return errors.New("connection refused") }
	silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	stuck := func(context.Context) error { time.Sleep(probeTimeout + 2*stall); return context.DeadlineExceeded }
	ago := func(d time.Duration) func(context.Context) (time.Duration, bool) {
		return func(context.Context) (time.Duration, bool) { return d, true }
	}
	nothing := func(context.Context) (time.Duration, bool) { return 0, false }
	for _, c := range []struct {
		name  string
		port  func(context.Context) error
		heard func(context.Context) (time.Duration, bool)
		dead  bool
		says  string // of the answer, or of the error
		took  time.Duration
	}{
		{"answers", func(context.Context) error { return nil }, nothing, false, "its port answers", 0},
		{"answers, own server slow", func(context.Context) error { time.Sleep(probeTimeout - 1); return nil }, slowly(nothing), false, "its port answers", probeTimeout - 1},
		{"refuses, but streams", refused, ago(quiet - 1), false, "heard of it 499 ms ago", 0},
		{"refuses, heard of long ago", refused, ago(quiet), true, "its port: connection refused", 0},
		{"refuses, streams nothing", refused, nothing, true, "its port: connection refused", 0},
		{"refuses, own server slow", refused, slowly(ago(0)), true, "its port: connection refused", probeTimeout},
		{"silent", silent, nothing, true, "its port: no answer within 500 ms", probeTimeout},
		{"silent, but streams", silent, ago(0), false, "heard of it 0 ms ago", probeTimeout},
		{"silent, own server slow", silent, slowly(ago(0)), true, "its port: no answer within 500 ms", probeTimeout},
		{"this host stood still", stuck, nothing, false, "stood still for 200 ms", probeTimeout + 2*stall},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				p, err := witness(t.Context(), c.port, c.heard)
				took, says := time.Since(began), p.Text
				time.Sleep(3 * probeTimeout) // until nobody is left who was slow
				if err != nil {
					says = err.Error()
				}
				if p.Dead != c.dead || !strings.Contains(says, c.says) || took != c.took {
					t.Errorf("dead %t after %s: %q; want %t after %s: %q", p.Dead, took, says, c.dead, c.took, c.says)
				}
			})
		})
	}
}

// slowly answers when nobody waits any more.
func slowly(heard func(context.Context) (time.Duration, bool)) func(context.Context) (time.Duration, bool) {
	return func(ctx context.Context) (time.Duration, bool) {
		time.Sleep(3 * probeTimeout)
		return heard(ctx)
	}
}
