package agent

import (
	"context"
	"time"

	"matriarch/fsm/decide"
)

const (
	heartbeatEvery = 400 * time.Millisecond // while there is a lease or a primary, which a frozen sentinel could not fence
	idleHeartbeat  = time.Second
	pingTimeout    = 2 * time.Second
)

// heartbeat asks the sentinel for its status, often enough that its silence is noticed, and at once when it says something.
func (a *Agent) heartbeat(ctx context.Context) {
	for {
		before := a.sentinel.get()
		_ = a.ping(ctx) // its silence is what the loop looks at
		if now := a.sentinel.get(); differs(before, now) {
			nudge(a.wake)
		}
		every := idleHeartbeat
		if s := a.cfg.Control.State(); before.Primary || s.Groups[s.Nodes[a.cfg.Self].Group].Lease.Holder == a.cfg.Self {
			every = heartbeatEvery
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-a.cfg.Sentinel.Events():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (a *Agent) ping(ctx context.Context) error {
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	a.sentinel.ask()
	s, err := a.cfg.Sentinel.Ping(pctx)
	a.sentinel.put(s, err)
	return err
}

func differs(a, b decide.Sentinel) bool {
	silent := a.Silent >= decide.SentinelSilence
	a.Silent, b.Silent = 0, 0
	return a != b || silent
}
