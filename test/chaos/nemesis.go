package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

// nemesis carries faults out and mends them.
type nemesis struct {
	f         *formation
	net       *network
	trace     *trace
	primary   func(group int) int
	wg        sync.WaitGroup
	mu        sync.Mutex
	errs      []error
	off       map[int]int // how many faults keep a host's agent from being started
	unplugged map[int]int // how many have its cable out
	plain     map[string]strike
	struck    []struck
}

// struck is a fault that was carried out.
type struck struct {
	fault
	at   time.Time
	host int
}

// run plays the plan; in the end everything is mended.
func (n *nemesis) run(ctx context.Context, faults []fault) error {
	n.off, n.unplugged, n.plain = map[int]int{}, map[int]int{}, n.strikes()
	maps.Copy(n.plain, n.staged())
	tctx, stop := context.WithCancel(ctx)
	defer stop()
	go n.tidy(tctx)
	for _, f := range faults {
		if !sleep(ctx, f.after) {
			break
		}
		n.wg.Go(func() {
			if err := n.play(ctx, f); err != nil {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.errs = append(n.errs, fmt.Errorf("fault %s: %w", f, err))
			}
		})
	}
	n.wg.Wait()
	return errors.Join(n.errs...)
}

func (n *nemesis) play(ctx context.Context, f fault) error {
	target := n.target(ctx, f)
	n.trace.note("begin %s: %s for %s, %s", fmt.Sprintf("#%d", f.id), f.kind, f.lasts, host(target))
	began := time.Now()
	mend, err := n.strike(ctx, f, target)
	if errors.Is(err, errBusy) {
		n.trace.note("end   #%d: %s, %s: left out: %v", f.id, f.kind, host(target), err)
		return nil
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.struck = append(n.struck, struck{f, began, target})
	n.mu.Unlock()
	sleep(ctx, f.lasts)
	if mend != nil {
		err = mend()
	}
	n.trace.note("end   #%d: %s, %s", f.id, f.kind, host(target))
	return err
}

func (n *nemesis) target(ctx context.Context, f fault) int {
	switch f.aim {
	case atPrimary:
		return n.primary(f.group)
	case atLeader:
		lctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if l, err := n.f.list(lctx); err == nil {
			for i := range groupOf {
				if l.Raft.Leader == host(i) {
					return i
				}
			}
		}
	}
	return f.node
}

// cutRules are those of faults that only concern the network between hosts.
func cutRules(f fault, t int) []string {
	var out []string
	hosts := len(groupOf)
	switch f.kind {
	case "halves":
		for a := range hosts {
			for b := range a {
				if f.split>>a&1 != f.split>>b&1 {
					out = append(out, both(a, b)...)
				}
			}
		}
	case "cut all":
		for a := range hosts {
			for b := range a {
				out = append(out, both(a, b)...)
			}
		}
	case "ring": // everybody sees two neighbours, which is a majority with oneself
		for a := range hosts {
			out = append(out, both(a, (a+2)%hosts)...)
		}
	case "cut node", "cut from", "cut to":
		for b := range hosts {
			if b != t && f.kind != "cut to" {
				out = append(out, cut(t, b))
			}
			if b != t && f.kind != "cut from" {
				out = append(out, cut(b, t))
			}
		}
	case "cut peer port":
		out = cutPort(t, peerPort)
	case "cut 5432":
		out = cutPort(t, pgPort)
	case "loss":
		out = lose(t, 10+f.split)
	}
	return out
}
