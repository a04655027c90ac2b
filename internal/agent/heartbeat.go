package agent

import (
	"context"
	"time"

	"matriarch/fsm/decide"
)

const (
	heartbeatEvery = 200 * time.Millisecond
	pingTimeout    = 2 * time.Second
)

// heartbeat asks the sentinel for its status, often enough that its silence is noticed, and at once when it says something.
func (a *Agent) heartbeat(ctx context.Context) {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	for {
		before := a.sentinel.get()
		_ = a.ping(ctx) // its silence is what the loop looks at
		if now := a.sentinel.get(); differs(before, now) {
			nudge(a.wake)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-a.cfg.Sentinel.Events():
		}
	}
}

func (a *Agent) ping(ctx context.Context) error {
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	s, err := a.cfg.Sentinel.Ping(pctx)
	a.sentinel.put(s, err)
	return err
}

func differs(a, b decide.Sentinel) bool {
	silent := a.Silent >= decide.SentinelSilence
	a.Silent, b.Silent = 0, 0
	return a != b || silent
}
