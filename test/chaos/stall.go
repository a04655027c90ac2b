package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

const (
	// excuse is the stall of the machine that, with the one that a scenario makes, may rightly cost a primary its role.
	excuse = 300 * time.Millisecond
	// plays is how often a scenario is played when such a stall took its demand away; stalled is how the inner program tells.
	plays   = 3
	stalled = 3
)

var errStalled = errors.New("the machine stalled: this run shows nothing")

// worstStall tells, when ctx has ended, by how much this machine was late at worst: its nodes were, too.
func worstStall(ctx context.Context) <-chan time.Duration {
	const every = 50 * time.Millisecond
	out := make(chan time.Duration, 1)
	go func() {
		var worst time.Duration
		for last := time.Now(); sleep(ctx, every); last = time.Now() {
			worst = max(worst, time.Since(last)-every)
		}
		out <- worst
	}()
	return out
}

// again plays in a sandbox until a run shows something. A machine that is never calm enough leaves the demand open; what else was seen held.
func again(args []string) (ran bool, err error) {
	for range plays {
		ran, err = sandbox(args)
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != stalled {
			return ran, err
		}
	}
	return ran, nil
}

// judge adds to a verdict what only this scenario demands, or says which demand the machine's own stall took away.
func (s scenario) judge(v *verdict) error {
	if gap := v.slowest(); s.gap > 0 && gap > s.gap+v.stall {
		v.bad("no write was acknowledged for %s, %s are allowed and %s that the machine stalled", gap, s.gap, v.stall)
	}
	for _, l := range v.loads {
		acks := l.sampler.acks
		if !s.stays || len(acks) == 0 || acks[0].node == acks[len(acks)-1].node {
			continue
		}
		moved := fmt.Sprintf("%s: %s is primary instead of %s", l, host(acks[len(acks)-1].node), host(acks[0].node))
		if v.stall >= excuse {
			return fmt.Errorf("%w: %s, after %s", errStalled, moved, v.stall)
		}
		v.bad("%s", moved)
	}
	return nil
}
